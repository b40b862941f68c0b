"""Coarse, lazy timers: a deadline on every wait, for the price of one attribute store.

A connection is re-armed several times per call, nearly always for later than it already was. So an object
keeps its true time in `due`, and the heap only holds an entry no later than that; when the entry comes up
and `due` lies ahead, it is put back. The heap is touched about once per connection and timeout, not per call.
"""

from __future__ import annotations

import heapq
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from time import monotonic
from typing import Final

NEVER: Final = float("inf")
# Seconds that a call may take which goes on to its end although its caller has left, or runs out of time.
TO_THE_END: Final = 300.0
_MIN_STALE: Final = 64


# Seconds by which timers are late only if the loop has stood still, and for which sockets then have their turn.
_LATE: Final = 0.1
_SECOND_LOOK: Final = 0.05
# Seconds between two looks whether the loop stands still, while nothing else is waited for.
_PULSE: Final = 0.25


class Timed:
    """Something that waits. `due` and `wake` start as NEVER; only Timers writes `wake`."""

    __slots__ = ("due", "wake")

    due: float
    wake: float

    def expired(self, now: float) -> None:
        """Called once `due` has passed; `due` is NEVER again by then."""
        raise NotImplementedError


class Timers:
    """All the waits of one event loop. Times are `time.monotonic()` seconds.

    A timer that is late says something about us, not about what it waits for: this process was stopped, or kept from
    its work. What has come meanwhile lies in the kernel, and event loops look at the time before they look at sockets.
    So after standing still, nothing expires before the sockets have had their turn.
    """

    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float] = monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._heap: list[tuple[float, int, Timed]] = []
        self._sequence = 0
        self._handle: TimerHandle | None = None
        self._next = NEVER
        self._expected = NEVER  # when `_fire` is to be called next
        self._looking_again = False  # the loop stood still, and sockets are having their turn
        self._stood_still = 0.0  # seconds, the last time
        self._went_on = 0.0  # and when that was over
        self._stale = 0  # entries that will do nothing: of what was forgotten, or armed for earlier since

    def arm(self, timed: Timed, when: float) -> None:
        """Call `timed.expired` soon after `when`. To disarm, set `timed.due = NEVER`."""
        timed.due = when
        if when < timed.wake:
            self._push(timed, when)

    def keep_watch(self) -> None:
        """From now on notice within a moment when the loop stands still, although nothing else may be waited for."""
        self.arm(_Pulse(self), self._clock() + _PULSE)

    def stood_still(self, since: float, now: float) -> float:
        """Seconds between these two times in which the loop stood still, as far as is known: of several such times only
        the last one counts."""
        late = now - self._expected
        if late > _LATE:  # it has only just gone on
            return min(late, now - since)
        return min(self._stood_still, self._went_on - since) if self._went_on > since else 0.0

    def missed(self, due: float) -> float:
        """Seconds that the loop stood still the last time, if `due` passed meanwhile; else 0."""
        return self._stood_still if self._went_on - self._stood_still - _PULSE <= due < self._went_on else 0.0

    def forget(self, timed: Timed) -> None:
        """Let go of something that will not be armed again: its entry would keep it in memory until it comes up."""
        timed.due = NEVER
        if timed.wake < NEVER:
            timed.wake = NEVER
            self._one_more_stale()

    @property
    def pending(self) -> int:
        """Entries in the heap, stale ones included."""
        return len(self._heap)

    def close(self) -> None:
        """Drop every timer."""
        if self._handle is not None:
            self._handle.cancel()
        self._heap.clear()

    def _one_more_stale(self) -> None:
        """An entry has become stale."""
        self._stale += 1
        self._sweep()

    def _sweep(self) -> None:
        """Remove the stale entries once most entries are stale: each keeps an object in memory."""
        if self._stale > _MIN_STALE and self._stale * 2 > len(self._heap):
            self._stale = 0
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].wake]
            heapq.heapify(self._heap)

    def _push(self, timed: Timed, when: float) -> None:
        superseded = timed.wake < NEVER  # its earlier entry, which stays in the heap
        timed.wake = when
        if superseded:
            self._one_more_stale()
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, timed))
        if when < self._next:
            self._schedule(when)

    def _schedule(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._next = when
        now = self._clock()
        wait = max(0.0, when - now) + 0.001
        self._expected = now + wait
        self._handle = self._loop.call_later(wait, self._fire)

    def _fire(self) -> None:
        now = self._clock()
        late = now - self._expected
        if late > _LATE and not self._looking_again:
            self._looking_again = True
            self._stood_still, self._went_on = late, now
            self._expected = now + _SECOND_LOOK
            self._handle = self._loop.call_later(_SECOND_LOOK, self._fire)
            return
        self._looking_again = False
        self._handle = None
        self._next = self._expected = NEVER
        heap = self._heap  # nobody is told, so nothing is forgotten, before the end of this loop
        due: list[Timed] = []  # taken out first: what is armed meanwhile, even for the past, waits for the next time
        while heap and heap[0][0] <= now:
            entry, _, timed = heapq.heappop(heap)
            if entry != timed.wake:
                self._stale = max(0, self._stale - 1)
                continue  # of something forgotten, or armed for earlier since
            timed.wake = NEVER
            if timed.due <= now:
                due.append(timed)
            elif timed.due < NEVER:
                self._push(timed, timed.due)
        told = 0
        try:
            for timed in due:
                told += 1
                if timed.due <= now:
                    timed.due = NEVER
                    timed.expired(now)
        finally:
            for timed in due[told:]:  # only after a bug: the others are not to wait for ever
                self._push(timed, now)
            self._sweep()  # the others have become fewer
            self._reschedule()

    def _reschedule(self) -> None:
        heap = self._heap
        if heap and heap[0][0] < self._next:
            self._schedule(heap[0][0])


class _Pulse(Timed):
    """A timer that does nothing but not be late."""

    __slots__ = ("_timers",)

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.due = NEVER
        self.wake = NEVER

    def expired(self, now: float) -> None:
        """Wait on."""
        self._timers.arm(self, now + _PULSE)
