"""Starts what a soak needs: processes, sidecars that are watched, certificates."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import IO

import trustme
from bench.soak.watch import Watch

ROOT = Path(__file__).resolve().parents[2]


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


def complaints(folder: Path, name: str) -> list[str]:
    """What a sidecar logged as an error, and what is no log at all, such as a traceback."""
    lines = (folder / f"{name}.log").read_text().splitlines()
    return [line for line in lines if '"level": "error"' in line or not line.startswith("{")][:5]


@contextmanager
def target() -> Iterator[int]:
    """The app, and its port."""
    with process(["-m", "bench.soak", "--app"], stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        yield int(one.stdout.readline())
