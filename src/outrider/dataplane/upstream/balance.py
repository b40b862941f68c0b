"""Which of several endpoints gets the next attempt.

`least-latency` is the default: the peak-sensitive moving average of Finagle's `PeakEwma`, times the attempts in flight.
It looks at all endpoints up to eight, and at two random ones beyond (Mitzenmacher, "The Power of Two Choices").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from random import randrange
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.upstream.cluster import Endpoint

Chooser = Callable[[Sequence["Endpoint"], "Call", float], "Endpoint"]

_LOOK_AT_ALL: Final = 8
# Seconds after which a latency that nobody has measured again counts for a third.
_FORGET: Final = 10.0
# Seconds that an endpoint counts for which has attempts in flight and has never answered.
_UNKNOWN: Final = 1.0


def learn(endpoint: Endpoint, seconds: float, now: float) -> None:
    """A latency was measured. A slower one counts at once, a faster one gradually."""
    known = endpoint.latency
    elapsed = max(0.0, now - endpoint.learned_at)
    if seconds >= known:
        endpoint.latency = seconds
    else:
        kept = math.exp(-elapsed / _FORGET)
        endpoint.latency = known * kept + seconds * (1.0 - kept)
    endpoint.learned_at = max(endpoint.learned_at, now)


def learn_failure(endpoint: Endpoint, seconds: float, now: float) -> None:
    """An attempt failed. However quickly it did, that must not make the endpoint the fastest."""
    learn(endpoint, max(seconds, min(2.0 * endpoint.latency or _UNKNOWN, _UNKNOWN)), now)


def cost(endpoint: Endpoint, now: float) -> float:
    """What an attempt there is expected to take, in seconds, for what is in flight there already."""
    latency = endpoint.latency
    in_flight = endpoint.in_flight
    if latency == 0.0:
        expected = _UNKNOWN * in_flight
    else:
        idle = now - endpoint.learned_at
        if idle > 1.0:
            latency *= math.exp(-idle / _FORGET)
        expected = latency * (in_flight + 1)
    return expected / endpoint.share(now)


def least_latency() -> Chooser:
    """The endpoint with the least expected time."""

    def choose(endpoints: Sequence[Endpoint], call: Call, now: float) -> Endpoint:
        count = len(endpoints)
        start = randrange(count)
        best = endpoints[start]
        least = cost(best, now)
        if count > _LOOK_AT_ALL:
            other = endpoints[(start + 1 + randrange(count - 1)) % count]
            return other if cost(other, now) < least else best
        for offset in range(1, count):
            other = endpoints[(start + offset) % count]
            expected = cost(other, now)
            if expected < least:
                best, least = other, expected
        return best

    return choose


def least_requests() -> Chooser:
    """The endpoint with the fewest attempts in flight for its weight; the scan starts anywhere, so that ties do not
    all go to the first."""

    def choose(endpoints: Sequence[Endpoint], call: Call, now: float) -> Endpoint:
        count = len(endpoints)
        start = randrange(count)
        best = endpoints[start]
        least = (best.in_flight + 1) / best.share(now)
        for offset in range(1, count):
            other = endpoints[(start + offset) % count]
            load = (other.in_flight + 1) / other.share(now)
            if load < least:
                best, least = other, load
        return best

    return choose


def round_robin() -> Chooser:
    """In turn, as often as the weights say, evenly spread ("smooth weighted round-robin", nginx)."""
    owed: dict[Endpoint, float] = {}

    def choose(endpoints: Sequence[Endpoint], call: Call, now: float) -> Endpoint:
        total = 0.0
        best = endpoints[0]
        for endpoint in endpoints:
            share = endpoint.share(now)
            total += share
            owed[endpoint] = owed.get(endpoint, 0.0) + share
            if owed[endpoint] > owed[best]:
                best = endpoint
        owed[best] -= total
        if len(owed) > 2 * len(endpoints) + 16:  # those that have gone
            for endpoint in [one for one in owed if one not in endpoints]:
                del owed[endpoint]
        return best

    return choose


def by_hash(header: bytes) -> Callable[[], Chooser]:
    """The same value of a header goes to the same endpoint while that is available, and only its own callers move
    when one goes ("rendezvous hashing", Thaler and Ravishankar). A call without the header goes to the least busy."""

    def make() -> Chooser:
        otherwise = least_requests()

        def choose(endpoints: Sequence[Endpoint], call: Call, now: float) -> Endpoint:
            value = call.noted.get(header)
            if not value:
                return otherwise(endpoints, call, now)
            best = endpoints[0]
            highest = -1.0
            for endpoint in endpoints:
                digest = blake2b(value, digest_size=7, key=endpoint.hash_key).digest()
                drawn = (int.from_bytes(digest) + 1) / (1 << 56)  # 0 < drawn <= 1
                score = endpoint.weight / -math.log(drawn) if drawn < 1.0 else math.inf
                if score > highest:
                    best, highest = endpoint, score
            return best

        return choose

    return make


BALANCERS: Final[dict[str, Callable[[], Chooser]]] = {
    "least-latency": least_latency,
    "least-requests": least_requests,
    "round-robin": round_robin,
}
HASH: Final = "hash:header:"


def chooser(balance: str) -> Chooser:
    """The chooser that a configuration names."""
    if balance.startswith(HASH):
        return by_hash(balance.removeprefix(HASH).lower().encode())()
    return BALANCERS[balance]()
