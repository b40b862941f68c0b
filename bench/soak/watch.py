"""Looks at a sidecar from outside: memory, open files, and its metrics."""

from __future__ import annotations

import asyncio
import os
import resource
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]

# All of these are 0 once every client has left.
GAUGES: Final = ("outrider_downstream_connections", "outrider_in_flight_requests", "outrider_tunnels")
LINGER: Final = 20.0  # seconds in which connections and files must return to where they were
_LOOKS: Final = 5  # of a sidecar at rest, a second apart


def _processes(pid: int) -> list[int]:
    """A process and its children."""
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(one for child in children for one in _processes(child))]


@dataclass
class Metrics:
    """One page of metrics."""

    samples: list[tuple[str, Labels, float]]

    def sum(self, name: str, match: Callable[[Labels], bool] = lambda labels: True) -> float:
        """The sum over all series of a name whose labels match."""
        return sum(value for one, labels, value in self.samples if one == name and match(labels))


@dataclass
class Sample:
    """A sidecar at one moment; memory in MB, of all its processes."""

    seconds: float
    connections: int
    memory: float
    files: int


@dataclass
class Watch:
    """A sidecar. `samples` are what was seen of it; `rests` are its medians, each time that no client was there."""

    name: str
    pid: int
    telemetry: int
    began: float = field(default_factory=monotonic)
    samples: list[Sample] = field(default_factory=list)
    rests: list[Sample] = field(default_factory=list)

    def metrics(self) -> Metrics:
        """Its metrics now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.telemetry}/metrics", timeout=10) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        return Metrics([(one.name, one.labels, one.value) for family in families for one in family.samples])

    def look(self, connections: int) -> Sample:
        """Take a sample and print it."""
        pids = _processes(self.pid)
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        memory = pages * resource.getpagesize() / 1e6
        sample = Sample(monotonic() - self.began, connections, memory, files)
        self.samples.append(sample)
        print(f"{sample.seconds:8.1f} s {connections:9d} connections  {self.name:9s} {memory:7.1f} MB {files:5d} files")
        return sample


async def let_go(watches: Sequence[Watch]) -> None:
    """Wait until the sidecars have noticed that every client has left."""
    end = monotonic() + LINGER
    while monotonic() < end:
        pages = [watch.metrics() for watch in watches]
        if not any(page.sum(name) for page in pages for name in GAUGES):
            return
        await asyncio.sleep(0.5)


async def rest(watches: Sequence[Watch], connections: int) -> None:
    """Wait until every client has left, and note the median of what each sidecar then holds. Single looks differ by a
    MB or two: the page of metrics is written now and then, and memory is given back some seconds after a crowd."""
    await let_go(watches)
    looks: list[list[Sample]] = [[] for _ in watches]
    for _ in range(_LOOKS):
        await asyncio.sleep(1)
        for watch, seen in zip(watches, looks, strict=True):
            seen.append(watch.look(connections))
    for watch, seen in zip(watches, looks, strict=True):
        memory = median(one.memory for one in seen)
        watch.rests.append(Sample(seen[-1].seconds, connections, memory, seen[-1].files))
