"""Real sockets on loopback: a target that does as it is told, a sidecar around it, and a client that is strict.

Both ends parse what they get byte by byte and accept nothing but well-framed HTTP/1.1, so a test that passes
has also shown that the bytes on the wire were right.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from outrider.app import App
from outrider.config.load import load

# No single wait in these tests may take longer, in seconds.
PATIENCE = 5.0

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/1\.1")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ([^\r\n]*)")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")

Headers = list[tuple[bytes, bytes]]


class FramingError(AssertionError):
    """Somebody sent bytes that are not well-framed HTTP."""


class BrokenError(Exception):
    """A message that visibly did not come to its end; the text says how: `eof` or `reset`."""


# ---------------------------------------------------------------- messages


class Message:
    """What requests and responses have in common."""

    headers: Headers
    body: bytes

    def get_all(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == name.lower().encode()]

    def get(self, name: str) -> str | None:
        """The only value of a header, or None; two of them are an error of the test or of the sender."""
        values = self.get_all(name)
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    def names(self) -> set[str]:
        """All header names, lower case."""
        return {name.lower().decode() for name, _ in self.headers}


@dataclass
class Seen(Message):
    """A request as a target saw it. `raw` is its head and what was read of its body, exactly as bytes."""

    method: str
    path: str
    headers: Headers
    connection: int
    raw: bytes
    body: bytes = b""
    complete: bool = False


@dataclass
class Answer(Message):
    """A response as the app saw it. `framing` is length, chunked, close or none."""

    status: int
    reason: str
    headers: Headers
    framing: str
    body: bytes = b""
    interims: list[Answer] = field(default_factory=list)
    raw_head: bytes = b""


def _parse_fields(lines: list[bytes]) -> Headers:
    headers = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None or b"\r" in line or b"\n" in line or b"\0" in line:
            raise FramingError(f"not a header field: {line!r}")
        headers.append((match[1], match[2]))
    return headers


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """A head with its final empty line. Raises BrokenError when it does not come to its end."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise BrokenError("nothing" if not error.partial else "eof") from None
    except ConnectionError:
        raise BrokenError("reset") from None


def _framing(headers: Headers, who: str) -> tuple[str, int]:
    """`(chunked | length | none, length)`; anything ambiguous is an error."""
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise FramingError(f"ambiguous framing from {who}: {headers}")
    if codings:
        if codings[0] != b"chunked":
            raise FramingError(f"transfer coding from {who}: {codings[0]!r}")
        return "chunked", 0
    if lengths:
        if not lengths[0].isdigit():
            raise FramingError(f"content-length from {who}: {lengths[0]!r}")
        return "length", int(lengths[0])
    return "none", 0


async def _pieces(reader: asyncio.StreamReader, framing: str, length: int) -> AsyncIterator[tuple[bytes, bytes]]:
    """The body piece by piece, as `(wire bytes, content)`."""
    try:
        if framing == "length":
            while length:
                piece = await reader.read(min(length, 65536))
                if not piece:
                    raise BrokenError("eof")
                length -= len(piece)
                yield piece, piece
        elif framing == "chunked":
            while True:
                line = await reader.readuntil(b"\r\n")
                if not re.fullmatch(rb"[0-9a-fA-F]{1,8}\r\n", line):
                    raise FramingError(f"not a chunk size: {line!r}")
                size = int(line, 16)
                piece = await reader.readexactly(size)
                if (end := await reader.readexactly(2)) != b"\r\n":
                    raise FramingError(f"a chunk ends with {end!r}")
                yield line + piece + end, piece
                if size == 0:
                    return
        elif framing == "close":
            while piece := await reader.read(65536):
                yield piece, piece
    except asyncio.IncompleteReadError:
        raise BrokenError("eof") from None
    except ConnectionError:
        raise BrokenError("reset") from None


def chunked(*pieces: bytes) -> bytes:
    """Pieces in chunked framing, last chunk included."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def request(method: str, path: str, body: bytes | None = None, *lines: str, host: str = "app.test") -> bytes:
    """A request as most clients write it."""
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", *lines]
    if body is not None:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def get(path: str, *lines: str, host: str = "app.test") -> bytes:
    """A GET."""
    return request("GET", path, None, *lines, host=host)


# ---------------------------------------------------------------- the target


class Exchange:
    """One request at a target, and the means to answer it in any way, right or wrong."""

    def __init__(self, target: Target, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.target = target
        self.request = seen
        self.reader = reader
        self.writer = writer
        self.keep = True
        self._read = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The request body as it arrives; nothing is kept."""
        framing, length = _framing(self.request.headers, "the proxy")
        self._read = True
        async for _, piece in _pieces(self.reader, framing, length):
            yield piece
        self.request.complete = True

    async def body(self) -> bytes:
        """The whole request body."""
        if not self._read:
            framing, length = _framing(self.request.headers, "the proxy")
            self._read = True
            async for wire, piece in _pieces(self.reader, framing, length):
                self.request.raw += wire
                self.request.body += piece
            self.request.complete = True
        return self.request.body

    async def send(self, data: bytes) -> None:
        """These bytes, now. Raises ConnectionError if nobody is there any more."""
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        """Close in an orderly way."""
        self.keep = False
        self.writer.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.keep = False
        _reset(self.writer)

    async def until_closed(self) -> None:
        """Wait until the other side has gone."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.keep = False


Action = Callable[[Exchange], Awaitable[None]]
Script = Action | Sequence[Action]


class Target:
    """A raw TCP server. Records every request; answers the n-th with the n-th action, the last one for all further.

    `closed` counts the connections that the other side has closed. What it could not accept as HTTP is raised when
    the target is left.
    """

    def __init__(
        self, script: Script, port: int = 0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self._actions = [script] if callable(script) else list(script)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._problems: list[BaseException] = []
        self.host = host
        self.port = port
        self.tls = tls
        self.seen: list[Seen] = []
        self.lost: list[str] = []  # methods of requests that an action took without a trace in `seen`
        self.connections = 0
        self.closed = 0
        self.busy = 0
        self.most_busy = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls is not None else ''}://{self.host}:{self.port}"

    def script(self, script: Script) -> None:
        """Answer differently from now on."""
        self._actions = [script] if callable(script) else list(script)

    async def __aenter__(self) -> Target:
        self._server = await asyncio.start_server(self._connected, self.host, self.port, limit=1 << 18, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.stop()
        if kind is None and self._problems:
            raise self._problems[0]

    async def stop(self) -> None:
        """Refuse connections from now on, and drop those there are."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def close_idle(self) -> None:
        """End every connection in an orderly way, as a server does with idle ones; the end is sent when this
        returns."""
        for writer in list(self._writers):
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
                sock.shutdown(socket.SHUT_WR)

    def shut_down_idle(self) -> None:
        """End every connection in both directions: what arrives from now on is met with a reset."""
        for writer in list(self._writers):
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
                sock.shutdown(socket.SHUT_RDWR)

    def bodies(self) -> list[bytes]:
        """The bodies of all requests."""
        return [seen.body for seen in self.seen]

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        try:
            while await self._one(reader, writer, number):
                pass
        except (BrokenError, ConnectionError):
            self.closed += 1
        except Exception as error:
            self._problems.append(error)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = await _read_head(reader)
        first, *lines = head[:-4].split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(first)
        if match is None:
            raise FramingError(f"not a request line: {first!r}")
        headers = _parse_fields(lines)
        if sum(name.lower() == b"host" for name, _ in headers) != 1:
            raise FramingError(f"not exactly one Host: {headers}")
        _framing(headers, "the proxy")
        seen = Seen(match[1].decode(), match[2].decode("latin-1"), headers, number, head)
        action = self._actions[min(len(self.seen), len(self._actions) - 1)]
        self.seen.append(seen)
        exchange = Exchange(self, seen, reader, writer)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            await action(exchange)
        finally:
            self.busy -= 1
        return exchange.keep


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# ---------------------------------------------------------------- what a target may do


def raw(data: bytes, *, then: str = "keep") -> Action:
    """These very bytes after the whole request, and then keep, close, reset or wait for the other side."""

    async def act(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.send(data)
        if then == "close":
            exchange.close()
        elif then == "reset":
            exchange.reset()
        elif then == "wait":
            await exchange.until_closed()

    return act


def plain(status: int = 200, body: bytes = b"ok", *lines: str, reason: str = "Said") -> Action:
    """A response with Content-Length."""
    return raw(response(status, body, *lines, reason=reason))


def response(status: int = 200, body: bytes = b"ok", *lines: str, reason: str = "Said") -> bytes:
    """A response with Content-Length, as bytes."""
    head = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def slow(seconds: float, then: Action | None = None) -> Action:
    """Wait after the request, then go on."""
    go_on = then or plain()

    async def act(exchange: Exchange) -> None:
        await exchange.body()
        await asyncio.sleep(seconds)
        await go_on(exchange)

    return act


def in_steps(*pieces: bytes, pause: float = 0.01, then: str = "keep") -> Action:
    """Pieces in separate segments."""

    async def act(exchange: Exchange) -> None:
        await exchange.body()
        for piece in pieces:
            await exchange.send(piece)
            await asyncio.sleep(pause)
        if then == "close":
            exchange.close()
        elif then == "reset":
            exchange.reset()

    return act


async def silent(exchange: Exchange) -> None:
    """Never answer; notice when the other side has gone."""
    await exchange.body()
    await exchange.until_closed()
    exchange.target.closed += 1


async def close_unanswered(exchange: Exchange) -> None:
    """Read the request, then close."""
    await exchange.body()
    exchange.close()


async def reset_unanswered(exchange: Exchange) -> None:
    """Read the request, then reset."""
    await exchange.body()
    exchange.reset()


async def echo(exchange: Exchange) -> None:
    """Answer with the request body."""
    await exchange.send(response(200, await exchange.body()))


# ---------------------------------------------------------------- the app's side


class Client:
    """A connection from the app, on which one call may follow the other."""

    def __init__(
        self, port: int, *, limit: int = 1 << 18, receive_buffer: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._port = port
        self._limit = limit
        self._receive_buffer = receive_buffer
        self._tls = tls

    async def __aenter__(self) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        if self._receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        name = "localhost" if self._tls is not None else None
        self.reader, self.writer = await asyncio.open_connection(
            sock=sock, limit=self._limit, ssl=self._tls, server_hostname=name
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.writer.wait_closed()
        except ConnectionError:
            pass

    async def send(self, data: bytes) -> None:
        """These bytes, now. That the other side has already closed is for the answer to show."""
        self.writer.write(data)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.writer.drain()
        except ConnectionError:
            pass

    async def head(self, method: str = "GET") -> Answer:
        """The next final head; informational ones before it are in its `interims`."""
        interims: list[Answer] = []
        async with asyncio.timeout(PATIENCE):
            while True:
                head = await _read_head(self.reader)
                first, *lines = head[:-4].split(b"\r\n")
                match = _STATUS_LINE.fullmatch(first)
                if match is None:
                    raise FramingError(f"not a status line: {first!r}")
                status, headers = int(match[1]), _parse_fields(lines)
                if not 100 <= status <= 599:
                    raise FramingError(f"not a status: {status}")
                answer = Answer(status, match[2].decode("latin-1"), headers, "none", raw_head=head)
                if status >= 200:
                    break
                _, length = _framing(headers, "an interim response")
                assert not length
                interims.append(answer)
        framing, _ = _framing(headers, "Outrider")
        if framing == "none":
            framing = "close"
        bodyless = method == "HEAD" or status in (204, 304)
        answer.framing = "none" if bodyless else framing
        answer.interims = interims
        return answer

    async def body(self, answer: Answer) -> AsyncIterator[bytes]:
        """The body of an answer, piece by piece."""
        _, length = _framing(answer.headers, "Outrider")
        async for _, piece in _pieces(self.reader, answer.framing, length):
            yield piece

    async def answer(self, method: str = "GET") -> Answer:
        """The next whole answer. Raises BrokenError when it does not come to its end."""
        answer = await self.head(method)
        async with asyncio.timeout(PATIENCE):
            async for piece in self.body(answer):
                answer.body += piece
        return answer

    async def call(self, data: bytes) -> Answer:
        """Send, and read the answer."""
        await self.send(data)
        return await self.answer(data[:6].split(b" ")[0].decode())

    async def end(self) -> str:
        """Wait for the other side to close: `eof` or `reset`. Any further byte is an error."""
        try:
            async with asyncio.timeout(PATIENCE):
                rest = await self.reader.read(65536)
        except ConnectionError:
            return "reset"
        assert rest == b"", f"bytes after the answer: {rest!r}"
        return "eof"

    def reset(self) -> None:
        """Hang up with a TCP reset."""
        _reset(self.writer)


async def exchange(port: int, data: bytes) -> Answer:
    """One call on a connection of its own."""
    async with Client(port) as client:
        return await client.call(data)


async def eventually(condition: Callable[[], object], what: str = "", within: float = PATIENCE) -> None:
    """Wait until the condition holds."""
    end = monotonic() + within
    while not condition():
        assert monotonic() < end, f"it never came about: {what or condition}"
        await asyncio.sleep(0.002)


# ---------------------------------------------------------------- the sidecar


class Sidecar:
    """A running Outrider."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.expected_errors: list[str] = []  # parts of log lines that a test is about
        self.port = app.ports["listen"]
        self.admin = app.ports["admin.listen"]
        self.telemetry = app.ports["telemetry.listen"]

    def port_of(self, service: str) -> int:
        """The dedicated port of a service."""
        return self.app.ports[f"services.{service}.port"]

    def breaker_state(self, name: str = "user") -> str:
        """The state of a circuit."""
        return next(breaker.state for breaker in self.app.runtime.compiled.breakers if breaker.name == name)

    def outcomes(self, service: str = "user") -> dict[str, int]:
        """Finished calls of a service, by outcome."""
        counts: dict[str, int] = {}
        for route in self.app.runtime.all_routes():
            if route.stats.service == service:
                for (_, _, outcome), count in route.stats.requests.items():
                    counts[outcome] = counts.get(outcome, 0) + count
        return counts

    def leftovers(self) -> list[str]:
        """What is still held although nothing is under way."""
        proxy, compiled = self.app.runtime.proxy, self.app.runtime.compiled
        held = [f"{proxy.in_flight} calls"] if proxy.in_flight else []
        for cluster in compiled.clusters:
            held += [f"an attempt at {one.name}" for one in cluster.endpoints if one.in_flight]
        for route in compiled.routes:
            held += [f"a permit of {policy}" for policy in route.policies if getattr(policy, "in_flight", 0)]
        return held


_BASE = {
    "service": "service: booking",
    "instance": "instance: booking-1",
    "listen": "listen: 127.0.0.1:0",
    "admin": "admin: { listen: 127.0.0.1:0 }",
    "telemetry": "telemetry: { listen: 127.0.0.1:0 }",
}


def whole_config(text: str) -> str:
    """A configuration with what every test needs, unless it says so itself."""
    own = {line.partition(":")[0] for line in text.splitlines()}
    return "\n".join([*(line for key, line in _BASE.items() if key not in own), text, ""])


class _Errors(logging.Handler):
    """Collects what Outrider logs as an error: that is always a bug."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


@asynccontextmanager
async def sidecar(folder: Path, text: str) -> AsyncIterator[Sidecar]:
    """Run Outrider in this process, and in the end insist that it held on to nothing and complained of nothing."""
    file = folder / "outrider.yaml"
    file.write_text(whole_config(text))
    resolved, _ = load([str(file)], environment={})
    loop = asyncio.get_running_loop()
    errors = _Errors()
    logger = logging.getLogger("outrider")
    logger.addHandler(errors)
    loop.set_exception_handler(lambda _, context: errors.lines.append(repr(context)))
    app = App(resolved)
    await app.start()
    running = Sidecar(app)
    try:
        yield running
        await eventually(lambda: not running.leftovers(), f"nothing held, but {running.leftovers()}")
    finally:
        await app.stop()
        await asyncio.sleep(0.001)
        logger.removeHandler(errors)
    unexpected = [line for line in errors.lines if not any(known in line for known in running.expected_errors)]
    assert not unexpected, "\n".join(unexpected)
    assert app.runtime.proxy.stats.policy_errors == 0
