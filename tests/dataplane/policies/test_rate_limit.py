"""The rate limit: exactly the allowance, an exact Retry-After, keys apart from each other, memory bounded."""

from __future__ import annotations

import gc
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.call import Call
from outrider.dataplane.policies.rate_limit import BY_CALLER, RateLimit
from outrider.model.failure import Failure, Kind
from outrider.model.outcome import NEUTRAL
from tests.fakes import make_call, make_route

ROUTE = make_route()
KEY = b"x-user-id"


def at(now: float, user: bytes | None = None) -> Call:
    return make_call(headers={KEY: user} if user is not None else None, route=ROUTE, now=now)


def admitted(limit: RateLimit, now: float, user: bytes | None = None, times: int = 1) -> int:
    """How many of so many calls at this moment are let in."""
    return sum(limit.admit(at(now, user)) is None for _ in range(times))


def refusal(limit: RateLimit, now: float, user: bytes | None = None) -> Failure:
    verdict = limit.admit(at(now, user))
    assert verdict is not None
    return verdict


def test_the_burst_and_then_the_rate() -> None:
    """Up to `burst` at once, and one more each time an interval has passed."""
    limit = RateLimit(10, 1.0, 5)
    assert admitted(limit, 1000.0, times=20) == 5
    assert admitted(limit, 1000.099) == 0
    assert admitted(limit, 1000.1, times=20) == 1
    assert admitted(limit, 1000.5, times=20) == 4


def test_a_burst_of_one_is_an_even_flow() -> None:
    """Without a burst two calls are an interval apart."""
    limit = RateLimit(2, 1.0, 1)
    assert [admitted(limit, 1000.0 + half / 4) for half in range(8)] == [1, 0, 1, 0, 1, 0, 1, 0]


def test_after_a_pause_the_allowance_is_the_burst_and_not_more() -> None:
    """Silence saves up a burst, never two."""
    limit = RateLimit(10, 1.0, 5)
    admitted(limit, 1000.0, times=5)
    assert admitted(limit, 5000.0, times=50) == 5


@pytest.mark.parametrize(("count", "period", "burst"), [(100, 60, 20), (3, 1, 3), (7, 3600, 2), (1, 86400, 1)])
@pytest.mark.parametrize("start", [0.0, 1000.0, 3e6])
def test_retry_after_is_exact(count: float, period: float, burst: int, start: float) -> None:
    """Whoever comes back when told is let in; a moment earlier is too early."""
    limit = RateLimit(count, period, burst)
    assert admitted(limit, start, times=burst) == burst
    wait = refusal(limit, start).retry_after
    assert wait == pytest.approx(period / count, abs=1e-5)
    assert wait is not None
    assert admitted(limit, start + wait - 1e-3) == 0
    assert admitted(limit, start + wait + 1e-6) == 1


def test_a_refused_call_costs_nothing() -> None:
    """Knocking on a closed door does not keep it closed."""
    limit = RateLimit(1, 1.0, 1)
    admitted(limit, 1000.0)
    assert admitted(limit, 1000.5, times=1000) == 0
    assert admitted(limit, 1001.0) == 1


def test_the_refusal_names_limit_and_service() -> None:
    """A 429 of Outrider's own, that tells which limit of which service was reached."""
    limit = RateLimit(100, 60.0, 1, described="100/m")
    admitted(limit, 1000.0)
    failure = refusal(limit, 1000.0)
    assert failure.kind is Kind.RATE_LIMITED
    assert failure.kind.status == 429
    assert "100/m" in failure.detail
    assert "user" in failure.detail


def test_the_time_of_a_call_is_when_it_arrived() -> None:
    """A call that waited in line counts for its own moment."""
    limit = RateLimit(1, 1.0, 1)
    assert admitted(limit, 1000.0) == 1
    assert admitted(limit, 1000.0) == 0
    assert admitted(limit, 1001.0) == 1


def test_it_holds_no_permit() -> None:
    """The end of a call gives nothing back."""
    limit = RateLimit(1, 1.0, 1)
    call = at(1000.0)
    limit.admit(call)
    limit.observe(call, NEUTRAL)
    assert call.permits == []
    assert admitted(limit, 1000.0) == 0


# ---------------------------------------------------------------- keys


def test_keys_are_independent() -> None:
    """One user's calls do not use up another's allowance."""
    limit = RateLimit(1, 1.0, 2, KEY)
    for user in (b"a", b"b", b"c"):
        assert admitted(limit, 1000.0, user, times=5) == 2


def test_calls_without_the_header_share_one_allowance() -> None:
    """Leaving the header out is no way around the limit."""
    limit = RateLimit(1, 1.0, 2, KEY)
    assert admitted(limit, 1000.0, times=5) == 2
    assert admitted(limit, 1000.0, b"a", times=5) == 2


def test_the_refusal_names_the_key_but_not_its_value() -> None:
    """The app learns which header was counted; values stay out of logs."""
    limit = RateLimit(1, 1.0, 1, KEY)
    admitted(limit, 1000.0, b"secret-user")
    detail = refusal(limit, 1000.0, b"secret-user").detail
    assert "x-user-id" in detail
    assert "secret-user" not in detail


def remembered(limit: RateLimit) -> int:
    """Keys in memory."""
    return max((len(kept) for kept in gc.get_referents(limit) if isinstance(kept, dict)), default=0)


@pytest.mark.parametrize("gap", [0.0, 0.001])
def test_memory_of_keys_is_bounded(gap: float) -> None:
    """A caller that invents a key per call does not grow our memory."""
    limit = RateLimit(1, 60.0, 1, KEY)
    call = at(1000.0, b"")
    most = 0
    for number in range(25_000):
        call.noted[KEY] = b"%d" % number
        call.started += gap
        assert limit.admit(call) is None
        if number % 500 == 0:
            most = max(most, remembered(limit))
    assert 0 < most <= 10_000


def test_a_flood_of_keys_does_not_free_the_greediest() -> None:
    """Room is made at the cost of those who used least, not of those who used up everything."""
    limit = RateLimit(1, 60.0, 10, KEY)
    assert admitted(limit, 1000.0, b"greedy", times=20) == 10
    for number in range(25_000):
        limit.admit(at(1000.0, b"%d" % number))
    assert admitted(limit, 1000.0, b"greedy") == 0


# ---------------------------------------------------------------- against a simulation


class Bucket:
    """The textbook token bucket, in exact arithmetic."""

    def __init__(self, count: int, period: int, burst: int) -> None:
        self.rate, self.burst = Fraction(count, period), burst
        self.tokens, self.last = Fraction(burst), Fraction(0)

    def take(self, now: float) -> Fraction:
        """0 when a token was taken, else the exact time until there is one."""
        moment = Fraction(now)
        self.tokens = min(Fraction(self.burst), self.tokens + (moment - self.last) * self.rate)
        self.last = moment
        if self.tokens >= 1:
            self.tokens -= 1
            return Fraction(0)
        return (1 - self.tokens) / self.rate


@given(
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from([b"a", b"b", None])), max_size=80),
)
def test_it_is_a_token_bucket(count: int, period: int, burst: int, calls: list[tuple[int, bytes | None]]) -> None:
    """Call by call and key by key the verdicts and the Retry-After are those of a token bucket."""
    limit = RateLimit(count, period, burst, KEY)
    buckets: dict[bytes | None, Bucket] = {}
    now = 1000.0
    for pause, user in calls:
        now += pause / 64
        bucket = buckets.setdefault(user, Bucket(count, period, burst))
        verdict, wait = limit.admit(at(now, user)), bucket.take(now)
        if wait == 0:
            assert verdict is None
        else:
            assert verdict is not None
            assert verdict.retry_after == pytest.approx(float(wait), abs=1e-5)


@given(st.integers(1, 50), st.integers(1, 20), st.lists(st.floats(0, 0.5), max_size=150))
def test_never_more_than_rate_and_burst(count: int, burst: int, pauses: list[float]) -> None:
    """Over any stretch of time at most the burst and the rate's share of it are let in."""
    limit = RateLimit(count, 1.0, burst)
    now = 1000.0
    times: list[float] = []
    for pause in pauses:
        now += pause
        if limit.admit(at(now)) is None:
            times.append(now)
    for index, first in enumerate(times):
        assert len(times) - index <= burst + (times[-1] - first) * count + 1e-6


# ---------------------------------------------------------------- whose allowance


def inbound(user: bytes | None = None, *, caller: str = "", address: bytes = b"192.0.2.7", taken: bool = False) -> Call:
    """A call that comes in through the guard; `taken`: the guard has taken the user's name off."""
    call = make_call(headers={KEY: user} if user is not None else None, route=INBOUND, now=1000.0)
    call.caller = caller
    cast(Any, call.app).address = address
    if taken:
        call.nominated = frozenset((KEY,))
    return call


INBOUND = make_route(inbound=True)


def test_strangers_do_not_choose_their_allowance() -> None:
    """A user's name that the guard has taken off makes no fresh allowance, and uses up nobody's."""
    limit = RateLimit(1, 60.0, 2, KEY)
    assert sum(limit.admit(inbound(b"u%d" % number, taken=True)) is None for number in range(10)) == 2
    assert limit.admit(inbound(b"u1", caller="web")) is None


def test_strangers_have_one_allowance_per_address() -> None:
    """One stranger does not use up another one's; all of an IPv6 network are one."""
    for key in (KEY, BY_CALLER):
        limit = RateLimit(1, 60.0, 1, key)
        addresses = [b"192.0.2.7", b"192.0.2.7", b"192.0.2.8", b"2001:db8::1", b"2001:db8::2", b"2001:db8:0:1::1", b""]
        admitted_ = [limit.admit(inbound(address=address)) is None for address in addresses]
        assert admitted_ == [True, False, True, True, False, True, True]


def test_an_address_is_never_a_name() -> None:
    """A proven caller that calls itself by an address has an allowance of its own."""
    limit = RateLimit(1, 60.0, 1, BY_CALLER)
    assert limit.admit(inbound(address=b"192.0.2.7")) is None
    assert limit.admit(inbound(caller="192.0.2.7")) is None


def test_a_header_that_the_connection_keeps_counts_for_nothing() -> None:
    """The target does not get it, so it tells no users apart."""
    limit = RateLimit(1, 60.0, 1, KEY)
    verdicts = []
    for user in (b"a", b"b"):
        call = at(1000.0, user)
        call.nominated = frozenset((KEY,))
        verdicts.append(limit.admit(call) is None)
    assert verdicts == [True, False]


def test_keys_of_any_length_are_told_apart_in_little_memory() -> None:
    """Of a long key only a digest is kept."""
    limit = RateLimit(1, 60.0, 1, KEY)
    users = [b"u" * 60_000 + b"%d" % number for number in range(20)]
    assert all(limit.admit(at(1000.0, user)) is None for user in users)
    assert not any(limit.admit(at(1000.0, user)) is None for user in users)
    assert max(map(len, limit._arrivals)) <= 64
