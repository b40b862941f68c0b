"""Many connections and large bodies: everybody is answered, and nobody's slowness is paid for in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic

from tests.integration.conftest import Outrider
from tests.integration.harness import eventually
from tests.wire.driver import Target, run
from tests.wire.model import OWN, Case, served, statuses
from tests.wire.tables.build import MIB, get
from tests.wire.test_differential import config

CALL = Case("call", "volume", "", (get(),), served())
MOST_TAKEN = 32 * MIB
ALL = 96 * MIB
MOST_UPSTREAM = 300

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    """A target that does one thing; its URL."""
    writers: list[asyncio.StreamWriter] = []
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.add(asyncio.current_task())
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for writer in writers:
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def push(writer: asyncio.StreamWriter, counted: list[int]) -> None:
    """Send until everything is sent or nobody takes more for a while."""
    piece = b"x" * 65536
    while counted[0] < ALL:
        writer.write(piece)
        try:
            async with asyncio.timeout(0.3):
                await writer.drain()
        except TimeoutError:
            return
        counted[0] += len(piece)


def plain_config(url: str) -> str:
    """A sidecar that takes large bodies, and gives up soon on a target that stands still."""
    service = f"{{ url: '{url}', timeout: 1s, attempt_timeout: 1s, circuit_breaker: false }}"
    return f"limits: {{ body_bytes: 128MiB }}\nservices:\n  user: {service}"


async def test_a_burst_of_200_is_answered(outrider: Outrider) -> None:
    """Every call of a burst gets an answer, over no more connections than there are calls."""
    async with Target() as target, outrider(config(CALL, target)) as proxy:
        target.reset((OWN,))

        async def call(number: int) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(get(b"Connection: close", path=b"/user/%d" % number))
            said = await reader.read()
            writer.close()
            return said

        answers = await asyncio.gather(*(call(number) for number in range(200)))
        assert [said.rpartition(b"\r\n\r\n")[2] for said in answers] == [b"own:/%d" % number for number in range(200)]
        assert target.connections <= MOST_UPSTREAM
        assert not target.violations


async def test_150_half_open_connections_are_in_nobodys_way(outrider: Outrider) -> None:
    """Apps that have begun a head and stopped do not keep others from being served."""
    async with Target() as target, outrider(config(CALL, target)) as proxy:
        idle = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(150)]
        for _, writer in idle:
            writer.write(b"GET /user/x HTTP/1.1\r\nHost: app")
        assert await run(CALL, proxy.port, target) == []
        for _, writer in idle:
            writer.close()


async def test_500_connections_that_hang_up_leave_nothing_behind(outrider: Outrider) -> None:
    """Apps that connect, perhaps ask, and are gone, cost neither the next app nor the target anything."""
    async with Target() as target, outrider(config(CALL, target)) as proxy:
        target.reset((OWN,))
        for number in range(500):
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write((b"", b"GET /us", get())[number % 3])
            await asyncio.sleep(0)
            writer.transport.abort()
        await eventually(lambda: not proxy.app.runtime.proxy.connections, "no connections of apps")
        assert target.connections <= MOST_UPSTREAM
        assert await run(CALL, proxy.port, target) == []


async def test_a_target_that_does_not_read_slows_the_app_down(outrider: Outrider) -> None:
    """Of a large upload only so much is taken as buffers hold."""

    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await asyncio.sleep(60)

    async with server(never_read) as url, outrider(plain_config(url)) as proxy:
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"POST /user/x HTTP/1.1\r\nHost: app.test\r\nContent-Length: %d\r\n\r\n" % ALL)
        sent = [0]
        await push(writer, sent)
        assert sent[0] < MOST_TAKEN
        writer.transport.abort()


async def test_an_app_that_does_not_read_slows_the_target_down(outrider: Outrider) -> None:
    """Of a large answer only so much is taken as buffers hold."""
    sent = [0]

    async def push_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % ALL)
        await push(writer, sent)
        done.set()
        await asyncio.sleep(60)

    done = asyncio.Event()
    async with server(push_answer) as url, outrider(plain_config(url)) as proxy:
        _reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=1024)
        writer.write(get())
        async with asyncio.timeout(10):
            await done.wait()
        assert sent[0] < MOST_TAKEN
        writer.transport.abort()


async def test_chunks_of_one_byte_are_no_denial_of_service(outrider: Outrider) -> None:
    """A body of 100000 tiny chunks costs no more than a moment (CVE-2025-69229)."""
    body = b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"
    data = b"POST /user/x HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    case = Case("tiny chunks", "volume", "", (data,), statuses(200))
    async with Target() as target, outrider(config(case, target)) as proxy:
        began = monotonic()
        assert await run(case, proxy.port, target) == []
        assert monotonic() - began < 3.0
        assert target.cases[0].body == b"x" * 100_000
