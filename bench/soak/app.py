"""The app behind the guard: answers, right or wrong, as the path says, and counts the requests it got by path."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Final, cast

from bench.soak.kinds import ID_LENGTH

_ID: Final = re.compile(rb"(?i)\r\nx-soak-id: ([^\r]*)")
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
_BODIES: Final = {b"/small": 42, b"/large": 65536, b"/huge": 1 << 20, b"/vast": 1 << 23}
_SWITCH: Final = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

counts: Counter[str] = Counter()


def answer(identity: bytes, size: int, status: bytes = b"200 OK") -> bytes:
    """A whole answer whose body begins with the id of its request."""
    body = identity.ljust(ID_LENGTH) + bytes(size - ID_LENGTH)
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


class Connection(asyncio.Protocol):
    """One connection of the receiver's sidecar."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.data = b""
        self.tunnel = False

    def data_received(self, data: bytes) -> None:
        if self.tunnel:
            self.transport.write(data)
            return
        self.data += data
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        if not head.startswith(b"GET"):
            length = _LENGTH.search(head)
            if len(rest) < int(length[1]) if length else not rest.endswith(b"0\r\n\r\n"):
                return
        self.data = b""
        path = head.split(b" ", 2)[1]
        counts[path.decode("latin-1")] += 1
        found = _ID.search(head)
        self.act(path, found[1] if found else b"")

    def act(self, path: bytes, identity: bytes) -> None:
        """Do what the path says; `/hang` is to do nothing."""
        transport = self.transport
        if path in _BODIES:
            transport.write(answer(identity, _BODIES[path]))
        elif path == b"/chunked":
            first = b"1000\r\n" + identity.ljust(4096) + b"\r\n"
            more = (b"1000\r\n" + bytes(4096) + b"\r\n") * 7
            transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + first + more + b"0\r\n\r\n")
        elif path == b"/slow":
            asyncio.get_running_loop().call_later(0.03, self.late, answer(identity, 42))
        elif path == b"/error":
            transport.write(answer(identity, 42, b"500 Internal Server Error"))
        elif path == b"/garbage":
            transport.write(b"SMTP/1.1 hello\r\n\r\n")
        elif path == b"/reset":
            transport.abort()
        elif path == b"/close":
            transport.close()
        elif path == b"/truncated":
            transport.write(answer(identity, 1 << 20)[:100_000])
            transport.close()
        elif path == b"/switch":
            self.tunnel = True
            transport.write(_SWITCH)
        elif path == b"/counts":
            counts.pop("/counts")
            body = json.dumps(counts).encode()
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def late(self, data: bytes) -> None:
        """Answer, if the sidecar still waits."""
        if not self.transport.is_closing():
            self.transport.write(data)


async def serve() -> None:
    """Print the port, and run until the process is told to stop."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
