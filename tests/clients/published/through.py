"""A pytest plugin for published suites: their own test server listens where Outrider expects its target, and their
tests are told Outrider's port instead of its own. Plain HTTP only; what a suite does with TLS stays direct.

Loaded by name into the suite's own pytest, so it knows nothing of this project.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

TARGET = int(os.environ["TARGET_PORT"])
OUTRIDER = int(os.environ["OUTRIDER_PORT"])


def lead_requests_through() -> None:
    """pytest-httpbin reads the port of its server from HTTPBIN_HTTP_PORT; what it says of its URL is changed."""
    from pytest_httpbin import serve

    def url(server: Any) -> str:
        port = OUTRIDER if server.protocol == "http" else server.port
        return f"{server.protocol}://{server.host}:{port}"

    serve.Server.url = property(url)


def lead_urllib3_through() -> None:
    """urllib3 starts a server per test class, one at a time, and hands its port to the tests."""
    from dummyserver import hypercornserver

    started = hypercornserver.run_hypercorn_in_thread
    sockets = hypercornserver.Config._create_urllib3_sockets

    def on_the_port(config: Any, bind: str) -> list[socket.socket]:
        return sockets(config, bind) if config.ssl_enabled else [socket.create_server(("127.0.0.1", TARGET))]

    @contextlib.contextmanager
    def run(host: str, certs: dict[str, Any] | None, app: Any) -> Iterator[int]:
        with started(host, certs, app) as port:
            yield port if certs else OUTRIDER

    hypercornserver.Config._create_urllib3_sockets = on_the_port
    hypercornserver.run_hypercorn_in_thread = run


{"requests": lead_requests_through, "urllib3": lead_urllib3_through}[os.environ["SUITE"]]()
