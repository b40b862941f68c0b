"""Timers: nothing fires early, everything fires, and what is moved later costs nothing."""

from __future__ import annotations

import gc
import heapq
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.runtime.timers import NEVER, Timers
from tests.fakes import Clock

TICK = 0.002  # how late a timer may be: they are coarse on purpose


class Handle:
    """What `call_later` returns."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop reduced to `call_later`, on a clock that is moved by hand."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.scheduled = 0
        self._calls: list[tuple[float, int, Handle, Callable[[], None]]] = []

    def call_later(self, delay: float, call: Callable[[], None]) -> Handle:
        self.scheduled += 1
        handle = Handle()
        heapq.heappush(self._calls, (self.clock() + delay, self.scheduled, handle, call))
        return handle

    def run(self, seconds: float) -> None:
        """Let so much time pass, and make every call that is due in it at its time."""
        end = self.clock() + seconds
        while self._calls and self._calls[0][0] <= end:
            when, _, handle, call = heapq.heappop(self._calls)
            self.clock.now = max(self.clock.now, when)
            if not handle.cancelled:
                call()
        self.clock.now = end


class Waiting:
    """Something that waits, and remembers when it was told."""

    def __init__(self, on_expiry: Callable[[], None] = lambda: None) -> None:
        self.due = self.wake = NEVER
        self.told: list[float] = []
        self._on_expiry = on_expiry

    def expired(self, now: float) -> None:
        assert self.due == NEVER
        self.told.append(now)
        self._on_expiry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Loop:
    return Loop(clock)


@pytest.fixture
def timers(loop: Loop, clock: Clock) -> Timers:
    return Timers(cast(Any, loop), clock)


def test_fires_soon_after_its_time_and_not_before(loop: Loop, clock: Clock, timers: Timers) -> None:
    """A wait ends within a few milliseconds after its time, once."""
    waiting = Waiting()
    timers.arm(waiting, clock() + 5)
    loop.run(4.999)
    assert waiting.told == []
    loop.run(10)
    assert waiting.told == [pytest.approx(1005, abs=TICK)]


def test_never_after_being_disarmed(loop: Loop, clock: Clock, timers: Timers) -> None:
    """What sets its `due` to NEVER is not told."""
    waiting = Waiting()
    timers.arm(waiting, clock() + 5)
    waiting.due = NEVER
    loop.run(10)
    assert waiting.told == []


def test_can_be_armed_again_after_being_disarmed(loop: Loop, clock: Clock, timers: Timers) -> None:
    """A wait that was called off can begin anew, before or after its old time."""
    waiting = Waiting()
    for _ in range(2):
        timers.arm(waiting, clock() + 5)
        loop.run(1)
        waiting.due = NEVER
    loop.run(20)
    timers.arm(waiting, clock() + 1)
    loop.run(2)
    assert len(waiting.told) == 1


def test_moved_later_by_storing_a_later_time(loop: Loop, clock: Clock, timers: Timers) -> None:
    """A later `due` holds although nobody told the timers."""
    waiting = Waiting()
    timers.arm(waiting, clock() + 5)
    loop.run(4)
    waiting.due = clock() + 5
    loop.run(4.9)
    assert waiting.told == []
    loop.run(1)
    assert waiting.told == [pytest.approx(1009, abs=TICK)]


def test_moved_earlier(loop: Loop, clock: Clock, timers: Timers) -> None:
    """Armed for earlier than before, a wait ends at the earlier time, and the old entry does nothing."""
    waiting = Waiting()
    timers.arm(waiting, clock() + 9)
    timers.arm(waiting, clock() + 2)
    loop.run(20)
    assert waiting.told == [pytest.approx(1002, abs=TICK)]


def test_an_old_entry_does_not_end_a_new_wait_early(loop: Loop, clock: Clock, timers: Timers) -> None:
    """Moved earlier, ended, and armed anew across the old time: the new time holds."""
    waiting = Waiting()
    timers.arm(waiting, clock() + 9)
    timers.arm(waiting, clock() + 2)
    loop.run(3)
    timers.arm(waiting, clock() + 10)
    loop.run(9.9)
    assert len(waiting.told) == 1
    loop.run(1)
    assert waiting.told[1:] == [pytest.approx(1013, abs=TICK)]


def test_a_thousand_re_arms_for_later_touch_the_loop_once_per_period(loop: Loop, clock: Clock, timers: Timers) -> None:
    """A connection that is re-armed on every call costs the loop one timer per period, not one per call."""
    waiting = Waiting()
    for _ in range(1000):
        timers.arm(waiting, clock() + 5)
        loop.run(0.01)
    assert waiting.told == []
    assert loop.scheduled <= 4


def test_may_be_armed_anew_while_being_told(loop: Loop, clock: Clock, timers: Timers) -> None:
    """Something that is told may arm itself or others at once."""
    other = Waiting()

    def again() -> None:
        if len(waiting.told) < 3:
            timers.arm(waiting, clock() + 1)
        timers.arm(other, clock() + 1)

    waiting = Waiting(again)
    timers.arm(waiting, clock() + 1)
    loop.run(20)
    assert [round(told) for told in waiting.told] == [1001, 1002, 1003]
    assert [round(told) for told in other.told] == [1004]


def test_a_time_in_the_past_fires_at_once(loop: Loop, clock: Clock, timers: Timers) -> None:
    """A wait whose end has passed already ends in the next turn."""
    waiting = Waiting()
    timers.arm(waiting, clock() - 5)
    loop.run(TICK)
    assert len(waiting.told) == 1


def test_never_is_never(loop: Loop, clock: Clock, timers: Timers) -> None:
    """Armed for NEVER, nothing is scheduled at all."""
    waiting = Waiting()
    timers.arm(waiting, NEVER)
    loop.run(1e6)
    assert waiting.told == []
    assert loop.scheduled == 0


def test_a_loop_that_wakes_too_early_is_asked_again(clock: Clock) -> None:
    """If the loop's clock runs ahead of ours, nothing fires early and nothing is forgotten."""
    calls: list[Callable[[], None]] = []

    class Hasty:
        def call_later(self, delay: float, call: Callable[[], None]) -> Handle:
            calls.append(call)
            return Handle()

    timers = Timers(cast(Any, Hasty()), clock)
    waiting = Waiting()
    timers.arm(waiting, clock() + 5)
    calls.pop()()
    assert waiting.told == []
    clock.advance(5)
    calls.pop()()
    assert waiting.told == [1005]


def test_close_drops_everything(loop: Loop, clock: Clock, timers: Timers) -> None:
    """After `close` nobody is told any more."""
    waiting = Waiting()
    timers.arm(waiting, clock() + 1)
    timers.close()
    loop.run(10)
    assert waiting.told == []


_times = st.floats(0, 20, allow_nan=False)
_steps = st.one_of(
    st.tuples(st.just("arm"), st.integers(0, 4), _times),
    st.tuples(st.just("move"), st.integers(0, 4), _times),
    st.tuples(st.just("disarm"), st.integers(0, 4), st.just(0.0)),
    st.tuples(st.just("pass"), st.just(0), _times),
)


@given(st.lists(_steps, max_size=60))
def test_nothing_fires_early_and_everything_fires(steps: list[tuple[str, int, float]]) -> None:
    """Whatever is armed, moved and disarmed in whatever order, each wait ends once, on time."""
    clock = Clock()
    loop = Loop(clock)
    timers = Timers(cast(Any, loop), clock)
    waits = [Waiting() for _ in range(5)]
    due = [NEVER] * 5

    def check() -> None:
        for index, waiting in enumerate(waits):
            if waiting.told:
                (told,) = waiting.told
                assert due[index] <= told <= due[index] + TICK
                due[index] = NEVER
                waiting.told.clear()
            assert due[index] > clock() - TICK

    for what, index, seconds in [*steps, ("pass", 0, 100.0)]:
        waiting, when = waits[index], clock() + seconds
        if what == "pass":
            loop.run(seconds)
            check()
        elif what == "disarm":
            waiting.due = due[index] = NEVER
        elif what == "move" and when >= waiting.wake:
            waiting.due = due[index] = when  # as connections do: no word to the timers
        else:
            due[index] = when
            timers.arm(waiting, when)
    assert due == [NEVER] * 5


def test_what_is_forgotten_is_let_go() -> None:
    """An entry far in the future keeps nothing in memory that will never be armed again."""
    clock = Clock()
    timers = Timers(cast(Any, Loop(clock)), clock)
    kept = [Waiting() for _ in range(10)]
    gone = [Waiting() for _ in range(500)]
    for timed in (*kept, *gone):
        timers.arm(timed, clock() + 3600)
    ghosts = [weakref.ref(timed) for timed in gone]
    while gone:
        timers.forget(gone.pop())
    del timed
    gc.collect()
    assert sum(ghost() is not None for ghost in ghosts) <= 80
    assert all(one.wake < NEVER for one in kept)


def test_entries_superseded_by_earlier_ones_do_not_pile_up() -> None:
    """A wait that is moved earlier again and again, or moved earlier and forgotten, leaves a bounded heap."""
    clock = Clock()
    timers = Timers(cast(Any, Loop(clock)), clock)
    restless = Waiting()
    for sooner in range(1000):
        timers.arm(restless, clock() + 3600 - sooner)
    for _ in range(1000):
        timed = Waiting()
        timers.arm(timed, clock() + 3600)
        timers.arm(timed, clock() + 10)
        timers.forget(timed)
    assert timers.pending < 150
    assert (restless.due, restless.wake) == (clock() + 2601, clock() + 2601)


def test_what_was_forgotten_goes_when_the_others_have_expired(loop: Loop, clock: Clock, timers: Timers) -> None:
    """A minority of stale entries becomes the majority without another one being forgotten."""
    kept = [Waiting() for _ in range(150)]
    gone = [Waiting() for _ in range(100)]
    for timed in gone:
        timers.arm(timed, clock() + 3600)
    for timed in kept:
        timers.arm(timed, clock() + 10)
    for timed in gone:
        timers.forget(timed)
    assert timers.pending == 250
    loop.run(11)
    assert timers.pending == 0


# ---------------------------------------------------------------- standing still


def test_after_standing_still_sockets_have_their_turn_first(loop: Loop, clock: Clock, timers: Timers) -> None:
    """What is due then is told a moment later, and only if nothing has moved it meanwhile."""
    waiting, answered = Waiting(), Waiting()
    for one in (waiting, answered):
        timers.arm(one, clock() + 5)
    clock.advance(11)  # and no timer was called in that time
    loop.run(0.01)
    assert (waiting.told, answered.told) == ([], [])
    timers.arm(answered, clock() + 5)
    loop.run(1)
    assert (waiting.told, answered.told) == ([pytest.approx(1011.06, abs=0.02)], [])


def test_a_loop_that_is_always_late_tells_all_the_same(loop: Loop, clock: Clock, timers: Timers) -> None:
    """A busy loop may be late again and again: one more turn is given, not one after the other."""
    waiting = Waiting()
    timers.arm(waiting, clock() + 5)
    for _ in range(2):
        clock.advance(6)
        loop.run(0)
    assert len(waiting.told) == 1


def test_how_long_it_stood_still(loop: Loop, clock: Clock, timers: Timers) -> None:
    """Known before and after the late timer is called, and only for what had begun before."""
    timers.keep_watch()
    loop.run(10)
    assert timers.stood_still(1000, 1010) == 0
    clock.advance(6)
    assert timers.stood_still(1009, 1016) == pytest.approx(6, abs=0.3)
    assert timers.stood_still(1015, 1016) == 1
    loop.run(1)
    assert timers.stood_still(1009, 1017) == pytest.approx(6, abs=0.3)
    assert timers.stood_still(1016.9, 1017) == 0
    assert timers.missed(1012) == pytest.approx(6, abs=0.3)
    assert timers.missed(1009) == timers.missed(1016.5) == 0
