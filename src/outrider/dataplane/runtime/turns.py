"""Work that is too much for one turn of the event loop: a little of it per turn, so that every other call goes on.

A connection may bring 250 kB in one read, and in them thousands of requests that are answered here. It does as much as
fits into its slice, and asks for a turn for the rest. All connections of one side that wait for turns are served in
order and share one budget per turn of the loop, so a hundred of them delay the others no more than one does.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

# Seconds per turn of the loop, for all connections together. A little more may pass: one slice is always done.
_BUDGET: Final = 0.002


class Turns:
    """The waiting line of one event loop."""

    __slots__ = ("_line", "_loop", "_scheduled")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._line: deque[Callable[[], None]] = deque()
        self._scheduled = False

    @property
    def crowded(self) -> bool:
        """Whether others wait for a turn already."""
        return bool(self._line)

    def ask(self, work: Callable[[], None]) -> None:
        """Call `work` in one of the next turns. It should do one slice, and ask again if there is more."""
        self._line.append(work)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Work until the budget is used up."""
        self._scheduled = False
        line = self._line
        end = monotonic() + _BUDGET
        try:
            for _ in range(len(line)):  # what is asked for meanwhile waits for the next turn
                line.popleft()()
                if monotonic() >= end:
                    break
        finally:
            if line:
                self._schedule()
