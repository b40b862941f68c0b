"""The idle connections of one endpoint: last in, first out, so that spare ones age and leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider.dataplane.upstream.connection import Upstream


class Pool:
    """Idle connections, and a count of all that are open. A clean connection puts itself back into `idle`. Where the
    endpoint is a host name, the pool knows which of its addresses each connection leads to."""

    __slots__ = ("_addresses", "idle", "open")

    def __init__(self) -> None:
        self.idle: list[Upstream] = []
        self.open = 0
        self._addresses: dict[Upstream, str] = {}

    def lease(self) -> Upstream | None:
        """The most recently used idle connection, or None.

        The kernel is asked first whether anything has arrived on it meanwhile: an end of stream would lose a call
        that cannot be repeated, and stray bytes would be taken for its answer. That is one cheap system call.
        """
        idle = self.idle
        while idle:
            connection = idle.pop()
            if not connection.alive:
                continue
            if connection.disturbed():
                connection.close()
                continue
            return connection
        return None

    def forget(self, connection: Upstream) -> None:
        """A connection is gone."""
        self.open -= 1
        self._addresses.pop(connection, None)
        if connection in self.idle:
            self.idle.remove(connection)

    def note_address(self, connection: Upstream, address: str) -> None:
        """An open connection leads to this address of the endpoint's host name."""
        if connection.alive:
            self._addresses[connection] = address

    def retire_all_but(self, addresses: frozenset[str]) -> None:
        """The host name has only these addresses now. Connections to others finish their exchange and are not used
        again."""
        for connection, address in list(self._addresses.items()):
            if address not in addresses:
                connection.retire()

    def close(self) -> None:
        """Close every idle connection."""
        for connection in list(self.idle):
            connection.close()
