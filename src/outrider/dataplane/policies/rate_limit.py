"""At most so many calls per second, by the generic cell rate algorithm (GCRA, ITU-T I.371).

One stored number per key, the theoretical arrival time; exact `Retry-After`; no timers.
"""

from __future__ import annotations

from hashlib import blake2b
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

from outrider.dataplane.policy import Policy
from outrider.model.failure import Failure, Kind

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

_MAX_KEYS: Final = 10_000
BY_CALLER: Final = b":caller"  # in place of a header: who has proven to call
# Bytes of a key that is kept as it is; of a longer one, a digest.
_LONGEST_KEY: Final = 64
# Bytes of an IPv6 address that tell callers apart: the rest is anybody's to choose within their network.
_NETWORK: Final = 8


class RateLimit(Policy):
    """`count` calls per `period` seconds, up to `burst` at once; per value of the header `key`, if given.

    Calls without that header share one allowance, and it counts for nothing where `Connection` names it or the guard
    has taken it off. Inbound calls that say nothing that counts have one per address. The time of a call is when it
    arrived, not when it was looked at.
    """

    __slots__ = ("_arrivals", "_interval", "_key", "_tolerance", "described")

    def __init__(
        self,
        count: float,
        period: float,
        burst: int,
        key: bytes | None = None,
        described: str = "",
    ) -> None:
        super().__init__()
        self._interval = period / count
        rounding = min(1e-6, self._interval * 1e-6)  # of a clock that has run for years
        self._tolerance = self._interval * (burst - 1) + rounding
        self._key = key
        self._arrivals: dict[bytes, float] = {}
        self.described = described

    def admit(self, call: Call) -> Failure | None:
        now = call.started
        key = b"" if self._key is None else self._key_of(call, self._key)
        arrivals = self._arrivals
        arrival = arrivals.get(key, now)
        if arrival < now:
            arrival = now
        elif arrival - now > self._tolerance:
            who = f" for this {self._key.decode().lstrip(':')}" if self._key else ""
            return Failure(
                Kind.RATE_LIMITED,
                f"rate_limit {self.described} of {call.route.shown} is used up{who}",
                retry_after=arrival - now - self._tolerance,
            )
        if len(arrivals) >= _MAX_KEYS and key not in arrivals:
            self._make_room(now)
            arrivals = self._arrivals
        arrivals[key] = arrival + self._interval
        return None

    def _key_of(self, call: Call, name: bytes) -> bytes:
        """Whose allowance the call draws on."""
        if name == BY_CALLER:
            key = call.caller.encode()
        else:
            key = call.noted.get(name, b"") if name not in call.nominated else b""
        if not key and call.route.inbound:
            return b"\x00" + _network(call.app.peer_address())
        return key if len(key) <= _LONGEST_KEY else b"\x00" + blake2b(key, digest_size=16).digest()

    def _make_room(self, now: float) -> None:
        """Forget keys whose allowance is full again; if all are busy, the ones closest to it."""
        fresh = {key: arrival for key, arrival in self._arrivals.items() if arrival > now}
        if len(fresh) >= _MAX_KEYS:
            busiest = sorted(fresh.items(), key=lambda item: item[1], reverse=True)
            fresh = dict(busiest[: _MAX_KEYS // 2])
        self._arrivals = fresh


def _network(address: bytes) -> bytes:
    """An IPv4 address, or the network of an IPv6 one."""
    return IPv6Address(address.decode()).packed[:_NETWORK] if b":" in address else address
