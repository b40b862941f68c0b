"""Stats: counters that callers cannot grow, and histograms whose buckets are right at the edges."""

from __future__ import annotations

from bisect import bisect_left
from math import nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.runtime.counters import BUCKETS, ClusterStats, Histogram, ProxyStats, RouteStats, bucket_of


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (0.0005, 0), (0.00051, 1), (10.0, 13), (10.1, 14)])
def test_a_bucket_includes_its_upper_edge(seconds: float, bucket: int) -> None:
    """A bucket is `less or equal`, as Prometheus reads it; the last one takes the rest."""
    histogram = Histogram()
    histogram.observe(seconds)
    assert histogram.counts.index(1) == bucket


@given(st.lists(st.floats(0, 100, allow_nan=False)))
def test_every_observation_is_counted_once(values: list[float]) -> None:
    """Counts and sum hold all observations, none twice."""
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert histogram.sum == pytest.approx(sum(values))
    for index, edge in enumerate(BUCKETS):
        assert sum(histogram.counts[: index + 1]) == sum(value <= edge for value in values)


@given(
    st.one_of(st.floats(allow_nan=False), st.sampled_from(BUCKETS).flatmap(lambda edge: st.sampled_from(near(edge))))
)
def test_the_bucket_is_the_first_that_is_not_smaller(seconds: float) -> None:
    """What is written out as comparisons is bisection over BUCKETS, at the edges and beside them, too."""
    assert bucket_of(seconds) == bisect_left(BUCKETS, seconds)


def near(edge: float) -> tuple[float, ...]:
    """An edge and its neighbours."""
    return (nextafter(edge, 0.0), edge, nextafter(edge, 100.0))


def test_buckets_rise() -> None:
    """Bucket edges are in order, without doubles."""
    assert list(BUCKETS) == sorted(set(BUCKETS))


def test_unknown_methods_share_one_label() -> None:
    """A caller that invents methods does not grow the metric."""
    stats = RouteStats("user", "*")
    for number in range(100):
        stats.first(b"X%d" % number, 200, "ok")
    stats.first(b"GET", 200, "ok")
    assert dict(stats.requests) == {(b"_OTHER", 200, "ok"): 100, (b"GET", 200, "ok"): 1}


def test_counters_start_at_zero() -> None:
    """What has not happened counts zero, without having been declared."""
    cluster = ClusterStats()
    assert cluster.attempts[200] == cluster.retries["reset"] == cluster.transitions["closed", "open"] == 0
    proxy = ProxyStats()
    assert (proxy.accepted, proxy.reached["headers"], proxy.policy_errors) == (0, 0, 0)
