"""The command line: start everything, load, let go, judge.

    python -m bench.soak [--calls 1000000] [--connections 100000] [--workers 1] [--growth-mb 5] [--seconds 3600]

Exits 1 if an answer was wrong or belonged to another request, if a counter disagrees with what client and app counted,
or if memory, open files or a gauge do not return to where they were. With --seconds the same load is made again and
again for that long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import IO

import trustme
import uvloop
from bench.soak import app
from bench.soak.kinds import CALLERS, CALLS, KEY, STRANGERS
from bench.soak.load import Load, Record, sample
from bench.soak.verdict import GAUGES, counters, memory, nothing_kept
from bench.soak.watch import Watch

ROOT = Path(__file__).resolve().parents[2]
LINGER = 20.0  # seconds in which connections and files must return to where they were
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


@contextmanager
def process(command: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    paths = [os.environ.get("PYTHONPATH") or str(ROOT / "src"), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    one = subprocess.Popen([sys.executable, *command], env=environment, **options)
    try:
        yield one
    finally:
        one.kill()
        one.communicate()


def ports_of(log: IO[bytes]) -> dict[str, int]:
    """Wait for the sidecar to say where it listens."""
    end = monotonic() + 30
    while monotonic() < end:
        log.seek(0)
        for line in log:
            if line.endswith(b"\n") and b'"ready"' in line:
                ports: dict[str, int] = json.loads(line)["ports"]
                return ports
        sleep(0.05)
    log.seek(0)
    raise SystemExit(f"the sidecar did not start: {log.read().decode()}")


@contextmanager
def sidecar(folder: Path, name: str, config: str) -> Iterator[tuple[Watch, dict[str, int]]]:
    """A sidecar, watched, and its ports."""
    file = folder / f"{name}.yaml"
    file.write_text(config)
    command = ["-m", "outrider", "run", "-c", str(file)]
    with (folder / f"{name}.log").open("w+b") as log, process(command, stderr=log) as one:
        ports = ports_of(log)
        yield Watch(name, one.pid, ports["telemetry.listen"]), ports


def certificates(folder: Path) -> ssl.SSLContext:
    """Write the authority's and the receiver's certificates; return what trusts them."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.check_hostname = False
    return context


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
    done = asyncio.Event()
    total = options.calls
    connections = options.connections
    looks = asyncio.create_task(
        sample(options.every, lambda: [one.look(record.connections + through.connections) for one in watches], done)
    )
    strangers = silent([watch.telemetry for watch in watches])
    began = monotonic()
    first = True
    seed = 1
    while first or monotonic() - began < options.seconds:
        first = False
        loads = [
            Load(through, ports[0], CALLS, calls=total * 7 // 10, connections=connections * 4 // 10,
                 width=48, seed=seed),
            Load(record, ports[1], CALLERS, calls=total * 2 // 10, connections=connections * 2 // 10,
                 width=8, secure=trust, seed=seed + 1),
            Load(record, ports[1], STRANGERS, calls=total // 10, connections=connections * 4 // 10,
                 width=8, secure=trust, seed=seed + 2),
        ]  # fmt: skip
        seed += 3
        await asyncio.gather(*(load.run() for load in loads))
        if record.wrong:
            break
    seconds = monotonic() - began
    done.set()
    await looks
    for one in strangers:
        one.close()
    await let_go(watches)
    for (name, how), number in sorted((through.counts + record.counts).items()):
        print(f"{number:10d}  {name}: {how}")
    made = through.calls + record.calls
    opened = through.connections + record.connections
    print(f"{made} calls on {opened} connections in {seconds:.1f} s, {made / seconds:.0f} calls/s")
    with urllib.request.urlopen(f"http://127.0.0.1:{app_port}/counts", timeout=10) as page:
        got = json.load(page)
    pages = {watch.name: watch.metrics() for watch in watches}
    both = Record(uncertain=through.uncertain + record.uncertain)
    problems = record.wrong[:20]
    for watch in watches:
        problems += memory(watch, min(1000, opened // 4), options.growth_mb)
        problems += nothing_kept(watch, pages[watch.name], files[watch.name], watch.look(opened).files)
    problems += counters(pages[caller.name], pages[receiver.name], got, both, through.calls)
    return problems


async def let_go(watches: list[Watch]) -> None:
    """Wait until the sidecars have noticed that every client has left."""
    end = monotonic() + LINGER
    while monotonic() < end:
        pages = [watch.metrics() for watch in watches]
        if not any(page.sum(name) for page in pages for name in GAUGES):
            return
        await asyncio.sleep(0.5)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Soak two sidecars with calls, connections, strangers and faults.")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--seconds", type=float, default=0.0, help="repeat the load for at least so long")
    parser.add_argument("--growth-mb", type=float, default=5.0, help="how much memory of a sidecar may grow")
    parser.add_argument("--app", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.app:
        uvloop.run(app.serve())
        return 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trust = certificates(folder)
        target = stack.enter_context(process(["-m", "bench.soak", "--app"], stdout=subprocess.PIPE))
        assert target.stdout is not None
        port = int(target.stdout.readline())
        values = {"folder": folder, "key": KEY, "workers": options.workers, "app": port}
        receiver, receiving = stack.enter_context(sidecar(folder, "receiver", RECEIVER.format(**values)))
        values["peer"] = receiving["inbound.listen"]
        caller, calling = stack.enter_context(sidecar(folder, "caller", CALLER.format(**values)))
        ports = (calling["listen"], receiving["inbound.listen"])
        problems = uvloop.run(soak(options, [caller, receiver], ports, trust, port))
        for name in ("caller", "receiver"):
            lines = (folder / f"{name}.log").read_text().splitlines()
            problems += [line for line in lines if '"level": "error"' in line or not line.startswith("{")][:5]
    for problem in problems:
        print(f"FAILED: {problem}")
    print("failed" if problems else "passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
