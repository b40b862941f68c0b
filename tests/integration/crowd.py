"""Programs for tests with thousands of connections, in processes of their own so that they disturb nobody's clock.

    python -m tests.integration.crowd target                  a server; prints its port
    python -m tests.integration.crowd crowd PORT IDLE SLOW    connections to a sidecar; prints what has come about

The crowd does what it is told on stdin: `idle` connects, makes one call on every connection and then keeps them;
`slow` asks for /large on further connections and reads a few bytes every 100 ms; `leave` closes all.
"""

from __future__ import annotations

import asyncio
import resource
import select
import socket
import sys
from time import monotonic
from typing import cast

import uvloop

LARGE = 4 << 20
# Each slow reader takes so many bytes per round.
SIP = 256
ROUND = 0.1
_SLICES = 20
_BATCH = 250
_SLOW_BATCH = 50
_PATIENCE = 20


def raise_limit() -> int:
    """As many open files as this process may have; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# ---------------------------------------------------------------- the target


class _Server(asyncio.Protocol):
    """Answers GET requests: /large at length, everything else with two bytes."""

    small = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE
    body = bytes(LARGE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while b"\r\n\r\n" in self.data:
            head, _, self.data = self.data.partition(b"\r\n\r\n")
            if b" /large " in head:
                self.transport.writelines([self.large, self.body])
            else:
                self.transport.write(self.small)


async def target() -> None:
    """Serve until the process is told to stop."""
    raise_limit()
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


# ---------------------------------------------------------------- the crowd


def _connect(port: int, number: int, receive_buffer: int = 0) -> socket.socket:
    """A connection; the crowd comes from several addresses, as one has too few ports for long."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.bind((f"127.0.0.{2 + number % 8}", 0))
    sock.settimeout(_PATIENCE)
    sock.connect(("127.0.0.1", port))
    return sock


def _idle(port: int, count: int) -> list[socket.socket]:
    """Connections on which one call has been made."""
    socks: list[socket.socket] = []
    for start in range(0, count, _BATCH):
        batch = [_connect(port, number) for number in range(start, min(start + _BATCH, count))]
        for sock in batch:
            sock.sendall(b"GET /user/x HTTP/1.1\r\nHost: app.test\r\n\r\n")
        for sock in batch:
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        socks += batch
    return socks


def _slow(port: int, count: int) -> list[socket.socket]:
    """Connections on which an answer has begun that is larger than anybody's buffers."""
    socks: list[socket.socket] = []
    for start in range(0, count, _SLOW_BATCH):
        batch = [_connect(port, number, receive_buffer=4096) for number in range(start, start + _SLOW_BATCH)]
        for sock in batch:
            sock.sendall(b"GET /user/large HTTP/1.1\r\nHost: app.test\r\n\r\n")
        for sock in batch:
            first = sock.recv(SIP)
            assert first.startswith(b"HTTP/1.1 200 "), first
            sock.setblocking(False)
        socks += batch
    return socks


def _open(sock: socket.socket) -> bool:
    """Whether nothing has come on a connection, not even its end."""
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    return False


def _sip(socks: list[socket.socket]) -> int:
    """A few bytes of each; how many came."""
    total = 0
    for sock in socks:
        try:
            piece = sock.recv(SIP)
        except BlockingIOError:
            continue
        assert piece, "an answer ended early"
        total += len(piece)
    return total


def crowd(port: int, idle: int, slow: int) -> None:
    """Do as told. Rounds of reading are spread over their time, as independent readers would be."""
    raise_limit()
    quiet: list[socket.socket] = []
    readers: list[socket.socket] = []
    total = turn = 0
    while True:
        began = monotonic()
        if select.select([sys.stdin], [], [], 0)[0]:
            word = sys.stdin.readline().strip()
            if word == "idle":
                quiet = _idle(port, idle)
            elif word == "slow":
                readers = _slow(port, slow)
            elif word == "leave":
                assert all(map(_open, quiet)), "idle connections were closed"
                for sock in quiet + readers:
                    sock.close()
                quiet, readers = [], []
            else:
                return
            print(word, total, flush=True)
        total += _sip(readers[turn % _SLICES :: _SLICES])
        turn += 1
        select.select([sys.stdin], [], [], max(0.0, ROUND / _SLICES - (monotonic() - began)))


if __name__ == "__main__":
    if sys.argv[1] == "target":
        uvloop.run(target())
    else:
        crowd(*map(int, sys.argv[2:]))
