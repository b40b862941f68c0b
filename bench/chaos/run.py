"""Conduct a timeline: start every lane's processes, call the phases, and collect."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO, Any

from bench.chaos.load import Plan, Record
from bench.chaos.measure import Row, percentile, row
from bench.chaos.proxies import Lane
from bench.chaos.timeline import GAP, Timeline
from bench.setup import ROOT, WORK

# Below the range that the kernel takes ports for outgoing connections from: a connection must never find its own
# source port where an endpoint is down.
_PORTS = range(20000, 32000)
LOG = WORK / "chaos.log"
Builder = Callable[[Sequence[int]], Lane]


@dataclass(frozen=True, slots=True)
class Result:
    """Of one timeline: a row per phase for each lane, and how late (ms, p99.9) each lane's client sent its calls."""

    timeline: Timeline
    rows: dict[str, list[Row]]
    lateness: dict[str, float]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def conduct(timeline: Timeline, builders: Iterable[Builder]) -> Result:
    """Run every lane through the timeline, all at the same time."""
    with ExitStack() as stack:
        lanes: list[tuple[Lane, Targets]] = []
        for build in builders:
            ports = free_ports(timeline.endpoints)
            targets = Targets(ports, stack)
            lane = build(ports)
            if lane.command:
                started = _start(lane.command, lane.environment, stack)
                _wait_for(lane, started)
            lanes.append((lane, targets))
        start = time.monotonic() + 1.0
        clients = []
        for index, (lane, _) in enumerate(lanes):
            shift = index / len(lanes) / timeline.rate
            plan = Plan(lane.port, lane.path, timeline.rate, start, tuple(timeline.offsets()), shift)
            clients.append(_client(plan, stack))
        _call_phases(timeline, start, [targets for _, targets in lanes])
        rows: dict[str, list[Row]] = {}
        lateness: dict[str, float] = {}
        for (lane, targets), client in zip(lanes, clients, strict=True):
            output, _ = client.communicate(timeout=60)
            if client.returncode:
                sys.exit(f"the client of {lane.name} failed; see {LOG}")
            records = [Record(*values) for values in json.loads(output)]
            late = sorted(1000 * record.late for record in records)
            lateness[lane.name] = percentile(late, 0.999) or 0.0
            rows[lane.name] = _rows(timeline, records, targets.report())
    return Result(timeline, rows, lateness)


def _call_phases(timeline: Timeline, start: float, lanes: list[Targets]) -> None:
    for number, (offset, _) in enumerate(timeline.offsets()):
        # In the middle of the pause between two phases.
        time.sleep(max(0.0, start + offset - GAP / 2 - time.monotonic()))
        phase = timeline.phases[number]
        for targets in lanes:
            targets.order({"set": [fault.as_order() for fault in phase.faults]})
        for targets in lanes:
            targets.obeyed()
        print(f"{timeline.name}: {phase.name}", file=sys.stderr)


def _rows(timeline: Timeline, records: list[Record], report: dict[str, dict[str, int]]) -> list[Row]:
    by_phase: list[list[Record]] = [[] for _ in timeline.phases]
    for record in records:
        by_phase[record.phase].append(record)
    return [
        row(calls, report["requests"].get(str(phase), 0), report["duplicates"].get(str(phase), 0), GAP / 2)
        for phase, calls in enumerate(by_phase)
    ]


class Targets:
    """The endpoints of one lane, in a process of their own."""

    def __init__(self, ports: Sequence[int], stack: ExitStack) -> None:
        command = [sys.executable, "-m", "bench.chaos.endpoints", *map(str, ports)]
        self._process = _start(command, {}, stack, piped=True)
        self.obeyed()  # it says that it listens

    def order(self, order: dict[str, Any]) -> None:
        """Tell the endpoints something; `obeyed` waits for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def obeyed(self) -> Any:
        """The answer to the oldest order."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the endpoints have died; see {LOG}")
        return json.loads(line)

    def report(self) -> dict[str, dict[str, int]]:
        """See Ledger.report."""
        self.order({"report": True})
        answer: dict[str, dict[str, int]] = self.obeyed()
        return answer


def _client(plan: Plan, stack: ExitStack) -> subprocess.Popen[bytes]:
    client = _start([sys.executable, "-m", "bench.chaos.load"], {}, stack, piped=True)
    assert client.stdin is not None
    client.stdin.write(json.dumps(asdict(plan)).encode())
    client.stdin.close()
    client.stdin = None  # communicate would otherwise flush it
    return client


def _start(
    command: Sequence[str], environment: dict[str, str], stack: ExitStack, piped: bool = False
) -> subprocess.Popen[bytes]:
    """Start a program; it ends with the stack."""
    log: IO[bytes] = stack.enter_context(LOG.open("ab"))
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
        stdout=subprocess.PIPE if piped else log,
        stderr=log,
        env=os.environ | environment,
        cwd=ROOT,
        start_new_session=True,
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _wait_for(lane: Lane, process: subprocess.Popen[bytes], limit: float = 20.0) -> None:
    """Wait until a GET through the proxy is answered with 200."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", lane.port, timeout=2)
        try:
            connection.request("GET", f"{lane.path}/x")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # not up yet
        finally:
            connection.close()
        time.sleep(0.01)
    sys.exit(f"{lane.name} does not answer; see {LOG}")
