"""At most so many calls in flight (the bulkhead of Nygard, "Release It!"): a slow target must not eat us up.

A fixed limit, or one that adapts (adaptive.py). Calls beyond it are refused, or wait where a queue is declared:
critical ones first, none longer than its own deadline allows. The last fifth of the room is for calls that are not
declared `critical: false` anywhere on their way, so that when it becomes tight the others are shed first.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Awaitable
from time import monotonic
from typing import TYPE_CHECKING, Final

from outrider.dataplane.policies.concurrency.adaptive import AdaptiveLimit
from outrider.dataplane.policies.criticality import sheddable as may_be_shed
from outrider.dataplane.policy import Policy
from outrider.model.failure import Failure, Kind
from outrider.model.outcome import FAILURE, SUCCESS, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

# The share of the room that calls may take which are not critical.
_FOR_EVERYBODY: Final = 0.8
# The share of its remaining time that a call may spend waiting: the rest is for the work.
_OF_THE_TIME: Final = 0.5


class ConcurrencyLimit(Policy):
    """Up to `limit` calls at once. `size` calls may wait for at most `wait` seconds; 0 of them: the next one is told to
    come back in a second. With `adaptive`, the limit follows what that learns."""

    __slots__ = ("_adaptive", "_size", "_waiting", "_waiting_others", "in_flight", "limit", "wait")

    def __init__(self, limit: int, size: int = 0, wait: float = 0.0, adaptive: AdaptiveLimit | None = None) -> None:
        self.limit = limit
        self.in_flight = 0
        self.wait = wait
        super().__init__()
        self._size = size
        self._adaptive = adaptive
        self._waiting: deque[Future[bool]] = deque()
        self._waiting_others: deque[Future[bool]] = deque()  # of calls that are not critical

    def admit(self, call: Call) -> Failure | Awaitable[Failure | None] | None:
        sheddable = may_be_shed(call)
        if self.in_flight < self._room(sheddable) and not self._waiting:
            self.in_flight += 1
            call.permits.append(self)
            return None
        if self._size and (self.waiting < self._size or (not sheddable and self._make_place())):
            return self._queued(call, sheddable)
        return self._refusal(call, "")

    def observe(self, call: Call, outcome: Outcome) -> None:
        adaptive = self._adaptive
        if adaptive is not None:
            attempt = call.attempt
            if outcome is SUCCESS and attempt is not None:
                self.limit = adaptive.learn(attempt.latency, self.in_flight, attempt.answered)
            elif outcome is FAILURE or (call.status == 429 and call.failure is None):
                self.limit = adaptive.overrun()
        self.in_flight -= 1
        self._wake()

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._waiting) + len(self._waiting_others)

    def _room(self, sheddable: bool) -> int:
        return max(1, int(self.limit * _FOR_EVERYBODY)) if sheddable else self.limit

    def _make_place(self) -> bool:
        """Send the latest of those away that are not critical, for one that is; False if only critical ones wait."""
        while self._waiting_others:
            turn = self._waiting_others.pop()
            if not turn.done():
                turn.set_result(False)
                return True
        return False

    async def _queued(self, call: Call, sheddable: bool) -> Failure | None:
        """Wait for a permit; whoever gives one back hands it over."""
        began = monotonic()
        patience = min(self.wait, (call.deadline - began) * _OF_THE_TIME)
        loop = asyncio.get_running_loop()
        turn: Future[bool] = loop.create_future()
        queue = self._waiting_others if sheddable else self._waiting
        queue.append(turn)
        timer = loop.call_later(max(0.0, patience), _resolve, turn, False)
        granted = False
        try:
            granted = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.in_flight -= 1  # it was handed over in the same moment
                self._wake()
            raise
        finally:
            timer.cancel()
            if not granted and turn in queue:
                queue.remove(turn)
            call.paused += monotonic() - began
        if not granted:
            return self._refusal(call, f" and none was free for it after {monotonic() - began:.2f} s")
        call.permits.append(self)
        return None

    def _wake(self) -> None:
        """Hand free permits to those who wait."""
        for queue, sheddable in ((self._waiting, False), (self._waiting_others, True)):
            while queue and self.in_flight < self._room(sheddable):
                turn = queue.popleft()
                if not turn.done():
                    self.in_flight += 1
                    turn.set_result(True)

    def _refusal(self, call: Call, what: str) -> Failure:
        name = call.route.shown
        detail = f"{name} already has max_in_flight={self.limit} calls in flight{what}"
        return Failure(Kind.OVERLOADED, detail, retry_after=1.0)


def _resolve(turn: Future[bool], granted: bool) -> None:
    if not turn.done():
        turn.set_result(granted)
