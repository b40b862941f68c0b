"""What the guard costs: CPU per request of the inbound path, with everything checked, beside the outbound path.

Both are ports of one process, measured in turns, so that each round's ratio is taken under the same conditions.

    python bench/guard.py [--rounds 9] [--seconds 1] [--write]

`--write` adds the numbers to bench/results.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
from collections.abc import Iterator

from before import measure
from peers import KEY, TARGET_PORT, Peer, target_config
from run import load, start, wait_for
from setup import ROOT, WORK, compiled_outrider, find, measured_python, system_tools

PORT = 19160
CONNECTIONS = (16, 64)
CONFIG = f"""
service: booking-service
instance: booking-1
listen: 127.0.0.1:{PORT}
admin: {{ listen: 127.0.0.1:{PORT + 1} }}
telemetry: {{ listen: 127.0.0.1:{PORT + 2} }}
credentials:
  key: {{ header: x-api-key, value: {KEY} }}
inbound:
  listen: 127.0.0.1:{PORT + 3}
  app: http://127.0.0.1:{TARGET_PORT}
  accept: [ {{ header: x-api-key, values: [{KEY}, {KEY[::-1]}x], require: [x-service-name, x-service-id] }} ]
  allow: [ {{ caller: web, match: "GET /**" }} ]
  rate_limit: {{ rate: 1000000/s, key: caller }}
  max_in_flight: 1024
services:
  user: {{ url: "http://127.0.0.1:{TARGET_PORT}", auth: key, rate_limit: 1000000/s, max_in_flight: 1024 }}
"""
SHOWN = {"x-api-key": KEY, "x-service-name": "web", "x-service-id": "web-1"}


def main() -> None:
    """Measure, print the ratios, write them down if that is wanted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = [
        "## The guard",
        "",
        "The inbound path with two keys, required headers, a rule, a rate limit per caller, a concurrency limit and",
        f"context, beside the outbound path of the same process; {options.rounds} rounds in turns, medians of ratios.",
        "",
        "| connections | CPU per request, guard / outbound | from | to |",
        "|--:|--:|--:|--:|",
    ]
    for connections, ratios in measured(options.rounds, options.seconds):
        middle = statistics.median(ratios)
        print(f"{connections} connections: CPU per request guard / outbound = {middle:.3f}", end=" ")
        print(f"({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {connections} | {middle:.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")
    if options.write:
        with (ROOT / "bench" / "results.md").open("a") as file:
            file.write("\n".join(["", *lines, ""]))


def measured(rounds: int, seconds: float) -> Iterator[tuple[int, list[float]]]:
    """By number of connections, the ratio of each round."""
    system_tools()
    compiled_outrider()
    file = WORK / "guard.yaml"
    file.write_text(CONFIG)
    command = [measured_python(), "-m", "outrider", "run", "-c", str(file)]
    # Both lanes send the same headers, so that what is parsed and passed on differs by what the guard does.
    outbound = Peer("outbound", command, PORT, headers=SHOWN)
    guard = Peer("guard", command, PORT + 3, path="", headers=SHOWN)
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.append(start([find("nginx") or "nginx", "-c", str(target_config())], {}))
        wait_for(TARGET_PORT, "/x")
        process = start(command, {})
        running.append(process)
        wait_for(PORT, "/user/x")
        for peer in (outbound, guard):
            load(peer, 16, "/x", 1.0)  # warm
        for connections in CONNECTIONS:
            ratios = []
            for round_ in range(rounds):
                order = (guard, outbound) if round_ % 2 else (outbound, guard)
                cost = {peer.name: measure(peer, process.pid, connections, seconds) for peer in order}
                ratios.append(cost["guard"] / cost["outbound"])
            yield connections, ratios
    finally:
        for one in running:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()


if __name__ == "__main__":
    main()
