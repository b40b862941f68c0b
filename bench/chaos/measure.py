"""From records to numbers: one row per phase and lane."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.chaos.load import GOOD, Record


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    good: int
    of: int

    @property
    def percent(self) -> float:
        """0 to 100; nothing asked is nothing lost."""
        return 100.0 * self.good / self.of if self.of else 100.0

    def error(self) -> float:
        """Standard error of the percentage."""
        share = self.percent / 100
        return 100.0 * math.sqrt(share * (1 - share) / self.of) if self.of else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one lane did in one phase.

    Percentiles are in milliseconds, of good calls, and None if there were none. `requests` reached the targets.
    `whole_after` is in seconds from the end of the fault to when the last call that failed was due: 0 if none did,
    infinity if calls failed to the very end.
    """

    every: Share
    gets: Share
    posts: Share
    p50: float | None
    p99: float | None
    p999: float | None
    requests: int
    duplicates: int
    whole_after: float
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def amplification(self) -> float:
        """Requests that the targets got per call of the client."""
        return self.requests / self.every.of if self.every.of else 0.0


def row(records: Iterable[Record], requests: int, duplicates: int, lead: float = 0.0) -> Row:
    """Sum up one phase; `lead` is how many seconds before its first call was due the fault ended."""
    records = list(records)
    latencies = sorted(1000 * record.latency for record in records if record.kind == GOOD)
    failed = [record for record in records if record.kind != GOOD]
    last = max((record.at for record in records), default=0.0)
    last_failed = max((record.at for record in failed), default=-lead)
    return Row(
        every=_share(records),
        gets=_share([record for record in records if not record.post]),
        posts=_share([record for record in records if record.post]),
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        p999=percentile(latencies, 0.999),
        requests=requests,
        duplicates=duplicates,
        whole_after=math.inf if failed and last_failed == last else last_failed + lead,
        errors=Counter(record.kind for record in failed),
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed; None of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _share(records: Sequence[Record]) -> Share:
    return Share(sum(record.kind == GOOD for record in records), len(records))
