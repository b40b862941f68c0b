"""The circuit breaker, as the app sees it."""

from __future__ import annotations

import asyncio
import statistics
from time import perf_counter

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Client,
    Exchange,
    Target,
    eventually,
    exchange,
    get,
    plain,
    request,
    reset_unanswered,
    response,
    silent,
)


def config(target: Target, breaker: str = "", retry: str = "false") -> str:
    return f"""
services:
  user:
    url: '{target.url}'
    retry: {retry}
    circuit_breaker: {{ {breaker} }}
"""


async def open_it(client: Client) -> None:
    for _ in range(5):
        assert (await client.call(get("/user/x"))).status == 500


@pytest.mark.parametrize("status", [400, 404, 409, 429, 501])
async def test_answers_about_the_request_never_open(outrider: Outrider, status: int) -> None:
    """A storm of 404s says nothing about the health of the target."""
    async with Target(plain(status)) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for _ in range(60):
            assert (await client.call(get("/user/x"))).status == status
        assert proxy.breaker_state() == "closed"


async def test_a_neutral_answer_does_not_end_a_run_of_failures(outrider: Outrider) -> None:
    """Four failures, a 404 and one more failure are five failures in a row."""
    script = [plain(500)] * 4 + [plain(404)] + [plain(500)]
    async with Target(script) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for _ in range(6):
            await client.call(get("/user/x"))
        assert proxy.breaker_state() == "open"


@pytest.mark.parametrize("broken", [plain(500), plain(503), reset_unanswered], ids=["500", "503", "reset"])
async def test_five_failures_in_a_row_open(outrider: Outrider, broken: object) -> None:
    """After five failures the target is left alone, and the app is told when to come back."""
    async with Target(broken) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for number in range(5):
            assert proxy.breaker_state() == "closed", number
            await client.call(get("/user/x"))
        assert proxy.breaker_state() == "open"
        answer = await client.call(request("POST", "/user/x", b"charge"))
    assert (answer.status, answer.get("retry-after")) == (503, "1")
    assert answer.get("content-type") == "application/problem+json"
    assert b'"error": "CIRCUIT_OPEN"' in answer.body
    assert "error=destination_unavailable" in (answer.get("proxy-status") or "")
    assert len(target.seen) == 5


async def test_an_open_circuit_answers_at_once(outrider: Outrider) -> None:
    """While it is open, a refusal takes under 5 ms and never reaches the target."""
    async with Target(plain(500)) as target, outrider(config(target, "open_for: 5s..5s")) as proxy:
        async with Client(proxy.port) as client:
            await open_it(client)
            times = []
            for _ in range(200):
                began = perf_counter()
                answer = await client.call(get("/user/x"))
                times.append(perf_counter() - began)
                assert answer.status == 503
                assert answer.get("retry-after") in ("5", "6")
    assert statistics.median(times) < 0.005
    assert len(target.seen) == 5


async def test_half_open_lets_one_probe_through_at_a_time(outrider: Outrider) -> None:
    """Of many calls that come when the circuit may be tried, the target sees one."""
    gate = asyncio.Event()

    async def held(one: Exchange) -> None:
        await one.body()
        await gate.wait()
        await one.send(response())

    async with Target([*[plain(500)] * 5, held, plain()]) as target:
        async with outrider(config(target, "open_for: 50ms..50ms")) as proxy:
            async with Client(proxy.port) as client:
                await open_it(client)
            await asyncio.sleep(0.08)
            calls = [asyncio.create_task(exchange(proxy.port, get("/user/x"))) for _ in range(20)]
            done, waiting = await asyncio.wait(calls, timeout=0.3)
            assert len(waiting) == 1
            assert {task.result().status for task in done} == {503}
            assert (target.most_busy, len(target.seen)) == (1, 6)
            gate.set()
            assert (await waiting.pop()).status == 200
            await eventually(lambda: proxy.breaker_state() == "closed", "closed again")
            assert (await exchange(proxy.port, get("/user/x"))).status == 200


async def test_a_failed_probe_opens_again(outrider: Outrider) -> None:
    """One probe that fails is enough to leave the target alone again, for longer."""
    async with Target(plain(500)) as target, outrider(config(target, "open_for: 50ms..1s")) as proxy:
        async with Client(proxy.port) as client:
            await open_it(client)
            await asyncio.sleep(0.08)
            assert (await client.call(get("/user/x"))).status == 500
            assert proxy.breaker_state() == "open"
            assert (await client.call(get("/user/x"))).status == 503
    assert len(target.seen) == 6


async def test_it_recovers_with_the_target(outrider: Outrider) -> None:
    """When the target is well again, calls pass again without anybody's doing."""
    async with Target([*[plain(500)] * 5, plain()]) as target:
        async with outrider(config(target, "open_for: 50ms..100ms")) as proxy, Client(proxy.port) as client:
            await open_it(client)
            async with asyncio.timeout(2):
                while (await client.call(get("/user/x"))).status != 200:
                    await asyncio.sleep(0.01)
            assert proxy.breaker_state() == "closed"
            for _ in range(10):
                assert (await client.call(get("/user/x"))).status == 200


async def test_a_probe_whose_app_hangs_up_gives_its_permit_back(outrider: Outrider) -> None:
    """A cancelled probe says nothing, and the next call may try."""
    async with Target([*[plain(500)] * 5, silent, plain()]) as target:
        async with outrider(config(target, "open_for: 50ms..50ms")) as proxy:
            async with Client(proxy.port) as client:
                await open_it(client)
            await asyncio.sleep(0.08)
            async with Client(proxy.port) as client:
                await client.send(get("/user/x"))
                await eventually(lambda: len(target.seen) == 6, "the probe")
            await eventually(lambda: target.closed, "the probe's connection closed")
            assert proxy.breaker_state() == "half_open"
            assert (await exchange(proxy.port, get("/user/x"))).status == 200
            assert proxy.breaker_state() == "closed"


async def test_half_of_twenty_failing_opens(outrider: Outrider) -> None:
    """Failures that never come in a row still open the circuit when they are half of the calls."""
    async with Target([plain(500), plain()] * 20) as target:
        async with outrider(config(target)) as proxy, Client(proxy.port) as client:
            for number in range(20):
                assert proxy.breaker_state() == "closed", number
                await client.call(get("/user/x"))
            await client.call(get("/user/x"))
            assert proxy.breaker_state() == "open"


async def test_a_retry_stops_at_a_circuit_that_opens(outrider: Outrider) -> None:
    """A call in its retries does not go on against a circuit that has opened: it passes back what it has."""
    async with Target(plain(500, b"from the target")) as target:
        async with outrider(config(target, "consecutive_failures: 2", "{ backoff: 1ms..2ms }")) as proxy:
            answer = await exchange(proxy.port, get("/user/x"))
    assert (answer.status, answer.body) == (500, b"from the target")
    assert len(target.seen) == 2


async def test_services_have_circuits_of_their_own(outrider: Outrider) -> None:
    """One broken service does not take another with it."""
    async with Target(plain(500)) as bad, Target(plain()) as good:
        text = config(bad) + f"  other: '{good.url}'\n"
        async with outrider(text) as proxy, Client(proxy.port) as client:
            await open_it(client)
            assert (await client.call(get("/user/x"))).status == 503
            assert (await client.call(get("/other/x"))).status == 200


async def test_a_retry_waits_for_the_circuit_that_it_opened(outrider: Outrider) -> None:
    """With `wait`, a call whose own failure opens the circuit is answered when the target is well again."""
    breaker = "consecutive_failures: 1, open_for: 50ms..50ms, wait: 5s"
    async with Target([plain(503), plain(503), plain(200, b"well")]) as target:
        async with outrider(config(target, breaker, "{ backoff: 1ms..2ms }")) as proxy:
            answer = await exchange(proxy.port, get("/user/x"))
            assert (answer.status, answer.body) == (200, b"well")
            assert len(target.seen) == 3
