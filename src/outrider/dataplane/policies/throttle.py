"""Refuse here what the service would refuse there anyway: client-side throttling.

A refusal costs an overloaded service nearly as much as an answer. So each of its clients compares what it wanted to
send with what was taken, and sends at most `ratio` times that much; the rest is refused on this side, at random
("Handling Overload", Site Reliability Engineering, Google).
"""

from __future__ import annotations

from collections.abc import Callable
from random import random
from typing import TYPE_CHECKING, Final

from outrider.dataplane.policy import Policy
from outrider.model.failure import Failure, Kind, Origin
from outrider.model.outcome import FAILURE, NEUTRAL, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

_SLOTS: Final = 10
# Calls that are never enough to conclude anything from.
_FEW: Final = 10.0


class Throttle(Policy):
    """Looks back over `window` seconds, in ten slots."""

    __slots__ = ("_accepted", "_draw", "_ratio", "_requests", "_slot", "_slots", "_width")

    def __init__(self, ratio: float, window: float, *, draw: Callable[[], float] = random) -> None:
        super().__init__()
        self._ratio = ratio
        self._width = window / _SLOTS
        self._draw = draw
        self._slot = 0
        self._slots: list[tuple[float, float]] = [(0.0, 0.0)] * _SLOTS
        self._requests = self._accepted = 0.0

    def admit(self, call: Call) -> Failure | None:
        slot = int(call.started / self._width)
        if slot > self._slot:
            self._advance(slot)
        refused = self.refused_share()
        if refused > 0.0 and self._draw() < refused:
            self._count(0.0)
            return Failure(
                Kind.OVERLOADED,
                f"{call.route.service} takes only part of the calls; {refused:.0%} are refused here meanwhile",
                retry_after=1.0,
            )
        call.permits.append(self)
        return None

    def observe(self, call: Call, outcome: Outcome) -> None:
        failure = call.failure
        if outcome is FAILURE or (call.status == 429 and failure is None):
            self._count(0.0)
        elif outcome is not NEUTRAL or failure is None or failure.kind.origin is not Origin.PROXY:
            self._count(1.0)  # our own refusals say nothing about what the service takes

    def refused_share(self) -> float:
        """The share of calls that is refused at present."""
        excess = self._requests - self._ratio * self._accepted - _FEW
        return max(0.0, excess / (self._requests + 1.0))

    def _count(self, accepted: float) -> None:
        requests, taken = self._slots[self._slot % _SLOTS]
        self._slots[self._slot % _SLOTS] = (requests + 1.0, taken + accepted)
        self._requests += 1.0
        self._accepted += accepted

    def _advance(self, slot: int) -> None:
        """Let the slots go that are older than the window."""
        for passed in range(1, min(max(slot - self._slot, 0), _SLOTS) + 1):
            self._slots[(self._slot + passed) % _SLOTS] = (0.0, 0.0)
        self._slot = slot
        self._requests = sum(requests for requests, _ in self._slots)
        self._accepted = sum(accepted for _, accepted in self._slots)
