"""Thousands of connections at once: what an idle one costs, and that slow ones are nobody else's business."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic, perf_counter

import aiohttp
import pytest

from tests.integration.harness import Client, get
from tests.integration.processes import Process, running

SLOW = 1_000
CALLS = 1_500
# Outrider keeps an eighth of its descriptors back for connections to targets, and slow readers take two each.
_ROOM = resource.getrlimit(resource.RLIMIT_NOFILE)[1] * 7 // 8
IDLE = min(10_000, _ROOM - 2 * SLOW - 100)
_ROOT = Path(__file__).parents[2]


class Crowd:
    """A process that does as it is told, one word after the other."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> list[str]:
        """What it says next."""
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            text = await self._process.stdout.readline()
        assert text, "the helper died; its traceback is in the output of this test"
        return text.decode().split()

    async def tell(self, word: str) -> list[str]:
        """Tell it, and wait until it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        return await self.line()


@asynccontextmanager
async def helper(*arguments: str) -> AsyncIterator[Crowd]:
    """A helper process until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.crowd", *arguments,
        cwd=_ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Crowd(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def resident(one: Process) -> int:
    """Bytes of memory that Outrider has in use."""
    pages = int(Path(f"/proc/{one.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def open_files(one: Process) -> int:
    """How many file descriptors Outrider has open."""
    return len(os.listdir(f"/proc/{one.process.pid}/fd"))


async def gauge(one: Process, name: str) -> float:
    """A metric without labels."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{one.telemetry}/metrics") as page:
            text = await page.text()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


async def p99(port: int) -> float:
    """What 99 of 100 ordinary calls on one connection stay below, in milliseconds."""
    times = []
    async with Client(port) as client:
        for _ in range(CALLS):
            began = perf_counter()
            assert (await client.call(get("/user/x"))).status == 200
            times.append(perf_counter() - began)
    return sorted(times)[CALLS * 99 // 100] * 1000


@pytest.mark.skipif(IDLE < 5_000, reason="too few open files are allowed here for a crowd")
async def test_a_crowd_of_idle_and_slow_connections(tmp_path: Path) -> None:
    """10,000 idle connections, or as many as the system allows, and 1,000 slow readers cost little memory, other calls
    stay as fast as before, and when the crowd has left everything is given back."""
    began = monotonic()
    text = "limits: {{ downstream_connections: 12000 }}\nservices: {{ user: {{ url: '{}', timeout: false }} }}"
    async with helper("target") as server:
        target = f"http://127.0.0.1:{(await server.line())[0]}"
        async with running(tmp_path, text.format(target)) as one:
            async with helper("crowd", str(one.port), str(IDLE), str(SLOW)) as crowd:
                await p99(one.port)  # warm
                await asyncio.sleep(0.1)
                before, memory, files = await p99(one.port), resident(one), open_files(one)

                await crowd.tell("idle")
                with_idle = resident(one)
                await asyncio.sleep(1.1)  # for which a page of metrics is kept
                assert await gauge(one, "outrider_downstream_connections") == IDLE
                await crowd.tell("slow")
                with_slow = resident(one)
                assert open_files(one) >= IDLE + 2 * SLOW
                during = await p99(one.port)
                await asyncio.sleep(1.1)
                assert await gauge(one, "outrider_downstream_connections") == IDLE + SLOW
                await crowd.tell("leave")

            end = monotonic() + 5
            while (now := open_files(one)) > files + 3 and monotonic() < end:
                await asyncio.sleep(0.05)
            assert now <= files + 3, f"{now} files are open, {files} were before"
            while connections := await gauge(one, "outrider_downstream_connections"):  # the page is kept for a second
                assert monotonic() < end, f"{connections:.0f} connections are counted"
                await asyncio.sleep(0.2)
            after = await p99(one.port)
            enough = memory + (with_slow - memory) // 3
            end = monotonic() + 6
            while (left := resident(one)) > enough and monotonic() < end:
                await asyncio.sleep(0.1)

    per_idle, per_slow = (with_idle - memory) / IDLE, (with_slow - with_idle) / SLOW
    print(
        f"memory: {memory >> 20} MB before, {with_idle >> 20} MB with {IDLE} idle connections ({per_idle / 1024:.1f} kB"
        f" each), {with_slow >> 20} MB with {SLOW} slow readers ({per_slow / 1024:.0f} kB each), {left >> 20} MB after;"
        f" p99 of other calls: {before:.2f} ms before, {during:.2f} ms during, {after:.2f} ms after;"
        f" {monotonic() - began:.1f} s in all"
    )
    assert per_idle < 16 * 1024
    assert during < 2 * before + 5
    assert left <= enough, "what the crowd took is mostly given back"
