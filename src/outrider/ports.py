"""Every port of a configuration, bound: all of them, or none and a line that says why."""

from __future__ import annotations

import errno
import socket

from outrider.config.resolve import Resolved
from outrider.controlplane.intercom import ADMIN, TELEMETRY
from outrider.errors import StartError

_BACKLOG = 1024
CALLS, INBOUND = "listen", "inbound.listen"


def bind_all(resolved: Resolved) -> dict[str, socket.socket]:
    """Listening sockets by the key of the configuration that asks for them. Raises StartError, with everything
    closed again."""
    bound: dict[str, socket.socket] = {}
    try:
        for key, address in _wanted(resolved):
            bound[key] = _bind(key, address)
    except StartError:
        for one in bound.values():
            one.close()
        raise
    return bound


def port_key(service: str) -> str:
    """The key of a service's own port."""
    return f"services.{service}.port"


def _wanted(resolved: Resolved) -> list[tuple[str, tuple[str, int]]]:
    config = resolved.config
    wanted = [(TELEMETRY, config.telemetry.listen), (ADMIN, config.admin.listen), (CALLS, config.listen)]
    if config.inbound is not None:
        wanted.append((INBOUND, config.inbound.listen))
    dedicated = [(port_key(one.name), ("127.0.0.1", one.port)) for one in resolved.services if one.port is not None]
    return wanted + dedicated


def _bind(key: str, address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        # [::] is every address, of both families, as it is for most programs; one IPv6 address is just that.
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        bound = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        saying = _SAYINGS.get(error.errno or 0) or (
            "is not a known host" if isinstance(error, socket.gaierror) else str(error.strerror or error)
        )
        raise StartError(f"{key}: {address[0]}:{address[1]} {saying}") from None
    # Accepted sockets inherit it (tcp(7)): no write of ours waits for the other side to acknowledge the one before.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bound.setblocking(False)
    return bound


_SAYINGS = {
    errno.EADDRINUSE: "is already in use by another process",
    errno.EACCES: "may not be opened by this user",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
}
