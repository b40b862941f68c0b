"""The adaptive limit: finds out how many calls at a time a service bears."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.policies.adaptive import AdaptiveLimit

START = AdaptiveLimit().limit


def under_load(limit: AdaptiveLimit, seconds: float, times: int) -> int:
    """So many answers, while as many calls are in flight as may be."""
    for _ in range(times):
        limit.learn(seconds, limit.limit)
    return limit.limit


def test_it_begins_with_a_few() -> None:
    """Neither one by one nor without bounds."""
    assert 4 < START < 100


def test_it_grows_while_answers_are_as_fast_as_ever() -> None:
    """A service that bears more gets more."""
    assert under_load(AdaptiveLimit(), 0.01, 200) > 3 * START


def test_it_never_grows_without_end() -> None:
    """A thousand at a time is the most, however fast the answers."""
    assert under_load(AdaptiveLimit(), 0.001, 20_000) == 1000


def test_it_shrinks_when_answers_take_longer() -> None:
    """Calls are queueing at the target: fewer of them at a time."""
    limit = AdaptiveLimit()
    grown = under_load(limit, 0.01, 100)
    assert under_load(limit, 0.1, 50) < grown / 2


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
    limit = AdaptiveLimit()
    grown = under_load(limit, 0.01, 100)
    assert under_load(limit, 0.013, 50) >= grown


def test_a_quiet_service_teaches_nothing() -> None:
    """When few calls are in flight it is not the limit that sets the pace, neither up nor down."""
    limit = AdaptiveLimit()
    for _ in range(500):
        limit.learn(0.01, 2)
        limit.learn(5.0, 2)
    assert limit.limit == START


def test_a_new_pace_becomes_the_usual_one() -> None:
    """A service that has become slower for good is not throttled for ever."""
    limit = AdaptiveLimit()
    under_load(limit, 0.01, 100)
    shrunk = under_load(limit, 0.1, 300)
    assert under_load(limit, 0.1, 3000) > 2 * shrunk


def test_a_much_faster_pace_is_noticed_soon() -> None:
    """What was usual in a bad hour does not excuse slowness long after it."""
    limit = AdaptiveLimit()
    under_load(limit, 1.0, 600)
    under_load(limit, 0.01, 200)
    grown = limit.limit
    assert under_load(limit, 0.2, 20) < grown


def test_it_finds_what_a_service_bears() -> None:
    """In front of a service that queues beyond 50 at a time, it comes to that neighbourhood."""
    limit = AdaptiveLimit()
    for _ in range(300):
        in_flight = limit.limit
        limit.learn(0.01 * max(1.0, in_flight / 50), in_flight)
    assert 25 < limit.limit < 250


def test_no_time_at_all_is_no_measurement() -> None:
    """A clock that stood still teaches nothing."""
    limit = AdaptiveLimit()
    assert limit.learn(0.0, START) == limit.learn(-1.0, START) == START


@given(
    st.lists(st.one_of(st.none(), st.tuples(st.floats(-1, 100, allow_nan=False), st.integers(0, 2000))), max_size=200)
)
def test_it_stays_within_its_bounds(steps: list[tuple[float, int] | None]) -> None:
    """Whatever is measured, the limit is between four and a thousand, and is what it says."""
    limit = AdaptiveLimit()
    for step in steps:
        said = limit.overrun() if step is None else limit.learn(*step)
        assert said == limit.limit
        assert 4 <= said <= 1000
