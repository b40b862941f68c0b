"""Targets that misbehave on command: loopback HTTP/1.1 servers, all endpoints of one service in one process.

As a program it takes its ports as arguments and orders as JSON lines on stdin, each answered by a line on stdout:

    {"set": [BEHAVIOUR or null, ...]}   one per endpoint; null leaves it as it is
    {"report": true}                    what was asked of the endpoints so far, see Ledger

A request names itself in the header `x-call: PHASE-NUMBER`. Counting by that name, and not by the clock, charges a late
retry to the phase whose call it belongs to.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import uvloop

BACKLOG = 1024
# How the body of an answer is dripped: so many bytes, then a pause in seconds. 90 bytes last 9 s.
DRIP_BYTES, DRIP_PAUSE = 2, 0.2
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_NAME = re.compile(rb"\r\nx-call:[ \t]*((\d+)-\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How an endpoint behaves until it is told otherwise. All times in seconds.

    kind             what happens to a request
    ok               answered with 200 after `latency`
    refuse           nobody listens, and open connections are reset
    reset            taken whole, then the connection is reset
    reset-on-accept  connections are reset as soon as they are accepted
    status           a share of `share` is answered with `status`, the rest with 200
    hang             connections are accepted, requests are read, nothing is ever said
    tail             a share of `share` takes `extra` longer
    drip             the head comes in time, the body slower than anybody waits
    truncate         a share of `share` gets half of its body, then the connection ends
    flap             down and up in turn, each for `period`, beginning with down; down is as with `refuse`
    restart          at each of `restarts`, (seconds from now, gracefully): down for `period`
    overload         `slots` requests at a time, each for `latency`; `queue` more wait, others get 503 at once
    """

    kind: str = "ok"
    latency: float = 0.003
    share: float = 1.0
    status: int = 503
    extra: float = 1.0
    period: float = 1.0
    restarts: tuple[tuple[float, bool], ...] = ()
    slots: int = 2
    queue: int = 32

    def as_order(self) -> dict[str, Any]:
        """What goes over the control channel."""
        return asdict(self)


@dataclass(slots=True)
class Ledger:
    """What the endpoints of a service were asked together, by the phase that the request belongs to.

    `executed` counts each POST by its name. A POST that was received whole counts as executed, whatever was answered
    to it: from outside nobody can tell. Only a 503 of an overloaded endpoint, which refuses before it does anything,
    does not count.
    """

    requests: Counter[int] = field(default_factory=Counter)
    executed: Counter[bytes] = field(default_factory=Counter)

    def report(self) -> dict[str, dict[str, int]]:
        """Requests and POSTs executed more than once, per phase."""
        again: Counter[int] = Counter()
        for name, times in self.executed.items():
            again[_phase(name)] += times - 1
        return {
            "requests": {str(phase): count for phase, count in self.requests.items()},
            "duplicates": {str(phase): count for phase, count in again.items() if count},
        }


@dataclass(slots=True, frozen=True)
class Asked:
    """One request: its connection, its name `PHASE-NUMBER`, and whether it is a POST."""

    connection: Connection
    name: bytes
    post: bool


class Endpoint:
    """One server at one port."""

    def __init__(self, port: int, ledger: Ledger, seed: int = 0) -> None:
        self.port = port
        self.ledger = ledger
        self.behaviour = Behaviour()
        self.connections: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._random = random.Random(seed)
        self._script: list[asyncio.TimerHandle] = []
        self._adopting: set[asyncio.Task[Any]] = set()
        self._waiting: deque[Asked] = deque()
        self._working = 0
        self._answer: dict[str, Callable[[Asked], None]] = {
            "ok": self._ok,
            "flap": self._ok,
            "restart": self._ok,
            "reset": self._reset,
            "status": self._status,
            "hang": lambda asked: None,
            "tail": self._tail,
            "drip": self._drip,
            "truncate": self._truncate,
            "overload": self._overload,
        }
        self.up()

    def behave(self, behaviour: Behaviour) -> None:
        """Be like this from now on."""
        for timer in self._script:
            timer.cancel()
        self._script.clear()
        before, self.behaviour = self.behaviour, behaviour
        if before.kind == "hang":
            for connection in list(self.connections):
                if connection.busy:
                    connection.reset()  # what was swallowed does not come back
        while self._waiting:
            self._ok(self._waiting.popleft())
        self.up()
        if behaviour.kind == "refuse":
            self.down()
        elif behaviour.kind == "reset-on-accept":
            self._reset_all()
        elif behaviour.kind == "flap":
            self._flap()
        for after, gracefully in behaviour.restarts:
            self._later(after, self.down, gracefully)
            self._later(after + behaviour.period, self.up)

    # ---------------------------------------------------------------- up and down

    def up(self) -> None:
        """Listen, if it does not."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    def down(self, gracefully: bool = False) -> None:
        """Close the listener and every connection; gracefully: those at work after their answer."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        if not gracefully:
            self._reset_all()
            return
        for connection in list(self.connections):
            connection.last = True
            if not connection.busy:
                connection.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                taken, _ = self._listener.accept()
            except OSError:
                return  # nobody else, or they have hung up
            if self.behaviour.kind == "reset-on-accept":
                _linger_not(taken)
                taken.close()
                continue
            taken.setblocking(False)
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, taken)
            # Kept, because the loop itself holds tasks only weakly.
            adopting = self._loop.create_task(self._adopt(connection, taken))
            self._adopting.add(adopting)
            adopting.add_done_callback(self._adopting.discard)

    async def _adopt(self, connection: Connection, taken: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, taken)
        except OSError:
            taken.close()  # it has hung up again already
            return
        if self._listener is None:
            connection.reset()  # the server went down meanwhile

    def _reset_all(self) -> None:
        for connection in list(self.connections):
            connection.reset()

    def _flap(self) -> None:
        if self._listener is None:
            self.up()
        else:
            self.down()
        self._later(self.behaviour.period, self._flap)

    def _later(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        self._script.append(self._loop.call_later(seconds, what, *arguments))

    # ---------------------------------------------------------------- one request

    def asked(self, asked: Asked) -> None:
        """A request has come whole."""
        kind = self.behaviour.kind
        self.ledger.requests[_phase(asked.name)] += 1
        if kind != "overload":
            self._execute(asked)
        self._answer[kind](asked)

    def _execute(self, asked: Asked) -> None:
        if asked.post:
            self.ledger.executed[asked.name] += 1

    def _struck(self) -> bool:
        return self._random.random() < self.behaviour.share

    def _ok(self, asked: Asked, extra: float = 0.0) -> None:
        self._loop.call_later(self.behaviour.latency + extra, asked.connection.answer, 200, asked.name)

    def _reset(self, asked: Asked) -> None:
        self._loop.call_later(self.behaviour.latency, asked.connection.reset)

    def _status(self, asked: Asked) -> None:
        status = self.behaviour.status if self._struck() else 200
        self._loop.call_later(self.behaviour.latency, asked.connection.answer, status, asked.name)

    def _tail(self, asked: Asked) -> None:
        self._ok(asked, self.behaviour.extra if self._struck() else 0.0)

    def _drip(self, asked: Asked) -> None:
        self._loop.call_later(self.behaviour.latency, asked.connection.drip, message(200, asked.name))

    def _truncate(self, asked: Asked) -> None:
        what = asked.connection.truncate if self._struck() else asked.connection.answer
        self._loop.call_later(self.behaviour.latency, what, 200, asked.name)

    def _overload(self, asked: Asked) -> None:
        if self._working < self.behaviour.slots:
            self._work(asked)
        elif len(self._waiting) < self.behaviour.queue:
            self._waiting.append(asked)
        else:
            asked.connection.answer(503, asked.name)

    def _work(self, asked: Asked) -> None:
        """Take a slot. The work is done even if nobody waits for it any more, as in most servers."""
        self._working += 1
        self._execute(asked)
        self._loop.call_later(self.behaviour.latency, self._worked, asked)

    def _worked(self, asked: Asked) -> None:
        self._working -= 1
        asked.connection.answer(200, asked.name)
        if self._waiting and self._working < self.behaviour.slots:
            self._work(self._waiting.popleft())


class Connection(asyncio.Protocol):
    """The server's side of one connection: no pipelining, and bodies with Content-Length only."""

    def __init__(self, endpoint: Endpoint, raw: socket.socket) -> None:
        self.busy = False  # a request is being worked on
        self.last = False  # close after the next answer
        self._endpoint = endpoint
        self._raw = raw
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # which uvloop's are in all but name
        self._endpoint.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._endpoint.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        end = received.find(_HEAD_END)
        if end < 0 or self._transport is None:
            return
        if _CHUNKED.search(received, 0, end):
            raise NotImplementedError("these targets read bodies with Content-Length only")
        length = _LENGTH.search(received, 0, end)
        whole = end + len(_HEAD_END) + (int(length[1]) if length else 0)
        if len(received) < whole:
            return
        name = _NAME.search(received, 0, end)
        self._received = received[whole:]
        self.busy = True
        self._endpoint.asked(Asked(self, name[1] if name else b"0-0", received.startswith(b"POST ")))

    def answer(self, status: int, name: bytes) -> None:
        """Answer whole."""
        if self._transport is not None:
            self.busy = False
            self._transport.write(message(status, name, self.last))
            if self.last:
                self._transport.close()

    def truncate(self, status: int, name: bytes) -> None:
        """Send half of the body, then end."""
        if self._transport is not None:
            whole = message(status, name)
            body = len(whole) - whole.index(_HEAD_END) - len(_HEAD_END)
            self._transport.write(whole[: len(whole) - body // 2])
            self._transport.close()

    def drip(self, whole: bytes, at: int = 0) -> None:
        """Send the head, and the body little by little."""
        if self._transport is None:
            return
        end = at + DRIP_BYTES if at else whole.index(_HEAD_END) + len(_HEAD_END)
        self._transport.write(whole[at:end])
        if end < len(whole):
            asyncio.get_running_loop().call_later(DRIP_PAUSE, self.drip, whole, end)
        else:
            self.busy = False

    def close(self) -> None:
        """End it in order."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """End it with RST."""
        if self._transport is not None:
            _linger_not(self._raw)
            self._transport.abort()


def message(status: int, name: bytes, last: bool = False) -> bytes:
    """An answer whose body of some 90 bytes begins with the name of the request, so that a mix-up shows."""
    body = b'{"call":"%b","status":%d,"pad":"%b"}' % (name, status, b"x" * 60)
    head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % (
        status,
        b"OK" if status == 200 else b"Faulty",
        len(body),
    )
    return head + (b"connection: close\r\n\r\n" if last else b"\r\n") + body


def _phase(name: bytes) -> int:
    return int(name.partition(b"-")[0])


def _linger_not(raw: socket.socket) -> None:
    """Make closing send RST."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def obey(ports: list[int]) -> None:
    """Serve and take orders until stdin ends."""
    ledger = Ledger()
    endpoints = [Endpoint(port, ledger, seed=index) for index, port in enumerate(ports)]
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(json.dumps({"listening": ports}), flush=True)
    while line := await orders.readline():
        order = json.loads(line)
        for endpoint, wanted in zip(endpoints, order.get("set", ()), strict=False):
            if wanted is not None:
                endpoint.behave(Behaviour(**wanted))
        print(json.dumps(ledger.report() if order.get("report") else {"done": True}), flush=True)


if __name__ == "__main__":
    uvloop.run(obey([int(port) for port in sys.argv[1:]]))
