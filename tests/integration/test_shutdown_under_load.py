"""Stopping while the app is busy: in an orderly way nobody notices, and after a crash nobody is told a lie."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

from tests.integration.harness import (
    PATIENCE,
    Answer,
    BrokenError,
    Client,
    Exchange,
    Target,
    chunked,
    eventually,
    get,
    response,
)
from tests.integration.processes import running

LOOPING = 32
PIECES, PAUSE = 15, 0.1
_NUMBER = re.compile(r"/(?:length|chunked|stream)/(\d+)")


def body_of(number: int) -> bytes:
    """What the target answers to the call with this number: some kilobytes that no other call gets."""
    return b"%d;" % number * (200 + number % 7000)


async def serve(one: Exchange) -> None:
    """Answers by path: at once with a length or chunked, slowly, or with how much was uploaded."""
    path = one.request.path
    if path == "/upload":
        length = len(await one.body())
        await one.send(response(200, b"%d" % length))
        return
    await one.body()
    match = _NUMBER.fullmatch(path)
    assert match is not None, path
    body = body_of(int(match[1]))
    if path.startswith("/length"):
        await one.send(response(200, body))
        return
    await one.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    if path.startswith("/chunked"):
        await one.send(chunked(body[:1000], body[1000:]))
        return
    size = len(body) // PIECES + 1
    for at in range(0, len(body), size):
        await one.send(chunked(body[at : at + size]).removesuffix(b"0\r\n\r\n"))
        await asyncio.sleep(PAUSE)
    await one.send(b"0\r\n\r\n")


class Connection(Client):
    """A connection from the app that may well be refused."""

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=self._limit)
        return self


class App:
    """Clients that behave as real ones do: a new connection when they were told that the old one ends, and never a
    call on a connection that is closed. Every answer is compared with what only this call can get."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stopping = False
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []
        self.errors_allowed = False
        self._number = 0

    def right(self, number: int, answer: Answer) -> None:
        """Count an answer, and remember it if it is wrong."""
        if answer.status == 200 and answer.body == body_of(number):
            self.counts["right"] += 1
        else:
            self.failed.append(f"{number}: {answer.status}, {len(answer.body)} bytes")

    def next(self, kind: str) -> tuple[int, bytes]:
        """The next call: its number and its bytes."""
        self._number += 1
        return self._number, get(f"/user/{kind}/{self._number}")

    async def looping(self) -> None:
        """One call after the other on one connection."""
        while not self.stopping:
            async with Connection(self.port) as client:
                while not self.stopping:
                    number, call = self.next("chunked" if self._number % 2 else "length")
                    answer = await client.call(call)
                    self.right(number, answer)
                    if answer.get("connection") == "close":
                        self.counts["told to reconnect"] += 1
                        assert await client.end() == "eof"
                        break

    async def fresh(self) -> None:
        """A new connection for every call."""
        while not self.stopping:
            async with Connection(self.port) as client:
                number, call = self.next("length")
                self.right(number, await client.call(call))
            await asyncio.sleep(0.002)

    async def streaming(self) -> None:
        """One answer that takes a while."""
        async with Connection(self.port) as client:
            number, call = self.next("stream")
            self.right(number, await client.call(call))
            self.counts["streams"] += 1

    async def uploading(self) -> None:
        """One upload that takes a while."""
        async with Connection(self.port) as client:
            await client.send(
                b"POST /user/upload HTTP/1.1\r\nHost: app.test\r\nContent-Length: %d\r\n\r\n" % (15 << 16)
            )
            for _ in range(15):
                await client.send(bytes(1 << 16))
                await asyncio.sleep(PAUSE)
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"%d" % (15 << 16))
            self.counts["uploads"] += 1

    async def patiently(self, once: Callable[[], Awaitable[None]]) -> None:
        """Again and again, also after connections that fail."""
        while not self.stopping:
            try:
                await once()
            except (BrokenError, ConnectionError) as error:
                self.counts[f"{type(error).__name__}"] += 1
                await asyncio.sleep(0.01)


async def test_sigterm_under_load(tmp_path: Path) -> None:
    """32 busy connections, new ones all the time, slow streams and an upload: after SIGTERM not one call fails, calls
    go on being taken until the app has gone, and the exit is clean."""
    async with Target(serve) as target, running(tmp_path, f"services: {{ user: '{target.url}' }}") as one:
        app = App(one.port)
        async with asyncio.TaskGroup() as group:
            for _ in range(LOOPING):
                group.create_task(app.looping())
            group.create_task(app.fresh())
            for _ in range(5):
                group.create_task(app.streaming())
            group.create_task(app.uploading())
            await asyncio.sleep(0.5)
            before = app.counts["right"]
            one.signal(signal.SIGTERM)
            await eventually(lambda: one.said("draining"), "draining")
            await asyncio.sleep(0.5)
            app.stopping = True
        assert not app.failed, app.failed[:10]
        assert await one.exit() == 0
    print(dict(app.counts))
    assert app.counts["streams"] == 5
    assert app.counts["uploads"] == 1
    assert app.counts["told to reconnect"] >= LOOPING
    assert app.counts["right"] > before > LOOPING


async def test_kill_and_restart(tmp_path: Path) -> None:
    """While Outrider is away the app sees connections that fail, and nothing else: no answer that ends early and looks
    complete, none that belongs to another call. After the restart it works as before."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with Target(serve) as target:
        text = f"listen: 127.0.0.1:{port}\nservices: {{ user: '{target.url}' }}"
        app = App(port)
        async with asyncio.TaskGroup() as group:
            async with running(tmp_path, text) as one:
                for _ in range(LOOPING):
                    group.create_task(app.patiently(app.looping))
                for _ in range(5):
                    group.create_task(app.patiently(app.streaming))
                await asyncio.sleep(0.4)
                before = app.counts["right"]
                one.signal(signal.SIGKILL)
                assert await one.exit() == -signal.SIGKILL
            await asyncio.sleep(0.2)
            away = app.counts["right"]
            began = monotonic()
            async with running(tmp_path, text) as one:
                await eventually(lambda: app.counts["right"] > away + 10 * LOOPING, "the app works again")
                back = monotonic() - began
                app.stopping = True
                await eventually(lambda: len(group._tasks) == 0, "the app's end")
    print(dict(app.counts), f"working again after {back:.2f} s, start included")
    assert not app.failed, app.failed[:10]
    assert before > LOOPING
    assert app.counts["BrokenError"] + app.counts["ConnectionResetError"] >= LOOPING, "calls were under way"
    assert app.counts["ConnectionRefusedError"] >= LOOPING
    assert back < PATIENCE
