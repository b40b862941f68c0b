"""What pybreaker gets wrong when calls run through it, each held against our breaker, which only opens and closes it.

Held here: the price of a success, same-state events, a late failure that prolongs an outage, a store that blocks.
Held in policies/test_breaker.py:

- six concurrent failures emit `closed->open` and then `open->open`, each moving the end of the outage:
  `test_six_concurrent_failures_are_one_transition`
- half-open admits everyone: `test_half_open_does_not_admit_everyone`, `test_one_probe_at_a_time`
- a cancelled request counts as a failure: `test_cancelled_calls_never_open`,
  `test_a_cancelled_probe_gives_its_permit_back`
- no failure rate, no minimum volume, no slow-call rule: `test_rate_volume_and_slowness_are_looked_at`
- wall-clock jumps move the reset time: `test_only_the_given_clock_matters`
"""

from __future__ import annotations

from typing import Any, cast

import pybreaker
import pytest

from outrider.dataplane.attempt import Attempt
from outrider.dataplane.policies.deciders.breaker import Breaker, BreakerSettings
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS
from tests.fakes import Clock, make_call

CALL = make_call()


class Untouchable:
    """A state machine that nobody may speak to."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"pybreaker was asked for {name}")


def make_breaker(clock: Clock, moves: list[tuple[str, str]] | None = None, **settings: Any) -> Breaker:
    hooks = () if moves is None else (lambda name, old, new: moves.append((old, new)),)
    return Breaker(
        "user", BreakerSettings(**settings), hooks=hooks, clock=clock, jitter=lambda low, high: low, draw=lambda: 0.0
    )


def begin(breaker: Breaker, clock: Clock) -> Attempt:
    attempt = Attempt(CALL, CALL.route, 1, clock())
    assert breaker.admit(attempt) is None
    attempt.answered = clock()
    return attempt


def test_a_success_costs_no_call_of_pybreakers() -> None:
    """It takes 1.4 us and a lock for every call; ours is asked for nothing while all is well, or says nothing."""
    clock = Clock()
    breaker = make_breaker(clock)
    breaker._machine = cast(Any, Untouchable())
    for outcome in (SUCCESS, NEUTRAL) * 500:
        breaker.observe(begin(breaker, clock), outcome)
        clock.advance(0.01)


def test_events_from_a_state_to_itself_are_no_transitions() -> None:
    """`open->open` and `closed->closed` reach no hook, whoever causes them."""
    clock, moves = Clock(), []
    breaker = make_breaker(clock, moves)
    for act in (breaker._machine.close, breaker._machine.open, breaker._machine.open, breaker.hold_open):
        act()
    for act in (breaker.reset, breaker.reset, breaker._machine.close, breaker.hold_closed):
        act()
    assert moves == [("closed", "open"), ("open", "closed")]


@pytest.mark.parametrize("late", range(1, 30, 7))
def test_late_failures_do_not_prolong_the_outage(late: int) -> None:
    """Attempts that were under way when the circuit opened may fail as late as they like."""
    clock = Clock()
    breaker = make_breaker(clock, open_first=1.0, open_cap=5.0)
    attempts = [begin(breaker, clock) for _ in range(5 + late)]
    for attempt in attempts[:5]:
        breaker.observe(attempt, FAILURE)
    until = breaker.open_until
    for attempt in attempts[5:]:
        clock.advance(0.01)
        breaker.observe(attempt, FAILURE)
    assert breaker.open_until == until
    clock.now = until
    breaker.observe(begin(breaker, clock), SUCCESS)
    assert breaker.state == "closed"


def test_the_counts_are_in_memory() -> None:
    """Its store in Redis makes several blocking round trips per call; nothing of that is on our loop."""
    machine = make_breaker(Clock())._machine
    assert type(machine._state_storage) is pybreaker.CircuitMemoryStorage
