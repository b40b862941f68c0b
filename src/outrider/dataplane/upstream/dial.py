"""Resolve and connect: a new connection to an endpoint, bounded by `connect_timeout`, or the reason why not.

Of several addresses of a name the first that takes a connection is used, and tried first the next time: each has a
quarter of a second before the next one is tried beside it (RFC 8305). TLS is spoken only with the one that was first,
so that a target never sees a handshake that is given up on purpose.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, TypeVar, cast

from outrider.dataplane.runtime.names import Names, UnresolvedError
from outrider.dataplane.upstream.connection import Upstream
from outrider.dataplane.upstream.tls import why_no_handshake
from outrider.model.failure import LOCAL_ERRORS, Failure, Kind
from outrider.model.units import format_duration

if TYPE_CHECKING:
    from outrider.dataplane.runtime.timers import Timers
    from outrider.dataplane.upstream.cluster import Endpoint

T = TypeVar("T")

# Seconds after which the next address is tried beside those that have not answered yet (RFC 8305 §5); less if the time
# would not suffice for all addresses, and at least the second number.
_NEXT_ADDRESS_AFTER, _LEAST_AFTER = 0.25, 0.01


async def dial(
    endpoint: Endpoint, timers: Timers, names: Names, timeout: float, raw: bool = False
) -> Upstream | Failure:
    """Connect to the endpoint within `timeout` seconds, looking up its name and TLS included. Nothing of any request
    has been sent when this fails. `raw`: for a tunnel in which the app itself speaks to the target, so without TLS of
    ours."""
    protocol = Upstream(endpoint, timers, raw)
    try:
        address = await _connect(endpoint, protocol, names, timeout, raw)
    except asyncio.CancelledError:
        protocol.close()  # it may just have come about
        raise
    except (OSError, UnresolvedError) as error:
        failure = failure_of(error, endpoint, endpoint.tls is not None and not raw, timeout)
        endpoint.stats.connects[failure.kind.proxy_error] += 1
        return failure
    protocol.counted()
    endpoint.stats.connects["ok"] += 1
    if address:
        endpoint.pool.note_address(protocol, address)
    return protocol


async def _connect(endpoint: Endpoint, protocol: Upstream, names: Names, timeout: float, raw: bool) -> str:
    """Make the connection; the address it leads to if that was found by its name, else nothing. Raises OSError,
    UnresolvedError."""
    loop = asyncio.get_running_loop()
    ends = monotonic() + timeout
    host, port = endpoint.detour or (endpoint.host, endpoint.port)
    tls = endpoint.tls if not raw else None
    context, expected = (tls.context, tls.server_name) if tls is not None else (None, None)
    addresses = await names.find(host, port, timeout)
    address = addresses[0]
    sock = None
    if len(addresses) > 1:
        left = ends - monotonic()
        pause = max(_LEAST_AFTER, min(_NEXT_ADDRESS_AFTER, left / len(addresses)))
        trying = loop.create_task(_first_to_answer(loop, addresses, port, pause))
        try:
            sock, address = await _within(left, trying)
        except BaseException:
            trying.add_done_callback(_close_first)
            raise

    def made() -> asyncio.Protocol:
        return cast(asyncio.Protocol, protocol)

    if sock is not None:
        connection = loop.create_connection(made, sock=sock, ssl=context, server_hostname=expected)
    else:
        connection = loop.create_connection(made, address, port, ssl=context, server_hostname=expected)
    connecting = loop.create_task(connection)
    try:
        transport, _ = await _within(ends - monotonic(), connecting)
    except BaseException as error:
        if sock is not None:
            unused = sock
            connecting.add_done_callback(lambda _: unused.close())
            if isinstance(error, OSError):
                names.disappointed(host, port, address)
        raise
    if tls is not None:
        endpoint.stats.handshakes[tls.made(transport)] += 1
    if address == host:
        return ""
    names.connected(host, port, address, endpoint.pool)
    return address


async def _first_to_answer(
    loop: asyncio.AbstractEventLoop, addresses: tuple[str, ...], port: int, pause: float
) -> tuple[socket.socket, str]:
    """A socket that is connected to one of several addresses, and which. `pause` is in seconds: for so long an address
    is alone before the next one is tried, too. Raises the OSError that tells most."""
    to_come = list(reversed(addresses))
    attempts: dict[asyncio.Task[socket.socket], str] = {}
    errors: list[OSError] = []
    try:
        while True:
            if to_come:
                address = to_come.pop()
                attempts[loop.create_task(_open(loop, address, port))] = address
            done, _ = await asyncio.wait(
                attempts,
                timeout=pause if to_come else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                address = attempts.pop(attempt)
                try:
                    return attempt.result(), address
                except OSError as error:
                    errors.append(error)
            if not attempts and not to_come:
                # That this machine has no IPv6 tells nothing about a target that refuses IPv4.
                raise min(errors, key=lambda error: error.errno in LOCAL_ERRORS)
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close)


async def _open(loop: asyncio.AbstractEventLoop, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def failure_of(error: Exception, endpoint: Endpoint, tls: bool, timeout: float) -> Failure:
    """Why there is no connection."""
    name = endpoint.name
    kind = Kind.UNREACHABLE
    why = getattr(error, "strerror", None) or str(error)
    detail = f"could not connect to {name}: {why}"
    if isinstance(error, UnresolvedError):
        kind = Kind.LOCAL_FAULT if error.local else Kind.DNS
        detail = f"the host name of {name} could not be resolved: {error}"
    elif isinstance(error, TimeoutError):
        what = "TLS connection with" if tls else "connection to"
        kind, detail = Kind.CONNECT_TIMEOUT, f"no {what} {name} within {format_duration(timeout)}"
    elif isinstance(error, ConnectionRefusedError):
        kind, detail = Kind.CONNECT_REFUSED, f"{name} refused the connection; is it running?"
    elif isinstance(error, ssl.SSLError):
        kind, detail = why_no_handshake(error, name, endpoint.tls.server_name if endpoint.tls is not None else "")
    elif isinstance(error, ConnectionError):
        # The connection was there and broke: in a handshake, or between SYN and accept.
        kind = Kind.TLS_FAILED if tls else Kind.UNREACHABLE
        detail = f"{name} broke the connection off while it was being made: {why}"
    elif isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
        kind, detail = Kind.LOCAL_FAULT, f"this machine could not begin a connection to {name}: {why}"
    return Failure(kind, detail, endpoint=name)


async def _within(timeout: float, work: asyncio.Task[T]) -> T:
    """The result of `work`, or TimeoutError. Loops look at the time before they look at sockets: a loop that is late
    has to look there once more before it may blame the other side."""
    try:
        done, _ = await asyncio.wait((work,), timeout=max(0.0, timeout))
        if not done:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if work.done():
            return work.result()
        raise TimeoutError
    finally:
        work.cancel()
        work.add_done_callback(_heard)


def _heard(work: asyncio.Task[T]) -> None:
    """How it ended after all is of no interest any more."""
    if not work.cancelled():
        work.exception()


def _close_first(trying: asyncio.Task[tuple[socket.socket, str]]) -> None:
    """The first to answer is not wanted any more."""
    if not trying.cancelled() and trying.exception() is None:
        trying.result()[0].close()


def _close(attempt: asyncio.Task[socket.socket]) -> None:
    """Another address was first."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
