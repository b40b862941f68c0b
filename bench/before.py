"""What a change costs on the path of a call: an earlier revision and this source tree, side by side.

Rounds alternate between the two, and each round's ratio is taken by itself, so that a machine that speeds up and slows
down disturbs both alike. CPU is per request, as in run.py.

    python bench/before.py REVISION [--rounds 9] [--seconds 1]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

from peers import TARGET_PORT, Peer, peers, target_config
from run import TICK, cpu_ticks, load, start, wait_for
from setup import ROOT, WORK, compiled_outrider, find, system_tools

CONNECTIONS = (16, 64)
BEFORE_PORT = 19150


def main() -> None:
    """Build both, measure, print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    system_tools()
    build(options.revision)
    now, before = both()
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.append(start([find("nginx") or "nginx", "-c", str(target_config())], {}))
        wait_for(TARGET_PORT, "/x")
        pids = {}
        for peer in (before, now):
            process = start(peer.command, {})
            running.append(process)
            wait_for(peer.port, f"{peer.path}/x")
            load(peer, 16, "/x", 1.0)  # warm
            pids[peer.name] = process.pid
        for connections in CONNECTIONS:
            ratios = []
            for round_ in range(options.rounds):
                order = (before, now) if round_ % 2 else (now, before)
                cost = {peer.name: measure(peer, pids[peer.name], connections, options.seconds) for peer in order}
                ratios.append(cost[now.name] / cost[before.name])
            low, high = min(ratios), max(ratios)
            print(f"{connections} connections: CPU per request now / before = {statistics.median(ratios):.3f}", end=" ")
            print(f"(median of {len(ratios)}; {low:.2f} to {high:.2f}; last {cost[now.name]:.1f} µs)")
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def build(revision: str) -> None:
    """Compile the earlier revision and this tree."""
    source = WORK / "before"
    archive = WORK / "before.tar"
    WORK.mkdir(parents=True, exist_ok=True)
    name = subprocess.run(["git", "rev-parse", revision], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    marker = source / ".revision"
    if not marker.is_file() or marker.read_text() != name:
        subprocess.run(["git", "archive", "-o", str(archive), revision], cwd=ROOT, check=True)
        shutil.rmtree(source, ignore_errors=True)
        with tarfile.open(archive) as opened:
            opened.extractall(source, filter="data")
        marker.write_text(name)
    compiled_outrider(source, WORK / "venv-before")
    compiled_outrider()


def both() -> tuple[Peer, Peer]:
    """The two Outriders with the same configuration, on ports of their own."""
    now = next(peer for peer in peers() if peer.name == "outrider")
    config = Path(now.command[-1]).read_text()
    for offset in range(3):
        config = config.replace(str(now.port + offset), str(BEFORE_PORT + offset))
    file = WORK / "before.yaml"
    file.write_text(config)
    python = str(WORK / "venv-before" / "bin" / "python")
    return now, Peer("before", [python, "-m", "outrider", "run", "-c", str(file)], BEFORE_PORT)


def measure(peer: Peer, pid: int, connections: int, seconds: float) -> float:
    """CPU microseconds per request."""
    ticks = cpu_ticks(pid)
    said = load(peer, connections, "/x", seconds)
    if said["not_2xx"] or not said["requests"]:
        sys.exit(f"{peer.name} answered {said['not_2xx']} of {said['requests']} requests with an error")
    return float((cpu_ticks(pid) - ticks) / TICK / said["requests"] * 1e6)


if __name__ == "__main__":
    main()
