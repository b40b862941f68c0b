"""Connections that come and go at one listener, half of them misbehaving: what they took must be given back.

half of the clients: one call, eight at once, an upload, then they close
the others: broken handshakes, half a head, resets, garbage, half-closed, answers that are never read
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import tempfile
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Final

import uvloop
from bench.soak.kinds import HANDSHAKES, KEY, connections
from bench.soak.load import Load, Record, sample
from bench.soak.start import certificates, complaints, sidecar, target
from bench.soak.verdict import memory, nothing_kept
from bench.soak.watch import Watch, rest

LISTENERS: Final = ("outbound", "inbound", "inbound-tls")
WARM: Final = 1000  # connections, after which memory is what it stays
_WIDTH: Final = 32  # connections at a time
_HANDSHAKES: Final = 5  # of these many connections to a listener with TLS, one does not get as far as HTTP

CONFIG = """
service: soak
listen: 127.0.0.1:0
admin: {{ listen: 127.0.0.1:0 }}
telemetry: {{ listen: 127.0.0.1:0 }}
workers: {workers}
inbound:
  listen: 127.0.0.1:0
  app: http://127.0.0.1:{app}
  accept: [{{ header: x-api-key, values: [{key}] }}]
  {tls}
observability: {{ log: {{ access: none }} }}
services: {{ app: {{ url: "http://127.0.0.1:{app}", circuit_breaker: false, ejection: false }} }}
"""


def come_and_go(listener: str, options: argparse.Namespace) -> list[str]:
    """So many connections to a sidecar's listener; the problems, in sentences."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        secure = listener == "inbound-tls"
        trust = certificates(folder)
        tls = f"tls: {{ cert: {folder}/server.pem, key: {folder}/server.pem }}" if secure else ""
        app = stack.enter_context(target())
        config = CONFIG.format(app=app, key=KEY, tls=tls, workers=options.workers)
        watch, ports = stack.enter_context(sidecar(folder, listener, config))
        port = ports["listen" if listener == "outbound" else "inbound.listen"]
        prefix = "/app" if listener == "outbound" else ""
        problems = uvloop.run(_soak(options, watch, port, prefix, trust if secure else None))
        return problems + complaints(folder, listener)


async def _soak(
    options: argparse.Namespace, watch: Watch, port: int, prefix: str, trust: ssl.SSLContext | None
) -> list[str]:
    record = Record()
    files = watch.look(0).files

    async def load(count: int, seed: int) -> None:
        broken = count // _HANDSHAKES if trust else 0
        kinds = connections(prefix)
        loads = [Load(record, port, kinds, calls=count - broken, connections=count - broken, width=_WIDTH,
                      secure=trust, seed=seed)]  # fmt: skip
        if broken:
            loads.append(Load(record, port, HANDSHAKES, calls=broken, connections=broken, width=4, seed=seed + 1))
        await asyncio.gather(*(one.run() for one in loads))

    await load(WARM, 1)
    await rest([watch], record.connections)
    done = asyncio.Event()
    looks = asyncio.create_task(sample(options.every, lambda: watch.look(record.connections), done))
    began = monotonic()
    seed = 3
    while not record.wrong:
        await load(options.connections, seed)
        seed += 2
        if monotonic() - began >= options.seconds:
            break
    seconds = monotonic() - began
    done.set()
    await looks
    await rest([watch], record.connections)
    for (name, how), number in sorted(record.counts.items()):
        print(f"{number:10d}  {name}: {how}")
    print(f"{watch.name}: {record.connections} connections in {seconds:.1f} s")
    problems = record.wrong[:20]
    problems += memory(watch, options.growth_mb)
    problems += nothing_kept(watch, watch.metrics(), files, watch.rests[-1].files)
    return problems
