"""A process that was stopped for a while: what came meanwhile is read before anything is given up."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from tests.integration.harness import Exchange, Target, eventually, exchange, get, request, response
from tests.integration.processes import running

# The circuit opens after one failure, or one slow answer; an endpoint is unhealthy after one failed check.
CONFIG = """
services:
  user:
    url: '{url}'
    timeout: 600ms
    retry: false
    circuit_breaker: {{ consecutive_failures: 1, slow_call: 400ms, slow_rate: 10%, min_requests: 1, open_for: 5s..5s }}
    health_check: {{ path: /health, every: 50ms, timeout: 200ms, unhealthy_after: 1 }}
"""
STOPPED = 1.8  # seconds: more than any of these times, and than a health check may be late by itself


async def test_answers_that_came_while_we_stood_still_are_answers(tmp_path: Path) -> None:
    """Timers that are late say nothing about the target: every POST is answered, the circuit stays closed, and no
    health check has failed."""
    release = asyncio.Event()

    async def act(one: Exchange) -> None:
        await one.body()
        if one.request.method == "POST":
            await release.wait()
        await one.send(response())

    async with Target(act) as target, running(tmp_path, CONFIG.format(url=target.url)) as outrider:
        calls = [asyncio.create_task(exchange(outrider.port, request("POST", "/user/x", b"charge"))) for _ in range(20)]
        posts = 20
        await eventually(lambda: sum(seen.method == "POST" for seen in target.seen) == posts, "all POSTs at the target")
        outrider.signal(signal.SIGSTOP)
        release.set()
        await asyncio.sleep(STOPPED)
        outrider.signal(signal.SIGCONT)
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * posts
        assert (await exchange(outrider.port, get("/user/x"))).status == 200
        await asyncio.sleep(0.3)
        assert (await exchange(outrider.port, get("/user/x"))).status == 200
    assert not [line for line in outrider.lines if "unhealthy" in line["msg"] or "circuit" in line["msg"]]


async def test_a_target_that_stood_still_with_us_gets_a_moment(tmp_path: Path) -> None:
    """A whole pod may be frozen: a time that passed meanwhile was not the target's to use."""
    release = asyncio.Event()

    async def act(one: Exchange) -> None:
        await one.body()
        if one.request.method == "POST":
            await release.wait()
        await one.send(response())

    async with Target(act) as target, running(tmp_path, CONFIG.format(url=target.url)) as outrider:
        call = asyncio.create_task(exchange(outrider.port, request("POST", "/user/x", b"charge")))
        await eventually(lambda: any(seen.method == "POST" for seen in target.seen), "the POST at the target")
        outrider.signal(signal.SIGSTOP)
        await asyncio.sleep(STOPPED)
        outrider.signal(signal.SIGCONT)
        await asyncio.sleep(0.2)
        release.set()
        assert (await call).status == 200
