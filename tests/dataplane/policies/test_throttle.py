"""The throttle: what a service would refuse is refused here, in proportion, and no more of it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.policies.throttle import Throttle
from outrider.model.failure import Failure, Kind
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, Outcome
from tests.fakes import Clock, make_call, make_route

ROUTE = make_route()


class Service:
    """A throttle in front of a service, and a clock; `drawn` is what chance says next."""

    def __init__(self, ratio: float = 2.0, window: float = 30.0) -> None:
        self.clock = Clock()
        self.drawn = 0.0
        self.throttle = Throttle(ratio, window, draw=lambda: self.drawn)

    def call(self, outcome: Outcome, failure: Kind | None = None) -> bool:
        """One call that ends so if it is let through; whether it was."""
        call = make_call(route=ROUTE, now=self.clock())
        verdict = self.throttle.admit(call)
        if verdict is not None:
            assert verdict.kind is Kind.OVERLOADED
            assert call.permits == []
            return False
        assert call.permits == [self.throttle]
        call.failure = Failure(failure, "") if failure is not None else None
        self.throttle.observe(call, outcome)
        return True

    def calls(self, outcome: Outcome, times: int, failure: Kind | None = None) -> int:
        return sum(self.call(outcome, failure) for _ in range(times))


def test_while_the_service_takes_everything_nothing_is_refused() -> None:
    """Even the worst luck refuses nobody."""
    service = Service()
    assert service.calls(SUCCESS, 500) == 500
    assert service.throttle.refused_share() == 0.0


def test_a_few_failures_say_nothing() -> None:
    """A quiet service is not cut off by its first ten failures."""
    service = Service()
    assert service.calls(FAILURE, 10) == 10
    assert service.throttle.refused_share() == 0.0


def test_half_failing_is_within_the_ratio() -> None:
    """With a ratio of two, as many calls may fail as are taken."""
    service = Service()
    for _ in range(200):
        assert service.call(SUCCESS)
        assert service.call(FAILURE)


def test_a_service_that_fails_altogether_is_left_alone_more_and_more() -> None:
    """The share approaches all of it, and never gets there: somebody must find out when it is over."""
    service = Service()
    service.drawn = 1.0
    shares = []
    for _ in range(5):
        service.calls(FAILURE, 100)
        shares.append(service.throttle.refused_share())
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] < 1.0


def test_the_share_is_what_exceeds_the_ratio() -> None:
    """(calls - ratio x taken - 10) / (calls + 1), as the book says, with ten for free."""
    service = Service(ratio=1.5)
    service.drawn = 1.0
    service.calls(SUCCESS, 40)
    service.calls(FAILURE, 160)
    assert service.throttle.refused_share() == pytest.approx((200 - 1.5 * 40 - 10) / 201)


def test_chance_decides_who_is_refused() -> None:
    """Below the share a call is refused, at it and above it goes."""
    service = Service()
    service.drawn = 1.0
    service.calls(FAILURE, 100)
    share = service.throttle.refused_share()
    service.drawn = share
    assert service.call(FAILURE)
    service.drawn = service.throttle.refused_share() - 0.001
    assert not service.call(FAILURE)


def test_a_refusal_says_why_and_when() -> None:
    """It is ours, a 503 that names the service and the share."""
    service = Service()
    service.drawn = 1.0
    service.calls(FAILURE, 500)
    service.drawn = 0.0
    verdict = service.throttle.admit(make_call(route=ROUTE, now=service.clock()))
    assert verdict is not None
    assert verdict.kind is Kind.OVERLOADED
    assert verdict.retry_after == 1.0
    assert "user" in verdict.detail
    assert "98%" in verdict.detail


def test_what_was_refused_here_counts_as_wanted() -> None:
    """Otherwise every refusal would make room for the next call."""
    service = Service()
    service.drawn = 1.0
    service.calls(FAILURE, 100)
    before = service.throttle.refused_share()
    service.drawn = 0.0
    assert service.calls(FAILURE, 50) == 0
    assert service.throttle.refused_share() > before


def test_when_it_takes_calls_again_so_do_we() -> None:
    """Whatever is let through and taken brings the share down to nothing."""
    service = Service()
    random = Random(1)
    for _ in range(300):
        service.drawn = random.random()
        service.call(FAILURE)
    assert service.throttle.refused_share() > 0.3
    for _ in range(3000):
        service.drawn = random.random()
        service.call(SUCCESS)
        service.clock.advance(0.02)
    assert service.throttle.refused_share() < 0.05


def test_the_window_forgets() -> None:
    """After `window` seconds an outage is forgotten, whatever happened in it."""
    service = Service(window=10.0)
    service.drawn = 1.0
    service.calls(FAILURE, 1000)
    service.clock.advance(9)
    service.call(FAILURE)
    assert service.throttle.refused_share() > 0.9
    service.clock.advance(11)
    assert service.call(SUCCESS)
    assert service.throttle.refused_share() == 0.0


def test_a_call_that_ends_late_is_counted_when_it_ends() -> None:
    """An answer after a pause is news of now."""
    service = Service(window=10.0)
    service.drawn = 1.0
    call = make_call(route=ROUTE, now=service.clock())
    service.throttle.admit(call)
    service.clock.advance(100)
    service.calls(FAILURE, 50)
    before = service.throttle.refused_share()
    service.throttle.observe(call, SUCCESS)
    assert service.throttle.refused_share() < before


@pytest.mark.parametrize("kind", [Kind.OVERLOADED, Kind.RATE_LIMITED, Kind.CIRCUIT_OPEN])
def test_our_own_refusals_are_no_news_of_the_service(kind: Kind) -> None:
    """A full bulkhead or an open circuit behind us counts neither way."""
    service = Service()
    service.drawn = 1.0
    service.calls(FAILURE, 50)
    before = service.throttle.refused_share()
    service.calls(NEUTRAL, 100, kind)
    assert service.throttle.refused_share() == before


def test_an_answer_that_says_no_was_taken() -> None:
    """A 404 has been looked at, so it is not overload."""
    service = Service()
    service.calls(NEUTRAL, 500)
    assert service.throttle.refused_share() == 0.0


def test_a_429_was_not_taken() -> None:
    """The service says itself that it is too much."""
    service = Service()
    service.drawn = 1.0
    for _ in range(100):
        call = make_call(route=ROUTE, now=service.clock())
        service.throttle.admit(call)
        call.status = 429
        service.throttle.observe(call, NEUTRAL)
    assert service.throttle.refused_share() > 0.8


def test_a_call_from_before_does_not_turn_time_back() -> None:
    """A call that was held up elsewhere is counted now, and takes nothing away."""
    service = Service(window=10.0)
    service.drawn = 1.0
    service.calls(FAILURE, 100)
    before = service.throttle.refused_share()
    service.throttle.admit(make_call(route=ROUTE, now=service.clock() - 5))
    assert service.throttle.refused_share() == before
    service.call(FAILURE)
    assert service.throttle.refused_share() > before


@given(
    st.floats(1, 4),
    st.lists(st.tuples(st.floats(0, 8), st.sampled_from([SUCCESS, FAILURE, NEUTRAL]), st.integers(1, 40)), max_size=30),
)
def test_the_share_stays_a_share(ratio: float, steps: list[tuple[float, Outcome, int]]) -> None:
    """Whatever happens, something between none and not quite all is refused, by what the window holds."""
    service = Service(ratio, window=10.0)
    service.drawn = 1.0  # nobody is refused
    ended: list[tuple[float, Outcome]] = []
    for seconds, outcome, times in steps:
        service.clock.advance(seconds)
        service.calls(outcome, times)
        ended += [(service.clock(), outcome)] * times
        share = service.throttle.refused_share()
        assert 0.0 <= share < 1.0
        recent = [what for when, what in ended if when > service.clock() - 9]
        if len(recent) == len(ended):
            taken = sum(what is not FAILURE for what in recent)
            assert share == pytest.approx(max(0.0, (len(recent) - ratio * taken - 10) / (len(recent) + 1)))
