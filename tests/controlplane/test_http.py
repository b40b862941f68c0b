"""The little HTTP of the telemetry port: what is a request, and what a stranger may do to it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic, thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.controlplane import servers
from outrider.controlplane.servers import ControlServer, Visitor
from outrider.controlplane.telemetry.http import Asked, PlainHandler, Reply, formed, parse


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    ("lines", "asked"),
    [
        (["GET / HTTP/1.1"], Asked("GET", "/")),
        (["GET /metrics?name=x HTTP/1.1", "Host: a"], Asked("GET", "/metrics")),
        (
            ["HEAD /metrics HTTP/1.1", "Accept: text/plain", "accept:  a/b \t"],
            Asked("HEAD", "/metrics", "text/plain, a/b"),
        ),
        (["GET http://host:1/readyz?x HTTP/1.1"], Asked("GET", "/readyz")),
        (["OPTIONS * HTTP/1.1"], Asked("OPTIONS", "/")),
        (["GET /x HTTP/1.0"], Asked("GET", "/x", last=True)),
        (["GET /x HTTP/1.1", "Connection: TE, Close"], Asked("GET", "/x", last=True)),
        (["POST /x HTTP/1.1", "Content-Length: 3"], Asked("POST", "/x", last=True)),
        (["GET /x HTTP/1.1", "Content-Length: 0"], Asked("GET", "/x")),
        (["GET /x HTTP/1.1", "Content-Length: 0", "Content-Length: 9"], Asked("GET", "/x", last=True)),
        (["GET /x HTTP/1.1", "Transfer-Encoding: chunked"], Asked("GET", "/x", last=True)),
    ],
)
def test_what_is_a_request(lines: list[str], asked: Asked) -> None:
    """Method, path and format; and whether another request may follow: not behind a body, which is not read."""
    assert parse(head(*lines)) == asked
    assert parse(b"\r\n" + head(*lines)) == asked  # RFC 9112 §2.2


@pytest.mark.parametrize(
    "lines",
    [
        [""],
        ["GET"],
        ["GET /"],
        ["GET / HTTP/2.0"],
        ["GET  / HTTP/1.1"],
        ["GET /a b HTTP/1.1"],
        ["GET /\x00 HTTP/1.1"],
        ["G(T / HTTP/1.1"],
        ["GET /\n HTTP/1.1"],
        ["GET / HTTP/1.1", "no colon"],
        ["GET / HTTP/1.1", "name : value"],
        ["GET / HTTP/1.1", ": value"],
        ["GET / HTTP/1.1", "a: b", " folded"],
        ["GET / HTTP/1.1", "a: b\rc: d"],
        ["GET / HTTP/1.1", "a: b\nc: d"],
        ["GET / HTTP/1.1", "a: \x00"],
    ],
)
def test_what_is_none(lines: list[str]) -> None:
    """Anything that is not HTTP/1 to the letter."""
    assert parse(head(*lines)) is None


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    """Whatever a stranger sends, it is a request or it is none."""
    asked = parse(data + b"\r\n\r\n")
    assert asked is None or asked.path.startswith("/")


def test_the_longest_heads_take_no_time() -> None:
    """Reading a head is linear in its length."""
    heads = [
        head("GET / HTTP/1.1", *lines)
        for lines in (["a: " + " " * 16000], ["a:b"] * 3000, ["a: " + "\t " * 8000 + "x"])
    ]
    started = thread_time()
    for one in heads:
        assert parse(one) is not None
    assert thread_time() - started < 0.03


def test_an_answer_says_how_long_it_is() -> None:
    """Length, type and date are there, also for HEAD; and the connection ends where it says so."""
    whole = formed(Reply(200, b"ok\n"), head_only=False, last=False).decode()
    assert re.fullmatch(
        r"HTTP/1\.1 200 OK\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n"
        r"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\r\nok\n",
        whole,
    )
    short = formed(Reply(405, b"no\n"), head_only=True, last=True).decode()
    assert short.endswith("Content-Length: 3\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n")


@asynccontextmanager
async def visiting(handler: PlainHandler) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Visitor]]:
    """A connection to a handler, and its visitor."""
    ours, theirs = socket.socketpair()
    server = ControlServer("telemetry.listen", handler)
    server.take(theirs)
    (visitor,) = server.visitors
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        async with asyncio.timeout(5):
            yield reader, writer, visitor
    finally:
        writer.close()
        await server.close()


async def ok(asked: Asked) -> Reply:
    return Reply(200, f"{asked.method} {asked.path}\n".encode())


async def fails(asked: Asked) -> Reply:
    raise ZeroDivisionError


async def hangs(asked: Asked) -> Reply:
    await asyncio.sleep(60)
    raise AssertionError


PAGES = {"/ok": ok, "/fails": fails, "/hangs": hangs}


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /ok", 200),
        ("HEAD /ok", 200),
        ("GET /no", 404),
        ("POST /ok", 405),
        ("DELETE /no", 404),
        ("GET /fails", 500),
    ],
)
async def test_answers(line: str, status: int) -> None:
    """A page, or why there is none; then the next request."""
    async with visiting(PlainHandler(PAGES)) as (reader, writer, _):
        for _ in range(2):
            writer.write(head(f"{line} HTTP/1.1", "Host: a"))
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert answer.startswith(f"HTTP/1.1 {status} ")
            if not line.startswith("HEAD"):
                await reader.readexactly(int(re.findall(r"Content-Length: (\d+)", answer)[0]))


async def test_requests_that_come_together_are_answered_in_order() -> None:
    """Each whole, one after the other, with turns for others in between."""
    turns = 0
    done = False

    async def other() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    async with visiting(PlainHandler({f"/{number}": ok for number in range(50)})) as (reader, writer, _):
        beside = asyncio.create_task(other())
        writer.write(b"".join(head(f"GET /{number} HTTP/1.1") for number in range(50)))
        for number in range(50):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readline() == b"GET /%d\n" % number
        done = True
        await beside
        assert turns >= 50


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /ok HTTP/1.1\r\na: " + b"x" * 20_000, 431),
        (head("GET /ok HTTP/1.1", "Content-Length: 5") + b"GET /ok HTTP/1.1\r\n\r\n", 200),
        (head("GET /ok HTTP/1.1", "Connection: close"), 200),
    ],
    ids=["nonsense", "too large", "a body", "close"],
)
async def test_what_is_unusual_is_answered_once(sent: bytes, status: int) -> None:
    """One answer that says so, and the connection is closed; what is in a body is never taken for a request."""
    async with visiting(PlainHandler(PAGES)) as (reader, writer, _):
        writer.write(sent)
        answers = await reader.read()
        assert answers.startswith(b"HTTP/1.1 %d " % status)
        assert answers.count(b"HTTP/1.1") == 1
        assert b"Connection: close" in answers


async def test_a_head_without_end_is_not_kept() -> None:
    """Of a head that is far too large little is read, and the connection ends."""
    async with visiting(PlainHandler(PAGES)) as (reader, writer, visitor):
        writer.write(b"GET /ok HTTP/1.1\r\na: " + b"x" * 3_000_000)
        with suppress(ConnectionError):
            assert (await reader.read()).count(b"HTTP/1.1") <= 1
        assert visitor.gone


async def test_a_page_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes too long is given up, and the visitor is silent from then on."""
    monkeypatch.setattr(servers, "_WORK", 0.02)
    async with visiting(PlainHandler(PAGES)) as (reader, writer, visitor):
        writer.write(head("GET /hangs HTTP/1.1"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        assert not visitor.busy
        assert visitor.spoken
        assert monotonic() - visitor.since < 5


async def test_one_that_does_not_read_gets_no_more() -> None:
    """Pages are made as they are taken: a visitor that only asks costs the memory of one answer."""
    made = 0

    async def large(asked: Asked) -> Reply:
        nonlocal made
        made += 1
        return Reply(200, bytes(1 << 20))

    async with visiting(PlainHandler({"/": large})) as (_, writer, visitor):
        writer.write(head("GET / HTTP/1.1") * 200)
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert made <= 3
        assert visitor.transport is not None
        visitor.transport.abort()
