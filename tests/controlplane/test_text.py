"""The text of metrics is byte for byte what the metrics library writes, in both formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import exposition
from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
    SummaryMetricFamily,
    Timestamp,
    UnknownMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics

from outrider.controlplane.telemetry.pages import END, OPENMETRICS, PLAIN, render
from outrider.controlplane.telemetry.text import Writer

LIBRARY: dict[str, Callable[[One], bytes]] = {
    PLAIN: exposition.generate_latest,
    OPENMETRICS: openmetrics.generate_latest,
}
AWKWARD = ("", "plain", 'a "quote"', "back\\slash", "two\nlines", "\\n", "é 日本 😀", "a\tb", "%s {x} %", 'le="1"')
NUMBERS = (0, 1, -1, 7, True, 0.5, 1e-9, 123456.0, 999999, 1000000, 1234567.5, -1234567.0, 1e15, 1e16, 1e22, 2**53)
SPECIAL = (float("inf"), float("-inf"), float("nan"), -0.0, 5e-324, 1.7976931348623157e308)
LABELS = ("route", "a", "z9", "Le_x", "le", "_x", "__y", "x.y", "é")


class One:
    """A registry with one family."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def written(metric: Metric, form: str) -> bytes:
    return b"".join(Writer(form).pieces(metric)) + END[form]


def families() -> list[Metric]:
    """One family of every type that the library has, and what is unusual."""
    made: list[Metric] = []
    for text in AWKWARD:
        counter = CounterMetricFamily("calls", text, labels=["route", "a"], created=123.4)
        counter.add_metric([text, "x"], 3)
        counter.add_metric([text, "y"], 3, created=1700000000.5)
        gauge = GaugeMetricFamily("lag_seconds", text, labels=["z", "a", "b"], unit="seconds")
        gauge.add_metric([text, "1", text], 0.25)
        made += [counter, gauge]
    made += [GaugeMetricFamily("number", "", value=number) for number in (*NUMBERS, *SPECIAL)]
    made += [CounterMetricFamily("plain", "help", value=3), CounterMetricFamily("with_total_total", "", value=1.5)]
    made.append(CounterMetricFamily("made", "help", value=3, created=1700000000.0))
    summary = SummaryMetricFamily("size_bytes", "help", labels=["x"])
    summary.add_metric(["a"], count_value=3, sum_value=99.5)
    histogram = HistogramMetricFamily("took_seconds", "help", labels=["x"])
    histogram.add_metric(["a"], [("0.5", 1.0), ("+Inf", 3.0)], 2.5)
    histogram.add_metric(["b"], [("0.5", 1.0, Exemplar({"trace": 'a"b'}, 0.3)), ("+Inf", 3.0, None)], 2.5)
    gauges = GaugeHistogramMetricFamily("ages", "help", labels=["x"])
    gauges.add_metric(["a"], [("0.5", 1.0), ("+Inf", 3.0)], 2.5)
    states = StateSetMetricFamily("state", "help", labels=["x"])
    states.add_metric(["a"], {"open": True, "closed": False})
    info = InfoMetricFamily("build", "help", value={"version": '1"', "Python": "3"})
    made += [summary, histogram, gauges, states, info, UnknownMetricFamily("what", "help", value=4)]
    timed = GaugeMetricFamily("timed", "help", labels=["x"])
    for number, when in enumerate((0, 0.0, 12.5, Timestamp(12, 500))):
        timed.add_metric([str(number)], number, timestamp=when)
    made.append(timed)
    for name in ("with:colon", "_under", "dotted.name", "é"):
        try:
            odd = Metric(name, "help", "gauge")
        except ValueError:
            continue  # as older versions of the library do
        odd.add_sample(name, {"a": "b"}, 1)
        odd.add_sample(name, {}, 1)
        made.append(odd)
    missing = Metric("missing", "help", "unknown")
    missing.add_sample("missing", {"other_suffix": "1"}, 1)
    missing.add_sample("missing_created", {}, 1)
    missing.add_sample("missing_gsum", {}, 1)
    made.append(missing)
    return made


@pytest.mark.parametrize("form", [PLAIN, OPENMETRICS])
@pytest.mark.parametrize("metric", families(), ids=lambda metric: f"{metric.name}-{metric.type}")
def test_every_type_is_written_as_by_the_library(metric: Metric, form: str) -> None:
    """Types, units, help, escapes, numbers, exemplars, timestamps and odd names: the same bytes."""
    assert written(metric, form) == LIBRARY[form](One(metric))


@given(
    st.sampled_from(("counter", "gauge", "unknown", "histogram", "summary", "info", "stateset", "gaugehistogram")),
    st.text(max_size=20).filter(lambda text: text.isprintable() or "\n" in text),
    st.lists(
        st.tuples(
            st.sampled_from(("", "_total", "_bucket", "_sum", "_created", "_gcount")),
            st.dictionaries(
                st.sampled_from(LABELS), st.one_of(st.sampled_from(AWKWARD), st.text(max_size=5)), max_size=4
            ),
            st.one_of(st.sampled_from((*NUMBERS, *SPECIAL)), st.floats(), st.integers(-(2**60), 2**60)),
            st.sampled_from((None, None, None, 0, 1.5)),
        ),
        max_size=5,
    ),
)
def test_any_family_is_written_as_by_the_library(
    kind: str, text: str, samples: list[tuple[str, dict[str, str], float, float | None]]
) -> None:
    """Whatever the samples: the same bytes, or the same error, in both formats."""
    metric = Metric("some_name", text, kind)
    for suffix, labels, value, when in samples:
        metric.add_sample(f"some_name{suffix}", labels, value, when)
    for form in (PLAIN, OPENMETRICS):
        try:
            expected = LIBRARY[form](One(metric))
        except (ValueError, UnicodeError) as error:
            with pytest.raises(type(error)):
                written(metric, form)
        else:
            assert written(metric, form) == expected


@pytest.mark.parametrize("form", [PLAIN, OPENMETRICS])
@pytest.mark.parametrize("sizes", [(1,), (3, 0), (2, 5, 1), (0, 0)])
async def test_parts_of_a_family_have_one_head(form: str, sizes: tuple[int, ...]) -> None:
    """Families that come in parts make the page that they would make whole."""

    def part(name: str, numbers: range) -> CounterMetricFamily:
        made = CounterMetricFamily(name, "help", labels=["n"])
        for number in numbers:
            made.add_metric([str(number)], number)
        return made

    parts: list[Metric] = []
    for name in ("first", "second"):
        start = 0
        for size in sizes:
            parts.append(part(name, range(start, start + size)))
            start += size
    whole = [part("first", range(sum(sizes))), part("second", range(sum(sizes)))]
    body, _ = await render(parts, form)
    assert body == b"".join(LIBRARY[form](One(one)).removesuffix(END[form]) for one in whole) + END[form]
