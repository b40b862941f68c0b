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
from typing import Final, Protocol

NEVER: Final = float("inf")
# Seconds that a call may take which goes on to its end although its caller has left, or runs out of time.
TO_THE_END: Final = 300.0
_MIN_STALE: Final = 64


class Timed(Protocol):
    """Something that waits. `due` and `wake` start as NEVER; only Timers writes `wake`."""

    due: float
    wake: float

    def expired(self, now: float) -> None:
        """Called once `due` has passed; `due` is NEVER again by then."""


class Timers:
    """All the waits of one event loop. Times are `time.monotonic()` seconds."""

    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float] = monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._heap: list[tuple[float, int, Timed]] = []
        self._sequence = 0
        self._handle: TimerHandle | None = None
        self._next = NEVER
        self._stale = 0  # entries that will do nothing: of what was forgotten, or armed for earlier since

    def arm(self, timed: Timed, when: float) -> None:
        """Call `timed.expired` soon after `when`. To disarm, set `timed.due = NEVER`."""
        timed.due = when
        if when < timed.wake:
            self._push(timed, when)

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
        """An entry has become stale. Once most of them are, remove them: each keeps an object in memory."""
        self._stale += 1
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
        self._handle = self._loop.call_later(max(0.0, when - self._clock()) + 0.001, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._next = NEVER
        now = self._clock()
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
            self._reschedule()

    def _reschedule(self) -> None:
        heap = self._heap
        if heap and heap[0][0] < self._next:
            self._schedule(heap[0][0])
