"""Bodies that flow: large, slow, early, late, broken off, and the framing they come in."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path
from time import monotonic

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    PATIENCE,
    BrokenError,
    Client,
    Exchange,
    Target,
    chunked,
    eventually,
    exchange,
    get,
    in_steps,
    plain,
    raw,
    request,
    response,
    slow,
)

MIB = 1 << 20
BLOCK = bytes(range(256)) * 256


def config(target: Target, more: str = "", limits: str = "body_bytes: 1GiB") -> str:
    return f"limits: {{ {limits} }}\nservices:\n  user: {{ url: '{target.url}', {more} }}"


def resident() -> int:
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The most memory this process held beyond what it held at first, among the moments looked at."""

    def __init__(self) -> None:
        self._first = resident()
        self.grown = 0

    def look(self) -> None:
        self.grown = max(self.grown, resident() - self._first)


def framed(framing: str, data: bytes) -> bytes:
    return data if framing == "length" else b"%x\r\n" % len(data) + data + b"\r\n"


def framing_line(framing: str, size: int) -> str:
    return f"Content-Length: {size}" if framing == "length" else "Transfer-Encoding: chunked"


def download(framing: str, blocks: int) -> object:
    """A target that sends so many blocks."""

    async def act(one: Exchange) -> None:
        await one.body()
        await one.send(f"HTTP/1.1 200 OK\r\n{framing_line(framing, blocks * len(BLOCK))}\r\n\r\n".encode())
        for _ in range(blocks):
            await one.send(framed(framing, BLOCK))
        if framing == "chunked":
            await one.send(b"0\r\n\r\n")

    return act


async def swallow(one: Exchange) -> None:
    """A target that answers with the hash of what it got."""
    digest = hashlib.sha256()
    async for piece in one.pieces():
        digest.update(piece)
    await one.send(response(200, digest.hexdigest().encode()))


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_downloads_pass_in_little_memory(outrider: Outrider, framing: str) -> None:
    """Eight downloads of 20 MB at once arrive whole, and are never held whole."""
    blocks = 20 * MIB // len(BLOCK)
    expected = hashlib.sha256(BLOCK * blocks).digest()

    async def one(port: int, peak: Peak) -> bytes:
        digest = hashlib.sha256()
        async with Client(port) as client:
            await client.send(get("/user/x"))
            answer = await client.head()
            assert answer.framing == framing
            async for piece in client.body(answer):
                digest.update(piece)
                peak.look()
        return digest.digest()

    async with Target(download(framing, blocks)) as target, outrider(config(target)) as proxy:
        peak = Peak()
        async with asyncio.timeout(4 * PATIENCE):
            digests = await asyncio.gather(*(one(proxy.port, peak) for _ in range(8)))
    assert digests == [expected] * 8
    assert peak.grown < 40 * MIB


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_uploads_pass_in_little_memory(outrider: Outrider, framing: str) -> None:
    """Eight uploads of 20 MB at once arrive whole, and are never held whole."""
    blocks = 20 * MIB // len(BLOCK)
    expected = hashlib.sha256(BLOCK * blocks).hexdigest().encode()

    async def one(port: int, peak: Peak) -> bytes:
        async with Client(port) as client:
            await client.send(request("POST", "/user/x", None, framing_line(framing, blocks * len(BLOCK))))
            for _ in range(blocks):
                await client.send(framed(framing, BLOCK))
                peak.look()
            if framing == "chunked":
                await client.send(b"0\r\n\r\n")
            return (await client.answer()).body

    async with Target(swallow) as target, outrider(config(target)) as proxy:
        peak = Peak()
        async with asyncio.timeout(4 * PATIENCE):
            answers = await asyncio.gather(*(one(proxy.port, peak) for _ in range(8)))
    assert answers == [expected] * 8
    assert peak.grown < 40 * MIB


async def test_a_slow_reader_slows_the_target(outrider: Outrider) -> None:
    """While the app does not read, the target cannot send much; nothing is lost when it reads again."""
    sent = 0

    async def act(one: Exchange) -> None:
        nonlocal sent
        await one.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (320 * len(BLOCK)))
        for _ in range(320):
            await one.send(BLOCK)
            sent += len(BLOCK)

    async with Target(act) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port, limit=1024, receive_buffer=4096) as client:
            await client.send(get("/user/x"))
            answer = await client.head()
            await asyncio.sleep(0.3)
            held = sent
            await asyncio.sleep(0.1)
            assert sent == held < 16 * MIB
            digest = hashlib.sha256()
            async with asyncio.timeout(2 * PATIENCE):
                async for piece in client.body(answer):
                    digest.update(piece)
    assert digest.digest() == hashlib.sha256(BLOCK * 320).digest()


async def test_a_slow_target_slows_the_app(outrider: Outrider) -> None:
    """While the target does not read, the app cannot send much; nothing is lost when it reads again."""
    go = asyncio.Event()

    async def act(one: Exchange) -> None:
        await go.wait()
        await swallow(one)

    async with Target(act) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        sent = 0

        async def send() -> None:
            nonlocal sent
            await client.send(request("POST", "/user/x", None, f"Content-Length: {320 * len(BLOCK)}"))
            for _ in range(320):
                client.writer.write(BLOCK)
                await client.writer.drain()
                sent += len(BLOCK)

        sending = asyncio.create_task(send())
        await asyncio.sleep(0.3)
        held = sent
        await asyncio.sleep(0.1)
        assert sent == held < 16 * MIB
        go.set()
        async with asyncio.timeout(2 * PATIENCE):
            await sending
        answer = await client.answer()
    assert answer.body == hashlib.sha256(BLOCK * 320).hexdigest().encode()


async def test_pieces_pass_as_they_come(outrider: Outrider) -> None:
    """An event stream is not held back until it is complete."""
    step = asyncio.Event()

    async def act(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            await one.send(framed("chunked", b"data: %d\n\n" % number))
            await step.wait()
            step.clear()
        await one.send(b"0\r\n\r\n")

    async with Target(act) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(get("/user/x"))
        answer = await client.head()
        pieces = []
        async with asyncio.timeout(PATIENCE):
            async for piece in client.body(answer):
                pieces.append(piece)
                step.set()
    assert [piece for piece in pieces if piece] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


async def test_an_answer_during_the_upload_passes_at_once(outrider: Outrider) -> None:
    """A target that has decided before it has everything is heard, and the connections are not used again."""

    async def early(one: Exchange) -> None:
        await one.send(response(401, b"who are you?"))
        await one.until_closed()

    async with Target([early, plain()]) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, "Content-Length: 100000") + b"x" * 5000)
            answer = await client.answer()
            await client.send(b"x" * 5000)
            assert await client.end() in ("eof", "reset")
        assert (await exchange(proxy.port, get("/user/y"))).status == 200
    assert (answer.status, answer.body, answer.get("connection")) == (401, b"who are you?", "close")
    assert [seen.connection for seen in target.seen] == [1, 2]


async def test_an_answer_may_stream_while_the_upload_streams(outrider: Outrider) -> None:
    """Both directions flow at the same time."""

    async def act(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        async for piece in one.pieces():
            if piece:
                await one.send(framed("chunked", piece))
        await one.send(b"0\r\n\r\n")

    async with Target(act) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(request("POST", "/user/x", None, "Transfer-Encoding: chunked"))
        answer = await client.head()
        body = client.body(answer)
        async with asyncio.timeout(PATIENCE):
            for number in range(5):
                await client.send(framed("chunked", b"%d" % number))
                assert await anext(body) == b"%d" % number
            await client.send(b"0\r\n\r\n")
            assert [piece async for piece in body if piece] == []


# ---------------------------------------------------------------- Expect: 100-continue and other 1xx

EXPECT = request("POST", "/user/x", None, "Content-Length: 4", "Expect: 100-continue")


async def test_continue_of_the_target_reaches_the_app(outrider: Outrider) -> None:
    """The app's question goes to the target, and the target's 100 to the app, once."""

    async def willing(one: Exchange) -> None:
        assert one.request.get("expect") == "100-continue"
        await one.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await one.send(response(200, await one.body()))

    async with Target(willing) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(EXPECT)
        async with asyncio.timeout(PATIENCE):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"data")
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"data")


async def test_a_refusal_instead_of_continue_reaches_the_app(outrider: Outrider) -> None:
    """A target that does not want the body says so before it is sent."""

    async def unwilling(one: Exchange) -> None:
        await one.send(response(417, b"no"))

    async with Target(unwilling) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answer = await client.call(EXPECT)
        assert (answer.status, answer.body, answer.interims) == (417, b"no", [])
        assert answer.get("connection") == "close"
        assert await client.end() == "eof"


async def test_an_app_that_does_not_wait_for_continue_is_served(outrider: Outrider) -> None:
    """A body that comes along with the question is passed on, and a target may never say 100."""
    async with Target(raw(response(200, b"done"))) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            answer = await client.call(EXPECT + b"data")
            assert (answer.status, answer.interims) == (200, [])
            assert (await client.call(get("/user/y"))).status == 200
    assert target.seen[0].body == b"data"


async def test_an_app_that_tires_of_waiting_for_continue_is_served(outrider: Outrider) -> None:
    """A target that knows nothing of 100 gets the body when the app sends it after all."""
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(EXPECT)
        await asyncio.sleep(0.05)
        await client.send(b"data")
        assert (await client.answer()).status == 200
    assert target.bodies() == [b"data"]


async def test_a_question_answered_once_is_not_asked_again(outrider: Outrider) -> None:
    """When the first attempt has said 100 and failed, the second gets the body without being asked."""

    async def willing_then_gone(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await one.body()
        one.reset()

    data = EXPECT.replace(b"POST", b"PUT")
    async with Target([willing_then_gone, plain()]) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(data)
            async with asyncio.timeout(PATIENCE):
                await client.reader.readuntil(b"\r\n\r\n")
            await client.send(b"data")
            answer = await client.answer()
    assert (answer.status, answer.interims) == (200, [])
    assert target.bodies() == [b"data", b"data"]
    assert target.seen[1].get("expect") is None


async def test_a_continue_nobody_asked_for_is_dropped(outrider: Outrider) -> None:
    """Some servers always say 100; an app that did not ask is not bothered with it."""
    said = b"HTTP/1.1 100 Continue\r\n\r\n" + response(200, b"done")
    async with Target(raw(said)) as target, outrider(config(target)) as proxy:
        answer = await exchange(proxy.port, request("POST", "/user/x", b"data"))
    assert (answer.status, answer.body, answer.interims) == (200, b"done", [])


@pytest.mark.parametrize("together", [True, False])
async def test_early_hints_are_passed_on(outrider: Outrider, together: bool) -> None:
    """103 reaches the app with its fields, before the answer, however it arrives."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-hop\r\nx-hop: 1\r\n\r\n"
    said = raw(hints * 2 + response()) if together else in_steps(hints, hints, response())
    async with Target(said) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for _ in range(2):
            answer = await client.call(get("/user/x"))
            assert answer.status == 200
            assert [interim.status for interim in answer.interims] == [103, 103]
            assert answer.interims[0].headers == [(b"Link", b"</user/a.css>")]
    assert target.connections == 1


async def test_an_old_app_gets_no_interim_answers(outrider: Outrider) -> None:
    """HTTP/1.0 knows no 1xx."""
    said = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + response()
    async with Target(raw(said)) as target, outrider(config(target)) as proxy:
        answer = await exchange(proxy.port, b"GET /user/x HTTP/1.0\r\n\r\n")
    assert (answer.status, answer.interims) == (200, [])


async def test_interim_answers_and_split_heads_do_not_add_up_over_calls(outrider: Outrider) -> None:
    """What bounds one response head is not used up by the heads before it on a kept connection."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: " + b"x" * 300
    script = in_steps(head, b"\r\n\r\nok", pause=0.003)
    async with Target(script) as target, outrider(config(target, limits="header_bytes: 1KiB")) as proxy:
        async with Client(proxy.port) as client:
            statuses = [(await client.call(request("POST", "/user/x", b"charge"))).status for _ in range(10)]
    assert statuses == [200] * 10


# ---------------------------------------------------------------- framing


async def test_an_answer_to_head_has_no_body(outrider: Outrider) -> None:
    """HEAD passes the length the target announces, and the connections go on."""
    script = [raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: 1\r\n\r\n"), plain(200, b"after"),
              raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), plain(200, b"after"),
              raw(b"HTTP/1.1 404 Not Found\r\n\r\n"), plain(200, b"after")]  # fmt: skip
    async with Target(script) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answers = []
        for _ in range(3):
            answers.append(await client.call(request("HEAD", "/user/x")))
            assert (await client.call(get("/user/y"))).body == b"after"
    assert [answer.status for answer in answers] == [200, 200, 404]
    assert answers[0].get("content-length") == "5"
    assert [seen.method for seen in target.seen] == ["HEAD", "GET"] * 3
    assert target.connections == 1


async def test_own_replies_to_head_have_no_body(outrider: Outrider) -> None:
    """A refusal of a HEAD request does not upset the connection."""
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answer = await client.call(request("HEAD", "/nobody/x"))
        assert answer.status == 502
        assert (await client.call(get("/user/y"))).body == b"ok"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: 1\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
    ],
)
async def test_answers_without_body_by_status(outrider: Outrider, head: bytes) -> None:
    """204 and 304 end with their head, whatever it says, and the connections go on."""
    async with Target([raw(head), plain()]) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            answer = await client.call(get("/user/x"))
            assert (answer.status, answer.body) == (int(head[9:12]), b"")
            assert "transfer-encoding" not in answer.names()
            assert answer.status == 304 or "content-length" not in answer.names()
            assert (await client.call(get("/user/y"))).status == 200
    assert target.connections == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_body_that_ends_with_the_connection(outrider: Outrider, version: str) -> None:
    """Such a body becomes chunked for the app, so that its connection can go on."""
    head = f"HTTP/{version} 200 OK\r\nX-A: 1\r\n\r\n".encode()
    script = [in_steps(head + b"first ", b"second", then="close"), plain()]
    async with Target(script) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answer = await client.call(get("/user/x"))
        assert (answer.framing, answer.body, answer.get("x-a")) == ("chunked", b"first second", "1")
        assert (await client.call(get("/user/y"))).status == 200


async def test_a_body_that_ends_with_a_reset_is_not_complete(outrider: Outrider) -> None:
    """A read-until-close answer that ends in a reset is broken for the app, too."""
    script = in_steps(b"HTTP/1.1 200 OK\r\n\r\nfirst", then="reset", pause=0.05)
    async with Target(script) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        with pytest.raises(BrokenError, match="reset"):
            await client.call(get("/user/x"))


@pytest.mark.parametrize("steps", [True, False])
async def test_chunks_are_framed_anew(outrider: Outrider, steps: bool) -> None:
    """Chunk extensions and trailers end here; the content does not change."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n"
    body = [b"5;ext=1\r\nhello\r\n", b"00006\r\n world\r\n", b"0\r\nX-Sum: 1\r\nSet-Cookie: late=1\r\n\r\n"]
    said = in_steps(head, *body) if steps else raw(head + b"".join(body))
    async with Target(said) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for _ in range(2):
            answer = await client.call(get("/user/x"))
            assert (answer.framing, answer.body) == ("chunked", b"hello world")
            assert not answer.names() & {"x-sum", "trailer", "set-cookie", "content-length"}
    assert target.connections == 1


WITH_TRAILERS = (
    b"HTTP/1.1 200 OK\r\nTrailer: X-Sum, Set-Cookie, Content-Length, Unsent\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nok\r\n0\r\nX-Sum: 42\r\nSet-Cookie: a=b\r\nX-Unannounced: 1\r\n\r\n"
)


@pytest.mark.parametrize("steps", [1, 7, 1000])
async def test_trailers_reach_an_app_that_takes_them(outrider: Outrider, steps: int) -> None:
    """RFC 9110 §6.5.1: announced by the target, asked for by the app, and of a kind that may come late. The target is
    told that they are welcome."""
    pieces = [WITH_TRAILERS[at : at + steps] for at in range(0, len(WITH_TRAILERS), steps)]
    async with Target(in_steps(*pieces, pause=0)) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            for _ in range(2):
                await client.send(get("/user/x", "TE: trailers", "Connection: TE"))
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert b"trailer: unsent, x-sum\r\n" in head
                rest = await client.reader.readuntil(b"0\r\nX-Sum: 42\r\n\r\n")
                assert re.sub(rb"[^ok]", b"", rest.partition(b"0\r\n")[0]) == b"ok"
    assert target.seen[0].get("te") == "trailers"
    assert target.seen[0].get("connection") == "te"


@pytest.mark.parametrize("lines", [("TE: trailers",), ("TE: gzip", "Connection: TE"), ()])
async def test_trailers_are_dropped_for_others(outrider: Outrider, lines: tuple[str, ...]) -> None:
    """An app that has not asked, or not for this connection, gets an answer without any."""
    async with Target(raw(WITH_TRAILERS)) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for _ in range(2):
            answer = await client.call(get("/user/x", *lines))
            assert answer.body == b"ok"
            assert not answer.names() & {"trailer", "x-sum"}
    assert not target.seen[0].names() & {"te", "connection"}


async def test_request_trailers_end_here(outrider: Outrider) -> None:
    """Fields after the app's body are neither passed on nor mixed with its head."""
    data = request("POST", "/user/x", None, "Transfer-Encoding: chunked")
    data += b"4;x=y\r\ndata\r\n0\r\nx-api-key: forged\r\nHost: evil\r\n\r\n"
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        assert (await client.call(data)).status == 200
        assert (await client.call(get("/user/y"))).status == 200
    assert target.seen[0].body == b"data"
    assert b"forged" not in target.seen[0].raw
    assert b"evil" not in target.seen[0].raw


@pytest.mark.parametrize("steps", [True, False])
async def test_an_old_app_gets_no_chunks(outrider: Outrider, steps: bool) -> None:
    """To HTTP/1.0 a body of unknown length ends with the connection."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    said = in_steps(head, chunked(b"one ", b"two")) if steps else raw(head + chunked(b"one ", b"two"))
    async with Target(said) as target, outrider(config(target)) as proxy:
        answer = await exchange(proxy.port, b"GET /user/x HTTP/1.0\r\n\r\n")
    assert (answer.framing, answer.body, answer.get("connection")) == ("close", b"one two", "close")
    assert (target.seen[0].get("via") or "").startswith("1.0 outrider-")


# ---------------------------------------------------------------- pipelining


async def test_an_old_app_may_keep_its_connection(outrider: Outrider) -> None:
    """HTTP/1.0 with `Connection: keep-alive`, as ApacheBench speaks it: told so in every answer, a refusal included."""
    old = b"GET /user/x HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for data in (old, old.replace(b"/user/", b"/nobody/"), old):
            answer = await client.call(data)
            assert answer.get("connection") == "keep-alive"
            assert answer.framing == "length"
        await client.send(old.replace(b"Connection: Keep-Alive\r\n", b""))
        assert (await client.answer()).get("connection") == "close"
        assert await client.end() == "eof"


async def test_an_old_app_is_not_kept_where_a_body_has_no_other_end(outrider: Outrider) -> None:
    """A chunked answer cannot be passed on as such, so its end is the end of the connection."""
    old = b"GET /user/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"one", b"two")
    async with Target(raw(answer)) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        got = await client.call(old)
        assert (got.body, got.get("connection"), got.framing) == (b"onetwo", "close", "close")


async def test_an_app_that_waits_for_leave_gets_it(outrider: Outrider) -> None:
    """RFC 9110 §10.1.1: a target that says nothing must not make the app wait for ever before it sends its body."""
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(request("POST", "/user/x", None, "Expect: 100-continue", "Content-Length: 3"))
        began = monotonic()
        assert b" 100 " in await client.reader.readuntil(b"\r\n\r\n")
        assert 0.3 < monotonic() - began < 2
        await client.send(b"abc")
        assert (await client.answer()).status == 200
    assert target.bodies() == [b"abc"]


async def test_pipelined_calls_are_answered_in_order(outrider: Outrider) -> None:
    """Requests sent all at once are carried one after the other, bodies included."""

    async def said(one: Exchange) -> None:
        body = await one.body()
        await asyncio.sleep(0.01 if one.request.path.endswith("1") else 0)
        await one.send(response(200, one.request.path.encode() + body))

    data = b"".join(
        request("POST", f"/user/{n}", b"b%d" % n) if n % 3 else get(f"/user/{n}") for n in range(12)
    ) + request("POST", "/user/12", None, "Transfer-Encoding: chunked") + chunked(b"c", b"d")  # fmt: skip
    async with Target(said) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(data)
        bodies = [(await client.answer()).body for _ in range(13)]
    assert bodies == [b"/%d" % n + (b"b%d" % n if n % 3 else b"") for n in range(12)] + [b"/12cd"]
    assert (target.connections, target.most_busy) == (1, 1)


async def test_pipelined_calls_in_small_pieces(outrider: Outrider) -> None:
    """Where the segments end makes no difference."""
    data = b"".join(request("POST", f"/user/{n}", b"body %d" % n) for n in range(5))

    async def said(one: Exchange) -> None:
        await one.send(response(200, await one.body()))

    async with Target(said) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for start in range(0, len(data), 7):
            await client.send(data[start : start + 7])
            await asyncio.sleep(0)
        assert [(await client.answer()).body for _ in range(5)] == [b"body %d" % n for n in range(5)]


async def test_a_refusal_between_pipelined_calls_takes_its_turn(outrider: Outrider) -> None:
    """An own reply to the second of three is sent second, and the third is carried."""
    data = get("/user/1") + get("/nobody/2") + get("/user/3")
    async with Target([slow(0.05), plain()]) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(data)
            assert [(await client.answer()).status for _ in range(3)] == [200, 502, 200]


@pytest.mark.parametrize(
    "bad", [b"GARBAGE\r\n\r\n", b"GET /user/x HTTP/1.1\r\n\r\n", b"GET /user/x HTTP/1.1\r\nBad Name: 1\r\n\r\n"]
)
async def test_a_malformed_request_between_pipelined_calls(outrider: Outrider, bad: bytes) -> None:
    """The calls before it are answered, then it is refused, and nothing after it is carried."""
    data = get("/user/1") + get("/user/2") + bad + get("/user/4")
    async with Target([slow(0.05), plain()]) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(data)
            answers = [await client.answer() for _ in range(3)]
            assert await client.end() in ("eof", "reset")
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert [seen.path for seen in target.seen] == ["/1", "/2"]


async def test_nothing_after_connection_close_is_carried(outrider: Outrider) -> None:
    """A request that said it is the last one is the last one."""
    data = get("/user/1", "Connection: close") + request("POST", "/user/2", b"charge")
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answer = await client.call(data)
        assert (answer.status, answer.get("connection")) == (200, "close")
        assert await client.end() in ("eof", "reset")
    assert len(target.seen) == 1


# ---------------------------------------------------------------- answers that break off

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CUT = {
    "length": (LENGTH + b"half",),
    "chunked": (CHUNKED + b"64\r\nhalf",),
    "between chunks": (CHUNKED + b"4\r\nhalf\r\n",),
    "broken chunk": (CHUNKED + b"4\r\nhalf\r\n", b"zz\r\n"),
}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("cut", CUT)
async def test_a_truncated_answer_is_visibly_broken(outrider: Outrider, cut: str, how: str, version: str) -> None:
    """Whatever the framing, the app cannot take half an answer for a whole one."""
    script = in_steps(*CUT[cut], then=how, pause=0.02)
    async with Target(script) as target, outrider(config(target, "retry: false")) as proxy:
        async with Client(proxy.port) as client:
            with pytest.raises(BrokenError, match="reset"):
                await client.call(f"GET /user/x HTTP/{version}\r\nHost: a\r\n\r\n".encode())
        await eventually(lambda: proxy.outcomes() == {"upstream_error": 1}, "the outcome")
    assert len(target.seen) == 1


async def test_an_answer_broken_in_its_first_segment_is_a_502(outrider: Outrider) -> None:
    """As long as nothing has been passed on, the app hears in words that the answer was unusable."""
    script = raw(CHUNKED + b"4\r\nhalf\r\nzz\r\n", then="close")
    async with Target(script) as target, outrider(config(target, "retry: false")) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
    assert (answer.status, b"half" in answer.body) == (502, False)


async def test_a_truncated_answer_counts_for_the_breaker(outrider: Outrider) -> None:
    """Five answers that break off open the circuit, although all said 200."""
    async with Target(in_steps(*CUT["length"], then="close")) as target, outrider(config(target)) as proxy:
        for _ in range(5):
            with pytest.raises(BrokenError):
                await exchange(proxy.port, get("/user/x"))
        await eventually(lambda: proxy.breaker_state() == "open", "an open circuit")
