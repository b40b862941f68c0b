"""No write waits for the other side to acknowledge the one before (TCP_NODELAY, tcp(7)), on any connection of ours."""

from __future__ import annotations

import os
import socket

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import Client, Target, get, plain
from tests.integration.test_tls import Authority, authority, trusting  # noqa: F401 # a fixture


def no_delay(port: int, *, dialled: bool) -> list[bool]:
    """Of the connected sockets of this process with this port, here or at the other end: whether they have the
    option."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(number))) as one:
                if one.type == socket.SOCK_STREAM and one.family == socket.AF_INET:
                    end = one.getpeername() if dialled else (one.getpeername(), one.getsockname())[1]
                    if end[1] == port:
                        found.append(bool(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        except OSError:
            continue  # no socket, or not connected
    return found


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_no_write_waits_for_an_acknowledgement(outrider: Outrider, authority: Authority, secure: bool) -> None:  # noqa: F811
    """Neither to the app, nor to callers of the guard, nor to targets, with TLS and without."""
    cert, key = authority.files("guard", "localhost")
    tls = f"tls: {{ ca: {authority.file} }}" if secure else ""
    server = f"tls: {{ cert: {cert}, key: {key} }}" if secure else ""
    async with Target(plain(), tls=authority.server() if secure else None) as target, Target(plain()) as app:
        text = (
            f"services: {{ user: {{ url: '{target.url}', {tls} }} }}\n"
            f"inbound: {{ listen: '127.0.0.1:0', app: '{app.url}', protect: [], {server} }}"
        )
        async with outrider(text) as proxy:
            guard = proxy.app.ports["inbound.listen"]
            async with Client(proxy.port) as one, Client(guard, tls=trusting(authority) if secure else None) as other:
                assert (await one.call(get("/user/x"))).status == 200
                assert (await other.call(get("/x"))).status == 200
                assert [no_delay(port, dialled=False) for port in (proxy.port, guard)] == [[True], [True]]
                assert [no_delay(port, dialled=True) for port in (target.port, app.port)] == [[True], [True]]


async def test_listeners_hand_the_option_on(outrider: Outrider) -> None:
    """It does not depend on what an event loop does with accepted sockets."""
    async with outrider("services: { user: 'http://127.0.0.1:9' }") as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)):
            listening = next(door for door in proxy.app.listener.doors if door.port == proxy.port)
            assert listening._bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
