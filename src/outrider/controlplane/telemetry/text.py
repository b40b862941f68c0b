"""Metrics as text, several times as fast as the metrics library writes them, and the same byte for byte.

Only the common sample is written here: names of letters, digits and underscores, a number, and nothing behind it. A
family with any other sample is left to the library: exemplars, timestamps, native histograms, names that need quotes,
and samples that one of the formats moves elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import exposition
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.utils import floatToGoString

from outrider.controlplane.telemetry.pages import END, OPENMETRICS

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

# Samples that are written in one turn of the event loop, less than a millisecond's work.
_SAMPLES_PER_TURN = 200
_PLAIN_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_ESCAPED: Final = re.compile(r'[\\\n"]')
# Endings of the names of samples that a family of another type gets in the older format.
_MOVED: Final = ("_created", "_gsum", "_gcount")
# What Go, and so the library, writes as Python does: up to six digits before the point.
_SHORT: Final = 7

# How a sample is written: its line with %s for the values of labels and the number, and the labels in that order.
_Shape = tuple[str, list[str]]


class Writer:
    """Writes families in one format."""

    def __init__(self, form: str) -> None:
        """`form` is OPENMETRICS or PLAIN."""
        self._end = END[form]
        self._library: Callable[[_One], bytes] = (
            openmetrics.generate_latest if form == OPENMETRICS else exposition.generate_latest
        )
        self._shapes: dict[tuple[str, ...], _Shape | None] = {}  # by name and labels

    def pieces(self, metric: Metric, *, head: bool = True) -> Iterator[bytes]:
        """The text of a family, some samples at a time. Without `head`, its samples alone."""
        shapes = [shape for sample in metric.samples if (shape := self._shape(sample)) is not None]
        if len(shapes) < len(metric.samples):
            text = self._by_library(metric)
            yield text if head else _without_head(text)
            return
        if head:
            yield self._by_library(Metric(metric.name, metric.documentation, metric.type, metric.unit))
        for start in range(0, len(shapes), _SAMPLES_PER_TURN):
            turn = slice(start, start + _SAMPLES_PER_TURN)
            yield "".join(map(_line, metric.samples[turn], shapes[turn])).encode("utf-8")

    def _by_library(self, metric: Metric) -> bytes:
        return self._library(_One(metric)).removesuffix(self._end)

    def _shape(self, sample: Sample) -> _Shape | None:
        """How this sample is written, or None if the library has to."""
        name, labels, value, *behind = sample  # timestamp, exemplar and, in newer versions, more
        if behind.count(None) != len(behind) or not isinstance(value, (int, float)):
            return None
        key = (name, *labels)
        if key not in self._shapes:
            self._shapes[key] = _shape(*key)
        return self._shapes[key]


def _shape(name: str, *labels: str) -> _Shape | None:
    """How samples with this name and these labels are written, or None if the library has to."""
    if name.endswith(_MOVED) or not all(_PLAIN_NAME.fullmatch(one) for one in (name, *labels)):
        return None
    order = sorted(labels)
    return name + ("{" + ",".join(f'{label}="%s"' for label in order) + "} %s\n" if order else " %s\n"), order


def _line(sample: Sample, shape: _Shape) -> str:
    text, names = shape
    values = [sample.labels[name] for name in names]
    if _ESCAPED.search("".join(values)):
        values = [value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for value in values]
    number = repr(float(sample.value))
    if len(number) > _SHORT or not number[-1].isdigit():
        number = floatToGoString(sample.value)  # type: ignore[no-untyped-call] # it has no types
    return text % (*values, number)


class _One:
    """A registry with one metric in it."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _without_head(text: bytes) -> bytes:
    """The text of a family less HELP, TYPE and UNIT."""
    while text.startswith(b"# "):
        text = text.partition(b"\n")[2]
    return text
