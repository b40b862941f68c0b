"""Circuits held by hand, through the admin port and the command line, and faults through the command line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.integration.conftest import Outrider
from tests.integration.harness import Client, Target, eventually, exchange, get, plain
from tests.integration.processes import running

CONFIG = "admin: { listen: '127.0.0.1:0', allow_faults: true }\nservices: { user: { url: '%s', retry: false, %s } }"


async def outrider_says(admin: int, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a verb, asked of a running sidecar."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outrider", *arguments, "--admin", f"127.0.0.1:{admin}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_circuit_is_held_open_until_it_is_reset(outrider: Outrider) -> None:
    """Held open, no call reaches the target however long it lasts; after the reset all do."""
    async with Target(plain()) as target, outrider(CONFIG % (target.url, "")) as proxy, Client(proxy.port) as client:
        assert await outrider_says(proxy.admin, "circuits", "open", "user") == (0, _line("open, held by hand"))
        await asyncio.sleep(0.1)
        for _ in range(3):
            answer = await client.call(get("/user/x"))
            assert answer.status == 503
            assert b"held open by hand" in answer.body
        assert not target.seen
        code, text = await outrider_says(proxy.admin, "circuits", "reset", "user")
        assert (code, text) == (0, _line("closed, 0 failures in its window"))
        assert (await client.call(get("/user/x"))).status == 200


async def test_a_circuit_is_held_closed_whatever_fails(outrider: Outrider) -> None:
    """Held closed, twenty failures in a row do not open it; left to its own rules, five do."""
    async with Target(plain(500)) as target, outrider(CONFIG % (target.url, "")) as proxy, Client(proxy.port) as client:
        assert (await outrider_says(proxy.admin, "circuits", "close", "user"))[0] == 0
        for _ in range(20):
            assert (await client.call(get("/user/x"))).status == 500
        assert (await outrider_says(proxy.admin, "circuits", "reset", "user"))[0] == 0
        for _ in range(5):
            assert (await client.call(get("/user/x"))).status == 500
        assert proxy.breaker_state() == "open"


async def test_an_unknown_circuit_is_told_with_those_there_are(outrider: Outrider) -> None:
    """The error names the circuits that exist; a route with its own has its pattern in the name."""
    routes = "routes: [ { match: 'GET /slow', circuit_breaker: { probes: 2 } } ]"
    async with Target(plain()) as target, outrider(CONFIG % (target.url, routes)) as proxy:
        code, text = await outrider_says(proxy.admin, "circuits", "open", "users")
        assert code == 1
        assert text == 'outrider: there is no circuit "users"; there are user, user GET /slow\n'
        code, text = await outrider_says(proxy.admin, "circuits", "open", "user GET /slow")
        assert code == 0
        assert (await exchange(proxy.port, get("/user/slow"))).status == 503
        assert (await exchange(proxy.port, get("/user/x"))).status == 200


async def test_a_call_may_wait_for_the_circuit_to_close(outrider: Outrider) -> None:
    """With `wait`, calls that find the circuit open are answered once a probe has worked, and reach the target once."""
    breaker = "circuit_breaker: { open_for: 50ms..50ms, wait: 2s }"
    async with Target([plain(500)] * 5 + [plain()]) as target, outrider(CONFIG % (target.url, breaker)) as proxy:
        async with Client(proxy.port) as client:
            for _ in range(5):
                await client.call(get("/user/x"))
        assert proxy.breaker_state() == "open"
        answers = await asyncio.gather(*(exchange(proxy.port, get("/user/x")) for _ in range(50)))
        assert {answer.status for answer in answers} == {200}
        assert len(target.seen) == 55


async def test_no_call_waits_longer_than_allowed(outrider: Outrider) -> None:
    """A circuit that stays open refuses those who wait after their time, and none of them is left behind."""
    breaker = "circuit_breaker: { open_for: 5s..5s, wait: 100ms }"
    async with Target(plain(500)) as target, outrider(CONFIG % (target.url, breaker)) as proxy:
        async with Client(proxy.port) as client:
            for _ in range(5):
                await client.call(get("/user/x"))
        answers = await asyncio.gather(*(exchange(proxy.port, get("/user/x")) for _ in range(20)))
        assert {answer.status for answer in answers} == {503}
        assert len(target.seen) == 5


async def test_a_fault_from_the_command_line(outrider: Outrider) -> None:
    """`outrider fault` begins one, shows it, and ends it."""
    async with Target(plain()) as target, outrider(CONFIG % (target.url, "")) as proxy:
        code, text = await outrider_says(proxy.admin, "fault", "user", "--status", "503", "--for", "30s")
        assert code == 0
        assert text.startswith("user                 status      100% of requests, 30 s left, met 0")
        assert (await exchange(proxy.port, get("/user/x"))).status == 503
        assert await outrider_says(proxy.admin, "fault", "--clear") == (0, "1 faults ended\n")
        assert (await exchange(proxy.port, get("/user/x"))).status == 200
        code, text = await outrider_says(proxy.admin, "fault", "user", "--latency", "3")
        assert code == 1
        assert "did you mean 3s or 3ms?" in text


async def test_orders_reach_every_worker(tmp_path: Path) -> None:
    """With several workers a circuit is held open in all of them."""
    async with Target(plain()) as target:
        text = f"workers: 2\nservices: {{ user: {{ url: '{target.url}' }} }}"
        async with running(tmp_path, text) as one:
            await eventually(lambda: sum(line["msg"] == "ready" for line in one.lines) >= 2, "both workers are ready")
            code, said = await outrider_says(one.admin, "circuits", "open", "user")
            assert (code, said.count("open, held by hand")) == (0, 2)
            for _ in range(8):
                assert (await exchange(one.port, get("/user/x", "Connection: close"))).status == 503
            assert not target.seen


def _line(sentence: str) -> str:
    return f"{'user':<30} {sentence}\n"
