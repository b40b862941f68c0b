"""Active health checks: who is asked whether it is well, and what an answer means for calls."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    Exchange,
    Sidecar,
    Target,
    chunked,
    eventually,
    exchange,
    get,
    plain,
    raw,
    request,
    silent,
)
from tests.integration.load import in_turn, under_load


def config(targets: list[Target], check: str = "", more: str = "") -> str:
    urls = ", ".join(f"'{target.url}'" for target in targets)
    return f"""
services:
  user:
    url: [{urls}]
    balance: round-robin
    health_check: {{ every: 40ms, timeout: 150ms, unhealthy_after: 2{check} }}
    {more}
"""


def well(target: Target, answer: Action, calls: Action | None = None) -> None:
    """From now on the target answers health checks like this, and calls like that."""
    otherwise = calls or plain()

    async def act(one: Exchange) -> None:
        await (answer if one.request.path.partition("?")[0].endswith("/health") else otherwise)(one)

    target.script(act)


def calls(target: Target) -> int:
    """How many calls other than checks have come."""
    return sum(not seen.path.partition("?")[0].endswith("/health") for seen in target.seen)


def checks(target: Target) -> int:
    return len(target.seen) - calls(target)


def healthy(proxy: Sidecar) -> list[bool]:
    return [endpoint.healthy for endpoint in proxy.app.runtime.compiled.clusters[0].endpoints]


def get_and_post(number: int) -> bytes:
    return request("POST", "/user/x", b"charge %d" % number) if number % 2 else get(f"/user/{number}")


async def for_ever(one: Exchange) -> None:
    """Begin an answer that does not end."""
    await one.body()
    await one.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        while not one.writer.is_closing():
            await one.send(b"2\r\nok\r\n")
            await asyncio.sleep(0.01)
    finally:
        one.keep = False


MUCH = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*[bytes(8192)] * 20)
UNWELL = [
    pytest.param(plain(500), "answered 500", id="500"),
    pytest.param(plain(404), "answered 404", id="404"),
    pytest.param(plain(302, b"", "Location: /login"), "redirects are not followed", id="redirects"),
    pytest.param(silent, "not answered in time", id="hangs"),
    pytest.param(for_ever, "not answered in time", id="streams for ever"),
    pytest.param(raw(MUCH), "more than 65536 bytes", id="says too much"),
    pytest.param(raw(b"hello\r\n", then="close"), "/health", id="is not HTTP"),
]


@pytest.mark.parametrize(("answer", "complaint"), UNWELL)
async def test_an_unhealthy_endpoint_gets_no_calls(
    outrider: Outrider, caplog: pytest.LogCaptureFixture, answer: Action, complaint: str
) -> None:
    """Whoever does not answer its check with a 2xx in time gets no calls while another one does, and the log says
    why."""
    async with Target(plain()) as one, Target(plain()) as two:
        well(one, answer)
        well(two, plain(204, b""))
        async with outrider(config([one, two])) as proxy:
            await eventually(lambda: healthy(proxy) == [False, True], "found unhealthy")
            before = calls(one)
            assert (await in_turn(proxy.port, 2, 40, get_and_post)).good == 40
            assert calls(one) == before
            assert calls(two) >= 40
            # Nobody else hears of checks.
            assert proxy.outcomes() == {"ok": 40}
            assert proxy.breaker_state() == "closed"
    said = [one.getMessage() for one in caplog.records if "is unhealthy" in one.getMessage()]
    assert len(said) == 1, said
    assert complaint in said[0]


async def test_a_refused_connection_is_unhealthy(outrider: Outrider) -> None:
    """An endpoint where nobody listens is found out before any call has to."""
    async with Target(plain()) as one, Target(plain()) as two:
        await one.stop()
        async with outrider(config([one, two])) as proxy:
            await eventually(lambda: healthy(proxy) == [False, True], "found unhealthy")
            assert (await in_turn(proxy.port, 1, 10, get_and_post)).good == 10
            assert proxy.app.runtime.compiled.clusters[0].stats.connects["connection_refused"] == 0


async def test_it_gets_calls_again_when_it_is_well(outrider: Outrider) -> None:
    """One failed check changes nothing, two do, and with a good one the endpoint is back; no call is lost."""
    async with Target(plain()) as one, Target(plain()) as two:
        async with outrider(config([one, two])) as proxy:
            async with under_load(proxy.port, 3, get_and_post) as tally:
                await eventually(lambda: checks(one) > 3, "checks")
                assert healthy(proxy) == [True, True]
                well(one, plain(503))
                await eventually(lambda: healthy(proxy) == [False, True], "unhealthy")
                await eventually(lambda: not one.busy, "nobody there")
                before = calls(one)
                so_far = tally.count
                await eventually(lambda: tally.count > so_far + 40, "calls meanwhile")
                assert calls(one) == before
                one.script(plain())
                await eventually(lambda: healthy(proxy) == [True, True], "healthy")
                await eventually(lambda: calls(one) > before, "calls again")
    assert tally.failed == 0


async def test_a_single_bad_answer_changes_nothing(outrider: Outrider) -> None:
    """Only as many failures in a row as configured make an endpoint unhealthy."""
    turn = 0

    async def now_and_then(one: Exchange) -> None:
        nonlocal turn
        turn += 1
        await plain(500 if turn % 2 else 200)(one)

    async with Target(plain()) as one, Target(plain()) as two:
        well(one, now_and_then)
        async with outrider(config([one, two])) as proxy:
            found = set()
            while turn < 8:
                found.add(tuple(healthy(proxy)))
                await asyncio.sleep(0.01)
    assert found == {(True, True)}


async def test_when_nobody_is_well_calls_still_go_somewhere(outrider: Outrider) -> None:
    """Checks that all fail are more likely wrong than everybody is down: calls are sent, and answered."""
    async with Target(plain()) as one, Target(plain()) as two:
        well(one, plain(500))
        well(two, plain(500))
        async with outrider(config([one, two])) as proxy:
            await eventually(lambda: healthy(proxy) == [False, False], "both unhealthy")
            assert (await in_turn(proxy.port, 2, 40, get_and_post)).good == 40
    assert calls(one) > 10
    assert calls(two) > 10


async def test_a_single_endpoint_is_used_however_it_is(outrider: Outrider) -> None:
    """There is nobody better than the only one."""
    async with Target(plain()) as one:
        well(one, plain(500))
        async with outrider(config([one])) as proxy:
            await eventually(lambda: healthy(proxy) == [False], "unhealthy")
            assert (await in_turn(proxy.port, 1, 5, get_and_post)).good == 5


async def test_checks_ask_behind_the_base_path(outrider: Outrider) -> None:
    """The path of the check is put behind the base path of the URL, and the endpoint sees who asks."""
    async with Target(plain()) as one:
        text = config([one], ", path: '/health?deep=1'").replace(one.url, one.url + "/v2")
        async with outrider(text):
            await eventually(lambda: one.seen, "a check")
    seen = one.seen[0]
    assert (seen.method, seen.path) == ("GET", "/v2/health?deep=1")
    assert seen.get("host") == f"127.0.0.1:{one.port}"
    assert seen.get("user-agent") == "outrider-health"


async def test_a_check_that_hangs_does_not_hold_others_up(outrider: Outrider) -> None:
    """Calls are answered at once while checks wait, and stopping does not wait for them."""
    async with Target(plain()) as one, Target(plain()) as two:
        well(one, silent)
        text = config([one, two]).replace("timeout: 150ms", "timeout: 10s")
        async with outrider(text) as proxy:
            await eventually(lambda: one.busy, "a check under way")
            async with asyncio.timeout(2):
                assert (await exchange(proxy.port, get("/user/x"))).status == 200
            assert one.busy
