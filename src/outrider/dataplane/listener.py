"""Bind, accept, drain."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import TYPE_CHECKING, cast

from outrider.dataplane.downstream import Downstream

if TYPE_CHECKING:
    from outrider.dataplane.proxy import Proxy
    from outrider.dataplane.routing import Service

_BACKLOG = 1024
# Seconds without any connection after which a draining sidecar believes that its app has gone.
_QUIET = 1.0
_LOOK = 0.05


class Listener:
    """The sockets on which the app may call, each either for all services or for one."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._servers: list[asyncio.Server] = []

    async def open(self, host: str, port: int, dedicated: Service | None = None) -> int:
        """Bind and accept; returns the port, which the system chooses for 0. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        server = await self._proxy.loop.create_server(
            lambda: cast(asyncio.Protocol, Downstream(self._proxy, dedicated)), sock=bound, backlog=_BACKLOG
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def drain(self, limit: float, *, leave_when_idle: bool) -> bool:
        """Let live work end, for up to `limit` seconds. True if nothing was cut off.

        The listeners stay open: the app beside us is shutting down too, and may still need us for its last
        answers. So by default we stay until its connections are gone and stay gone for a moment;
        `leave_when_idle` only waits for the calls in flight.
        """
        proxy = self._proxy
        proxy.draining = True
        end = monotonic() + limit
        quiet_since = monotonic()
        while monotonic() < end:
            now = monotonic()
            if leave_when_idle and not proxy.in_flight:
                return True
            if proxy.in_flight or proxy.connections:
                quiet_since = now
            elif now - quiet_since >= _QUIET:
                return True
            await asyncio.sleep(_LOOK)
        return not proxy.in_flight

    def close(self) -> None:
        """Stop accepting, and cut what is left."""
        for server in self._servers:
            server.close()
        for connection in list(self._proxy.connections):
            connection.abort()
        self._proxy.timers.close()
