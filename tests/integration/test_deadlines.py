"""Time: what a call, an attempt and a connection may take, and what happens when the app stops waiting."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from time import monotonic

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    BrokenError,
    Client,
    Exchange,
    Target,
    chunked,
    eventually,
    exchange,
    get,
    plain,
    raw,
    request,
    silent,
    slow,
)


def config(url: str, more: str = "") -> str:
    return f"services:\n  user:\n    url: '{url}'\n    " + more


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The URL of a socket whose backlog is full, so that connecting to it takes for ever."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        yield f"http://127.0.0.1:{full.getsockname()[1]}"
        for filler in fillers:
            filler.close()


async def test_timeout_bounds_the_whole_call(outrider: Outrider) -> None:
    """All attempts and pauses together take no longer than `timeout`, and the app gets 504."""
    more = "timeout: 300ms\n    attempt_timeout: 120ms\n"
    more += "    retry: { max_retries: 10, backoff: 1ms..2ms, budget: 100% }"
    async with Target(silent) as target, outrider(config(target.url, more)) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x"))
        took = monotonic() - began
    assert answer.status == 504
    assert b'"error": "TIMEOUT"' in answer.body
    assert "error=http_response_timeout" in (answer.get("proxy-status") or "")
    assert 0.2 < took < 0.45
    assert 2 <= len(target.seen) <= 3


async def test_attempt_timeout_bounds_one_attempt(outrider: Outrider) -> None:
    """A hanging attempt is given up and the next one may succeed; the hanging connection is closed."""
    more = "attempt_timeout: 100ms\n    retry: { backoff: 1ms..2ms }"
    async with Target([silent, plain()]) as target, outrider(config(target.url, more)) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x"))
        took = monotonic() - began
        await eventually(lambda: target.closed, "the hanging connection closed")
    assert (answer.status, answer.get("x-outrider-attempts")) == (200, "2")
    assert 0.1 <= took < 0.3


async def test_the_target_is_told_the_time_left(outrider: Outrider) -> None:
    """`x-request-timeout-ms` is what remains of the attempt, or of the call if that is less."""
    more = "timeout: 500ms\n    attempt_timeout: 400ms\n    retry: { backoff: 1ms..2ms }"
    async with Target([slow(0.2, plain(503)), plain()]) as target, outrider(config(target.url, more)) as proxy:
        await exchange(proxy.port, get("/user/x"))
        await exchange(proxy.port, get("/user/x", "x-outrider-timeout: 90ms"))
    times = [int(seen.get("x-request-timeout-ms") or 0) for seen in target.seen]
    assert 380 <= times[0] <= 400
    assert 200 <= times[1] <= 300
    assert 60 <= times[2] <= 90


async def test_the_app_may_shorten_the_time(outrider: Outrider) -> None:
    """`x-outrider-timeout` ends the call earlier."""
    async with Target(silent) as target, outrider(config(target.url)) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x", "x-outrider-timeout: 100ms"))
        took = monotonic() - began
    assert (answer.status, len(target.seen)) == (504, 1)
    assert 0.09 <= took < 0.3


async def test_the_app_may_never_lengthen_the_time(outrider: Outrider) -> None:
    """What the operator allows is the most there is."""
    async with Target(silent) as target, outrider(config(target.url, "timeout: 100ms")) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x", "x-outrider-timeout: 1h"))
        took = monotonic() - began
    assert answer.status == 504
    assert took < 0.3


@pytest.mark.parametrize("value", ["800", "fast", "-5s", "", "1s, 2s", "0x10ms", "٣s"])
async def test_a_timeout_that_cannot_be_read_is_refused(outrider: Outrider, value: str) -> None:
    """A mistake of the app is told to the app, not guessed at, and the target hears nothing."""
    data = f"GET /user/x HTTP/1.1\r\nHost: a\r\nx-outrider-timeout: {value}\r\n\r\n".encode()
    async with Target(plain()) as target, outrider(config(target.url)) as proxy:
        answer = await exchange(proxy.port, data)
    assert (answer.status, target.seen) == (400, [])
    assert "x-outrider-timeout" in json.loads(answer.body)["detail"]


async def test_connect_timeout_bounds_connecting(outrider: Outrider, black_hole: str) -> None:
    """A target that does not even accept is given up after `connect_timeout`."""
    more = "connect_timeout: 100ms\n    retry: false"
    async with outrider(config(black_hole, more)) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x"))
        took = monotonic() - began
    assert answer.status == 504
    assert "error=connection_timeout" in (answer.get("proxy-status") or "")
    assert 0.09 <= took < 0.4


async def test_connecting_is_part_of_the_call(outrider: Outrider, black_hole: str) -> None:
    """The call's own time bounds connecting, too."""
    more = "timeout: 120ms\n    connect_timeout: 2s"
    async with outrider(config(black_hole, more)) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x"))
        took = monotonic() - began
    assert answer.status == 504
    assert took < 0.4


async def test_a_post_goes_on_to_another_endpoint_when_connecting_takes_too_long(
    outrider: Outrider, black_hole: str
) -> None:
    """A connection that never came about has sent nothing, so even a POST is tried elsewhere."""
    async with Target(plain()) as target:
        text = f"services:\n  user:\n    url: ['{black_hole}', '{target.url}']\n    connect_timeout: 80ms\n"
        async with outrider(text) as proxy:
            for number in range(4):
                answer = await exchange(proxy.port, request("POST", "/user/x", b"%d" % number))
                assert answer.status == 200
    assert target.bodies() == [b"%d" % number for number in range(4)]


async def test_an_attempt_that_no_other_may_follow_has_all_the_time(outrider: Outrider) -> None:
    """Half of `timeout` is only for a call that may be repeated, and then not for its last try."""
    off = "retry: { max_retries: 1, backoff: 1ms..2ms, budget: 100% }"
    async with Target(slow(0.28)) as target, outrider(config(target.url, f"timeout: 400ms\n    {off}")) as proxy:
        assert (await exchange(proxy.port, request("POST", "/user/x", b"charge"))).status == 200
        assert (await exchange(proxy.port, get("/user/x", "x-outrider-retry: off"))).status == 200
        assert len(target.seen) == 2
        target.script([silent, slow(0.15)])
        target.seen.clear()
        answer = await exchange(proxy.port, get("/user/x"))
    times = [int(seen.get("x-request-timeout-ms") or 0) for seen in target.seen]
    assert (answer.status, len(times)) == (200, 2)
    assert 190 <= times[0] <= 200
    assert 150 <= times[1] <= 200


async def test_a_body_too_large_to_repeat_has_all_the_time(outrider: Outrider) -> None:
    """Of a body whose length is not known beforehand this shows only when it has come."""
    limits = "limits: { replay_bytes: 1KiB }\n"
    async with Target(slow(0.15)) as target, outrider(limits + config(target.url, "timeout: 250ms")) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("PUT", "/user/x", None, "Transfer-Encoding: chunked") + b"1\r\nx\r\n")
            await eventually(lambda: target.busy, "the first bytes at the target")
            await client.send(chunked(b"x" * 5000))
            assert (await client.answer()).status == 200
    assert len(target.seen) == 1


def trickle(
    *, times: int, pause: float, head: bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
) -> Action:
    """An answer whose head comes at once and whose body comes piece by piece."""

    async def act(one: Exchange) -> None:
        await one.body()
        await one.send(head)
        for _ in range(times):
            await asyncio.sleep(pause)
            await one.send(b"3\r\nabc\r\n")
        await one.send(b"0\r\n\r\n")

    return act


async def test_timeout_ends_with_the_head(outrider: Outrider) -> None:
    """The body flows for as long as it moves: event streams, long polls, downloads."""
    async with Target(trickle(times=8, pause=0.05)) as target, outrider(config(target.url, "timeout: 150ms")) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x"))
        assert (answer.status, answer.body) == (200, b"abc" * 8)
        assert monotonic() - began > 0.4
        assert proxy.outcomes() == {"ok": 1}


@pytest.mark.parametrize(
    ("more", "line"),
    [("total_timeout: 150ms", "x-a: b"), ("timeout: 5s", "x-outrider-timeout: 150ms")],
    ids=["total_timeout", "the app's deadline"],
)
async def test_what_bounds_the_whole_bounds_the_body(outrider: Outrider, more: str, line: str) -> None:
    """An answer that does not end in time is broken off visibly, even while it flows; the target is not to blame."""
    breaker = "\n    circuit_breaker: { consecutive_failures: 1 }"
    async with Target(trickle(times=30, pause=0.02)) as target, outrider(config(target.url, more + breaker)) as proxy:
        async with Client(proxy.port) as client:
            began = monotonic()
            await client.send(get("/user/x", line))
            answer = await client.head()
            assert answer.status == 200
            with pytest.raises(BrokenError):
                [piece async for piece in client.body(answer)]
            assert 0.1 < monotonic() - began < 0.4
        assert proxy.outcomes() == {"timeout": 1}
        assert proxy.breaker_state() == "closed"


async def test_the_time_of_a_caller_bounds_the_whole_at_the_guard(outrider: Outrider) -> None:
    """Unless the caller is a sidecar that says that its time is for the head only, as ours does."""
    text = "inbound: {{ listen: 127.0.0.1:0, app: '{}', protect: [] }}\nservices: {{ other: 'http://127.0.0.1:9' }}"
    async with Target(trickle(times=8, pause=0.05)) as app, outrider(text.format(app.url)) as guard:
        inbound = guard.app.ports["inbound.listen"]
        for lines in (["x-request-timeout-ms: 150"], ["grpc-timeout: 150m"]):
            with pytest.raises(BrokenError):
                await exchange(inbound, get("/x", *lines))
        assert (await exchange(inbound, get("/x"))).body == b"abc" * 8
        lines = ["x-request-timeout-ms: 150", "x-request-total-timeout-ms: none"]
        assert (await exchange(inbound, get("/x", *lines))).body == b"abc" * 8


async def test_a_stream_passes_two_sidecars(outrider: Outrider) -> None:
    """The time that one sidecar gives for the head does not end the body at the next one."""
    inbound = "inbound: {{ listen: 127.0.0.1:0, app: '{}', protect: [] }}\nservices: {{ other: 'http://127.0.0.1:9' }}"
    async with Target(trickle(times=8, pause=0.05)) as app, outrider(inbound.format(app.url)) as guard:
        url = f"http://127.0.0.1:{guard.app.ports['inbound.listen']}"
        async with outrider(config(url, "timeout: 200ms")) as proxy:
            assert (await exchange(proxy.port, get("/user/x"))).body == b"abc" * 8
    assert app.seen[0].get("x-request-total-timeout-ms") == "none"


async def test_a_body_that_stands_still_is_broken_off(outrider: Outrider) -> None:
    """A target that stops in the middle of its answer is not waited for until the deadline."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    text = "limits: { body_idle_timeout: 150ms }\n"
    async with Target(raw(head, then="wait")) as target, outrider(text + config(target.url)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/x"))
            await client.head()
            assert await client.reader.readexactly(3) == b"abc"
            assert await client.end() == "reset"


async def test_a_slow_upload_leaves_the_target_its_time(outrider: Outrider) -> None:
    """While the app is still sending, attempt_timeout does not run against the target."""
    more = "attempt_timeout: 150ms\n    retry: false"
    async with Target(slow(0.1)) as target, outrider(config(target.url, more)) as proxy, Client(proxy.port) as client:
        await client.send(request("POST", "/user/x", None, "Content-Length: 4"))
        for byte in b"abcd":
            await asyncio.sleep(0.06)
            await client.send(bytes([byte]))
        assert (await client.answer()).status == 200
    assert target.bodies() == [b"abcd"]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_app_that_hangs_up_cancels_the_call(outrider: Outrider, method: str, how: str) -> None:
    """The target's connection is closed at once, nothing is retried, and nobody is blamed."""
    breaker = "circuit_breaker: { consecutive_failures: 1 }"
    async with Target([silent, plain()]) as target, outrider(config(target.url, breaker)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request(method, "/user/x", b"body"))
            await eventually(lambda: target.busy, "the call at the target")
            if how == "reset":
                client.reset()
        await eventually(lambda: target.closed, "the target's connection closed", within=0.5)
        await eventually(lambda: proxy.outcomes() == {"cancelled": 1}, "the outcome")
        assert proxy.breaker_state() == "closed"
        assert (await exchange(proxy.port, get("/user/x"))).status == 200
    assert len(target.seen) == 2


async def test_hanging_up_in_the_back_off_ends_the_call(outrider: Outrider) -> None:
    """An app that is gone is not retried for."""
    more = "retry: { backoff: 5s..5s }"
    async with Target([plain(503, b"", "Retry-After: 3"), plain()]) as target:
        async with outrider(config(target.url, more)) as proxy:
            async with Client(proxy.port) as client:
                await client.send(get("/user/x"))
                await eventually(lambda: target.seen, "the first attempt")
                await asyncio.sleep(0.02)
            await eventually(lambda: proxy.outcomes() == {"cancelled": 1}, "the outcome", within=0.5)
    assert len(target.seen) == 1


async def test_hanging_up_while_connecting_ends_the_call(outrider: Outrider, black_hole: str) -> None:
    """An app that is gone is not connected for."""
    async with outrider(config(black_hole, "connect_timeout: 5s")) as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: proxy.app.runtime.proxy.in_flight, "the call")
        await eventually(lambda: proxy.outcomes() == {"cancelled": 1}, "the outcome", within=0.5)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_hanging_up_in_the_middle_of_the_answer_closes_the_target(outrider: Outrider, method: str) -> None:
    """A download nobody reads is not fetched."""

    async def endless(one: Exchange) -> None:
        await one.body()
        await one.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await one.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    async with Target(endless) as target, outrider(config(target.url)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request(method, "/user/x", b"b"))
            await client.head()
            await client.reader.readexactly(100_000)
        await eventually(lambda: target.closed, "the target's connection closed", within=1)
        await eventually(lambda: proxy.outcomes() == {"cancelled": 1}, "the outcome")
        assert proxy.breaker_state() == "closed"


async def test_hanging_up_in_the_middle_of_an_upload_closes_the_target(outrider: Outrider) -> None:
    """Half an upload is never taken for a whole one."""
    async with Target(plain()) as target, outrider(config(target.url)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, "Content-Length: 1000") + b"x" * 500)
            await eventually(lambda: target.busy, "the call at the target")
        await eventually(lambda: target.closed, "the target's connection closed", within=0.5)
        assert proxy.outcomes() == {"cancelled": 1}
    assert [seen.complete for seen in target.seen] == [False]


async def test_hanging_up_on_a_target_that_reads_nothing_is_noticed(outrider: Outrider) -> None:
    """The upload waits because the target does not read, so nothing is read from the app either; that it left is
    noticed all the same, long before any timeout."""

    async def read_nothing(exchange: Exchange) -> None:
        await asyncio.sleep(4)
        exchange.close()

    text = "limits: {{ body_bytes: 64MiB }}\nservices: {{ user: {{ url: '{}', timeout: 1m, attempt_timeout: 1m }} }}"
    async with Target(read_nothing) as target, outrider(text.format(target.url)) as proxy:
        async with Client(proxy.port) as client:
            client.writer.write(request("POST", "/user/x", None, f"Content-Length: {32 << 20}"))
            client.writer.write(b"x" * (16 << 20))
            await eventually(lambda: target.busy, "the call at the target")
            await asyncio.sleep(0.3)
            client.reset()
        await eventually(lambda: not proxy.app.runtime.proxy.in_flight, "the call has ended", within=2.5)
        assert proxy.outcomes() == {"cancelled": 1}
