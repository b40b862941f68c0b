"""The retry budget: retrying may add a fifth of the real load, plus a few per second, and no more."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outrider.dataplane.policies.deciders.budget import RetryBudget


def spend(budget: RetryBudget, now: float, wanted: int) -> int:
    """How many of the wanted retries are granted at this moment."""
    return sum(budget.withdraw(now) for _ in range(wanted))


@pytest.mark.parametrize("now", [0.0, 0.5, 1000.0, 123456.789])
def test_a_thousand_failing_calls_in_one_instant(now: float) -> None:
    """A fifth of them may be retried, and the reserve of the second; not each of them three times."""
    budget = RetryBudget(0.2)
    for _ in range(1000):
        budget.deposit(now)
    assert spend(budget, now, 3000) == 200 + 3


def test_a_quiet_service_may_retry_at_all() -> None:
    """Without any traffic to speak of there are three retries per second."""
    budget = RetryBudget(0.2)
    for second in range(1000, 1010):
        assert spend(budget, second + 0.5, 10) == 3


def test_the_reserve_is_not_saved_up() -> None:
    """An hour of silence does not pay for a burst of retries."""
    budget = RetryBudget(0.2)
    assert spend(budget, 1000.0, 10) == 3
    assert spend(budget, 4600.0, 10) == 3


def test_calls_pay_for_ten_seconds() -> None:
    """What a call paid in is there for the seconds after it, and gone after ten."""
    for later, granted in [(0.0, 23), (5.0, 23), (9.0, 23), (10.0, 3), (1000.0, 3)]:
        budget = RetryBudget(0.2)
        for _ in range(100):
            budget.deposit(1000.0)
        assert spend(budget, 1000.0 + later, 100) == granted


def test_no_call_pays_twice() -> None:
    """What has been spent is spent."""
    budget = RetryBudget(0.2)
    for _ in range(100):
        budget.deposit(1000.0)
    assert sum(spend(budget, 1000.0 + second, 100) for second in range(10)) == 20 + 3 * 10


def test_share_and_reserve_are_settings() -> None:
    """Other shares and reserves hold as exactly."""
    budget = RetryBudget(0.5, reserve=0)
    for _ in range(10):
        budget.deposit(1000.0)
    assert spend(budget, 1000.0, 100) == 5
    nothing = RetryBudget(0.0, reserve=0)
    nothing.deposit(1000.0)
    assert not nothing.withdraw(1000.0)


def test_many_small_deposits_are_not_lost_to_rounding() -> None:
    """A fifth of five calls is one retry, not a hair less."""
    for now in (1000.0, 1e6):
        budget = RetryBudget(0.2, reserve=0)
        for calls in range(1, 1001):
            budget.deposit(now)
            assert budget.withdraw(now) == (calls % 5 == 0)


_pattern = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 3), st.sampled_from([0.0, 1.0, 9.0, 10.0, 11.0])),
        st.integers(0, 60),
        st.integers(0, 40),
    ),
    max_size=40,
)


@given(_pattern)
def test_every_retry_is_paid_by_calls_of_the_last_ten_seconds(pattern: list[tuple[float, int, int]]) -> None:
    """From the start, retries never exceed a fifth of all calls plus three per started second."""
    budget = RetryBudget(0.2)
    now, calls, retries = 1000.0, 0, 0
    seconds: set[int] = set()
    for pause, arriving, failing in pattern:
        now += pause
        seconds.add(int(now))
        for _ in range(arriving):
            budget.deposit(now)
        calls += arriving
        retries += spend(budget, now, failing)
        assert retries <= 0.2 * calls + 3 * len(seconds) + 1e-6


@given(_pattern)
@example([(0.0, 500, 0), (9.0, 0, 500), (1.0, 500, 500)])
def test_retries_of_ten_seconds_stay_within_the_share_of_the_calls_of_those_ten(
    pattern: list[tuple[float, int, int]],
) -> None:
    """In any ten seconds, retries are at most a fifth of the calls in them plus three per started second."""
    budget = RetryBudget(0.2)
    now = 1000.0
    events: list[tuple[float, int, int]] = []
    for pause, arriving, failing in pattern:
        now += pause
        for _ in range(arriving):
            budget.deposit(now)
        events.append((now, arriving, spend(budget, now, failing)))
        recent = [event for event in events if event[0] > now - 10]
        seconds = int(now) - int(now - 10) + 1
        calls, retries = sum(event[1] for event in recent), sum(event[2] for event in recent)
        assert retries <= 0.2 * calls + 3 * seconds + 1e-6
