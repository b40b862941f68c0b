"""What only some clients do: asking before they send, speaking HTTP/1.0, closing after every call."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from time import monotonic

import pytest

from tests.clients.conftest import Outrider, need
from tests.clients.drivers import Aiohttp, Ask, Curl, Node
from tests.clients.target import SIZE, pattern

BODY = pattern(SIZE)


@pytest.fixture
def curl() -> Iterator[Curl]:
    need("curl")
    with closing(Curl()) as driver:
        yield driver


@pytest.fixture
def base(outrider: Outrider) -> str:
    return f"http://127.0.0.1:{outrider.port}/target"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_curl_asks_before_it_sends(curl: Curl, base: str, chunked: bool) -> None:
    """`Expect: 100-continue` is answered by the target's 100 at once: curl would wait 9 seconds without one."""
    ask = Ask(f"{base}/upload", "POST", [("Expect", "100-continue")], BODY, chunked)
    began = monotonic()
    answer = curl.call(ask, "--expect100-timeout", "9")
    assert (answer.status, answer.json()["length"], answer.continued) == (200, SIZE, True)
    assert monotonic() - began < 5


def test_curl_is_told_not_to_send(curl: Curl, base: str) -> None:
    """A target that says no instead of 100 spares the upload."""
    ask = Ask(f"{base}/refuse-upload", "POST", [("Expect", "100-continue")], BODY)
    began = monotonic()
    answer = curl.call(ask, "--expect100-timeout", "9")
    assert (answer.status, answer.body, answer.continued) == (413, b"too large for me", False)
    assert monotonic() - began < 5


def test_aiohttp_asks_before_it_sends(base: str) -> None:
    """aiohttp waits for the 100 for as long as it takes, so it must come."""
    with closing(Aiohttp()) as driver:
        assert driver.call(Ask(f"{base}/upload", "POST", body=BODY), expect100=True).json()["length"] == SIZE


def test_node_asks_before_it_sends(base: str) -> None:
    """Node sends its body on `continue` only."""
    need("node")
    with closing(Node("http", {})) as driver:
        answer = driver.call(Ask(f"{base}/upload", "POST", [("Expect", "100-continue")], BODY), expect=True)
    assert (answer.json()["length"], answer.continued) == (SIZE, True)


@pytest.mark.parametrize("path", ["/x", "/download", "/download?chunked", "/status/204", "/gzip"])
def test_curl_speaks_http_1_0(curl: Curl, base: str, path: str) -> None:
    """An HTTP/1.0 client gets every answer without chunks, complete at the end of the connection."""
    answer = curl.call(Ask(base + path), "--http1.0")
    assert answer.status in (200, 204)
    assert not answer.get("transfer-encoding")
    if "download" in path:
        assert answer.body == BODY


def test_curl_uploads_with_http_1_0(curl: Curl, base: str) -> None:
    """An upload with a length works in HTTP/1.0, too."""
    assert curl.call(Ask(f"{base}/upload", "POST", body=BODY), "--http1.0").json()["length"] == SIZE


def test_curl_closes_after_every_call(curl: Curl, base: str) -> None:
    """`Connection: close` is heeded and said back."""
    answer = curl.call(Ask(f"{base}/x", headers=[("Connection", "close")]))
    assert (answer.status, answer.get("connection")) == (200, "close")


def read_answer(sock: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of an answer with a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += sock.recv(65536)
    return head, body


def test_http_1_0_with_keep_alive(outrider: Outrider) -> None:
    """A client like ApacheBench asks to keep its HTTP/1.0 connection. It is kept and the answer says so, or it is
    closed: never kept in silence, as the client would wait for an end that does not come, nor closed in spite of the
    word."""
    with socket.create_connection(("127.0.0.1", outrider.port), timeout=5) as sock:
        for _ in range(3):
            sock.sendall(b"GET /target/download HTTP/1.0\r\nConnection: Keep-Alive\r\nHost: 127.0.0.1\r\n\r\n")
            head, body = read_answer(sock)
            assert head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 "))
            assert body == BODY
            if b"\r\nconnection: keep-alive" not in head.lower():
                assert sock.recv(1) == b""
                break


def test_http_1_0_without_keep_alive(outrider: Outrider) -> None:
    """Without that wish the connection ends with the answer, also for a client that sends no Host."""
    with socket.create_connection(("127.0.0.1", outrider.port), timeout=5) as sock:
        sock.sendall(b"GET /target/x HTTP/1.0\r\n\r\n")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    assert data.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 "))
    assert b"transfer-encoding" not in data.lower().partition(b"\r\n\r\n")[0]
