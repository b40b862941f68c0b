"""Connections come and go by the thousand: what they took is given back, without waiting for the garbage collector.

In production the collector is all but off (20,000 objects, most of them frozen), so a reference cycle per connection is
a leak. These tests switch it off and count what is alive.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    BrokenError,
    Client,
    Exchange,
    Sidecar,
    Target,
    chunked,
    eventually,
    get,
    in_steps,
    raw,
    request,
    response,
)
from tests.integration.test_tls import Authority, trusting

KEY = "key-of-the-platform-0123456789abcdef"
# Enough that one object too many for each connection is told from the few that timers let go of later.
CONNECTIONS = 150
STRAGGLERS = 80
TRANSPORTS = frozenset(("SSLObject", "SSLProtocol", "TCPTransport"))
WATCHED = TRANSPORTS | frozenset(
    (
        "Attempt",
        "Call",
        "Downstream",
        "Drive",
        "HttpRequestParser",
        "HttpResponseParser",
        "Race",
        "RequestBody",
        "Runner",
        "Task",
        "TimerHandle",
        "Tunnel",
        "Upstream",
        "coroutine",
    )
)
_SWITCH = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n"


async def app(one: Exchange) -> None:
    """Answers as the path says."""
    if "/late" in one.request.path:
        await one.until_closed()
    elif "/hedged" in one.request.path and len(one.target.seen) % 2:
        await asyncio.sleep(0.004)
        await one.send(response())
    elif "/broken" in one.request.path:
        await raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", then="close")(one)
    elif "/streamed" in one.request.path:
        await in_steps(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"o", b"k", pause=0.001)(one)
    elif "/switch" in one.request.path:
        await one.send(_SWITCH)
        await one.until_closed()
    else:
        await one.body()
        await one.send(response())


class Peer:
    """A port, and what is needed to make a connection to it."""

    def __init__(self, port: int, prefix: str, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.prefix = prefix
        self.tls = tls

    def client(self) -> Client:
        return Client(self.port, tls=self.tls)

    def get(self, path: str, *lines: str) -> bytes:
        return get(self.prefix + path, f"x-api-key: {KEY}", *lines)


Deed = Callable[[Peer], Awaitable[None]]


async def calls(peer: Peer) -> None:
    async with peer.client() as client:
        for _ in range(2):
            assert (await client.call(peer.get("/x"))).status == 200


async def sends_half_a_head(peer: Peer) -> None:
    async with peer.client() as client:
        await client.send(peer.get("/x")[:-8])


async def is_silent(peer: Peer) -> None:
    async with peer.client():
        pass


async def is_refused_while_it_uploads(peer: Peer) -> None:
    async with peer.client() as client:
        await client.send(request("POST", "/nobody/x", None, "Content-Length: 500000") + b"x" * 50_000)
        assert (await client.answer()).status in (401, 502)


async def resets_at_once(peer: Peer) -> None:
    async with peer.client() as client:
        await client.send(peer.get("/x"))
        client.reset()


async def resets_while_it_waits(peer: Peer) -> None:
    async with peer.client() as client:
        await client.send(peer.get("/late"))
        await asyncio.sleep(0.003)
        client.reset()


async def resets_in_its_upload(peer: Peer) -> None:
    async with peer.client() as client:
        head = request("POST", peer.prefix + "/x", None, "Transfer-Encoding: chunked", f"x-api-key: {KEY}")
        await client.send(head + chunked(b"x" * 1000)[:500])
        await asyncio.sleep(0.001)
        client.reset()


async def sends_garbage(peer: Peer) -> None:
    async with peer.client() as client:
        assert (await client.call(b"\x16\x03\x01 no request\r\n\r\n")).status == 400


async def pipelines(peer: Peer) -> None:
    async with peer.client() as client:
        await client.send(peer.get("/x") * 3)
        for _ in range(3):
            assert (await client.answer()).status == 200


async def ends_its_side(peer: Peer) -> None:
    async with peer.client() as client:
        await client.send(peer.get("/x"))
        client.writer.write_eof()
        assert (await client.answer()).status == 200


async def ends_its_side_and_leaves(peer: Peer) -> None:
    async with peer.client() as client:
        await client.send(peer.get("/late"))
        await asyncio.sleep(0.003)


async def asks_for_a_stream(peer: Peer) -> None:
    async with peer.client() as client:
        assert (await client.call(peer.get("/streamed"))).body == b"ok"


async def gets_half_an_answer(peer: Peer) -> None:
    async with peer.client() as client:
        with pytest.raises(BrokenError):
            await client.call(peer.get("/broken"))


async def opens_a_tunnel(peer: Peer) -> None:
    async with peer.client() as client:
        await client.send(peer.get("/switch", "Connection: upgrade", "Upgrade: raw"))
        await client.reader.readuntil(b"\r\n\r\n")


async def asks_a_late_target(peer: Peer) -> None:
    async with peer.client() as client:
        assert (await client.call(peer.get("/hedged"))).status == 200


async def breaks_off_the_handshake(peer: Peer) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", peer.port))
        await loop.sock_sendall(sock, b"\x16\x03\x01\x00\xff\x01")
        await asyncio.sleep(0)


async def says_something_else_than_hello(peer: Peer) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", peer.port))
        await loop.sock_sendall(sock, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(1):
            await loop.sock_recv(sock, 100)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is given back that only the collector would find."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@asynccontextmanager
async def peer_of(outrider: Outrider, folder: Path, listener: str) -> AsyncIterator[tuple[Sidecar, Peer]]:
    authority = Authority(folder)
    cert, key = authority.files("guard", "localhost")
    tls = f"tls: {{ cert: {cert}, key: {key} }}" if listener == "inbound over TLS" else ""
    async with Target(app) as target:
        text = f"""
inbound:
  listen: 127.0.0.1:0
  app: '{target.url}'
  accept: [{{ header: x-api-key, values: [{KEY}] }}]
  {tls}
services:
  user:
    url: '{target.url}'
    retry: false
    circuit_breaker: false
    routes: [{{ match: 'GET /hedged', hedge: {{ after: 1ms }} }}]
"""
        async with outrider(text) as proxy:
            port = proxy.port if listener == "outbound" else proxy.app.ports["inbound.listen"]
            prefix = "/user" if listener == "outbound" else ""
            yield proxy, Peer(port, prefix, trusting(authority) if tls else None)


def alive() -> Counter[str]:
    return Counter(name for one in gc.get_objects() if (name := type(one).__name__) in WATCHED)


async def many_times(deed: Deed, peer: Peer, times: int) -> None:
    """So many connections, several at a time."""
    for _ in range(times // 10):
        await asyncio.gather(*(deed(peer) for _ in range(10)))


_EVERYWHERE: list[Deed] = [
    calls,
    sends_half_a_head,
    is_silent,
    is_refused_while_it_uploads,
    resets_at_once,
    resets_while_it_waits,
    resets_in_its_upload,
    sends_garbage,
    pipelines,
    asks_for_a_stream,
    gets_half_an_answer,
    opens_a_tunnel,
]
_CASES: list[tuple[str, Deed]] = [
    *((listener, deed) for listener in ("outbound", "inbound", "inbound over TLS") for deed in _EVERYWHERE),
    ("outbound", asks_a_late_target),
    ("outbound", ends_its_side),
    ("inbound", ends_its_side),
    ("inbound", ends_its_side_and_leaves),
    ("inbound over TLS", ends_its_side_and_leaves),
    ("inbound over TLS", breaks_off_the_handshake),
    ("inbound over TLS", says_something_else_than_hello),
]


@pytest.mark.parametrize(("listener", "deed"), _CASES, ids=lambda one: getattr(one, "__name__", one))
async def test_a_closed_connection_leaves_nothing(
    outrider: Outrider, tmp_path: Path, no_collector: None, listener: str, deed: Deed
) -> None:
    """Objects and timers are as many after hundreds of connections as before, whatever became of them."""
    async with peer_of(outrider, tmp_path, listener) as (proxy, peer):
        data_plane = proxy.app.runtime.proxy
        await many_times(deed, peer, 20)
        before = alive()
        await many_times(deed, peer, CONNECTIONS)
        await eventually(lambda: not data_plane.connections, "all connections gone")
        await asyncio.sleep(0.01)
        grown = alive() - before
        if deed is gets_half_an_answer:  # the exception that the client of the test gets holds its transport
            grown = Counter({name: count for name, count in grown.items() if name not in TRANSPORTS})
        assert not {name: count for name, count in grown.items() if count > STRAGGLERS}
        assert data_plane.timers.pending < STRAGGLERS


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_thousands_of_connections_over_tls_take_no_memory(
    outrider: Outrider, tmp_path: Path, no_collector: None
) -> None:
    """A TLS connection has a quarter of a MiB of buffers, and all of it is given back when it closes."""
    async with peer_of(outrider, tmp_path, "inbound over TLS") as (_, peer):
        await many_times(calls, peer, 100)
        before = resident()
        await many_times(calls, peer, 500)
        await many_times(is_refused_while_it_uploads, peer, 300)
        assert resident() - before < 24 << 20


async def test_an_idle_connection_keeps_nothing_of_its_last_request(outrider: Outrider, tmp_path: Path) -> None:
    """A head may have 64 KiB, and so much of a body is kept for another attempt: not for as long as the app is silent
    afterwards."""
    head, body = [f"x-{n}: {'v' * 900}" for n in range(60)], b"b" * 60_000
    async with peer_of(outrider, tmp_path, "outbound") as (_, peer):
        clients = [peer.client() for _ in range(40)]
        tracemalloc.start()
        try:
            for client in clients:
                await client.__aenter__()
                assert (await client.call(peer.get("/x"))).status == 200
            before = tracemalloc.get_traced_memory()[0]
            for client in clients:
                await client.send(request("POST", "/user/x", body, *head))
                assert (await client.answer()).status == 200
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
            for client in clients:
                await client.__aexit__()
    # The target of this test takes down what it has seen: head and body, and both as they were on the wire.
    assert grown / len(clients) < 1.1 * 2 * 115_000 + 16_384


async def test_over_tls_no_more_waits_in_a_connection_than_without(outrider: Outrider, tmp_path: Path) -> None:
    """What TLS holds before the sender has to wait is 64 KiB each way, and not half a MiB: who asks for much, or
    pipelines, and does not read, would take that a thousand times."""
    async with peer_of(outrider, tmp_path, "inbound over TLS") as (proxy, peer), peer.client() as client:
        assert (await client.call(peer.get("/x"))).status == 200
        (connection,) = proxy.app.runtime.proxy.connections
        transport = connection._transport
        assert transport.get_write_buffer_limits()[1] == transport.get_read_buffer_limits()[1] == 64 * 1024


@pytest.mark.parametrize("broken", ["answers 500", "breaks off"])
async def test_an_outage_of_any_length_leaves_nothing(
    outrider: Outrider, tmp_path: Path, no_collector: None, broken: str
) -> None:
    """A circuit that opens again and again keeps no exception: with it go the frames and connections behind it."""
    authority = Authority(tmp_path)
    act = raw(response(500)) if broken == "answers 500" else raw(b"HTTP/1.1 200 OK\r\nContent-", then="close")
    async with Target(act, tls=authority.server()) as target:
        text = f"""
services:
  user:
    url: 'https://127.0.0.1:{target.port}'
    tls: {{ ca: '{authority.file}' }}
    retry: false
    circuit_breaker: {{ consecutive_failures: 1, open_for: 1ms..1ms }}
"""
        async with outrider(text) as proxy, Client(proxy.port) as client:

            async def fail(times: int) -> Counter[int]:
                seen: Counter[int] = Counter()
                for _ in range(times):
                    seen[(await client.call(get("/user/x"))).status] += 1
                    await asyncio.sleep(0.003)
                return seen

            await fail(20)
            before = Counter(type(one).__name__ for one in gc.get_objects())
            seen = await fail(200)
            grown = Counter(type(one).__name__ for one in gc.get_objects()) - before
    assert seen[503] < 100  # most were probes, each of which has opened the circuit again
    kept = {
        name: count for name, count in grown.items() if name in TRANSPORTS | {"frame", "traceback"} or "Circuit" in name
    }
    assert not {name: count for name, count in kept.items() if count > STRAGGLERS}
