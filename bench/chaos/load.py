"""The client: an open loop at a fixed rate, with a pool of kept-alive connections, as a service has it.

Open loop: calls are sent when they are due, however the earlier ones are doing, and latency runs from the moment a call
was due. A client that waits for answers before it goes on would leave out just the calls that a fault delays most
("coordinated omission").

As a program it reads a Plan as JSON from stdin and prints its Records as JSON when the last call has ended.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, cast

import httptools
import uvloop

GOOD = "ok"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. Times in seconds; `start` is on the machine's monotonic clock, which all processes share.

    `phases` are (offset from `start`, duration); between them nothing is sent. `shift` moves every call by so much, so
    that lanes do not send at the same instant. `limit` is the client's patience per call.
    """

    port: int
    path: str
    rate: float
    start: float
    phases: tuple[tuple[float, float], ...]
    shift: float = 0.0
    limit: float = 3.0
    post_share: float = 0.2


@dataclass(frozen=True, slots=True)
class Record:
    """How one call ended: `at` is when it was due, in seconds since its phase began; `latency` in seconds from then
    to the end of the answer or to the failure; `late` how much after it was due it was sent, in seconds; `kind` is
    `ok`, the status of another whole answer, or timeout, truncated, reset, connect, wrong-answer."""

    phase: int
    post: bool
    at: float
    latency: float
    late: float
    kind: str


@dataclass(slots=True)
class _Call:
    phase: int
    number: int
    post: bool
    at: float
    due: float  # monotonic seconds
    late: float = 0.0
    over: bool = False
    connection: _Connection | None = None
    timer: asyncio.TimerHandle | None = None


class Client:
    """Sends what a plan says, each call once: a client that retries would hide what the proxy does."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.records: list[Record] = []
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Connection] = []
        self._calls = self._script()
        self._next: _Call | None = None
        self._all_sent = False
        self._open = 0
        self._done = asyncio.Event()
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> list[Record]:
        """Send everything, and wait for the last call to end."""
        self._advance()
        await self._done.wait()
        for connection in self._idle:
            connection.abort()
        return self.records

    def _script(self) -> Iterator[_Call]:
        plan = self.plan
        posts = random.Random(1)  # the same calls in every lane
        for phase, (offset, seconds) in enumerate(plan.phases):
            for number in range(round(seconds * plan.rate)):
                at = number / plan.rate + plan.shift
                yield _Call(phase, number, posts.random() < plan.post_share, at, plan.start + offset + at)

    def _advance(self) -> None:
        """Send all that is due, and come back for the next."""
        while (call := self._next or next(self._calls, None)) is not None:
            wait = call.due - monotonic()
            if wait > 0:
                self._next = call
                self._loop.call_later(wait, self._advance)
                return
            self._next = None
            self._send(call)
        self._all_sent = True
        self._check_done()

    def _send(self, call: _Call) -> None:
        now = monotonic()
        self._open += 1
        call.late = now - call.due
        call.timer = self._loop.call_later(max(0.0, call.due + self.plan.limit - now), self._expire, call)
        if self._idle:
            self._idle.pop().send(call)  # the latest one used, as pools do
            return
        connecting = self._loop.create_task(self._connect(call))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, call: _Call) -> None:
        try:
            _, connection = await self._loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.plan.port)
        except OSError:
            self.ended(call, "connect")
            return
        if call.over:
            self.idle(connection)
        else:
            connection.send(call)

    def _expire(self, call: _Call) -> None:
        connection = call.connection
        self.ended(call, "timeout")
        if connection is not None:
            connection.abort()

    def ended(self, call: _Call, kind: str) -> None:
        """A call is over; only its first end counts."""
        if call.over:
            return
        call.over = True
        call.connection = None
        if call.timer is not None:
            call.timer.cancel()
        self.records.append(Record(call.phase, call.post, call.at, monotonic() - call.due, call.late, kind))
        self._open -= 1
        self._check_done()

    def _check_done(self) -> None:
        if self._all_sent and not self._open:
            self._done.set()

    def idle(self, connection: _Connection) -> None:
        """A connection is free again."""
        self._idle.append(connection)

    def gone(self, connection: _Connection) -> None:
        """A connection is no more."""
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """The client's side of one connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._call: _Call | None = None
        self._transport: asyncio.Transport | None = None
        self._renew()

    def _renew(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._headed = self._keep = self._complete = False

    def send(self, call: _Call) -> None:
        """Send the request of a call."""
        self._call = call
        call.connection = self
        path = self._client.plan.path.encode()
        name = b"%d-%d" % (call.phase, call.number)
        if call.post:
            body = b'{"call":"%b","amount":100}' % name
            line, tail = b"POST", b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        else:
            line, tail = b"GET", b"\r\n"
        assert self._transport is not None
        self._transport.write(b"%b %b/x HTTP/1.1\r\nhost: user\r\nx-call: %b\r\n%b" % (line, path, name, tail))

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    # ---------------------------------------------------------------- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # which uvloop's are in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._call is not None:
            self._client.ended(self._call, "truncated" if self._headed else "reset")
            self._call = None
        self._client.gone(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("wrong-answer", keep=False)
            return
        if self._complete:
            self._judge()

    def _judge(self) -> None:
        call = self._call
        status = self._parser.get_status_code()
        if call is None:
            self._end("", keep=False)  # an answer that nobody asked for
        elif not 200 <= status < 300:
            self._end(str(status), self._keep)
        else:
            ours = self._body.startswith(b'{"call":"%d-%d"' % (call.phase, call.number))
            self._end(GOOD if ours else "wrong-answer", self._keep and ours)

    def _end(self, kind: str, keep: bool) -> None:
        call, self._call = self._call, None
        self._renew()
        if keep:
            self._client.idle(self)
        else:
            self.abort()
        if call is not None:
            self._client.ended(call, kind)

    # ---------------------------------------------------------------- the parser's callbacks: they only take notes

    def on_headers_complete(self) -> None:
        self._headed = True

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._complete = True
        self._keep = self._parser.should_keep_alive()


async def play(plan: Plan) -> list[Record]:
    """Carry out a plan."""
    return await Client(plan).run()


def main() -> None:
    """Plan in, records out."""
    asked: dict[str, Any] = json.load(sys.stdin)
    asked["phases"] = tuple((offset, seconds) for offset, seconds in asked["phases"])
    gc.freeze()
    gc.disable()  # a collection would be measured as latency of the proxy; the process is short-lived
    records = uvloop.run(play(Plan(**asked)))
    json.dump([list(asdict(record).values()) for record in records], sys.stdout)


if __name__ == "__main__":
    main()
