"""The concurrency limit: at most so many calls in flight, those that matter first, and every permit comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider.dataplane.call import Call
from outrider.dataplane.policies.concurrency import limit as concurrency
from outrider.dataplane.policies.concurrency.adaptive import AdaptiveLimit
from outrider.dataplane.policies.concurrency.limit import ConcurrencyLimit
from outrider.model.failure import Failure, Kind
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, Outcome
from tests.fakes import SlowLoop, make_attempt, make_call, make_cluster, make_response, make_route

CLUSTER = make_cluster()
ROUTE = make_route()
ROUTES = {critical: make_route(CLUSTER, critical=critical) for critical in (None, True, False)}


class Crowd:
    """Calls at one limit: they come, wait for their turn, hold their permit until told to end, or hang up."""

    def __init__(self, limit: ConcurrencyLimit, loop: SlowLoop) -> None:
        self.limit = limit
        self.loop = loop
        self.running: dict[Call, asyncio.Task[None]] = {}
        self.holding: dict[Call, asyncio.Future[Outcome]] = {}
        self.refused: list[Call] = []

    def comes(self, critical: bool | None = None, timeout: float = 10.0) -> Call:
        call = make_call(route=ROUTES[critical], now=self.loop.now, timeout=timeout)
        self.running[call] = self.loop.create_task(self._carry(call))
        self.loop.settle()
        return call

    async def _carry(self, call: Call) -> None:
        outcome = NEUTRAL
        try:
            verdict: Any = self.limit.admit(call)
            if verdict is not None and not isinstance(verdict, Failure):
                verdict = await verdict
            if verdict is not None:
                assert verdict.kind is Kind.OVERLOADED
                self.refused.append(call)
                return
            self.holding[call] = self.loop.create_future()
            outcome = await self.holding[call]
        finally:
            self.holding.pop(call, None)
            del self.running[call]
            for policy in call.permits:
                policy.observe(call, outcome)

    def ends(self, call: Call, outcome: Outcome = SUCCESS) -> None:
        self.holding[call].set_result(outcome)

    def hangs_up(self, call: Call) -> None:
        self.running[call].cancel()

    def later(self, seconds: float) -> None:
        self.loop.now += seconds
        self.loop.settle()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowLoop]:
    made = SlowLoop()
    monkeypatch.setattr(concurrency, "monotonic", made.time)
    yield made
    made.finish()


def refusal(limit: ConcurrencyLimit, call: Call | None = None) -> Failure:
    """What a call hears that must be refused at once."""
    verdict = limit.admit(call or make_call(route=ROUTE))
    assert isinstance(verdict, Failure)
    return verdict


# ---------------------------------------------------------------- without a queue


def test_up_to_the_limit_and_not_one_more() -> None:
    """The call beyond the limit is told to come back in a second, and which limit it met."""
    limit = ConcurrencyLimit(2)
    assert [limit.admit(make_call()) for _ in range(2)] == [None, None]
    failure = refusal(limit)
    assert failure.kind is Kind.OVERLOADED
    assert failure.kind.status == 503
    assert failure.retry_after == 1.0
    assert "max_in_flight=2" in failure.detail
    assert "user" in failure.detail


def test_the_end_of_a_call_makes_room_however_it_ended() -> None:
    """Success, failure and hanging up all give the permit back."""
    limit = ConcurrencyLimit(1)
    for outcome in (SUCCESS, FAILURE, NEUTRAL):
        call = make_call()
        assert limit.admit(call) is None
        limit.observe(call, outcome)
    assert limit.in_flight == 0


def test_an_admitted_call_will_report_back() -> None:
    """The policy notes itself in the call, before those that came earlier; a refused call owes nothing."""
    outer, inner = ConcurrencyLimit(1), ConcurrencyLimit(1)
    call, refused = make_call(), make_call()
    outer.admit(call)
    inner.admit(call)
    assert call.permits == [outer, inner]
    outer.admit(refused)
    assert refused.permits == []


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_permits_are_neither_lost_nor_made_up(most: int, steps: list[bool]) -> None:
    """Whatever calls come and go, as many are in flight as were let in and have not ended."""
    limit = ConcurrencyLimit(most)
    flying: list[Call] = []
    for comes in steps:
        if comes:
            call = make_call(route=ROUTE)
            refused = limit.admit(call) is not None
            assert refused == (len(flying) == most)
            if not refused:
                flying.append(call)
        elif flying:
            limit.observe(flying.pop(), NEUTRAL)
        assert limit.in_flight == len(flying)


# ---------------------------------------------------------------- what is not critical


@pytest.mark.parametrize(("most", "room"), [(1, 1), (2, 1), (4, 3), (5, 4), (10, 8), (100, 80)])
def test_the_last_fifth_is_not_for_everybody(most: int, room: int) -> None:
    """Calls declared `critical: false` leave room for the others; where there is little, at least one may go."""
    limit = ConcurrencyLimit(most)
    for _ in range(room):
        assert limit.admit(make_call(route=ROUTES[False])) is None
    refusal(limit, make_call(route=ROUTES[False]))
    for number in range(most - room):
        assert limit.admit(make_call(route=ROUTES[None if number % 2 else True])) is None
    refusal(limit, make_call(route=ROUTES[True]))


# ---------------------------------------------------------------- with a queue


def test_a_call_beyond_the_limit_waits_for_one_to_end(loop: SlowLoop) -> None:
    """It goes as soon as a permit comes back, and what it waited for is not our overhead."""
    crowd = Crowd(ConcurrencyLimit(1, size=1, wait=5.0), loop)
    first, second = crowd.comes(), crowd.comes()
    assert list(crowd.holding) == [first]
    assert crowd.limit.waiting == 1
    loop.now += 2.0
    crowd.ends(first)
    loop.settle()
    assert list(crowd.holding) == [second]
    assert second.paused == pytest.approx(2.0)
    assert crowd.limit.in_flight == 1
    assert second.permits == [crowd.limit]


def test_a_full_queue_refuses_at_once(loop: SlowLoop) -> None:
    """No more than `size` calls wait."""
    crowd = Crowd(ConcurrencyLimit(1, size=2, wait=5.0), loop)
    calls = [crowd.comes() for _ in range(5)]
    assert crowd.limit.waiting == 2
    assert crowd.refused == calls[3:]


def test_nobody_waits_longer_than_the_queue_says(loop: SlowLoop) -> None:
    """When the time is up, the call is refused and says for how long it has waited."""
    crowd = Crowd(ConcurrencyLimit(1, size=2, wait=0.5), loop)
    first, second = crowd.comes(), crowd.comes()
    crowd.later(0.49)
    assert crowd.refused == []
    crowd.later(0.02)
    assert crowd.refused == [second]
    assert crowd.limit.waiting == 0
    assert second.permits == []
    crowd.ends(first)
    loop.settle()
    assert crowd.limit.in_flight == 0


def test_nobody_waits_for_more_than_half_of_its_time(loop: SlowLoop) -> None:
    """The rest is for the work: a call with little time left is told early."""
    crowd = Crowd(ConcurrencyLimit(1, size=2, wait=30.0), loop)
    crowd.comes(timeout=60.0)
    hasty = crowd.comes(timeout=2.0)
    crowd.later(0.99)
    assert crowd.refused == []
    crowd.later(0.02)
    assert crowd.refused == [hasty]


@pytest.mark.parametrize("timeout", [-1.0, 0.0])
def test_a_call_without_time_or_without_limit(loop: SlowLoop, timeout: float) -> None:
    """One whose time is over does not wait; one without a deadline waits as long as the queue says."""
    crowd = Crowd(ConcurrencyLimit(1, size=2, wait=3.0), loop)
    crowd.comes()
    call = crowd.comes(timeout=timeout)
    assert (call in crowd.refused) == (timeout < 0)
    crowd.later(3.01)
    assert crowd.refused == [call]


def test_first_come_first_served(loop: SlowLoop) -> None:
    """Within a kind, calls go in the order in which they came."""
    crowd = Crowd(ConcurrencyLimit(1, size=9, wait=5.0), loop)
    calls = [crowd.comes() for _ in range(5)]
    for call in calls:
        assert list(crowd.holding) == [call]
        crowd.ends(call)
        loop.settle()


def test_critical_calls_go_first(loop: SlowLoop) -> None:
    """A call that came later but matters overtakes those declared `critical: false`."""
    crowd = Crowd(ConcurrencyLimit(2, size=9, wait=5.0), loop)
    holding = [crowd.comes(), crowd.comes()]
    other, unsaid, critical = crowd.comes(False), crowd.comes(None), crowd.comes(True)
    for call in holding:
        crowd.ends(call)
    loop.settle()
    assert list(crowd.holding) == [unsaid, critical]
    crowd.ends(unsaid)
    loop.settle()
    assert other not in crowd.holding
    crowd.ends(critical)
    loop.settle()
    assert list(crowd.holding) == [other]


def test_a_critical_call_takes_the_place_of_one_that_is_not(loop: SlowLoop) -> None:
    """In a full queue the latest of those that are not critical is sent away; among critical ones nobody is."""
    crowd = Crowd(ConcurrencyLimit(1, size=2, wait=5.0), loop)
    crowd.comes()
    early, late = crowd.comes(False), crowd.comes(False)
    crowd.comes(False)
    crowd.refused.clear()
    crowd.comes(True)
    assert crowd.refused == [late]
    crowd.comes(None)
    assert crowd.refused == [late, early]
    refused = crowd.comes(True)
    assert crowd.refused == [late, early, refused]
    assert crowd.limit.waiting == 2


def test_nobody_jumps_the_queue(loop: SlowLoop) -> None:
    """While critical calls wait, a new one waits behind them."""
    crowd = Crowd(ConcurrencyLimit(1, size=9, wait=5.0), loop)
    first, second = crowd.comes(), crowd.comes()
    crowd.ends(first)
    third = crowd.comes()
    loop.settle()
    assert list(crowd.holding) == [second]
    crowd.ends(second)
    loop.settle()
    assert list(crowd.holding) == [third]


def test_hanging_up_while_waiting_leaves_nothing_behind(loop: SlowLoop) -> None:
    """The place in the queue is free again, and the next one's turn is not lost."""
    crowd = Crowd(ConcurrencyLimit(1, size=2, wait=5.0), loop)
    first, second, third = crowd.comes(), crowd.comes(), crowd.comes()
    crowd.hangs_up(second)
    loop.settle()
    assert crowd.limit.waiting == 1
    crowd.ends(first)
    loop.settle()
    assert list(crowd.holding) == [third]


def test_a_permit_given_to_one_who_hangs_up_goes_to_the_next(loop: SlowLoop) -> None:
    """Even when both happen in the same moment."""
    crowd = Crowd(ConcurrencyLimit(1, size=2, wait=5.0), loop)
    first, second, third = crowd.comes(), crowd.comes(), crowd.comes()
    limit = crowd.limit
    crowd.running[first].cancel()
    loop.call_soon(lambda: loop.call_soon(lambda: crowd.running[second].cancel() if second in crowd.running else None))
    loop.settle()
    assert limit.in_flight == 1
    assert third in crowd.holding or limit.waiting == 1 or second in crowd.holding
    for call in list(crowd.holding):
        crowd.ends(call)
    loop.settle()
    for call in list(crowd.holding):
        crowd.ends(call)
    loop.settle()
    assert (limit.in_flight, limit.waiting) == (0, 0)


def test_time_that_runs_out_in_the_moment_of_a_permit(loop: SlowLoop) -> None:
    """Whichever comes first counts; the permit is used or stays free, and is never lost."""
    crowd = Crowd(ConcurrencyLimit(1, size=2, wait=1.0), loop)
    first, second = crowd.comes(), crowd.comes()
    crowd.ends(first)
    crowd.later(1.5)
    assert (second in crowd.holding) != (second in crowd.refused)
    assert crowd.limit.in_flight == len(crowd.holding)
    assert crowd.limit.waiting == 0


# ---------------------------------------------------------------- adaptive


def test_the_limit_follows_what_is_learned() -> None:
    """Fast answers under load raise it, failures lower it."""
    adaptive = AdaptiveLimit()
    limit = ConcurrencyLimit(adaptive.limit, adaptive=adaptive)
    started = limit.limit
    for _ in range(started):
        limit.admit(make_call())
    call = make_call()
    call.attempt = make_attempt(call, make_response(200), latency=0.01)
    limit.observe(call, SUCCESS)
    assert limit.limit == started + int(started**0.5 * 0.2) or limit.limit >= started
    grown = limit.limit
    limit.in_flight += 5
    for _ in range(5):
        limit.observe(make_call(), FAILURE)
    assert limit.limit < grown


def test_calls_that_say_nothing_teach_nothing() -> None:
    """A 404, or an app that hung up, leaves the limit as it is."""
    adaptive = AdaptiveLimit()
    limit = ConcurrencyLimit(adaptive.limit, adaptive=adaptive)
    for _ in range(50):
        call = make_call()
        limit.admit(call)
        call.attempt = make_attempt(call, make_response(404), latency=5.0)
        limit.observe(call, NEUTRAL)
    assert limit.limit == AdaptiveLimit().limit


def test_a_limit_that_grows_lets_those_go_who_wait(loop: SlowLoop) -> None:
    """More room is handed out at once, not only when somebody else ends."""
    adaptive = AdaptiveLimit()
    crowd = Crowd(ConcurrencyLimit(4, size=9, wait=5.0, adaptive=adaptive), loop)
    calls = [crowd.comes() for _ in range(8)]
    calls[0].attempt = make_attempt(calls[0], make_response(200), latency=0.01)
    crowd.ends(calls[0])
    loop.settle()
    assert list(crowd.holding) == calls[1:]


# ---------------------------------------------------------------- any interleaving


class AnyInterleaving(RuleBasedStateMachine):
    """Calls of every kind come, end, hang up and run out of time, several of these in one turn of the loop."""

    @initialize(most=st.integers(1, 6), size=st.integers(0, 4))
    def begin(self, most: int, size: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.loop = SlowLoop()
        self.patch.setattr(concurrency, "monotonic", self.loop.time)
        self.crowd = Crowd(ConcurrencyLimit(most, size=size, wait=1.0), self.loop)
        self.size = size

    @rule(critical=st.sampled_from([None, True, False]), timeout=st.sampled_from([0.5, 10.0]))
    def comes(self, critical: bool | None, timeout: float) -> None:
        crowd = self.crowd
        call = make_call(route=ROUTES[critical], now=self.loop.now, timeout=timeout)
        crowd.running[call] = self.loop.create_task(crowd._carry(call))
        self.loop_turns(1)  # a call runs up to its first wait at once

    @precondition(lambda self: self.crowd.holding)
    @rule(data=st.data(), outcome=st.sampled_from([SUCCESS, FAILURE, NEUTRAL]))
    def ends(self, data: st.DataObject, outcome: Outcome) -> None:
        waiting = [call for call, end in self.crowd.holding.items() if not end.done()]
        if waiting:
            self.crowd.ends(data.draw(st.sampled_from(waiting)), outcome)

    @precondition(lambda self: self.crowd.running)
    @rule(data=st.data())
    def hangs_up(self, data: st.DataObject) -> None:
        self.crowd.hangs_up(data.draw(st.sampled_from(list(self.crowd.running))))

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.1]))
    def time_passes(self, seconds: float) -> None:
        self.loop.now += seconds

    @rule(turns=st.integers(1, 3))
    def loop_turns(self, turns: int) -> None:
        for _ in range(turns):
            self.loop.run_until_complete(asyncio.sleep(0))

    @rule()
    def settled(self) -> None:
        """With nothing left to do, permits are with those who hold them, and nobody waits for a free one."""
        self.loop.settle()
        limit = self.crowd.limit
        assert limit.in_flight == len(self.crowd.holding)
        assert limit.waiting == len(self.crowd.running) - len(self.crowd.holding)
        if limit._waiting:
            assert limit.in_flight == limit.limit
        if limit._waiting_others:
            assert limit.in_flight >= max(1, int(limit.limit * 0.8))

    @invariant()
    def within_the_limit(self) -> None:
        """Never a call too many, and never less than none."""
        limit = self.crowd.limit
        assert 0 <= len(self.crowd.holding) <= limit.in_flight <= limit.limit
        assert limit.waiting <= self.size

    def teardown(self) -> None:
        """When all have ended or given up, nothing is in flight and nobody has been forgotten."""
        if not hasattr(self, "crowd"):
            return
        for _ in range(20):
            self.loop.now += 2.0
            self.loop.settle()
            for call, end in self.crowd.holding.items():
                if not end.done():
                    self.crowd.ends(call)
        self.loop.settle()
        forgotten = list(self.crowd.running)
        self.loop.finish()
        self.patch.undo()
        assert not forgotten
        assert (self.crowd.limit.in_flight, self.crowd.limit.waiting) == (0, 0)


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
