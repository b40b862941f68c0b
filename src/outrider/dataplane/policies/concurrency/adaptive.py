"""A concurrency limit that finds itself: the gradient of Netflix's concurrency-limits ("Gradient2").

While answers come as fast as they usually do, the limit grows by its square root, which leaves room for a short queue
at the target. When they take longer than usual, calls are queueing there, and the limit shrinks in proportion.
"""

from __future__ import annotations

import math
from typing import Final

_INITIAL: Final = 20
_LEAST: Final = 4
_MOST: Final = 1000
# How much slower than usual is still usual.
_TOLERANCE: Final = 1.5
# Seconds over which it becomes usual to be slower, and answers that are averaged to begin with.
_HABIT: Final = 60.0
_FIRST: Final = 100
# What one answer weighs at most, also after a long silence.
_AT_MOST: Final = 0.05
# The weight of one adjustment in the limit.
_STEP: Final = 0.2
# What remains of the limit after a failure, and of the usual time when everything has become much faster.
_AFTER_FAILURE: Final = 0.9
_DRIFT: Final = 0.95


class AdaptiveLimit:
    """Learns from the latency (seconds) of successful answers, and from failures."""

    __slots__ = ("_known", "_learned_at", "_limit", "_usual")

    def __init__(self) -> None:
        self._limit = float(_INITIAL)
        self._usual = 0.0
        self._known = 0
        self._learned_at = 0.0

    @property
    def limit(self) -> int:
        """What it has come to."""
        return int(self._limit)

    def learn(self, seconds: float, in_flight: int, now: float) -> int:
        """An answer took so long while so many were in flight; the limit from now on."""
        if seconds <= 0.0:
            return int(self._limit)
        usual = self._usual
        self._known += 1
        elapsed = max(0.0, now - self._learned_at)
        weight = 1.0 / self._known if self._known <= _FIRST else min(_AT_MOST, -math.expm1(-elapsed / _HABIT))
        self._learned_at = max(self._learned_at, now)
        usual += (seconds - usual) * weight
        if usual > 2.0 * seconds:
            usual *= _DRIFT
        self._usual = usual
        if self._known > _FIRST and in_flight * 2 >= self._limit:  # otherwise it is not the limit that sets the pace
            gradient = min(1.0, max(0.5, _TOLERANCE * usual / seconds))
            wanted = self._limit * gradient + math.sqrt(self._limit)
            self._limit = min(_MOST, max(_LEAST, self._limit + (wanted - self._limit) * _STEP))
        return int(self._limit)

    def overrun(self) -> int:
        """A call failed or was refused by the target; the limit from now on."""
        self._limit = max(_LEAST, self._limit * _AFTER_FAILURE)
        return int(self._limit)
