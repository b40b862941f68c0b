"""The command line: start everything, load, let go, judge.

    python -m bench.soak [--calls 1000000] [--connections 100000] [--workers 1] [--growth-mb 5] [--seconds 3600]
    python -m bench.soak --listener inbound-tls [--listener inbound] [--connections 100000]

Exits 1 if an answer was wrong or belonged to another request, if a counter disagrees with what client and app counted,
or if memory, open files or a gauge do not return to where they were. With --seconds the same load is made again and
again for that long. With --listener, only connections come and go: see `connections.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from time import monotonic

import uvloop
from bench.soak import app
from bench.soak.connections import LISTENERS, WARM, come_and_go
from bench.soak.kinds import CALLERS, CALLS, KEY, STRANGERS
from bench.soak.load import Load, Record, sample
from bench.soak.start import certificates, complaints, sidecar, target
from bench.soak.verdict import counters, memory, nothing_kept
from bench.soak.watch import Watch, rest

SILENT = 60  # strangers that connect to a telemetry port and say nothing

RECEIVER = """
service: receiver
instance: receiver-1
listen: 127.0.0.1:0
admin: {{ listen: 127.0.0.1:0 }}
telemetry: {{ listen: 127.0.0.1:0 }}
workers: {workers}
inbound:
  listen: 127.0.0.1:0
  app: http://127.0.0.1:{app}
  tls: {{ cert: {folder}/server.pem, key: {folder}/server.pem }}
  accept: [{{ header: x-api-key, values: [{key}], require: [x-service-name] }}]
  idempotency: {{ ttl: 1h, store: {folder}/keys.db }}
limits: {{ header_timeout: 5s, body_idle_timeout: 5s }}
observability: {{ log: {{ access: none }} }}
services: {{ unused: "http://127.0.0.1:9" }}
"""

CALLER = """
service: caller
instance: caller-1
listen: 127.0.0.1:0
admin: {{ listen: 127.0.0.1:0 }}
telemetry: {{ listen: 127.0.0.1:0 }}
workers: {workers}
credentials: {{ key: {{ header: x-api-key, value: {key} }} }}
defaults: {{ timeout: 5s, idle_timeout: 2s, auth: key, tls: {{ ca: {folder}/ca.pem }} }}
limits: {{ header_timeout: 5s, body_idle_timeout: 5s }}
observability: {{ log: {{ access: none }} }}
services:
  peer:   {{ url: "https://127.0.0.1:{peer}", attempt_timeout: 3s, circuit_breaker: false, ejection: false }}
  plain:  {{ url: "https://127.0.0.1:{peer}" }}
  faulty: {{ url: "https://127.0.0.1:{peer}", timeout: 400ms, attempt_timeout: 150ms, circuit_breaker: false,
             ejection: false, retry: {{ backoff: 1ms..5ms }} }}
  broken: {{ url: "https://127.0.0.1:{peer}", circuit_breaker: {{ open_for: 100ms..200ms }} }}
"""


def silent(ports: list[int]) -> list[socket.socket]:
    """Strangers that connect and say nothing."""
    return [socket.create_connection(("127.0.0.1", port), timeout=5) for port in ports for _ in range(SILENT)]


async def soak(
    options: argparse.Namespace, watches: list[Watch], ports: tuple[int, int], trust: ssl.SSLContext, app_port: int
) -> list[str]:
    """Load, let go, judge; the problems, in sentences."""
    caller, receiver = watches
    files = {watch.name: watch.look(0).files for watch in watches}
    record = Record()
    through = Record(wrong=record.wrong)
    seed = count(1)

    async def load(calls: int, connections: int) -> None:
        await asyncio.gather(*(one.run() for one in loads(calls, connections)))

    def loads(calls: int, connections: int) -> list[Load]:
        return [
            Load(through, ports[0], CALLS, calls=calls * 7 // 10, connections=connections * 4 // 10,
                 width=48, seed=next(seed)),
            Load(record, ports[1], CALLERS, calls=calls * 2 // 10, connections=connections * 2 // 10,
                 width=8, secure=trust, seed=next(seed)),
            Load(record, ports[1], STRANGERS, calls=calls // 10, connections=connections * 4 // 10,
                 width=8, secure=trust, seed=next(seed)),
        ]  # fmt: skip

    def look() -> None:
        for one in watches:
            one.look(record.connections + through.connections)

    await load(options.calls * WARM // options.connections, WARM)
    await rest(watches, record.connections + through.connections)
    done = asyncio.Event()
    looks = asyncio.create_task(sample(options.every, look, done))
    strangers = silent([watch.telemetry for watch in watches])
    began = monotonic()
    already = record.calls + through.calls
    while not record.wrong:
        await load(options.calls, options.connections)
        if monotonic() - began >= options.seconds:
            break
    seconds = monotonic() - began
    done.set()
    await looks
    for one in strangers:
        one.close()
    await rest(watches, record.connections + through.connections)
    for (name, how), number in sorted((through.counts + record.counts).items()):
        print(f"{number:10d}  {name}: {how}")
    made = through.calls + record.calls
    opened = through.connections + record.connections
    print(f"{made} calls on {opened} connections in {seconds:.1f} s, {(made - already) / seconds:.0f} calls/s")
    with urllib.request.urlopen(f"http://127.0.0.1:{app_port}/counts", timeout=10) as page:
        got = json.load(page)
    pages = {watch.name: watch.metrics() for watch in watches}
    both = Record(uncertain=through.uncertain + record.uncertain)
    problems = record.wrong[:20]
    for watch in watches:
        problems += memory(watch, options.growth_mb)
        problems += nothing_kept(watch, pages[watch.name], files[watch.name], watch.look(opened).files)
    problems += counters(pages[caller.name], pages[receiver.name], got, both, through.calls)
    return problems


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Soak two sidecars with calls, connections, strangers and faults.")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--seconds", type=float, default=0.0, help="repeat the load for at least so long")
    parser.add_argument("--growth-mb", type=float, default=5.0, help="how much memory of a sidecar may grow")
    parser.add_argument(
        "--listener",
        choices=LISTENERS,
        action="append",
        help="instead: only this many connections to this listener, half of them misbehaving",
    )
    parser.add_argument("--app", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.app:
        uvloop.run(app.serve())
        return 0
    if options.listener:
        return report([one for listener in options.listener for one in come_and_go(listener, options)])
    return report(chain(options))


def chain(options: argparse.Namespace) -> list[str]:
    """Soak two sidecars in a chain; the problems, in sentences."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trust = certificates(folder)
        port = stack.enter_context(target())
        values = {"folder": folder, "key": KEY, "workers": options.workers, "app": port}
        receiver, receiving = stack.enter_context(sidecar(folder, "receiver", RECEIVER.format(**values)))
        values["peer"] = receiving["inbound.listen"]
        caller, calling = stack.enter_context(sidecar(folder, "caller", CALLER.format(**values)))
        ports = (calling["listen"], receiving["inbound.listen"])
        problems = uvloop.run(soak(options, [caller, receiver], ports, trust, port))
        for name in ("caller", "receiver"):
            problems += complaints(folder, name)
        return problems


def report(problems: list[str]) -> int:
    """Say how it went."""
    for problem in problems:
        print(f"FAILED: {problem}")
    print("failed" if problems else "passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
