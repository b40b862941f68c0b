"""When a second attempt is worth its load: an answer is late, compared with a fixed time or with this route's others.

"The Tail at Scale" (Dean and Barroso): a second request after the 95th percentile costs 5 % of load and takes most of
the tail away. The percentile is learned from a histogram with logarithmic buckets that forgets: every thousand answers
all counts are halved.
"""

from __future__ import annotations

import math
from typing import Final

# Answers below which a percentile says nothing, and after which it is computed again.
_ENOUGH: Final = 100
_EVERY: Final = 50
_HALVE_AFTER: Final = 1000
# Buckets grow by a tenth, from 0.1 ms to over a minute.
_SMALLEST: Final = 0.0001
_GROWTH: Final = math.log(1.1)
_BUCKETS: Final = 150


class Percentile:
    """What share `share` of answers takes, in seconds; 0 while too few are known."""

    __slots__ = ("_counts", "_since", "_total", "share", "value")

    def __init__(self, share: float) -> None:
        self.share = share
        self.value = 0.0
        self._counts = [0.0] * _BUCKETS
        self._total = 0.0
        self._since = 0

    def learn(self, seconds: float) -> None:
        """An answer took so long."""
        index = int(math.log(max(seconds, _SMALLEST) / _SMALLEST) / _GROWTH)
        self._counts[min(index, _BUCKETS - 1)] += 1.0
        self._total += 1.0
        self._since += 1
        if self._since >= _EVERY and self._total >= _ENOUGH:
            self._since = 0
            self.value = self._compute()
            if self._total >= _HALVE_AFTER:
                self._counts = [count / 2 for count in self._counts]
                self._total /= 2

    def _compute(self) -> float:
        left = self._total * self.share
        for index, count in enumerate(self._counts):
            left -= count
            if left <= 0.0:
                return _SMALLEST * math.exp(_GROWTH * (index + 1))
        return _SMALLEST * math.exp(_GROWTH * _BUCKETS)


class Hedge:
    """After `after` seconds, or after a percentile; at most `most` further attempts beside the first."""

    __slots__ = ("_after", "_percentile", "most")

    def __init__(self, after: float = 0.0, percentile: Percentile | None = None, most: int = 1) -> None:
        self._after = after
        self._percentile = percentile
        self.most = most

    def delay(self) -> float:
        """Seconds after which an answer is late; 0 while that is not known."""
        return self._after if self._percentile is None else self._percentile.value

    def learn(self, seconds: float) -> None:
        """A first attempt was answered, or given up, after so long."""
        if self._percentile is not None:
            self._percentile.learn(seconds)
