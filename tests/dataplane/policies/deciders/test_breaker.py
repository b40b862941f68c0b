"""The breaker: opens on the right things only, probes gently, and never loses a permit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider.dataplane.attempt import Attempt
from outrider.dataplane.policies.deciders.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, BreakerSettings
from outrider.model.failure import Failure, Kind
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, Outcome, classify
from tests.fakes import Clock, SlowLoop, make_call

CALL = make_call()
LEGAL = {
    (CLOSED, OPEN),
    (OPEN, HALF_OPEN),
    (OPEN, CLOSED),
    (HALF_OPEN, OPEN),
    (HALF_OPEN, CLOSED),
}


class Circuit:
    """A breaker with a clock of its own and, unless asked for, no jitter."""

    def __init__(self, *, spread: float = 0.0, draw: Callable[[], float] = lambda: 0.0, **settings: float) -> None:
        self.clock = Clock()
        self.moves: list[tuple[str, str]] = []
        self.breaker = Breaker(
            "user",
            BreakerSettings(**settings),
            hooks=(self._moved,),
            clock=self.clock,
            jitter=lambda low, high: low + (high - low) * spread,
            draw=draw,
        )

    def _moved(self, name: str, old: str, new: str) -> None:
        assert name == "user"
        self.moves.append((old, new))

    @property
    def state(self) -> str:
        return self.breaker.state

    def begin(self) -> Attempt:
        """An attempt that must be admitted."""
        attempt = Attempt(CALL, CALL.route, 1, self.clock())
        assert self.breaker.admit(attempt) is None
        return attempt

    def refused(self) -> Failure:
        """An attempt that must be refused; says how."""
        refusal = self.breaker.admit(Attempt(CALL, CALL.route, 1, self.clock()))
        assert refusal is not None
        return refusal

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.answered = self.clock()
        self.breaker.observe(attempt, outcome)

    def run(self, outcome: Outcome, times: int = 1, latency: float = 0.0) -> None:
        """Attempts one after the other."""
        for _ in range(times):
            attempt = self.begin()
            self.clock.advance(latency)
            self.end(attempt, outcome)

    def trip(self) -> None:
        """Open by failures, and wait until a probe may go."""
        self.run(FAILURE, 5)
        self.wait()

    def wait(self) -> None:
        self.clock.now = self.breaker.open_until


# ---------------------------------------------------------------- failures in a row


def test_five_failures_in_a_row_open() -> None:
    """Four are bad luck, the fifth opens, at once and once."""
    circuit = Circuit()
    circuit.run(FAILURE, 4)
    assert circuit.state == CLOSED
    circuit.run(FAILURE)
    assert circuit.state == OPEN
    assert circuit.moves == [(CLOSED, OPEN)]


def test_a_success_starts_the_row_anew() -> None:
    """Failures in a row means in a row."""
    circuit = Circuit(failure_rate=0)
    for _ in range(4):
        circuit.run(FAILURE, 4)
        assert circuit.breaker.in_a_row == 4
        circuit.run(SUCCESS)
        assert circuit.breaker.in_a_row == 0
    circuit.run(FAILURE, 2)
    assert circuit.state == CLOSED


def test_a_neutral_outcome_does_not_start_the_row_anew() -> None:
    """A 404 among failures is no sign of health."""
    circuit = Circuit()
    circuit.run(FAILURE, 4)
    circuit.run(NEUTRAL, 10)
    circuit.run(FAILURE)
    assert circuit.state == OPEN


def test_the_rule_can_be_switched_off() -> None:
    """With 0 no number of failures in a row opens."""
    circuit = Circuit(consecutive_failures=0, failure_rate=0, slow_rate=0)
    circuit.run(FAILURE, 500)
    assert circuit.state == CLOSED


def test_failures_leave_the_window_with_time() -> None:
    """The number of failures that is shown is that of the window which ends now, also when nothing is called."""
    circuit = Circuit(window=10.0)
    circuit.run(FAILURE, 4)
    assert circuit.breaker.failures == 4
    circuit.clock.advance(300.0)
    assert circuit.breaker.failures == 0
    circuit.run(FAILURE)
    assert circuit.breaker.failures == 1


def test_failures_in_a_row_need_no_haste() -> None:
    """A quiet service whose every call fails is broken too, however long it takes to see."""
    circuit = Circuit()
    for _ in range(5):
        circuit.run(FAILURE)
        circuit.clock.advance(60)
    assert (CLOSED, OPEN) in circuit.moves


# ---------------------------------------------------------------- neutral


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 501, 505])
def test_a_storm_of_client_errors_never_opens(status: int) -> None:
    """An app that asks for what is not there says nothing about the target's health."""
    circuit = Circuit()
    circuit.run(classify(status), 1000)
    assert circuit.moves == []
    assert circuit.breaker.failures == circuit.breaker.in_a_row == 0


def test_neutral_outcomes_do_not_thin_out_failures() -> None:
    """They are not in the denominator of the rate either."""
    circuit = Circuit(consecutive_failures=0)
    circuit.run(SUCCESS, 10)
    circuit.run(NEUTRAL, 1000)
    circuit.run(FAILURE, 10)
    assert circuit.state == OPEN


def test_neutral_outcomes_do_not_make_up_the_numbers() -> None:
    """They do not count towards `min_requests`."""
    circuit = Circuit(consecutive_failures=0)
    circuit.run(NEUTRAL, 1000)
    circuit.run(FAILURE, 19)
    assert circuit.state == CLOSED


def test_a_404_never_closes_half_open() -> None:
    """A probe that found nothing out is followed by another one."""
    circuit = Circuit()
    circuit.trip()
    for _ in range(20):
        circuit.run(classify(404))
        assert circuit.state == HALF_OPEN
    circuit.run(SUCCESS)
    assert circuit.state == CLOSED


# ---------------------------------------------------------------- rates


def test_half_of_twenty_failures_open() -> None:
    """At 50 % of at least 20 attempts within ten seconds the circuit opens."""
    circuit = Circuit()
    for _ in range(9):
        circuit.run(FAILURE)
        circuit.run(SUCCESS)
    circuit.run(SUCCESS)
    assert circuit.state == CLOSED
    circuit.run(FAILURE)
    assert circuit.state == OPEN


def test_nineteen_attempts_say_nothing() -> None:
    """Below `min_requests` the rate is not looked at."""
    circuit = Circuit(consecutive_failures=0)
    circuit.run(FAILURE, 19)
    assert circuit.state == CLOSED
    circuit.run(FAILURE)
    assert circuit.state == OPEN


def test_less_than_half_does_not_open() -> None:
    """A service with 40 % failures is bad, but not cut off."""
    circuit = Circuit()
    for _ in range(100):
        circuit.run(FAILURE, 2)
        circuit.run(SUCCESS, 3)
    assert circuit.state == CLOSED


def test_the_window_forgets_after_ten_seconds() -> None:
    """Failures older than the window count for nothing."""
    circuit = Circuit(consecutive_failures=0)
    circuit.run(FAILURE, 19)
    circuit.clock.advance(10.001)
    circuit.run(FAILURE, 19)
    assert circuit.breaker.failures == 19
    assert circuit.state == CLOSED


def test_the_window_remembers_for_nine_seconds() -> None:
    """What happened within the window, whenever in it, counts."""
    circuit = Circuit(consecutive_failures=0)
    for _ in range(10):
        circuit.run(FAILURE, 2)
        circuit.clock.advance(0.9)
    assert circuit.state == OPEN


@given(st.lists(st.tuples(st.floats(0, 4), st.sampled_from([SUCCESS, FAILURE])), max_size=60))
def test_the_window_counts_the_last_ten_seconds(steps: list[tuple[float, Outcome]]) -> None:
    """Every failure of the last nine seconds is counted, none older than ten."""
    circuit = Circuit(consecutive_failures=0, failure_rate=0, slow_rate=0)
    failed: list[float] = []
    for seconds, outcome in steps:
        circuit.clock.advance(seconds)
        circuit.run(outcome)
        if outcome is FAILURE:
            failed.append(circuit.clock())
        now = circuit.clock()
        if outcome is FAILURE:  # a plain success need not turn the window
            assert sum(when > now - 9 for when in failed) <= circuit.breaker.failures
            assert circuit.breaker.failures <= sum(when >= now - 10.001 for when in failed)


def test_four_fifths_slow_answers_open() -> None:
    """A target that hangs is as bad as one that fails: 80 % slower than `slow_call`."""
    circuit = Circuit(slow_call=0.1)
    circuit.run(SUCCESS, 4, latency=0.05)
    circuit.run(SUCCESS, 15, latency=0.11)
    assert circuit.state == CLOSED
    circuit.run(SUCCESS, latency=0.11)
    assert circuit.state == OPEN


def test_less_than_four_fifths_slow_does_not_open() -> None:
    """A third of quick answers keeps the circuit closed."""
    circuit = Circuit(slow_call=0.1)
    for _ in range(50):
        circuit.run(SUCCESS, latency=0.05)
        circuit.run(SUCCESS, 2, latency=0.11)
    assert circuit.state == CLOSED


def test_rates_can_be_switched_off() -> None:
    """With 0 % a rate never opens."""
    circuit = Circuit(consecutive_failures=0, failure_rate=0, slow_rate=0, slow_call=0.01)
    circuit.run(FAILURE, 100, latency=0.05)
    assert circuit.state == CLOSED


def test_closing_starts_with_an_empty_window() -> None:
    """What happened before an outage does not open the circuit again after it."""
    circuit = Circuit(consecutive_failures=0, window=100.0)
    circuit.run(FAILURE, 20)
    circuit.wait()
    circuit.run(SUCCESS)
    assert circuit.state == CLOSED
    circuit.run(FAILURE, 19)
    assert circuit.state == CLOSED


# ---------------------------------------------------------------- open


def test_open_refuses_and_says_when_to_come_back() -> None:
    """The refusal is Outrider's own, a 503 with the exact rest of the open period."""
    circuit = Circuit(open_first=0.5, open_cap=5.0)
    circuit.run(FAILURE, 5)
    circuit.clock.advance(0.2)
    refusal = circuit.refused()
    assert refusal.kind is Kind.CIRCUIT_OPEN
    assert refusal.kind.outcome is NEUTRAL
    assert refusal.retry_after == pytest.approx(0.3)
    assert "user" in refusal.detail


def test_the_pause_is_a_twentieth_of_the_outage() -> None:
    """However many probes have failed, recovery is noticed late by a twentieth of the outage, within first and cap."""
    circuit = Circuit()
    circuit.run(FAILURE, 5)
    began = circuit.clock()
    periods = [circuit.breaker.open_until - began]
    for away in (0.03, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 3600.0):
        circuit.clock.now = began + away
        circuit.run(FAILURE)
        periods.append(circuit.breaker.open_until - circuit.clock())
    assert periods == pytest.approx([0.02, 0.02, 0.02, 0.025, 0.05, 0.1, 0.2, 0.25, 0.25])


def test_nobody_goes_before_the_pause_is_over() -> None:
    """A moment before `open_until` is still refused, at it a probe goes."""
    circuit = Circuit()
    circuit.run(FAILURE, 5)
    circuit.clock.now = circuit.breaker.open_until - 0.001
    circuit.refused()
    circuit.wait()
    circuit.begin()


def test_a_recovery_makes_the_next_outage_start_small() -> None:
    """After closing, the open period begins with its first value again."""
    circuit = Circuit()
    circuit.trip()
    circuit.clock.advance(60)
    circuit.run(FAILURE)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(0.25)
    circuit.wait()
    circuit.run(SUCCESS)
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(0.02)


def test_jitter_only_lengthens_and_by_a_fifth_at_most() -> None:
    """Sidecars do not probe in step, and none probes early."""
    circuit = Circuit(spread=1.0)
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(0.024)


def test_a_long_outage_does_not_overflow() -> None:
    """Thousands of failed probes still wait for the cap."""
    circuit = Circuit()
    circuit.trip()
    for _ in range(3000):
        circuit.run(FAILURE)
        circuit.wait()
    circuit.run(FAILURE)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(0.25)


# ---------------------------------------------------------------- the target says when


def test_a_target_that_says_when_is_left_alone_until_then() -> None:
    """`Retry-After` of a failure keeps the circuit open longer than its own rules would."""
    circuit = Circuit()
    circuit.breaker.asked_to_wait(7.0)
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(7)


def test_the_longest_wait_asked_for_holds() -> None:
    """Several answers, several times: none of them comes back before the last."""
    circuit = Circuit()
    circuit.breaker.asked_to_wait(7.0)
    circuit.breaker.asked_to_wait(2.0)
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(7)


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_not_everybody_comes_back_at_the_same_time(spread: float) -> None:
    """All sidecars are asked to wait for as long; up to a fifth more, drawn by each, keeps them apart."""
    circuit = Circuit(spread=spread)
    circuit.breaker.asked_to_wait(10.0)
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(10 + 2 * spread)


def test_being_asked_to_wait_opens_nothing() -> None:
    """One 503 with a time in it is a failure like any other."""
    circuit = Circuit()
    circuit.breaker.asked_to_wait(7.0)
    circuit.run(FAILURE, 4)
    assert circuit.state == CLOSED


def test_a_shorter_wait_than_ours_changes_nothing() -> None:
    """What the target asks for only lengthens."""
    circuit = Circuit(open_first=1.0, open_cap=2.0)
    circuit.breaker.asked_to_wait(0.0)
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(1)


@pytest.mark.parametrize("seconds", [61.0, 3600.0, 1e12])
def test_no_target_keeps_us_away_for_more_than_a_minute(seconds: float) -> None:
    """A service that asks for a day is looked at again after sixty seconds."""
    circuit = Circuit()
    circuit.breaker.asked_to_wait(seconds)
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(60)


def test_a_wait_that_is_over_is_forgotten() -> None:
    """An outage later than the time asked for begins with our own first pause."""
    circuit = Circuit()
    circuit.breaker.asked_to_wait(7.0)
    circuit.clock.advance(8)
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(0.02)


# ---------------------------------------------------------------- ramp


def test_after_closing_a_growing_share_goes() -> None:
    """With a ramp the first moments after recovery let a tenth through, the end of it everything."""
    drawn = 0.5
    circuit = Circuit(ramp=10.0, draw=lambda: drawn)
    circuit.trip()
    circuit.run(SUCCESS)
    assert circuit.state == CLOSED
    refusal = circuit.refused()
    assert refusal.kind is Kind.CIRCUIT_OPEN
    assert refusal.retry_after == pytest.approx(10)
    drawn = 0.09
    circuit.begin()
    circuit.clock.advance(6)
    drawn = 0.59
    circuit.begin()
    drawn = 0.61
    circuit.refused()
    circuit.clock.advance(4)
    drawn = 1.0
    circuit.begin()


@given(st.floats(0, 10), st.floats(0, 1))
def test_the_ramp_lets_through_as_much_as_has_passed_of_it(passed: float, drawn: float) -> None:
    """At any moment of the ramp, the share that goes is the share that is over, and never less than a tenth."""
    circuit = Circuit(ramp=10.0, draw=lambda: drawn)
    circuit.trip()
    circuit.run(SUCCESS)
    circuit.clock.advance(passed)
    admitted = circuit.breaker.admit(Attempt(CALL, CALL.route, 1, circuit.clock())) is None
    left = circuit.breaker._ramp_until - circuit.clock()
    assert admitted == (left <= 0 or drawn < max(0.1, 1 - left / 10))


def test_without_a_ramp_everything_goes_at_once() -> None:
    """By default closed means closed."""
    circuit = Circuit(draw=lambda: 1.0)
    circuit.trip()
    circuit.run(SUCCESS)
    circuit.begin()


def test_a_circuit_that_never_opened_has_no_ramp() -> None:
    """A cold start of ours is not one of the target's."""
    Circuit(ramp=10.0, draw=lambda: 1.0).begin()


# ---------------------------------------------------------------- excused failures


def excused_failures(circuit: Circuit, times: int) -> None:
    """Failures of one endpoint while others stand ready."""
    for _ in range(times):
        attempt = circuit.begin()
        attempt.excused = True
        circuit.end(attempt, FAILURE)


def test_an_excused_failure_is_not_one_in_a_row() -> None:
    """One bad endpoint of several does not cut the whole service off."""
    circuit = Circuit()
    excused_failures(circuit, 19)
    assert circuit.state == CLOSED
    assert circuit.breaker.in_a_row == 0


def test_an_excused_failure_does_not_break_the_row() -> None:
    """It is no sign of health either."""
    circuit = Circuit()
    circuit.run(FAILURE, 4)
    excused_failures(circuit, 3)
    assert circuit.breaker.in_a_row == 4
    circuit.run(FAILURE)
    assert circuit.state == OPEN


def test_an_excused_failure_counts_in_the_window() -> None:
    """While others stand ready it opens nothing; the first failure that nobody excuses finds it counted."""
    circuit = Circuit()
    circuit.run(SUCCESS, 10)
    excused_failures(circuit, 10)
    assert circuit.state == CLOSED
    circuit.run(FAILURE, 1)
    assert circuit.state == OPEN


# ---------------------------------------------------------------- half-open


def test_one_probe_at_a_time() -> None:
    """When the time is up one attempt goes; all others are still refused."""
    circuit = Circuit()
    circuit.trip()
    probe = circuit.begin()
    assert circuit.breaker.probing(probe)
    for _ in range(5):
        assert circuit.refused().retry_after == 0.5
    circuit.end(probe, SUCCESS)
    assert circuit.state == CLOSED
    assert circuit.moves == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]


def test_a_failed_probe_opens_again() -> None:
    """One failure is enough, and nobody else gets through."""
    circuit = Circuit()
    circuit.trip()
    circuit.run(FAILURE)
    assert circuit.state == OPEN
    circuit.refused()


def test_several_probes_must_all_succeed() -> None:
    """With `probes: 3`, three go at a time and three successes close."""
    circuit = Circuit(probes=3)
    circuit.trip()
    probes = [circuit.begin() for _ in range(3)]
    circuit.refused()
    circuit.end(probes[0], SUCCESS)
    circuit.end(probes[1], SUCCESS)
    assert circuit.state == HALF_OPEN
    circuit.end(probes[2], SUCCESS)
    assert circuit.state == CLOSED


def test_successes_of_an_earlier_recovery_do_not_count() -> None:
    """Each half-open period needs its own successes."""
    circuit = Circuit(probes=2)
    circuit.trip()
    circuit.run(SUCCESS)
    circuit.run(FAILURE)
    circuit.wait()
    circuit.run(SUCCESS)
    assert circuit.state == HALF_OPEN


@pytest.mark.parametrize("times", [1, 50])
def test_a_cancelled_probe_gives_its_permit_back(times: int) -> None:
    """An app that hangs up during a probe neither closes, nor opens, nor blocks the circuit."""
    circuit = Circuit()
    circuit.trip()
    for _ in range(times):
        probe = circuit.begin()
        circuit.refused()
        circuit.end(probe, NEUTRAL)
        assert circuit.state == HALF_OPEN
    circuit.run(SUCCESS)
    assert circuit.state == CLOSED


def test_a_probe_that_hangs_does_not_hold_up_the_next() -> None:
    """After half a second another one goes, and so on; each success or failure of any of them counts."""
    circuit = Circuit()
    circuit.trip()
    circuit.begin()
    circuit.clock.advance(0.499)
    circuit.refused()
    circuit.clock.advance(0.002)
    second = circuit.begin()
    circuit.refused()
    circuit.end(second, SUCCESS)
    assert circuit.state == CLOSED


def test_a_hanging_probe_that_ends_after_all_gives_back_one_permit() -> None:
    """However many had to be lent out, there are never more than `probes` to be had."""
    circuit = Circuit()
    circuit.trip()
    hanging = []
    for _ in range(4):
        hanging.append(circuit.begin())
        circuit.clock.advance(0.5)
    for probe in hanging:
        circuit.end(probe, NEUTRAL)
    circuit.begin()
    circuit.refused()


def test_asking_takes_nothing() -> None:
    """`refusing` may be asked as often as one likes, without using up the probe."""
    circuit = Circuit()
    assert not circuit.breaker.refusing()
    circuit.run(FAILURE, 5)
    assert circuit.breaker.refusing()
    circuit.wait()
    for _ in range(10):
        assert not circuit.breaker.refusing()
    probe = circuit.begin()
    assert circuit.breaker.refusing()
    circuit.end(probe, SUCCESS)
    assert not circuit.breaker.refusing()


def test_looking_changes_nothing() -> None:
    """How long an open circuit stays so can be looked at without turning it half-open, as often as one likes."""
    circuit = Circuit()
    assert circuit.breaker.until_probe() == 0
    circuit.run(FAILURE, 5)
    assert circuit.breaker.until_probe() > 0
    circuit.wait()
    assert circuit.breaker.until_probe() == 0
    assert circuit.state == OPEN
    circuit.begin()
    assert circuit.state == HALF_OPEN
    assert circuit.breaker.until_probe() == 0


# ---------------------------------------------------------------- stragglers


@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE, NEUTRAL])
def test_a_straggler_from_closed_times_moves_nothing(outcome: Outcome) -> None:
    """What was sent before the outage says nothing about what came after it, in no state."""
    circuit = Circuit()
    stragglers = [circuit.begin() for _ in range(9)]
    circuit.run(FAILURE, 5)
    until = circuit.breaker.open_until
    for straggler in stragglers[:3]:
        circuit.end(straggler, outcome)
    assert (circuit.state, circuit.breaker.open_until) == (OPEN, until)
    circuit.wait()
    probe = circuit.begin()
    for straggler in stragglers[3:6]:
        circuit.end(straggler, outcome)
    assert circuit.state == HALF_OPEN
    circuit.refused()
    circuit.end(probe, SUCCESS)
    for straggler in stragglers[6:]:
        circuit.end(straggler, outcome)
    assert circuit.state == CLOSED
    assert circuit.breaker.in_a_row == circuit.breaker.failures == 0


def test_a_probe_of_an_earlier_recovery_is_a_straggler() -> None:
    """A late probe does not judge the next half-open period, nor give it a permit too many."""
    circuit = Circuit(probes=2)
    circuit.trip()
    late, failing = circuit.begin(), circuit.begin()
    circuit.end(failing, FAILURE)
    circuit.wait()
    circuit.begin()
    circuit.end(late, FAILURE)
    assert circuit.state == HALF_OPEN
    assert not circuit.breaker.probing(late)
    circuit.begin()
    circuit.refused()


def test_a_refused_attempt_is_not_heard() -> None:
    """What was never admitted returns no permit and counts for nothing."""
    circuit = Circuit()
    circuit.trip()
    circuit.begin()
    refused = Attempt(CALL, CALL.route, 1, circuit.clock())
    assert circuit.breaker.admit(refused) is not None
    for outcome in (SUCCESS, FAILURE, NEUTRAL):
        circuit.end(refused, outcome)
    assert circuit.state == HALF_OPEN
    circuit.refused()


# ---------------------------------------------------------------- by hand


def test_held_open_refuses_until_told_otherwise() -> None:
    """No time and no result ends it, and nobody is told when to come back."""
    circuit = Circuit()
    before = circuit.begin()
    circuit.breaker.hold_open()
    circuit.breaker.hold_open()
    circuit.clock.advance(1e6)
    circuit.end(before, SUCCESS)
    refusal = circuit.refused()
    assert refusal.retry_after is None
    assert "by hand" in refusal.detail
    assert circuit.breaker.refusing() > 0
    assert circuit.breaker.held == OPEN
    assert circuit.moves == [(CLOSED, OPEN)]


def test_held_open_from_any_state() -> None:
    """A circuit that was open or half-open by its own rules stays open by hand."""
    for probing in (False, True):
        circuit = Circuit()
        circuit.trip()
        if probing:
            probe = circuit.begin()
        circuit.breaker.hold_open()
        if probing:
            circuit.end(probe, SUCCESS)
        circuit.clock.advance(3600)
        circuit.refused()
        assert circuit.state == OPEN


def test_held_closed_lets_everything_through_whatever_fails() -> None:
    """Neither rows nor rates nor slow answers open, and a ramp that was under way is over."""
    circuit = Circuit(slow_call=0.01)
    circuit.trip()
    circuit.breaker.hold_closed()
    circuit.run(FAILURE, 100, latency=0.1)
    assert circuit.state == CLOSED
    assert circuit.moves == [(CLOSED, OPEN), (OPEN, CLOSED)]


def test_held_closed_ends_a_ramp() -> None:
    """Everything goes at once when somebody says so."""
    circuit = Circuit(ramp=10.0, draw=lambda: 1.0)
    circuit.trip()
    circuit.clock.advance(1)
    circuit.breaker._draw = lambda: 0.0
    circuit.run(SUCCESS)
    circuit.breaker._draw = lambda: 1.0
    circuit.refused()
    circuit.breaker.hold_closed()
    circuit.begin()


def test_held_one_way_after_the_other() -> None:
    """The last word of an operator holds."""
    circuit = Circuit()
    circuit.breaker.hold_open()
    circuit.breaker.hold_closed()
    circuit.run(FAILURE, 10)
    circuit.breaker.hold_open()
    circuit.refused()
    assert circuit.moves == [(CLOSED, OPEN), (OPEN, CLOSED), (CLOSED, OPEN)]


def test_reset_gives_the_circuit_back_to_its_rules() -> None:
    """Closed, with nothing remembered: it takes a whole row of failures to open again."""
    for hold in (Breaker.hold_open, Breaker.hold_closed, lambda breaker: None):
        circuit = Circuit(consecutive_failures=5, min_requests=8)
        circuit.run(FAILURE, 4)
        hold(circuit.breaker)
        circuit.breaker.reset()
        assert (circuit.state, circuit.breaker.held) == (CLOSED, "")
        assert circuit.breaker.failures == circuit.breaker.in_a_row == 0
        circuit.run(FAILURE, 4)
        assert circuit.state == CLOSED
        circuit.run(FAILURE)
        assert circuit.state == OPEN


def test_reset_ends_ramp_and_wait() -> None:
    """What the target asked for and the caution after recovery are forgotten, too."""
    circuit = Circuit(ramp=10.0, draw=lambda: 1.0)
    circuit.breaker.asked_to_wait(30.0)
    circuit.trip()
    circuit.breaker.reset()
    circuit.begin()
    circuit.run(FAILURE, 5)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(0.02)


# ---------------------------------------------------------------- waiting for it to close


class Hall:
    """Calls that wait in front of a circuit, on a loop whose time is moved by hand."""

    def __init__(self, loop: SlowLoop, **settings: float) -> None:
        self.loop = loop
        self.circuit = Circuit(**settings)
        self.circuit.clock.now = loop.now
        self.woken: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    def waits(self, seconds: float = 10.0) -> asyncio.Task[None]:
        task = self.loop.create_task(self._wait(len(self.tasks), seconds))
        self.tasks.append(task)
        self.loop.settle()
        return task

    async def _wait(self, number: int, seconds: float) -> None:
        await self.circuit.breaker.changed(seconds)
        self.woken.append(number)

    def later(self, seconds: float) -> None:
        self.loop.now += seconds
        self.circuit.clock.now += seconds
        self.loop.settle()

    def does(self, act: Callable[[], object]) -> None:
        """Something that happens on the loop."""
        self.loop.call_soon(act)
        self.loop.settle()


@pytest.fixture
def loop() -> Iterator[SlowLoop]:
    made = SlowLoop()
    yield made
    made.finish()


def test_one_of_those_who_wait_makes_the_probe(loop: SlowLoop) -> None:
    """When the pause is over the first one is woken, and the others go on waiting for what it finds."""
    hall = Hall(loop, open_first=1.0, open_cap=5.0)
    hall.circuit.run(FAILURE, 5)
    for _ in range(5):
        hall.waits()
    hall.later(0.99)
    assert hall.woken == []
    hall.later(0.02)
    assert hall.woken[:1] == [0]
    assert len(hall.woken) < 5


def test_when_it_closes_all_go_a_few_at_a_time(loop: SlowLoop) -> None:
    """Sixteen at once, the next a moment later, in the order in which they came: a cold target is not overrun."""
    hall = Hall(loop, open_first=60.0, open_cap=60.0)
    hall.circuit.run(FAILURE, 5)
    for _ in range(40):
        hall.waits(1000.0)
    hall.does(hall.circuit.breaker.reset)
    assert hall.woken == list(range(16))
    hall.later(0.006)
    assert hall.woken == list(range(32))
    hall.later(0.006)
    assert hall.woken == list(range(40))


def test_a_failed_probe_does_not_delay_the_next(loop: SlowLoop) -> None:
    """The next of those who wait goes when the new pause is over, and not when the old probe would have hung."""
    hall = Hall(loop, open_first=0.02, open_cap=0.05)
    hall.circuit.run(FAILURE, 5)
    for _ in range(5):
        hall.waits()
    hall.later(0.021)
    probes: list[Attempt] = []
    hall.does(lambda: probes.append(hall.circuit.begin()))
    hall.later(0.01)
    woken = len(hall.woken)
    hall.does(lambda: hall.circuit.end(probes[0], FAILURE))
    hall.later(0.06)
    assert len(hall.woken) > woken


def test_nobody_waits_longer_than_there_is_time(loop: SlowLoop) -> None:
    """However long the circuit stays open."""
    hall = Hall(loop)
    hall.does(hall.circuit.breaker.hold_open)
    hall.waits(0.5)
    hall.waits(2.0)
    hall.later(0.51)
    assert hall.woken == [0]
    assert len(hall.circuit.breaker._waiting) == 1
    hall.later(1.5)
    assert hall.woken == [0, 1]
    assert not hall.circuit.breaker._waiting


def test_holding_it_open_wakes_nobody(loop: SlowLoop) -> None:
    """Whoever waits for a probe would only find the circuit held; so nobody is woken before the time is over."""
    hall = Hall(loop, open_first=1.0, open_cap=5.0)
    hall.circuit.run(FAILURE, 5)
    for _ in range(3):
        hall.waits(100.0)
    hall.does(hall.circuit.breaker.hold_open)
    hall.later(50.0)
    assert hall.woken == []
    hall.later(51.0)
    assert sorted(hall.woken) == [0, 1, 2]


def test_hanging_up_while_waiting_leaves_nothing_behind(loop: SlowLoop) -> None:
    """The turn goes to the next one."""
    hall = Hall(loop, open_first=1.0, open_cap=1.0)
    hall.circuit.run(FAILURE, 5)
    first = hall.waits()
    hall.waits()
    first.cancel()
    loop.settle()
    assert len(hall.circuit.breaker._waiting) == 1
    hall.later(1.01)
    assert hall.woken == [1]


# ---------------------------------------------------------------- refused connections


def test_while_nobody_listens_it_is_looked_at_often() -> None:
    """A refused connection costs nobody anything, so the pause does not grow with the outage."""
    circuit = Circuit()
    refused = Failure(Kind.CONNECT_REFUSED, "")
    for attempt in [circuit.begin() for _ in range(5)]:
        attempt.result = refused
        circuit.end(attempt, FAILURE)
    for _ in range(3):
        circuit.clock.advance(60)
        probe = circuit.begin()
        probe.result = refused
        circuit.end(probe, FAILURE)
        assert circuit.breaker.open_until - circuit.clock() == pytest.approx(0.02)
    circuit.wait()
    circuit.run(FAILURE)
    assert circuit.breaker.open_until - circuit.clock() == pytest.approx(0.25)


# ---------------------------------------------------------------- what pybreaker does wrong when calls run through it


def test_six_concurrent_failures_are_one_transition() -> None:
    """Late failures neither open again nor move the end of the open period."""
    circuit = Circuit(consecutive_failures=2)
    attempts = [circuit.begin() for _ in range(6)]
    untils = set()
    for attempt in attempts:
        circuit.clock.advance(0.1)
        circuit.end(attempt, FAILURE)
        untils.add(circuit.breaker.open_until)
    assert circuit.moves == [(CLOSED, OPEN)]
    assert untils == {0.0, 1000.2 + 0.02}


def test_half_open_does_not_admit_everyone() -> None:
    """Of five concurrent attempts one is the probe, and its success is one transition."""
    circuit = Circuit()
    circuit.trip()
    attempts = [Attempt(CALL, CALL.route, 1, circuit.clock()) for _ in range(5)]
    admitted = [attempt for attempt in attempts if circuit.breaker.admit(attempt) is None]
    assert len(admitted) == 1
    circuit.end(admitted[0], SUCCESS)
    assert circuit.moves.count((HALF_OPEN, CLOSED)) == 1
    assert len(circuit.moves) == 3


def test_cancelled_calls_never_open() -> None:
    """An app that hangs up, however often, is not the target's failure."""
    circuit = Circuit()
    circuit.run(Kind.CANCELLED.outcome, 100)
    assert circuit.moves == []


def test_rate_volume_and_slowness_are_looked_at() -> None:
    """There is more than a count of failures in a row: rate, least volume, slow calls."""
    failing, slow = Circuit(min_requests=4), Circuit(min_requests=4, slow_call=0.1)
    for _ in range(2):
        failing.run(SUCCESS)
        failing.run(FAILURE)
    slow.run(SUCCESS, 4, latency=0.2)
    assert (failing.state, slow.state) == (OPEN, OPEN)


def test_only_the_given_clock_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A jump of the wall clock does not move the end of the open period."""
    circuit = Circuit()
    circuit.run(FAILURE, 5)
    monkeypatch.setattr("time.time", lambda: 0.0)
    circuit.refused()
    circuit.clock.advance(0.5)
    circuit.begin()
    assert circuit.state == HALF_OPEN


def test_success_and_failure_interleaved_with_transitions_stay_consistent() -> None:
    """A failure that opens by the row does not open a second time by the rate."""
    circuit = Circuit(min_requests=5)
    circuit.run(FAILURE, 5)
    assert circuit.moves == [(CLOSED, OPEN)]


# ---------------------------------------------------------------- any interleaving


class AnyInterleaving(RuleBasedStateMachine):
    """Attempts begin, end in any order and any way, while time passes and people interfere."""

    @initialize(probes=st.integers(1, 3), consecutive=st.integers(0, 3))
    def begin(self, probes: int, consecutive: int) -> None:
        self.probes = probes
        self.circuit = Circuit(
            probes=probes, consecutive_failures=consecutive, min_requests=4, window=3.0, slow_call=0.5
        )
        self.open: list[Attempt] = []
        self.probed_at = 0.0
        self.asked = 0.0

    @property
    def lent(self) -> int:
        """Permits that are out."""
        return sum(self.circuit.breaker.probing(attempt) for attempt in self.open)

    @rule()
    def admit(self) -> None:
        circuit = self.circuit
        refusing = circuit.breaker.refusing()
        lent = self.lent
        attempt = Attempt(CALL, CALL.route, 1, circuit.clock())
        refusal = circuit.breaker.admit(attempt)
        assert (refusal is not None) == (refusing > 0)
        if refusal is None:
            self.open.append(attempt)
            if circuit.state is HALF_OPEN:
                assert lent < self.probes or circuit.clock() >= self.probed_at + 0.5
                self.probed_at = circuit.clock()
        else:
            assert circuit.state is not CLOSED
            assert circuit.breaker.held or (refusal.retry_after is not None and refusal.retry_after > 0)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from([SUCCESS, FAILURE, FAILURE, NEUTRAL]))
    def observe(self, data: st.DataObject, outcome: Outcome) -> None:
        attempt = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        straggler = attempt.generation != self.circuit.breaker.generation
        moves = len(self.circuit.moves)
        self.circuit.end(attempt, outcome)
        assert len(self.circuit.moves) <= moves + (not straggler and outcome is not NEUTRAL)

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.6, 2.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.circuit.clock.advance(seconds)

    @rule(seconds=st.sampled_from([0.0, 1.0, 3600.0]))
    def asked_to_wait(self, seconds: float) -> None:
        self.circuit.breaker.asked_to_wait(seconds)
        self.asked = max(self.asked, self.circuit.clock() + min(seconds, 60.0))

    @rule()
    def held_open(self) -> None:
        self.circuit.breaker.hold_open()

    @rule()
    def held_closed(self) -> None:
        self.circuit.breaker.hold_closed()

    @rule()
    def reset(self) -> None:
        self.circuit.breaker.reset()
        assert self.circuit.state == CLOSED

    @invariant()
    def what_is_held_stays(self) -> None:
        """Nothing but a person ends what a person has begun."""
        breaker = self.circuit.breaker
        assert not breaker.held or breaker.state == breaker.held

    @invariant()
    def never_more_permits_than_probes(self) -> None:
        """While half-open, what can be had and what is out are `probes` together; a hanging one is not waited for."""
        breaker = self.circuit.breaker
        assert breaker._permits <= self.probes
        if self.circuit.state == HALF_OPEN:
            assert breaker._permits + self.lent == self.probes

    @invariant()
    def never_a_permit_lost(self) -> None:
        """While half-open, a permit that is not out can be had."""
        if self.circuit.state == HALF_OPEN:
            hanging = self.circuit.clock() >= self.probed_at + 0.5
            assert (self.circuit.breaker.refusing() > 0) == (self.lent >= self.probes and not hanging)

    @invariant()
    def closed_lets_through_and_open_refuses(self) -> None:
        """The other two states know no permits, and nobody is away for longer than the cap or the target says."""
        breaker, now = self.circuit.breaker, self.circuit.clock()
        if self.circuit.state == CLOSED:
            assert not breaker.refusing()
        elif self.circuit.state == OPEN and now < breaker.open_until:
            assert breaker.refusing()
            assert breaker.held or breaker.open_until <= max(now + 0.2501, self.asked)

    @invariant()
    def transitions_are_legal_and_joined(self) -> None:
        """Each transition starts where the last one ended; none goes from a state to itself."""
        moves = self.circuit.moves
        assert set(moves) <= LEGAL
        assert [old for old, _ in moves] == [CLOSED, *(new for _, new in moves)][: len(moves)]

    def teardown(self) -> None:
        """Whatever happened, a target that is well again is found out to be."""
        if not hasattr(self, "circuit"):
            return
        for attempt in self.open:
            self.circuit.end(attempt, NEUTRAL)
        if self.circuit.breaker.held:
            self.circuit.breaker.reset()
        self.circuit.clock.advance(61)
        self.circuit.run(SUCCESS, self.probes)
        assert self.circuit.state == CLOSED


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
