"""Outrider beside Envoy, HAProxy and nginx, in one run on one machine; writes bench/results.md.

Timings are noisy, so rounds are interleaved (every proxy once, then every proxy again), medians are taken, and what
counts are the ratios to Envoy. CPU is what the kernel charged to the proxy's process (utime + stime), per request.

    python bench/run.py [--seconds 3] [--rounds 3] [--quick]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from peers import TARGET_PORT, Peer, peers, target_config
from setup import ROOT, WORK, find, measured_python

CONNECTIONS = (1, 16, 64)
BODIES = {"small": "/x", "1 MiB": "/big"}
TICK = os.sysconf("SC_CLK_TCK")
BASE = "envoy"


@dataclass
class Numbers:
    """Of one proxy at one load: one entry per round."""

    cpu: list[float] = field(default_factory=list)  # microseconds per request
    rate: list[float] = field(default_factory=list)  # requests per second
    p50: list[float] = field(default_factory=list)  # microseconds
    p99: list[float] = field(default_factory=list)
    p999: list[float] = field(default_factory=list)


def main() -> None:
    """Measure everything, print and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round, nothing written")
    options = parser.parse_args()
    seconds, rounds = (1.0, 1) if options.quick else (options.seconds, options.rounds)
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.append(start([find("nginx") or "nginx", "-c", str(target_config())], {}))
        wait_for(TARGET_PORT, "/x")
        results, memory, cold, order = measure(peers(), running, seconds, rounds)
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = report(results, memory, cold, order, seconds, rounds)
    print(text)
    if not options.quick:
        (ROOT / "bench" / "results.md").write_text(text)


def measure(
    proxies: list[Peer], running: list[subprocess.Popen[bytes]], seconds: float, rounds: int
) -> tuple[dict[tuple[str, int, str], Numbers], dict[str, float], dict[str, float], list[str]]:
    """Start every proxy, load them in turn, and look at their memory at the end."""
    cold: dict[str, float] = {}
    pids: dict[str, int] = {}
    for peer in proxies:
        cold[peer.name] = cold_start(peer)
        process = start(peer.command, peer.environment)
        running.append(process)
        wait_for(peer.port, f"{peer.path}/x")
        pids[peer.name] = worker_pid(process.pid) if peer.workers_below else process.pid
    results: dict[tuple[str, int, str], Numbers] = defaultdict(Numbers)
    for peer in proxies:
        load(peer, 16, "/x", 1.0)  # warm
    for round_ in range(rounds):
        for body, path in BODIES.items():
            for connections in CONNECTIONS:
                for peer in proxies:
                    numbers = results[body, connections, peer.name]
                    before = cpu_ticks(pids[peer.name])
                    said = load(peer, connections, path, seconds)
                    used = (cpu_ticks(pids[peer.name]) - before) / TICK
                    count = said["requests"]
                    if said["not_2xx"] or not count:
                        sys.exit(f"{peer.name} answered {said['not_2xx']} of {count} requests with an error")
                    numbers.cpu.append(used / count * 1e6)
                    numbers.rate.append(count / (said["microseconds"] / 1e6))
                    numbers.p50.append(said["p50"])
                    numbers.p99.append(said["p99"])
                    numbers.p999.append(said["p999"])
                print(f"round {round_ + 1}, {body}, {connections} connections: done", file=sys.stderr)
    memory = {peer.name: resident(pids[peer.name]) for peer in proxies}
    return results, memory, cold, [peer.name for peer in proxies]


def load(peer: Peer, connections: int, path: str, seconds: float) -> dict[str, int]:
    """Run wrk against a proxy and take its numbers."""
    url = f"http://127.0.0.1:{peer.port}{peer.path}{path}"
    script = str(Path(__file__).with_name("report.lua"))
    command = [find("wrk") or "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", script]
    for name, value in peer.headers.items():
        command += ["-H", f"{name}: {value}"]
    command.append(url)
    output = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("REPORT "))
    said: dict[str, int] = json.loads(line.removeprefix("REPORT "))
    return said


def cold_start(peer: Peer) -> float:
    """Seconds from starting the process to its first answer from the target: best of three."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        process = start(peer.command, peer.environment)
        try:
            wait_for(peer.port, f"{peer.path}/x")
            times.append(time.monotonic() - began)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.2)
    return min(times)


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program quietly."""
    log = (WORK / "output.log").open("ab")
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=log, stderr=log, cwd=WORK, start_new_session=True
    )


def wait_for(port: int, path: str, limit: float = 20.0) -> None:
    """Wait until a GET is answered with 200."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # not up yet
        finally:
            connection.close()
        time.sleep(0.005)
    sys.exit(f"nothing answers on port {port}; see {WORK / 'output.log'}")


def worker_pid(parent: int) -> int:
    """The one child of a process."""
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def cpu_ticks(pid: int) -> int:
    """User and system time of a process, in ticks: fields 14 and 15 of /proc/PID/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resident(pid: int) -> float:
    """Resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def report(
    results: dict[tuple[str, int, str], Numbers],
    memory: dict[str, float],
    cold: dict[str, float],
    order: list[str],
    seconds: float,
    rounds: int,
) -> str:
    """The tables, as Markdown."""
    lines = [
        "# Outrider beside Envoy, HAProxy and nginx",
        "",
        f"Measured on {date.today().isoformat()} by `make bench`: {machine()}.",
        "One worker each, equal features (`bench/peers.py`), one nginx target, wrk with one thread,",
        f"{rounds} interleaved rounds of {seconds:g} s, medians. **Ratios are to Envoy in the same run; below 1 is",
        "less than Envoy.**",
        "How both fare under faults stands in [chaos/results.md](chaos/results.md).",
        "",
    ]
    for body in BODIES:
        for connections in CONNECTIONS:
            lines += [
                f"## {body} bodies, {connections} connection{'s' if connections > 1 else ''}",
                "",
                "| proxy | CPU µs/request | ratio | requests/s | ratio | p50 µs | ratio | p99 µs | p99.9 µs |",
                "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            ]
            base = results[body, connections, BASE]
            lines += [row(name, results[body, connections, name], base) for name in order]
            lines.append("")
    lines += [
        "## Memory and start",
        "",
        "| proxy | resident MiB after the load | ratio | cold start ms |",
        "|---|--:|--:|--:|",
    ]
    for name in order:
        share = memory[name] / memory[BASE]
        lines.append(f"| {name} | {memory[name]:.1f} | {share:.2f} | {cold[name] * 1000:.0f} |")
    lines += [
        "",
        "Cold start: from starting the process to the first answer passed on from the target, best of three.",
        "",
    ]
    return "\n".join(lines)


def row(name: str, numbers: Numbers, base: Numbers) -> str:
    """One line of a table."""
    median = statistics.median

    def ratio(ours: list[float], theirs: list[float]) -> str:
        return f"{median(ours) / median(theirs):.2f}"

    return (
        f"| {name} | {median(numbers.cpu):.1f} | {ratio(numbers.cpu, base.cpu)} "
        f"| {median(numbers.rate):,.0f} | {ratio(numbers.rate, base.rate)} "
        f"| {median(numbers.p50):,.0f} | {ratio(numbers.p50, base.p50)} "
        f"| {median(numbers.p99):,.0f} | {median(numbers.p999):,.0f} |"
    )


def machine() -> str:
    """What this was measured on."""
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    asked = [measured_python(), "-c", "import platform; print(platform.python_version())"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, CPython {version}"


if __name__ == "__main__":
    main()
