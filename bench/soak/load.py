"""Keeps connections busy until enough calls were made, and checks every answer."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Final, cast

from bench.soak.kinds import FRAME, ID, ID_LENGTH, Kind

STUCK: Final = 10.0  # seconds after which a call counts as lost
_PIPELINED: Final = 8
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_CONTINUE: Final = b"HTTP/1.1 100 "
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 seconds: to close is to reset
_CHUNKED: Final = re.compile(rb"(?i)\r\ntransfer-encoding: chunked")


@dataclass
class Record:
    """All that the generator has seen. `wrong` is what must not be, in sentences."""

    calls: int = 0
    connections: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    uncertain: int = 0
    wrong: list[str] = field(default_factory=list)

    def complain(self, sentence: str) -> None:
        """One more thing that must not be."""
        self.wrong.append(sentence)


class Load:
    """One stream of calls to one port: `width` connections at a time, `per_connection` calls on each on average."""

    def __init__(
        self,
        record: Record,
        port: int,
        kinds: Sequence[Kind],
        *,
        calls: int,
        connections: int,
        width: int,
        secure: ssl.SSLContext | None = None,
        seed: int = 1,
    ) -> None:
        self.record = record
        self.port = port
        self.left = calls
        self.secure = secure
        self.live: set[Connection] = set()
        self._width = width
        self._seed = seed
        draw = random.Random(seed)
        # A shuffled list that is gone through again and again costs less than drawing lots for every call.
        self._mix = draw.choices(kinds, weights=[kind.weight for kind in kinds], k=20_000)
        mean = max(1.0, calls / max(1, connections))
        self._lengths = [1 + int(draw.expovariate(1 / mean)) if mean > 1 else 1 for _ in range(5_000)]
        self._numbers = count()
        self._opening: set[asyncio.Task[None]] = set()

    def next(self) -> Kind | None:
        """The next kind of call, or None at the end."""
        if self.left <= 0:
            return None
        self.left -= 1
        return self._mix[self.left % len(self._mix)]

    def identity(self) -> bytes:
        """An id that no other request has."""
        return b"%d-%0*d" % (self._seed, ID_LENGTH - len(str(self._seed)) - 1, next(self._numbers))

    def open(self) -> None:
        """One more connection."""
        self.record.connections += 1
        task = asyncio.get_running_loop().create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        length = self._lengths[self.record.connections % len(self._lengths)]
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Connection(self, length), "127.0.0.1", self.port, ssl=self.secure
            )
        except OSError as error:
            self.record.complain(f"cannot connect to {self.port}: {error}")
            self.left = 0

    def replace(self) -> None:
        """A connection has ended; open another one while there are calls left."""
        if self.left > 0:
            self.open()

    async def run(self) -> None:
        """Make all calls."""
        for _ in range(self._width):
            self.open()
        while self.live or self._opening:
            await asyncio.sleep(0.1)
            now = monotonic()
            for connection in list(self.live):
                connection.check(now)
            if len(self.record.wrong) > 50:
                self.left = 0


class Connection(asyncio.Protocol):
    """One call after the other; ends after `length` of them, or when a call spoils the connection."""

    def __init__(self, load: Load, length: int) -> None:
        self.load = load
        self.length = length
        self.kind: Kind | None = None
        self.identity = b""
        self.data = bytearray()
        self.missing = -1  # bytes of the answer; -1: its head is not complete, -2: it is chunked
        self.expected = 0  # answers
        self.since = 0.0
        self.talking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.load.live.add(self)
        self.begin()

    def begin(self) -> None:
        """Make the next call."""
        kind = self.load.next() if self.length > 0 else None
        if kind is None:
            self.transport.close()
            return
        self.kind = kind
        self.length -= 1
        self.since = monotonic()
        self.data.clear()
        self.missing = -1
        self.identity = self.load.identity()
        self.expected = _PIPELINED if kind.behaviour == "pipeline" else 1
        self.load.record.calls += self.expected
        if kind.uncertain:
            self.load.record.uncertain += self.expected
        self.transport.write(kind.data.replace(ID, self.identity) * self.expected)
        self.behave(kind)

    def behave(self, kind: Kind) -> None:
        """Do more than waiting for the answer."""
        loop = asyncio.get_running_loop()
        if kind.behaviour == "half":
            if self.transport.can_write_eof():
                self.transport.write_eof()
        elif kind.behaviour == "later":
            loop.call_later(0.002, self.transport.write, kind.rest)
        elif kind.behaviour == "end":
            loop.call_later(0.005, self.end)
        elif kind.behaviour == "leave":
            loop.call_later(0.01, self.transport.abort)
        elif kind.behaviour == "unread":
            loop.call_soon(self.transport.pause_reading)  # the loop itself begins to read after this
            loop.call_later(0.02, self.transport.abort)
        elif kind.behaviour == "reset":
            with self.sock() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def sock(self) -> socket.socket:
        """The connection's socket once more; closing it closes no connection."""
        return socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))

    def end(self) -> None:
        """End the sending side of the socket, under TLS without a word, and go a moment later."""
        if not self.transport.is_closing():
            with self.sock() as sock:
                sock.shutdown(socket.SHUT_WR)
            asyncio.get_running_loop().call_later(0.01, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        kind = self.kind
        if kind is None:
            return
        if kind.behaviour in ("abort", "unread"):
            self.finish("aborted")
            self.transport.abort()
            return
        if kind.behaviour == "slow":
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.005, self.resume)
        self.data += data
        while self.kind is kind and self.data:
            if self.missing == -1:
                self.missing = self.expect()
            if self.missing >= 0 and self.data.startswith(_CONTINUE):
                # A sidecar asks so whether a client that has ended its side is still there.
                del self.data[: self.missing]
                self.missing = -1
            elif self.missing >= 0 and len(self.data) >= self.missing:
                self.whole(kind, self.missing)
            elif self.missing == -2 and self.data.endswith(b"0\r\n\r\n"):
                self.whole(kind, len(self.data))
            else:
                return

    def resume(self) -> None:
        """Read on."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def expect(self) -> int:
        """How many bytes the answer has; see `missing`."""
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return -1
        if self.data.startswith(b"HTTP/1.1 101"):
            return end + 4
        length = _LENGTH.search(self.data, 0, end + 2)
        if length:
            return end + 4 + int(length[1])
        return -2 if _CHUNKED.search(self.data, 0, end + 2) else end + 4

    def whole(self, kind: Kind, size: int) -> None:
        """An answer has come: may this kind of call get it?"""
        if self.talking:
            self.talk(kind)
            return
        answer = bytes(self.data[:size])
        del self.data[:size]
        self.missing = -1
        match = _STATUS.match(answer)
        status = int(match[1]) if match else 0
        head, _, body = answer.partition(b"\r\n\r\n")
        record = self.load.record
        if kind.behaviour in ("leave", "end"):
            self.finish(str(status))  # it was quicker than this client, who leaves all the same
            return
        if status not in kind.statuses:
            record.complain(f"{kind.name}: {answer[:600]!r}")
        elif status == 200 and kind.size is not None and b"ontent-" in head and len(body) != kind.size:
            if not _CHUNKED.search(head):
                record.complain(f"{kind.name}: {len(body)} bytes of body")
        elif status < 300 and kind.echoes and self.identity not in body[: ID_LENGTH + 10]:
            record.complain(f"{kind.name}: the answer to another request: {body[:40]!r}, asked as {self.identity!r}")
        if status == 101 and kind.behaviour == "tunnel":
            self.talk(kind)
            return
        record.counts[kind.name, str(status)] += 1
        self.expected -= 1
        if self.expected > 0:
            if b"\r\nconnection: close" in head:
                self.expected = 0
                if not kind.breaks:
                    record.complain(f"{kind.name}: closed between pipelined answers")
            else:
                return
        self.kind = None
        if b"\r\nconnection: close" in head or kind.behaviour in ("half", "tunnel"):
            self.transport.close()
        else:
            self.begin()

    def talk(self, kind: Kind) -> None:
        """A tunnel is open: the app sends back what it gets."""
        if not self.talking:
            self.talking = True
            self.missing = len(FRAME)
            self.transport.write(FRAME)
            return
        if bytes(self.data) != FRAME:
            self.load.record.complain(f"{kind.name}: {bytes(self.data[-50:])!r}")
        self.finish("101")
        self.transport.close()

    def finish(self, how: str) -> None:
        """The call is over."""
        if self.kind is not None:
            self.load.record.counts[self.kind.name, how] += 1
            self.kind = None

    def check(self, now: float) -> None:
        """A call that takes this long is lost."""
        if self.kind is not None and now - self.since > STUCK:
            self.load.record.complain(f"{self.kind.name}: no answer in {STUCK:g} s")
            self.finish("stuck")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        kind = self.kind
        if kind is not None:
            if not kind.uncertain:
                self.load.record.complain(f"{kind.name}: the connection broke after {len(self.data)} bytes: {exc}")
            self.finish("broke")
        self.load.live.discard(self)
        self.load.replace()


async def sample(every: float, look: Callable[[], object], until: asyncio.Event) -> None:
    """Call `look` every so many seconds until the event is set."""
    while not until.is_set():
        look()
        try:
            await asyncio.wait_for(until.wait(), every)
        except TimeoutError:
            continue
