"""Runs a case through a proxy, any proxy, and judges it.

The driver knows a port and nothing else of what is under test. It stands at both ends with the parsers of
`strict.py`, and after every case makes three more requests: on the same connection, beside it, and after it has
ended. Whatever the case expects, these hold for every one:

1. what the target receives is well-formed;
2. the credential is in every request there exactly once, and what the app sent under its name nowhere;
3. no byte of one message is read as part of another: no path arrives that the app did not ask for, nothing is served
   behind an announced end, and every request gets its own answer or none;
4. what the app receives is well-formed, or visibly broken off;
5. the app never sees the credential.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any

from tests.wire.model import CREDENTIAL, SECRET, Await, Case, Observed, Own, Say
from tests.wire.strict import Request, Response, Violation, request_head, response_head, take_body

PREFIX = "/user"  # names the service, unless the proxy's port does
_AFTER = "/after-"
_MOST_AFTER_REFUSAL = 1 << 20  # bytes that an app goes on sending after an error


def plain_path(target: str) -> str:
    """The path that a request is about, without authority and without the name of the service."""
    path = re.sub(r"^http://[^/?]*", "", target)
    return re.sub(r"%[0-9a-f]{2}", lambda code: code[0].upper(), path.removeprefix(PREFIX), flags=re.IGNORECASE)


def own_answer(request: Request) -> bytes:
    """The answer that shows which request it belongs to."""
    body = f"own:{plain_path(request.target)}".encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-own: %b\r\n\r\n"
    return head % (len(body), plain_path(request.target).encode()) + (b"" if request.method == "HEAD" else body)


# ---------------------------------------------------------------- the target


class Target:
    """Records what it gets, and plays a script: the n-th request of a case gets the n-th Say, all further ones the
    last."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._server: asyncio.Server | None = None
        self._script: tuple[Say, ...] = ()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        self.reset()

    def reset(self, script: tuple[Say, ...] = ()) -> None:
        """Forget what was, and play this from now on."""
        self._script = script
        self.seen: list[Request] = []
        self.violations: list[str] = []
        self.partial_heads = 0
        self.connections = 0
        self.tunnelled = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cases(self) -> list[Request]:
        """The requests that are part of the case, without the follow-up ones."""
        return [one for one in self.seen if not plain_path(one.target).startswith(_AFTER)]

    async def __aenter__(self) -> Target:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=1 << 20, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.drop_all()

    async def drop_all(self) -> None:
        """End all connections, so that no case sees those of another."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        buffer: bytes | None = b""
        try:
            while buffer is not None:
                buffer = await self._one(reader, writer, buffer, number)
        except Violation as violation:
            self.violations.append(str(violation))
        except (ConnectionError, OSError):
            pass
        finally:
            writer.close()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, buffer: bytes, number: int
    ) -> bytes | None:
        """One request; what is behind it in the buffer, or None when the connection is over."""
        while (request := request_head(buffer)) is None:
            data = await reader.read(65536)
            if not data:
                self.partial_heads += bool(buffer)
                return None
            buffer += data
        request.connection = number
        turn = len(self.cases)
        self.seen.append(request)
        follow_up = plain_path(request.target).startswith(_AFTER)
        say = Say((Own.ANSWER,)) if follow_up else self._script[min(turn, len(self._script) - 1)]
        whole = take_body(buffer, request)
        self.changed.set()
        if say.read == "body" and not whole and request.minor and b"100-continue" in request.tokens("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while say.read != "head" and not whole:
            data = await reader.read(65536)
            if not data:
                return None
            buffer += data
            whole = take_body(buffer, request)
        await self._play(say, request, writer)
        if say.then == "tunnel":
            await self._echo(reader, writer, buffer[request.size :])
        if say.then == "hold":
            while await reader.read(65536):
                pass
        if say.then == "reset":
            _set_reset(writer.transport)
            writer.transport.abort()
        if say.then != "keep":
            return None
        while not whole:
            data = await reader.read(65536)
            if not data:
                return None
            buffer += data
            whole = take_body(buffer, request)
        return buffer[request.size :]

    async def _play(self, say: Say, request: Request, writer: asyncio.StreamWriter) -> None:
        for piece in say.pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            elif not writer.is_closing():
                writer.write(own_answer(request) if isinstance(piece, Own) else piece)
                await writer.drain()

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
        while True:
            self.tunnelled += data
            if not writer.is_closing():
                writer.write(data)
            data = await reader.read(65536)
            if not data:
                return


def _set_reset(transport: Any) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# ---------------------------------------------------------------- the app


class App(asyncio.Protocol):
    """A connection from the app. It reads answers strictly, in the order of the requests it has made."""

    def __init__(self, methods: tuple[str, ...], minor: int, tolerant: bool) -> None:
        self.methods = list(methods)
        self._minor = minor
        self._tolerant = tolerant  # it sent rubbish behind its requests, and may be told so
        self._buffer = b""
        self.raw = b""
        self.answers: list[Response] = []
        self.partial: Response | None = None
        self.interims: list[Response] = []
        self.tunnel: bytes | None = None
        self.violation = ""
        self.end = "open"
        self.said_close = False
        self.sent = 0
        self.sent_before_answer: int | None = None
        self.changed = asyncio.Event()

    @property
    def done(self) -> bool:
        """Nothing more is to come."""
        answered = len(self.answers) >= len(self.methods) or self.tunnel is not None
        return answered or self.end != "open" or bool(self.violation)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.raw += data
        self._buffer += data
        try:
            while self._buffer and not self.violation and self._take():
                pass
        except Violation as violation:
            self.violation = str(violation)
        self._tell()

    def eof_received(self) -> bool:
        self._ended("eof")
        return True  # we may still send

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended("reset" if exc is not None else "eof")

    def _ended(self, how: str) -> None:
        if self.end == "open":
            self.end = how
            if self.partial is not None and self.partial.framing == "close" and how == "eof":
                self.partial.complete = True
                self.answers.append(self.partial)
                self.partial = None
        self._tell()

    def _tell(self) -> None:
        if self.sent_before_answer is None and (self.answers or self.end != "open"):
            self.sent_before_answer = self.sent
        self.changed.set()

    def _take(self) -> bool:
        """Take one message off the buffer."""
        if self.tunnel is not None:
            self.tunnel += self._buffer
            self._buffer = b""
            return False
        turn = len(self.answers)
        head = response_head(self._buffer, self.methods[turn] if turn < len(self.methods) else "GET", self._minor)
        if head is None:
            return False
        if head.status < 200:
            self.interims.append(head)
            self._buffer = self._buffer[head.head_size :]
            if head.status == 101:
                self.tunnel = b""
            return True
        if turn >= len(self.methods) and not (self._tolerant and head.status >= 400):
            raise Violation(f"an answer nobody asked for: {head}")
        if self.said_close:
            raise Violation(f"an answer behind one that said `Connection: close`: {head}")
        self.partial = head
        if not take_body(self._buffer, head):
            return False
        self.answers.append(head)
        self.partial = None
        self.said_close = b"close" in head.tokens("connection")
        self._buffer = self._buffer[head.size :]
        return True

    @property
    def all_answers(self) -> list[Response]:
        """The answers, and the one that broke off."""
        return [*self.answers, *([self.partial] if self.partial is not None else [])]

    @property
    def rest(self) -> bytes:
        """Bytes that are not even the beginning of an answer's body."""
        return self._buffer if self.partial is None and self.tunnel is None else b""

    async def wait(self, condition: Callable[[], object], patience: float) -> bool:
        """Wait until the condition holds; False if it does not."""
        return await _wait(self.changed, condition, patience)

    async def send(self, data: bytes, patience: float) -> None:
        """One segment, as long as somebody takes it."""
        if self.transport.is_closing():
            return
        self.transport.write(data)
        self.sent += len(data)
        until = monotonic() + patience
        while self.transport.get_write_buffer_size() > 1 << 18 and self.end == "open" and monotonic() < until:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def _wait(changed: asyncio.Event, condition: Callable[[], object], patience: float) -> bool:
    until = monotonic() + patience
    while not condition():
        left = until - monotonic()
        if left <= 0:
            return False
        changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await changed.wait()
    return True


async def _connect(port: int, methods: tuple[str, ...] = ("GET",), minor: int = 1, tolerant: bool = False) -> App:
    loop = asyncio.get_running_loop()
    _, app = await loop.create_connection(lambda: App(methods, minor, tolerant), "127.0.0.1", port)
    return app


# ---------------------------------------------------------------- a case


def in_pieces(case: Case, size: int = 5) -> Case | None:
    """The same case with the app's bytes in small segments, which must make no difference; None where that says
    nothing, because they are many, or because the case is about time or order."""
    data = b"".join(step for step in case.app if isinstance(step, bytes))
    if len(case.app) != 1 or len(data) > 600 or case.limits != "usual" or case.patience < 1.0:
        return None
    return replace(case, app=tuple(data[at : at + size] for at in range(0, len(data), size)))


async def run(case: Case, port: int, target: Target) -> list[str]:
    """Everything that is wrong with how the proxy at this port deals with the case; empty if it does well."""
    target.reset(case.target)
    methods = case.methods or _methods(case)
    app = await _connect(port, methods, case.minor, case.after == "refused")
    try:
        await _steps(case, app, target)
        await app.wait(lambda: app.done, case.patience)
        if app.said_close:
            await app.wait(lambda: app.end != "open", 0.3)
        observed = _observe(app)
        ended = observed.closed
        wrong = await _same_connection(case, app, target, observed)
        wrong += await _new_connection(port, "new", target)
    finally:
        app.transport.abort()
    for _ in range(3):
        await asyncio.sleep(0)  # so that the proxy may notice
    wrong += await _new_connection(port, "last", target)
    if ended and _was_seen(target, "same"):
        wrong.append("a request behind the end of the connection was served")
    observed.seen = target.cases
    observed.partial_heads = target.partial_heads
    observed.connections = len({request.connection for request in observed.seen})
    observed.tunnelled = target.tunnelled
    wrong += _judge_target(case, target)
    wrong += _judge_app(case, app, observed)
    if unmet := case.expect(observed):
        wrong.append(f"expectation: {unmet}")
    return list(dict.fromkeys(wrong))


def _methods(case: Case) -> tuple[str, ...]:
    """The methods of the case's requests: all like the first, unless the case says so."""
    first = b"".join(step for step in case.app[:50] if isinstance(step, bytes))
    method = re.match(rb"\s*([A-Z]{2,16}) ", first)
    return (method[1].decode() if method else "GET",) * len(case.paths)


async def _steps(case: Case, app: App, target: Target) -> None:
    answers = heads = interims = echoed = 0
    for step in case.app:
        if isinstance(step, bytes):
            if app.sent > _MOST_AFTER_REFUSAL and (app.answers or app.end != "open"):
                return
            await app.send(step, case.patience)
        elif isinstance(step, float):
            if app.end == "open":
                await asyncio.sleep(step)
        elif step is Await.ANSWER:
            answers += 1
            wanted = answers
            await app.wait(lambda wanted=wanted: len(app.answers) >= wanted or app.end != "open", case.patience)
        elif step is Await.INTERIM:
            interims += 1
            wanted = interims
            await app.wait(lambda wanted=wanted: len(app.interims) >= wanted or app.done, case.patience)
        elif step is Await.UPSTREAM:
            heads += 1
            await _wait(target.changed, lambda wanted=heads: len(target.seen) >= wanted, case.patience)
        elif step is Await.ECHO:
            await app.wait(lambda seen=echoed: len(app.tunnel or b"") > seen or app.end != "open", case.patience)
            echoed = len(app.tunnel or b"")
        else:
            await app.wait(lambda: app.end != "open", case.patience)


def _observe(app: App) -> Observed:
    return Observed(
        answers=app.all_answers,
        interims=list(app.interims),
        raw=app.raw,
        end=app.end,
        closed=app.said_close or app.end != "open",
        tunnel=app.tunnel,
        sent=app.sent if app.sent_before_answer is None else app.sent_before_answer,
    )


async def _same_connection(case: Case, app: App, target: Target, observed: Observed) -> list[str]:
    """The next request of the app. It is sent even behind an announced end, where nobody may read it."""
    waiting = app.end == "open" and (len(app.answers) < len(app.methods) or app.partial is not None)
    if waiting or app.violation or app.tunnel is not None or case.after == "skip":
        return []
    before = len(app.answers)
    ended = app.said_close or app.end != "open"
    app.methods = [*app.methods[:before], "GET"]
    minor = b"HTTP/1.%d" % case.minor
    await app.send(b"GET /user/after-same " + minor + b"\r\nHost: app.test\r\n\r\n", case.patience)
    if ended:
        return []
    if not await app.wait(lambda: app.done, case.patience):
        return ["the next request on the connection was never answered"]
    if len(app.answers) == before:
        observed.closed = True
        return ["the next request was carried out, but not answered"] if _was_seen(target, "same") else []
    if _is_own(app.answers[-1], "same"):
        return []
    refused = app.answers[-1].status >= 400 and not _was_seen(target, "same")
    if refused and case.after == "refused":
        observed.closed = True
        return []
    return [f"the next request on the connection got {app.answers[-1]}"]


async def _new_connection(port: int, name: str, target: Target) -> list[str]:
    """Another app, or the same one on another connection, must not notice anything."""
    app = await _connect(port)
    try:
        await app.send(f"GET /user/after-{name} HTTP/1.1\r\nHost: app.test\r\n\r\n".encode(), 1.0)
        await app.wait(lambda: app.done, 2.0)
        if not app.answers or app.violation or not _is_own(app.answers[0], name):
            return [f"a request on another connection ({name}) got {app.all_answers} {app.violation} ({app.end})"]
        return ["the credential reached the app"] if SECRET in app.raw else []
    finally:
        app.transport.abort()


def _was_seen(target: Target, name: str) -> bool:
    return any(plain_path(request.target) == _AFTER + name for request in target.seen)


def _is_own(answer: Response, name: str) -> bool:
    return answer.values("x-own") == [f"{_AFTER}{name}".encode()] and answer.body == f"own:{_AFTER}{name}".encode()


def _judge_target(case: Case, target: Target) -> list[str]:
    wrong = [f"the target got what is not HTTP: {violation}" for violation in target.violations]
    allowed = {*case.paths, *case.also, _AFTER + "same", _AFTER + "new", _AFTER + "last"}
    for request in target.seen:
        keys = [value for name, value in request.fields if _as_credential(name)]
        if keys != [SECRET]:
            wrong.append(f"the credential at the target: {keys}")
        if any(_as_credential(name) for name, _ in request.trailers):
            wrong.append("a credential in the trailer section")
        if plain_path(request.target) not in allowed:
            wrong.append(f"the target got {request.method} {request.target}, which the app never asked for")
    return wrong


def _as_credential(name: bytes) -> bool:
    """Whether a server might read this name as the credential's: CGI makes underscores and dashes the same."""
    return name.lower().replace(b"_", b"-") == CREDENTIAL.encode()


def _judge_app(case: Case, app: App, observed: Observed) -> list[str]:
    wrong = []
    if app.violation:
        wrong.append(f"the app got what is not HTTP: {app.violation}")
    elif app.rest and app.end != "reset" and not (app.end == "eof" and len(app.answers) < len(app.methods)):
        wrong.append(f"bytes behind the answers: {app.rest[:80]!r}")
    if SECRET in app.raw:
        wrong.append("the credential reached the app")
    for path, answer in zip(case.paths, observed.answers, strict=False):
        own = answer.values("x-own")
        if own and own[0].decode() not in (path, *case.also):
            wrong.append(f"the request for {path} got the answer for {own[0].decode()}")
    return wrong
