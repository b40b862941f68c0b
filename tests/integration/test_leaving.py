"""Apps and callers that send nothing more: those that still wait get their answers, those that have gone are noticed.

Both send the same end of stream; only what we send them tells them apart (docs/decisions/0014).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Client,
    Exchange,
    Sidecar,
    Target,
    chunked,
    echo,
    eventually,
    get,
    in_steps,
    plain,
    request,
    silent,
    slow,
)

LISTENERS = ["listen", "inbound.listen"]


def config(target: Target, limits: str = "") -> str:
    return f"""
limits: {{ {limits} }}
inbound: {{ listen: 127.0.0.1:0, app: '{target.url}', protect: [] }}
services: {{ user: '{target.url}' }}
"""


@asynccontextmanager
async def half_closed(proxy: Sidecar, listener: str, data: bytes) -> AsyncIterator[Client]:
    """A client that has sent this, and then ended its side of the connection."""
    async with Client(proxy.app.ports[listener]) as client:
        await client.send(data)
        client.writer.write_eof()
        yield client


def path(listener: str) -> str:
    return "/user/x" if listener == "listen" else "/x"


@pytest.mark.parametrize("listener", LISTENERS)
async def test_an_app_that_has_sent_all_and_ended_its_side_is_answered(outrider: Outrider, listener: str) -> None:
    """Ending one's side after a whole request is no cancellation (RFC 9112 §9.6): the answer comes, and says that the
    connection ends."""
    where = path(listener)
    async with Target(echo) as target, outrider(config(target)) as proxy:
        for data in (
            get(where),
            request("POST", where, b"x" * 100_000),
            request("POST", where, None, "Transfer-Encoding: chunked") + chunked(b"abc"),
        ):
            async with half_closed(proxy, listener, data) as client:
                answer = await client.answer()
                assert (answer.status, answer.get("connection"), answer.interims) == (200, "close", [])
                assert await client.end() == "eof"
        await eventually(lambda: not proxy.app.runtime.proxy.connections, "all closed")
    assert target.bodies() == [b"", b"x" * 100_000, b"abc"]


@pytest.mark.parametrize("count", [3, 800])
async def test_all_pipelined_requests_before_the_end_are_answered(outrider: Outrider, count: int) -> None:
    """In order, however many wait as bytes; the half of one behind them is not."""
    async with Target(plain()) as target, outrider(config(target)) as proxy:
        async with half_closed(proxy, "listen", get("/user/x") * count + b"GET /user/half") as client:
            for number in range(count):
                answer = await client.answer()
                assert (answer.status, answer.get("connection")) == (200, None if number < count - 1 else "close")
            assert await client.end() == "eof"
    assert len(target.seen) == count


@pytest.mark.parametrize("listener", LISTENERS)
async def test_while_it_waits_it_is_asked_once_whether_it_is_there(outrider: Outrider, listener: str) -> None:
    """An answer that takes its time is preceded by one 100 Continue: a reset would have come back."""
    async with Target(slow(0.3)) as target, outrider(config(target)) as proxy:
        async with half_closed(proxy, listener, get(path(listener))) as client:
            answer = await client.answer()
    assert (answer.status, [interim.status for interim in answer.interims]) == (200, [100])


async def test_an_old_app_is_not_asked(outrider: Outrider) -> None:
    """HTTP/1.0 knows no interim answers."""
    async with Target(slow(0.2)) as target, outrider(config(target)) as proxy:
        async with half_closed(proxy, "listen", b"GET /user/x HTTP/1.0\r\n\r\n") as client:
            answer = await client.answer()
    assert (answer.status, answer.interims) == (200, [])


@pytest.mark.parametrize("listener", LISTENERS)
async def test_an_app_that_has_gone_is_noticed_at_once(outrider: Outrider, listener: str) -> None:
    """Closing a connection cancels the call, although its end of stream looks the same."""
    async with Target(silent) as target, outrider(config(target)) as proxy:
        async with Client(proxy.app.ports[listener]) as client:
            await client.send(get(path(listener)))
            await eventually(lambda: target.busy, "the call is under way")
        began = monotonic()
        await eventually(lambda: target.closed, "the target is let go")
        assert monotonic() - began < 1
        assert (proxy.outcomes() or proxy.outcomes("_app")).get("cancelled", 1) == 1


@pytest.mark.parametrize(
    "part",
    [
        get("/user/x")[:-2],
        request("POST", "/user/x", None, "Content-Length: 10") + b"half",
        request("POST", "/user/x", None, "Transfer-Encoding: chunked") + b"4\r\nhalf\r\n",
        request("POST", "/user/x", None, "Transfer-Encoding: chunked") + chunked(b"x" * 5000)[:-5],
    ],
    ids=["head", "body", "chunked body", "last chunk"],
)
async def test_half_a_request_before_the_end_is_no_request(outrider: Outrider, part: bytes) -> None:
    """It can never become whole: the connection is closed, and no target takes it for complete."""
    async with Target(echo) as target, outrider(config(target)) as proxy:
        async with half_closed(proxy, "listen", part) as client:
            assert await client.end() in ("eof", "reset")
        await eventually(lambda: not target.busy, "the target is let go")
    assert not any(seen.complete for seen in target.seen)


async def test_a_download_goes_on_after_the_end(outrider: Outrider) -> None:
    """While the answer moves it is passed on to its end."""
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n", *(b"x" * 10_000 for _ in range(4))]
    async with Target(in_steps(*pieces, pause=0.08)) as target, outrider(config(target)) as proxy:
        async with half_closed(proxy, "listen", get("/user/x")) as client:
            assert len((await client.answer()).body) == 40_000


async def test_a_stream_that_stands_still_after_the_end_is_let_go(outrider: Outrider) -> None:
    """Into an answer that has begun no question can be put: an app that has ended its side, and gets nothing for more
    than a second, is taken for gone."""

    async def one_event(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await one.send(chunked(b"data: 1\n\n")[:-5])
        await silent(one)

    async with Target(one_event) as target, outrider(config(target)) as proxy:
        async with half_closed(proxy, "listen", get("/user/events")) as client:
            await client.head()
            began = monotonic()
            await eventually(lambda: target.closed, "the target is let go", within=4)
            assert 0.9 < monotonic() - began < 3


# ---------------------------------------------------------------- apps that do not read


async def not_reading(port: int, data: bytes) -> socket.socket:
    """A connection that sends as much of this as is taken, and reads nothing."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    try:
        async with asyncio.timeout(0.3):
            await loop.sock_sendall(sock, data)
    except TimeoutError:
        pass
    return sock


@pytest.mark.parametrize("where", ["/nobody/x", "/user/x"])
async def test_an_app_that_pipelines_and_does_not_read_is_ended(outrider: Outrider, where: str) -> None:
    """Its answers wait in memory no longer than limits.body_idle_timeout without progress."""
    async with Target(plain(200, b"x" * 20_000)) as target:
        async with outrider(config(target, "body_idle_timeout: 200ms")) as proxy:
            data_plane = proxy.app.runtime.proxy
            with await not_reading(proxy.port, get(where) * 8000):
                await eventually(lambda: data_plane.stats.reached["body_idle_timeout"], "the connection is ended")
                await eventually(lambda: not data_plane.connections, "it is gone")


async def test_a_slow_but_steady_reader_of_many_answers_is_not_ended(outrider: Outrider) -> None:
    """What the kernel has taken, and the app from the kernel, is progress."""
    loop = asyncio.get_running_loop()
    async with Target(plain()) as target, outrider(config(target, "body_idle_timeout: 250ms")) as proxy:
        with await not_reading(proxy.port, get("/nobody/x") * 8000) as sock:
            began = monotonic()
            while monotonic() - began < 1:
                assert await loop.sock_recv(sock, 8192)
                await asyncio.sleep(0.02)
            assert proxy.app.runtime.proxy.connections


async def test_idle_time_counts_from_the_end_of_the_answer(outrider: Outrider) -> None:
    """A call that takes longer than an idle connection may rest does not end its connection."""
    limits = "downstream_idle_timeout: 300ms"
    async with Target(slow(0.25)) as target, outrider(config(target, limits)) as proxy:
        async with Client(proxy.port) as client:
            for _ in range(2):
                assert (await client.call(get("/user/x"))).status == 200
                await asyncio.sleep(0.15)
            assert await client.end() == "eof"
        assert proxy.app.runtime.proxy.stats.reached["downstream_idle_timeout"] == 1
