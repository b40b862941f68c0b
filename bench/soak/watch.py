"""Looks at a sidecar from outside: memory, open files, and its metrics."""

from __future__ import annotations

import os
import resource
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]


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
    """A sidecar. `samples` are taken while it is under load."""

    name: str
    pid: int
    telemetry: int
    began: float = field(default_factory=monotonic)
    samples: list[Sample] = field(default_factory=list)

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
