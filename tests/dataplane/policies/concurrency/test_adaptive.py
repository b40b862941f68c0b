"""The adaptive limit: finds out how many calls at a time a service bears."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.policies.concurrency.adaptive import AdaptiveLimit

START = AdaptiveLimit().limit


class Service:
    """A service in front of which as many calls are in flight as may be; its time passes as its answers come."""

    def __init__(self) -> None:
        self.limit = AdaptiveLimit()
        self.now = 1000.0

    def answers(self, seconds: float, times: int = 1) -> int:
        """So many answers, each after so long; the limit then."""
        for _ in range(times):
            in_flight = self.limit.limit
            self.now += seconds / in_flight
            self.limit.learn(seconds, in_flight, self.now)
        return self.limit.limit

    def answers_for(self, period: float, seconds: float) -> int:
        """Answers for a period (seconds), each after so long; the limit then."""
        until = self.now + period
        while self.now < until:
            self.answers(seconds)
        return self.limit.limit

    def overloaded(self, period: float, capacity: int, fastest: float = 0.01) -> list[int]:
        """More calls than it bears, for a period (seconds): beyond its capacity they queue. All limits on the way."""
        seen = []
        until = self.now + period
        while self.now < until:
            seen.append(self.answers(fastest * max(1.0, self.limit.limit / capacity)))
        return seen


def test_it_begins_with_a_few() -> None:
    """Neither one by one nor without bounds."""
    assert 4 < START < 100


def test_it_grows_while_answers_are_as_fast_as_ever() -> None:
    """A service that bears more gets more."""
    assert Service().answers(0.01, 200) > 3 * START


def test_it_never_grows_without_end() -> None:
    """A thousand at a time is the most, however fast the answers."""
    assert Service().answers(0.001, 20_000) == 1000


def test_it_shrinks_when_answers_take_longer() -> None:
    """Calls are queueing at the target: fewer of them at a time."""
    service = Service()
    grown = service.answers(0.01, 100)
    assert service.answers(0.1, 50) < grown / 2


def test_it_never_shrinks_to_nothing() -> None:
    """Four may always go, so that recovery is seen."""
    limit = AdaptiveLimit()
    for _ in range(200):
        limit.overrun()
    assert limit.limit == 4


def test_a_failure_costs_a_tenth() -> None:
    """One failure is a hint, twenty are an answer."""
    limit = AdaptiveLimit()
    assert limit.overrun() == int(START * 0.9)


def test_a_little_slower_is_still_as_usual() -> None:
    """Within one and a half times the usual, nothing shrinks."""
    service = Service()
    grown = service.answers(0.01, 100)
    assert service.answers(0.013, 50) >= grown


def test_a_quiet_service_teaches_nothing() -> None:
    """When few calls are in flight it is not the limit that sets the pace, neither up nor down."""
    limit = AdaptiveLimit()
    for step in range(500):
        limit.learn(0.01, 2, 1000.0 + step)
        limit.learn(5.0, 2, 1000.5 + step)
    assert limit.limit == START


def test_a_new_pace_becomes_the_usual_one() -> None:
    """A service that has become slower for good is not throttled for ever."""
    service = Service()
    service.answers(0.01, 100)
    shrunk = service.answers_for(5.0, 0.1)
    assert service.answers_for(120.0, 0.1) > 5 * shrunk


def test_a_new_pace_does_not_become_the_usual_one_by_mere_number() -> None:
    """Ten thousand slow answers within seconds are an overload, and not a habit."""
    service = Service()
    service.answers(0.001, 1000)
    for step in range(10_000):
        service.limit.learn(0.01, service.limit.limit, service.now + step * 0.0003)
    assert service.limit.limit < 10


def test_a_much_faster_pace_is_noticed_soon() -> None:
    """What was usual in a bad hour does not excuse slowness long after it."""
    service = Service()
    service.answers(1.0, 600)
    grown = service.answers(0.01, 200)
    assert service.answers(0.2, 20) < grown


@pytest.mark.parametrize("capacity", [20, 50, 200])
def test_it_finds_what_a_service_bears(capacity: int) -> None:
    """Under an overload of half a minute it comes to what the service bears and a short queue, and stays near it."""
    service = Service()
    for _ in range(200):  # a quiet time before it, which says what is usual
        service.now += 0.01
        service.limit.learn(0.01, 5, service.now)
    service.overloaded(1.0, capacity)
    assert all(0.75 * capacity < limit < 3 * capacity for limit in service.overloaded(30.0, capacity))


def test_many_hours_of_an_answer_that_came_early() -> None:
    """A stream that ends half a day after its head teaches nothing new about when, and does not overflow."""
    late = AdaptiveLimit()
    for step in range(200):
        late.learn(0.01, 2, 1e6 + step)
    assert late.learn(0.01, 2, 1e6 - 86400) == START
    assert late.learn(0.01, 2, 0.0) == START


def test_no_time_at_all_is_no_measurement() -> None:
    """A clock that stood still teaches nothing."""
    limit = AdaptiveLimit()
    assert limit.learn(0.0, START, 1.0) == limit.learn(-1.0, START, 2.0) == START


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.tuples(st.floats(-1, 100, allow_nan=False), st.integers(0, 2000), st.floats(0, 1e6, allow_nan=False)),
        ),
        max_size=200,
    )
)
def test_it_stays_within_its_bounds(steps: list[tuple[float, int, float] | None]) -> None:
    """Whatever is measured, whenever it began, the limit is between four and a thousand, and is what it says."""
    limit = AdaptiveLimit()
    for step in steps:
        said = limit.overrun() if step is None else limit.learn(*step)
        assert said == limit.limit
        assert 4 <= said <= 1000
