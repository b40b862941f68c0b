"""No input within the limits keeps the event loop from other calls: no turn of it takes longer than a moment."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import thread_time

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    PATIENCE,
    Client,
    Exchange,
    Target,
    chunked,
    eventually,
    get,
    plain,
    request,
    response,
)

# Seconds of CPU in one turn of the loop, the test's own work included. It takes 2 to 4 ms on an idle machine.
LONGEST_TURN = 0.03
CONFIG = """
services:
  user: {{ url: '{0}' }}
  limited: {{ url: '{0}', rate_limit: {{ rate: 1/m, burst: 1 }} }}
  prepared: {{ url: 'http://127.0.0.1:9', retry: false, fallback: {{ status: 200, json: {{ done: true }} }} }}
"""
UPLOAD = request("POST", "/user/x", None, "Transfer-Encoding: chunked")


@pytest.fixture(autouse=True)
def no_interruptions() -> Iterator[None]:
    """Neither the collector nor thousands of lines in the log of the test are what is measured."""
    logger = logging.getLogger("outrider.access")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logger.setLevel(level)


@asynccontextmanager
async def turns_measured() -> AsyncIterator[list[float]]:
    """The CPU seconds of every turn of the loop meanwhile."""
    loop = asyncio.get_running_loop()
    turns: list[float] = []
    last = thread_time()
    on = True

    def tick() -> None:
        nonlocal last
        now = thread_time()
        turns.append(now - last)
        last = now
        if on:
            loop.call_soon(tick)

    loop.call_soon(tick)
    try:
        yield turns
    finally:
        on = False


async def send_and_read(port: int, data: bytes, until: int) -> bytes:
    """Send all, while reading, until so many final answers have come or the connection ends."""
    loop = asyncio.get_running_loop()
    read = b""
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        sending = asyncio.ensure_future(loop.sock_sendall(sock, data))
        answers = 0
        try:
            async with asyncio.timeout(2 * PATIENCE):
                while answers < until and (piece := await loop.sock_recv(sock, 1 << 18)):
                    read += piece
                    answers += piece.count(b"HTTP/1.1 ")
        except ConnectionError:
            pass
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return read


CASES = {
    "refused requests": (b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * 3000, 3000),
    "requests that no service takes": (get("/nobody/x") * 2000, 2000),
    "requests over the rate": (get("/limited/x") * 2000, 2000),
    "requests answered by a prepared answer": (get("/prepared/x") * 1000, 1000),
    "good requests": (get("/user/x") * 500, 500),
    "requests without Host": (b"GET / HTTP/1.1\r\n\r\n" * 13_000, 1),
    "upgrades not taken up": (get("/nobody/x", "Connection: upgrade", "Upgrade: h2c") * 1000, 1000),
    "small refused uploads": (request("POST", "/nobody/x", b"x") * 1000, 1),
    "fields": (b"GET /user/x HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 60_000, 1),
    "chunks of one byte": (UPLOAD + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n", 1),
    "chunks of one byte, refused": (UPLOAD.replace(b"user", b"nobody") + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n", 1),
    "chunk extensions": (UPLOAD + (b"1;" + b"a;" * 1000 + b"\r\nx\r\n") * 100 + b"0\r\n\r\n", 1),
    "an endless chunk extension": (UPLOAD + b"1;" + b"a" * 250_000, 1),
    "trailers": (UPLOAD + b"0\r\n" + b"a:\r\n" * 60_000, 1),
    "a hundred long fields": (get("/user/x", *(f"x-{number}: {'v' * 600}" for number in range(90))), 1),
    "empty lines": (b"\r\n" * 100_000 + get("/user/x"), 1),
    "a long list of connection options": (get("/user/x", "Connection: " + ",".join(f"a{n}" for n in range(8000))), 1),
}


@pytest.mark.parametrize("case", CASES)
async def test_no_input_takes_a_long_turn(outrider: Outrider, case: str) -> None:
    """A read of 250 kB is worked off in slices, whatever is in it."""
    data, answers = CASES[case]
    async with Target(plain()) as target, outrider(CONFIG.format(target.url)) as proxy:
        await send_and_read(proxy.port, get("/user/x"), 1)
        async with turns_measured() as turns:
            read = await send_and_read(proxy.port, data, answers)
    assert max(turns) < LONGEST_TURN
    assert read.count(b"HTTP/1.1 ") >= answers


async def test_many_connections_take_no_longer_turns_than_one(outrider: Outrider) -> None:
    """All connections that have much to do share what there is of a turn."""
    data = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * 400
    async with Target(plain()) as target, outrider(CONFIG.format(target.url)) as proxy:
        async with turns_measured() as turns:
            await asyncio.gather(*(send_and_read(proxy.port, data, 400) for _ in range(12)))
    assert max(turns) < LONGEST_TURN


async def test_another_call_is_quick_while_thousands_are_refused(outrider: Outrider) -> None:
    """It waits for a few turns, not for all that others have sent."""
    loop = asyncio.get_running_loop()
    async with Target(plain()) as target, outrider(CONFIG.format(target.url)) as proxy, Client(proxy.port) as client:
        flood = asyncio.ensure_future(send_and_read(proxy.port, get("/nobody/x") * 3000, 3000))
        await asyncio.sleep(0.01)
        began = loop.time()
        assert (await client.call(get("/user/x"))).status == 200
        assert not flood.done()
        assert loop.time() - began < 0.25
        await flood


def calls_in_memory() -> int:
    return sum(type(one).__name__ == "Call" for one in gc.get_objects())


async def test_pipelined_requests_wait_as_bytes(outrider: Outrider) -> None:
    """While one call is carried, few of those behind it are objects in memory."""
    gate = asyncio.Event()

    async def held(one: Exchange) -> None:
        await gate.wait()
        await one.send(response())

    gc.collect()
    before = calls_in_memory()  # of other tests
    async with Target(held) as target, outrider(CONFIG.format(target.url)) as proxy:
        asked = asyncio.ensure_future(send_and_read(proxy.port, get("/user/x") * 1500, 1500))
        await eventually(lambda: target.busy, "the first has come")
        await asyncio.sleep(0.02)
        assert calls_in_memory() - before < 100
        gate.set()
        assert (await asked).count(b"HTTP/1.1 200") == 1500


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_request_in_one_read_is_carried_with_its_body(outrider: Outrider, framing: str) -> None:
    """A refusal that does not look at the body lets the connection live, if all of the body has come."""
    body = bytes(range(256)) * 100
    data = request("POST", "/nobody/x", body)
    if framing == "chunked":
        data = UPLOAD.replace(b"user", b"nobody") + chunked(body)
    async with Target(plain()) as target, outrider(CONFIG.format(target.url)) as proxy:
        async with Client(proxy.port) as client:
            for _ in range(2):
                answer = await client.call(data)
                assert (answer.status, answer.get("connection")) == (502, None)


async def test_the_app_does_not_wait_in_line_with_callers(outrider: Outrider) -> None:
    """Each side has a line of its own: a large request of the app takes its turn beside those of twenty floods."""
    loop = asyncio.get_running_loop()
    async with Target(plain()) as target:
        guard = f"inbound: {{ listen: 127.0.0.1:0, app: '{target.url}', accept: [{{ header: x-key, values: [k] }}] }}"
        async with outrider(guard + CONFIG.format(target.url)) as proxy, Client(proxy.port) as client:
            port = proxy.app.ports["inbound.listen"]
            floods = [asyncio.ensure_future(send_and_read(port, get("/x") * 200, 200)) for _ in range(20)]
            await asyncio.sleep(0.05)
            began = loop.time()
            assert (await client.call(get("/user/x", "X-Large: " + "x" * 5000))).status == 200
            took = loop.time() - began
            assert not all(flood.done() for flood in floods)
            await asyncio.gather(*floods)
    assert took < 0.25
