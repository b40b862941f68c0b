"""A log that nothing reads: calls, supervision and the end of the process go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from tests.integration.harness import Target, exchange, get, plain, whole_config
from tests.integration.processes import PROCESS_PATIENCE, SOURCE


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@asynccontextmanager
async def unread(folder: Path, text: str, *, closed: bool = False) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process whose standard error is a full pipe, or is closed."""
    file = folder / "outrider.yaml"
    file.write_text(whole_config(text))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    run = [sys.executable, "-m", "outrider", "run", "-c", str(file)]
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *run] if closed else run
    process = await asyncio.create_subprocess_exec(
        *command, stderr=writing, stdout=asyncio.subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    os.close(writing)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(reading)


async def until_ready(telemetry: int) -> None:
    """Wait until it says that it is ready."""
    end = monotonic() + PROCESS_PATIENCE
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", telemetry)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = await reader.read(12)
            writer.close()
            await writer.wait_closed()
            if answer.endswith(b" 200"):
                return
        assert monotonic() < end, "it is not ready"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("closed", [False, True], ids=["full", "closed"])
async def test_one_signal_ends_a_process_whose_log_is_not_read(tmp_path: Path, closed: bool) -> None:
    """Calls are answered, lines that do not fit are counted, and SIGTERM ends it in an orderly way."""
    calls, telemetry = free_port(), free_port()
    async with Target(plain()) as target:
        text = (
            f"listen: 127.0.0.1:{calls}\ntelemetry: {{ listen: 127.0.0.1:{telemetry} }}\n"
            f"observability: {{ log: {{ access: all }} }}\nservices: {{ user: '{target.url}' }}"
        )
        async with unread(tmp_path, text, closed=closed) as process:
            await until_ready(telemetry)
            for _ in range(20):
                assert (await exchange(calls, get("/user/x"))).status == 200
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PROCESS_PATIENCE):
                assert await process.wait() == 0


async def test_the_supervisor_goes_on_although_its_log_is_not_read(tmp_path: Path) -> None:
    """Workers that die are replaced, and SIGTERM ends them all."""
    calls, telemetry = free_port(), free_port()
    async with Target(plain()) as target:
        text = (
            f"workers: 2\nlisten: 127.0.0.1:{calls}\ntelemetry: {{ listen: 127.0.0.1:{telemetry} }}\n"
            f"services: {{ user: '{target.url}' }}"
        )
        async with unread(tmp_path, text) as process:
            await until_ready(telemetry)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            before = set(children.read_text().split())
            victim = min(before, key=int)
            os.kill(int(victim), signal.SIGKILL)
            end = monotonic() + PROCESS_PATIENCE
            while len((now := set(children.read_text().split())) - before) < 1 or victim in now:
                assert monotonic() < end, "no worker was replaced"
                await asyncio.sleep(0.05)
            await until_ready(telemetry)
            assert (await exchange(calls, get("/user/x"))).status == 200
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PROCESS_PATIENCE):
                assert await process.wait() == 0
