"""The idle connections of one endpoint: last in, first out, so that spare ones age and leave."""

from __future__ import annotations

import select
from asyncio import Transport
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider.dataplane.upstream import Upstream


class Pool:
    """Idle connections, and a count of all that are open. A clean connection puts itself back into `idle`."""

    __slots__ = ("idle", "open")

    def __init__(self) -> None:
        self.idle: list[Upstream] = []
        self.open = 0

    def lease(self, certain: bool) -> Upstream | None:
        """The most recently used idle connection, or None.

        `certain` asks the kernel first whether the target has closed it meanwhile: for a request that cannot be
        repeated, losing the keep-alive race would lose the call.
        """
        idle = self.idle
        while idle:
            connection = idle.pop()
            if not connection.alive:
                continue
            if certain and connection.peek_closed():
                connection.close()
                continue
            return connection
        return None

    def forget(self, connection: Upstream) -> None:
        """A connection is gone."""
        self.open -= 1
        if connection in self.idle:
            self.idle.remove(connection)

    def close(self) -> None:
        """Close every idle connection."""
        for connection in list(self.idle):
            connection.close()

    @staticmethod
    def readable(transport: Transport) -> bool:
        """Whether the kernel holds anything to read, an end of stream included, for this connection."""
        sock = transport.get_extra_info("socket")
        if sock is None:
            return True
        poller = select.poll()
        poller.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poller.poll(0))
