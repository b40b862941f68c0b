"""Which side stood still: the app's slowness is never the target's fault, and what moves is not cut."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from time import monotonic

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    BrokenError,
    Client,
    Exchange,
    Sidecar,
    Target,
    eventually,
    exchange,
    get,
    plain,
    request,
    response,
)

# One failure opens the circuit, and every answer slower than this counts as slow.
STRICT = "circuit_breaker: { consecutive_failures: 1, slow_call: 200ms, slow_rate: 10%, min_requests: 1 }"


def config(url: str, *more: str, limits: str = "") -> str:
    lines = "".join(f"\n    {line}" for line in more)
    return f"limits: {{ {limits} }}\nservices:\n  user:\n    url: '{url}'{lines}"


def endless(size: int) -> Action:
    """An answer of so many bytes, as fast as they are taken."""

    async def act(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            await one.send(b"x" * 65536)

    return act


@asynccontextmanager
async def slow_taker(
    bytes_per_turn: int, pause: float, stop_after: int = 1 << 30
) -> AsyncIterator[tuple[str, list[int]]]:
    """The URL of a target that takes so many bytes at a time, with pauses between, and answers when it has the whole
    request; and the sizes of the requests it has answered. After `stop_after` bytes it takes no more."""
    answered: list[int] = []

    async def serve(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with sock:
            got = b""
            length = None
            while length is None or len(got) < length:
                if len(got) >= stop_after:
                    await asyncio.sleep(5)
                data = await loop.sock_recv(sock, bytes_per_turn)
                if not data:
                    return
                got += data
                if length is None and b"\r\n\r\n" in got:
                    head, _, got = got.partition(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await asyncio.sleep(pause)
            answered.append(len(got))
            await loop.sock_sendall(sock, response(200, b"taken"))

    async def accept(listening: socket.socket) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listening)
            serving.append(asyncio.create_task(serve(sock)))

    serving: list[asyncio.Task[None]] = []
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        serving.append(asyncio.create_task(accept(listening)))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", answered
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


# ---------------------------------------------------------------- uploads


async def test_a_slow_upload_is_the_apps_fault(outrider: Outrider) -> None:
    """A body that is still coming when the call's time has passed is 408, and nobody blames the target."""
    async with Target(plain()) as target, outrider(config(target.url, "timeout: 200ms", STRICT)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, "Content-Length: 1000"))
            for _ in range(20):
                await client.send(b"x")
                await asyncio.sleep(0.02)
            answer = await client.answer()
        problem = json.loads(answer.body)
        assert (answer.status, problem["origin"], problem["error"]) == (408, "caller", "REQUEST_TIMEOUT")
        assert proxy.outcomes() == {"rejected": 1}
        assert proxy.breaker_state() == "closed"
        assert (await exchange(proxy.port, get("/user/x"))).status == 200


async def test_the_time_of_an_upload_is_not_the_targets(outrider: Outrider) -> None:
    """An app that takes long to send its body makes no target slow: neither for its circuit, nor beside others."""
    async with Target(plain()) as target, Target(plain()) as other:
        text = config("URL", STRICT).replace("'URL'", f"['{target.url}', '{other.url}']")
        async with outrider(text) as proxy, Client(proxy.port) as client:
            for _ in range(2):
                await client.send(request("POST", "/user/x", None, "Content-Length: 4"))
                for _ in range(4):
                    await asyncio.sleep(0.07)
                    await client.send(b"x")
                assert (await client.answer()).status == 200
            assert proxy.breaker_state() == "closed"
            (cluster,) = proxy.app.runtime.compiled.clusters
            assert max(endpoint.latency for endpoint in cluster.endpoints) < 0.1


async def test_a_target_that_had_no_time_left_is_not_blamed(outrider: Outrider) -> None:
    """The app has used the call's time up by sending slowly: what is left is too little to judge the target by."""

    async def answer_late(one: Exchange) -> None:
        await one.body()
        await one.until_closed()

    async with Target(answer_late) as target, outrider(config(target.url, "timeout: 300ms", STRICT)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, "Content-Length: 4") + b"xx")
            await asyncio.sleep(0.25)
            await client.send(b"xx")
            answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["origin"]) == (504, "caller")
        assert proxy.breaker_state() == "closed"
        assert proxy.outcomes() == {"timeout": 1}


@pytest.mark.parametrize("more", ["timeout: 300ms", "attempt_timeout: 200ms"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_the_targets_time_begins_with_the_last_byte(outrider: Outrider, more: str, method: str) -> None:
    """A large upload to a target that takes it slowly is not given up while bytes of it are still on their way."""
    body = b"x" * 800_000
    async with slow_taker(32 * 1024, 0.02) as (url, answered), outrider(config(url, more, "retry: false")) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, request(method, "/user/x", body))
        assert (answer.status, answer.body, answered) == (200, b"taken", [len(body)])
        assert monotonic() - began > 0.4


async def test_a_target_that_stops_taking_is_given_up(outrider: Outrider) -> None:
    """What has stood still for body_idle_timeout will not move any more, whatever the call's own time; this is the
    target's fault."""
    more = ("timeout: 4s", "body_idle_timeout: 150ms", STRICT)
    async with slow_taker(32 * 1024, 0.001, 64 * 1024) as (url, answered), outrider(config(url, *more)) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, request("POST", "/user/x", b"x" * 4_000_000))
        assert monotonic() - began < 1
        assert (answer.status, answered) == (504, [])
        assert "took nothing" in json.loads(answer.body)["detail"]
        assert proxy.breaker_state() != "closed"


# ---------------------------------------------------------------- downloads


@asynccontextmanager
async def downloading(proxy: Sidecar, line: str = "x-a: b") -> AsyncIterator[Client]:
    """An app whose answer has begun, and that reads only when told."""
    async with Client(proxy.port, limit=4096, receive_buffer=4096) as client:
        await client.send(get("/user/x", line))
        assert (await client.head()).status == 200
        yield client


async def test_a_slow_but_steady_reader_is_not_cut(outrider: Outrider) -> None:
    """Bytes that the kernel gets rid of are progress, although none leave our own buffer for long."""
    size = 6 << 20
    more = "body_idle_timeout: 250ms"
    async with Target(endless(size)) as target, outrider(config(target.url, more)) as proxy:
        async with downloading(proxy) as client:
            end = monotonic() + 1.2
            got = 0
            while monotonic() < end:
                got += len(await client.reader.readexactly(4096))
                await asyncio.sleep(0.01)
            while got < size:
                got += len(await client.reader.read(1 << 16))
        await eventually(lambda: proxy.outcomes() == {"ok": 1}, "the answer has passed whole")


async def test_a_reader_that_stops_is_cut_and_the_target_not_blamed(outrider: Outrider) -> None:
    """An app that takes nothing for body_idle_timeout loses its answer; that says nothing about the target."""
    more = ("body_idle_timeout: 150ms", STRICT)
    async with Target(endless(32 << 20)) as target, outrider(config(target.url, *more)) as proxy:
        async with downloading(proxy):
            await eventually(lambda: proxy.outcomes() == {"cancelled": 1}, "the answer is cut", within=2)
        assert proxy.breaker_state() == "closed"


async def test_a_slow_reader_that_runs_out_of_time_is_no_fault_of_the_target(outrider: Outrider) -> None:
    """The app's own deadline ends an answer that the app reads too slowly."""
    async with Target(endless(32 << 20)) as target, outrider(config(target.url, STRICT)) as proxy:
        async with downloading(proxy, "x-outrider-timeout: 200ms"):
            await eventually(lambda: proxy.outcomes() == {"timeout": 1}, "the answer is cut", within=2)
        assert proxy.breaker_state() == "closed"


@pytest.mark.parametrize(
    ("head", "state"),
    [(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "closed"), (b"Content-Length: 100\r\n\r\nabc", "open")],
    ids=["a stream", "a body of known length"],
)
async def test_what_stands_still_until_the_deadline(outrider: Outrider, head: bytes, state: str) -> None:
    """A stream may be silent for long; a body whose length was promised and that does not come is a failure."""

    async def act(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 200 OK\r\n" + head)
        await one.until_closed()

    more = ("total_timeout: 150ms", "circuit_breaker: { consecutive_failures: 1, open_for: 5s..5s }")
    async with Target(act) as target, outrider(config(target.url, *more)) as proxy:
        with pytest.raises(BrokenError):
            await exchange(proxy.port, get("/user/x"))
        assert proxy.breaker_state() == state


# ---------------------------------------------------------------- answers that come before the request is all there


@contextmanager
def refusing(status: int, after: int) -> Iterator[str]:
    """The URL of a target that reads so many bytes of a request, answers, and closes with the rest unread, so that its
    answer is followed by a reset. It runs beside the event loop, as a real one does."""

    def serve() -> None:
        while True:
            sock, _ = listening.accept()
            with sock:
                if stop.is_set():
                    return
                got = 0
                while got < after and (data := sock.recv(min(65536, after - got))):
                    got += len(data)
                with suppress(OSError):
                    sock.sendall(response(status, b"too large"))

    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            stop.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join(5)


@pytest.mark.parametrize("after", [1000, 1_000_000])
@pytest.mark.parametrize("status", [413, 401, 200])
async def test_the_answer_to_an_early_refused_upload_is_read(outrider: Outrider, status: int, after: int) -> None:
    """A target that answers and closes while we still send has answered: its word passes, and a 4xx blames nobody."""
    with refusing(status, after) as url:
        async with outrider(config(url, STRICT, "retry: false")) as proxy:
            for _ in range(8):
                answer = await exchange(proxy.port, request("POST", "/user/x", b"x" * 5_000_000))
                assert (answer.status, answer.body) == (status, b"too large")
            assert proxy.breaker_state() == "closed"


async def test_a_refused_upload_may_go_on_while_it_flows(outrider: Outrider) -> None:
    """Many apps read the answer only when they have sent everything: a refused upload is not cut while it flows."""
    loop = asyncio.get_running_loop()
    async with Target(raw_at_once(response(413, b"too large"))) as target:
        async with outrider(config(target.url)) as proxy:
            with socket.create_connection(("127.0.0.1", proxy.port)) as app:
                app.setblocking(False)
                await loop.sock_sendall(app, request("POST", "/user/x", None, "Content-Length: 1000000"))
                end = monotonic() + 2.6
                while monotonic() < end:
                    await loop.sock_sendall(app, b"x" * 1000)
                    await asyncio.sleep(0.1)
                assert (await loop.sock_recv(app, 65536)).startswith(b"HTTP/1.1 413 ")


def raw_at_once(data: bytes) -> Action:
    """These bytes, without waiting for the request's body, and then wait for the other side to close."""

    async def act(one: Exchange) -> None:
        await one.send(data)
        await one.until_closed()

    return act


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_early_answer_does_not_end_the_upload(outrider: Outrider, framing: str) -> None:
    """A target that has said yes gets the rest of the request; the app has its answer at once."""

    async def answer_first(one: Exchange) -> None:
        await one.send(response(202, b"go on"))
        await one.body()

    lines = ["Content-Length: 30000"] if framing == "length" else ["Transfer-Encoding: chunked"]
    async with Target(answer_first) as target, outrider(config(target.url, STRICT)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, *lines))
            answer = await client.answer()
            assert (answer.status, answer.body) == (202, b"go on")
            for _ in range(30):
                await client.send(b"x" * 1000 if framing == "length" else b"3e8\r\n" + b"x" * 1000 + b"\r\n")
                await asyncio.sleep(0.002)
            if framing == "chunked":
                await client.send(b"0\r\n\r\n")
            await eventually(lambda: target.seen[0].complete, "the whole request at the target")
            assert await client.end() == "eof"
        assert target.seen[0].body == b"x" * 30000
        await eventually(lambda: proxy.outcomes() == {"ok": 1}, "one good call")


@pytest.mark.parametrize("who", ["app", "target"])
async def test_an_upload_that_breaks_off_after_its_answer(outrider: Outrider, who: str) -> None:
    """Whichever side leaves then, the other connection is closed, and the call was answered."""
    leave = asyncio.Event()

    async def answer_first(one: Exchange) -> None:
        await one.send(response(202, b"go on"))
        if who == "target":
            await leave.wait()
            one.reset()
        else:
            await one.until_closed()
            one.target.closed += 1

    async with Target(answer_first) as target, outrider(config(target.url, STRICT)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, "Content-Length: 30000") + b"x")
            assert (await client.answer()).status == 202
            leave.set()
            if who == "target":
                assert await client.end() == "eof"
        if who == "app":
            await eventually(lambda: target.closed, "the target's connection closed")
        await eventually(lambda: proxy.outcomes() == {"ok": 1}, "one good call")
        assert proxy.breaker_state() == "closed"
