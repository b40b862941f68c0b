"""Several workers: they share the ports, one that dies is replaced, and somebody answers for all of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.harness import Client, Target, eventually, exchange, get, plain, slow
from tests.integration.processes import Process, running


def config(target: Target, more: str = "") -> str:
    return f"workers: 2\nservices: {{ user: {{ url: '{target.url}', {more} }} }}"


def children(one: Process) -> list[int]:
    path = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


async def calls_by_worker(one: Process) -> dict[str, float]:
    page = (await exchange(one.telemetry, get("/metrics", "Connection: close", host="127.0.0.1"))).body.decode()
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "outrider_requests_total":
                worker = sample.labels["worker"]
                counts[worker] = counts.get(worker, 0) + sample.value
    return counts


async def all_ready(one: Process) -> None:
    await eventually(lambda: sum(line["msg"] == "ready" for line in one.lines) >= 2, "both workers are ready")


async def test_workers_share_the_port_and_the_metrics(tmp_path: Path) -> None:
    """Every call is answered by one of them; `/metrics` has each one's series, and status and configuration show."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        clients = [Client(one.port) for _ in range(16)]
        for client in clients:
            await client.__aenter__()
        for client in clients:
            assert (await client.call(get("/user/x"))).status == 200
        counts = await calls_by_worker(one)
        assert sum(counts.values()) == 16
        status = await exchange(one.admin, get("/api/v1/status", "Connection: close", host="localhost"))
        assert set(json.loads(status.body)["workers"]) == {"0", "1"}
        shown = await exchange(one.admin, get("/config", "Connection: close", host="localhost"))
        assert json.loads(shown.body)["config"]["workers"] == 2
        for client in clients:
            await client.__aexit__()


async def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """New connections are served all the while, and readiness does not blink."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        victim = children(one)[0]
        os.kill(victim, signal.SIGKILL)
        for _ in range(50):
            assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 200
            assert (await exchange(one.telemetry, get("/readyz", "Connection: close", host="127.0.0.1"))).status == 200
        await eventually(lambda: len(children(one)) == 3 and victim not in children(one), "a new worker")
        assert one.said("a process ended and is started again")


async def test_sigterm_drains_every_worker(tmp_path: Path) -> None:
    """Calls in flight on both end well, and so does the process."""
    async with Target(slow(0.5)) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        calls = [asyncio.create_task(exchange(one.port, get("/user/x", "Connection: close"))) for _ in range(8)]
        await eventually(lambda: target.busy == 8, "all calls at the target")
        one.signal(signal.SIGTERM)
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 8
        assert await one.exit() == 0
    assert sum(line["msg"] == "stopped" for line in one.lines) == 2


async def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    """Killed outright, it takes all of them along: the ports are free for the next one."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        left = children(one)
        one.process.kill()
        await one.process.wait()
        await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "all children have gone")


async def test_orders_to_the_admin_port_reach_all(tmp_path: Path) -> None:
    """`/-/drain` ends the whole process, cleanly."""
    async with Target(plain()) as target, running(tmp_path, config(target)) as one:
        await all_ready(one)
        order = b"POST /-/drain HTTP/1.1\r\nHost: localhost\r\nX-Outrider: 1\r\nContent-Length: 0\r\n\r\n"
        assert (await exchange(one.admin, order)).status == 202
        assert await one.exit() == 0


async def test_limits_are_divided(tmp_path: Path) -> None:
    """`max_in_flight: 2` with two workers is two in all, not four."""
    async with Target(slow(0.3)) as target, running(tmp_path, config(target, "max_in_flight: 2")) as one:
        await all_ready(one)
        calls = [exchange(one.port, get("/user/x", "Connection: close")) for _ in range(12)]
        await asyncio.gather(*calls)
    assert target.most_busy <= 2
