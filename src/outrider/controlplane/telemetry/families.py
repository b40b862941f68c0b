"""Metric families in parts, so that the event loop does other work while thousands of series are read.

The types are those of the metrics library. A part is a family with some of its samples; parts of one family follow each
other and have the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from outrider.dataplane.runtime.counters import BUCKETS, Histogram

# Samples of one part, and rows that are read for it when their samples are left out. Either takes about half a
# millisecond.
_SAMPLES: Final = 200
_ROWS: Final = 1000
_EDGES: Final = (*map(str, BUCKETS), "+Inf")

# The values of the labels, and a number or a `Histogram`.
Row = tuple[tuple[str, ...], Any]


class Room:
    """How many series a page may still have. `dropped` counts those that were left out."""

    def __init__(self, series: int) -> None:
        self._left = series
        self.dropped = 0

    def take(self, series: int) -> bool:
        """Whether there is room for these series, which then belongs to them."""
        if series > self._left:
            self.dropped += series
            return False
        self._left -= series
        return True


class Family:
    """A counter or gauge. `rows` is read while the parts are, between which anything may change: an iterator over a
    dictionary that calls change has to copy it."""

    series_per_row = 1

    def __init__(
        self,
        kind: type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily],
        name: str,
        text: str,
        labels: Iterable[str],
        rows: Iterable[Row],
    ) -> None:
        self._kind = kind
        self._name = name
        self._text = text
        self._labels = list(labels)
        self._rows = rows

    def parts(self, room: Room) -> Iterator[Metric]:
        """The family, whole rows as far as there is room for them. At least one part."""
        metric = self._kind(self._name, self._text, labels=self._labels)
        read = 0
        for labels, value in self._rows:
            if room.take(self.series_per_row):
                self.add(metric, labels, value)
            read += 1
            if len(metric.samples) >= _SAMPLES or read >= _ROWS:
                yield metric
                metric = self._kind(self._name, self._text, labels=self._labels)
                read = 0
        yield metric

    def add(self, metric: Any, labels: tuple[str, ...], value: Any) -> None:
        """Add the samples of one row."""
        metric.add_metric(labels, value)


class HistogramFamily(Family):
    """A histogram, which has a series for each bucket, one for the count and one for the sum."""

    series_per_row = len(_EDGES) + 2

    def __init__(self, name: str, text: str, labels: Iterable[str], rows: Iterable[Row]) -> None:
        super().__init__(HistogramMetricFamily, name, text, labels, rows)

    def add(self, metric: Any, labels: tuple[str, ...], value: Histogram) -> None:
        total = 0
        buckets = []
        for edge, count in zip(_EDGES, value.counts, strict=True):
            total += count
            buckets.append((edge, float(total)))
        metric.add_metric(labels, buckets, value.sum)


def gauge(name: str, text: str, labels: Iterable[str], rows: Iterable[Row]) -> Family:
    return Family(GaugeMetricFamily, name, text, labels, rows)


def counter(name: str, text: str, labels: Iterable[str], rows: Iterable[Row]) -> Family:
    return Family(CounterMetricFamily, name, text, labels, rows)


class PartsCollector(Collector):
    """A collector whose families may also be read in parts."""

    def parts(self) -> Iterator[Metric]:
        """The families in parts."""
        raise NotImplementedError

    def collect(self) -> Iterator[Metric]:
        """The families as the library reads them, each in one piece."""
        whole: Metric | None = None
        for part in self.parts():
            if whole is not None and part.name == whole.name:
                whole.samples += part.samples
                continue
            if whole is not None:
                yield whole
            whole = part
        if whole is not None:
            yield whole


class PartsRegistry(CollectorRegistry):
    """A registry that also gives its families in parts, as far as its collectors do."""

    def __init__(self) -> None:
        super().__init__()
        self._members: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        self._members.append(collector)

    def parts(self) -> Iterator[Metric]:
        """All families, in the order in which their collectors were registered."""
        for member in self._members:
            yield from member.parts() if isinstance(member, PartsCollector) else member.collect()
