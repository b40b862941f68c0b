"""How the HTTP clients of the control plane connect: by the names of the data plane, each looked up for itself.

The library's own resolver uses the event loop's few threads for all names: one slow name would hold up key sets, tokens
and health checks alike. This module is imported late, as the library takes long to import.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from outrider.dataplane.runtime.names import Names, UnresolvedError

# Seconds; each client has a shorter limit of its own for everything together.
_TIMEOUT = 10.0


class NamesResolver(AbstractResolver):
    """Finds addresses where connections for calls find them. With no `names`, it has its own, which end with it."""

    def __init__(self, names: Names | None = None) -> None:
        self._names = names if names is not None else Names()
        self._own = names is None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of one family or of all, the one to try first at the front. Raises OSError."""
        try:
            addresses = await self._names.find(host, port, _TIMEOUT)
        except UnresolvedError as error:
            if error.local:
                raise OSError(errno.EAGAIN, str(error)) from None
            raise socket.gaierror(socket.EAI_AGAIN, str(error)) from None
        found = [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]
        return [one for one in found if family in (socket.AF_UNSPEC, one["family"])]

    async def close(self) -> None:
        """Look nothing up any more."""
        if self._own:
            self._names.close()


def connector(names: Names | None = None, **options: Any) -> aiohttp.TCPConnector:
    """What a client session connects with; `options` are those of the library."""
    return aiohttp.TCPConnector(resolver=NamesResolver(names), use_dns_cache=False, **options)
