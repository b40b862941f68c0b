"""Resolve and connect: a new connection to an endpoint, bounded by `connect_timeout`, or the reason why not."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING, TypeVar, cast

from outrider.dataplane.tls import why_no_handshake
from outrider.dataplane.upstream import Upstream
from outrider.model.failure import Failure, Kind
from outrider.model.units import format_duration

if TYPE_CHECKING:
    from outrider.dataplane.cluster import Endpoint
    from outrider.dataplane.timers import Timers

T = TypeVar("T")

_UNREACHABLE = frozenset((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTDOWN))
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


async def dial(endpoint: Endpoint, timers: Timers, timeout: float, raw: bool = False) -> Upstream | Failure:
    """Connect to the endpoint within `timeout` seconds, TLS included. Nothing of any request has been sent when this
    fails. `raw`: for a tunnel in which the app itself speaks to the target, so without TLS of ours."""
    loop = asyncio.get_running_loop()
    name = endpoint.name
    tls = endpoint.tls if not raw else None
    protocol = cast(asyncio.Protocol, Upstream(endpoint, timers, raw))
    context, expected = (tls.context, tls.server_name) if tls is not None else (None, None)
    host, port = endpoint.detour or (endpoint.host, endpoint.port)
    connecting = loop.create_task(
        loop.create_connection(lambda: protocol, host, port, ssl=context, server_hostname=expected)
    )
    try:
        transport, _ = await _within(timeout, connecting)
        if tls is not None:
            endpoint.stats.handshakes[tls.made(transport)] += 1
        connection = cast(Upstream, protocol)
    except asyncio.CancelledError:
        cast(Upstream, protocol).close()  # it may just have come about
        raise
    except TimeoutError:
        what = "connection to" if tls is None else "TLS connection with"
        detail = f"no {what} {name} within {format_duration(timeout)}"
        failure = Failure(Kind.CONNECT_TIMEOUT, detail, endpoint=name)
    except socket.gaierror as error:
        detail = f"the host name of {name} could not be resolved: {error.strerror or error}"
        failure = Failure(Kind.DNS, detail, endpoint=name)
    except ConnectionRefusedError:
        failure = Failure(Kind.CONNECT_REFUSED, f"{name} refused the connection; is it running?", endpoint=name)
    except ssl.SSLError as error:
        kind, detail = why_no_handshake(error, name, tls.server_name if tls is not None else "")
        failure = Failure(kind, detail, endpoint=name)
    except ConnectionError as error:
        # The connection was there and broke: in a handshake, or between SYN and accept.
        kind = Kind.TLS_FAILED if tls is not None else Kind.UNREACHABLE
        detail = f"{name} broke the connection off while it was being made"
        failure = Failure(kind, f"{detail}: {error.strerror or error}", endpoint=name)
    except OSError as error:
        kind = Kind.UNREACHABLE
        if error.errno in _EXHAUSTED:
            kind = Kind.NO_ENDPOINT
        elif error.errno == errno.ECONNREFUSED:
            kind = Kind.CONNECT_REFUSED
        failure = Failure(kind, f"could not connect to {name}: {error.strerror or error}", endpoint=name)
    else:
        connection.counted()
        endpoint.stats.connects["ok"] += 1
        return connection
    endpoint.stats.connects[failure.kind.proxy_error] += 1
    return failure


async def _within(timeout: float, work: asyncio.Task[T]) -> T:
    """The result of `work`, or TimeoutError. Loops look at the time before they look at sockets: a loop that is late
    has to look there once more before it may blame the other side."""
    try:
        done, _ = await asyncio.wait((work,), timeout=timeout)
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
