"""Families in parts: the same as in one piece, within the room there is, and read while calls go on."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outrider.controlplane.telemetry.families import (
    Family,
    HistogramFamily,
    PartsCollector,
    PartsRegistry,
    Room,
    counter,
    gauge,
)
from outrider.dataplane.runtime.counters import BUCKETS, Histogram


def many(count: int) -> Family:
    return counter("calls", "Calls", ["n"], (((str(number),), number) for number in range(count)))


def durations(count: int) -> HistogramFamily:
    observed = Histogram()
    observed.observe(0.003)
    observed.observe(20.0)
    return HistogramFamily("took_seconds", "Time", ["n"], (((str(number),), observed) for number in range(count)))


class Some(PartsCollector):
    def parts(self) -> Iterator[Metric]:
        yield from many(1000).parts(Room(5000))
        yield from durations(50).parts(Room(5000))


class Other(Collector):
    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("lag", "Lag", value=1)


def test_a_family_without_rows_is_shown() -> None:
    """Its name and help are on the page from the start."""
    (part,) = many(0).parts(Room(10))
    assert (part.name, part.type, part.samples) == ("calls", "counter", [])


def test_parts_are_small_and_make_up_the_family() -> None:
    """Thousands of rows come in parts of a few hundred samples, in order."""
    parts = list(many(1000).parts(Room(5000)))
    assert max(len(part.samples) for part in parts) <= 200
    assert [sample.value for part in parts for sample in part.samples] == list(range(1000))
    assert max(len(part.samples) for part in durations(100).parts(Room(5000))) < 200 + 17


def test_what_has_no_room_is_counted_and_read_in_steps() -> None:
    """Rows beyond the room are left out whole, never half a histogram, and their series are counted."""
    room = Room(40)
    parts = list(durations(3000).parts(room))
    assert sum(len(part.samples) for part in parts) == 34
    assert room.dropped == 2998 * 17
    assert len(parts) > 2
    assert room.take(6)
    assert not room.take(1)


def test_a_histogram_has_cumulative_buckets() -> None:
    """Each bucket counts what is at most as long; the last one everything."""
    (part,) = durations(1).parts(Room(17))
    buckets = {sample.labels["le"]: sample.value for sample in part.samples if sample.name.endswith("_bucket")}
    assert list(buckets) == [*map(str, BUCKETS), "+Inf"]
    assert (buckets["0.0025"], buckets["0.005"], buckets["10.0"], buckets["+Inf"]) == (0, 1, 1, 2)
    values = {sample.name: sample.value for sample in part.samples}
    assert (values["took_seconds_count"], values["took_seconds_sum"]) == (2, 20.003)


def test_a_registry_gives_whole_families_and_parts() -> None:
    """The library's own tools see each family once; the page is made of its parts."""
    registry = PartsRegistry()
    registry.register(Some())
    registry.register(Other())
    whole = list(registry.collect())
    assert [(family.name, len(family.samples)) for family in whole] == [
        ("calls", 1000),
        ("took_seconds", 850),
        ("lag", 1),
    ]
    parts = list(registry.parts())
    assert [sample for part in parts for sample in part.samples] == [one for family in whole for one in family.samples]
    assert len(parts) > 6


def test_rows_may_change_between_parts() -> None:
    """Rows are read when their part is made: what is counted meanwhile shows."""
    value = [1]
    rows = (((str(number),), value[0]) for number in range(400))
    parts = gauge("g", "G", ["n"], rows).parts(Room(5000))
    assert {sample.value for sample in next(parts).samples} == {1}
    value[0] = 2
    assert {sample.value for part in parts for sample in part.samples} == {2}
