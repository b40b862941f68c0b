"""Requests and answers that are not what they should be: refused, closed, and never passed on half understood."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
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
)


def config(target: Target, more: str = "retry: false, circuit_breaker: false") -> str:
    return f"services:\n  user: {{ url: '{target.url}', {more} }}"


# ---------------------------------------------------------------- requests

H = b"Host: a\r\n"
P = b"POST /user/x HTTP/1.1\r\nHost: a\r\n"
G = b"GET /user/x HTTP/1.1\r\nHost: a\r\n"
MALFORMED = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "method without end": (b"FROBNICATE" * 7, 400),
    "other protocol": (b"OPTIONS /user/x RTSP/1.0\r\n" + H + b"\r\n", 400),
    "other protocol and its method": (b"DESCRIBE /user/x RTSP/1.0\r\n" + H + b"\r\n", 400),
    "other protocol and unknown method": (b"FROBNICATE /user/x RTSP/1.0\r\n" + H + b"\r\n", 400),
    "ICE": (b"SOURCE /user/x ICE/1.0\r\n" + H + b"\r\n", 400),
    "separator in the method": (b"GE(T /user/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "lower-case trace": (b"trace /user/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "mixed case": (b"Post /user/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "lower-case method": (b"get /user/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "no version": (b"GET /user/x\r\n" + H + b"\r\n", 505),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "version 2.0": (b"GET /user/x HTTP/2.0\r\n" + H + b"\r\n", 505),
    "version 1.2": (b"GET /user/x HTTP/1.2\r\n" + H + b"\r\n", 400),
    "version 0.9": (b"GET /user/x HTTP/0.9\r\n" + H + b"\r\n", 505),
    "space in the target": (b"GET /user/a b HTTP/1.1\r\n" + H + b"\r\n", 400),
    "fragment": (b"GET /user/x#f HTTP/1.1\r\n" + H + b"\r\n", 400),
    "raw bytes in the target": (b"GET /user/\xc3\xa9 HTTP/1.1\r\n" + H + b"\r\n", 400),
    "control byte in the target": (b"GET /user/\x01 HTTP/1.1\r\n" + H + b"\r\n", 400),
    "no path": (b"GET user/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "asterisk for GET": (b"GET * HTTP/1.1\r\n" + H + b"\r\n", 400),
    "https target": (b"GET https://user/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "credentials in the target": (b"GET http://u:p@user/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "no Host": (b"GET /user/x HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (G + b"Host: b\r\n\r\n", 400),
    "two equal Hosts": (G + H + b"\r\n", 400),
    "bad Host": (b"GET /user/x HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "Host with credentials": (b"GET /user/x HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "bare LF": (b"GET /user/x HTTP/1.1\nHost: a\n\n", 400),
    "bare LF in the head": (G + b"X-A: 1\nX-B: 2\r\n\r\n", 400),
    "bare CR in a value": (G + b"X-A: 1\rX-B: 2\r\n\r\n", 400),
    "NUL in a value": (G + b"X-A: \x00\r\n\r\n", 400),
    "folded field": (G + b"X-A: 1\r\n 2\r\n\r\n", 400),
    "space before the colon": (G + b"X-A : 1\r\n\r\n", 400),
    "space in a name": (G + b"X A: 1\r\n\r\n", 400),
    "no colon": (G + b"X-A\r\n\r\n", 400),
    "empty name": (G + b": 1\r\n\r\n", 400),
    "leading space": (b"GET /user/x HTTP/1.1\r\n X-A: 1\r\n" + H + b"\r\n", 400),
    "length and chunked": (P + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked and length": (P + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (P + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "two equal lengths": (P + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "list of lengths": (P + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "negative length": (P + b"Content-Length: -3\r\n\r\n", 400),
    "signed length": (P + b"Content-Length: +3\r\n\r\nabc", 400),
    "hex length": (P + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "empty length": (P + b"Content-Length: \r\n\r\n", 400),
    "huge length": (P + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
    "gzip": (P + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "gzip, chunked": (P + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "chunked twice": (P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked, identity": (P + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "xchunked": (P + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "chunked in quotes": (P + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 501),
    "vertical tab before chunked": (P + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "chunked in HTTP/1.0": (b"POST /user/x HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "bad chunk size": (P + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", 400),
    "signed chunk size": (P + b"Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size overflow": (P + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
    "chunk without end": (P + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
    "chunk lines with bare LF": (P + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", 400),
    "CONNECT": (b"CONNECT user:80 HTTP/1.1\r\n" + H + b"\r\n", 405),
    "TRACE": (b"TRACE /user/x HTTP/1.1\r\n" + H + b"\r\n", 405),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_request_reaches_nobody(outrider: Outrider, case: str) -> None:
    """It is refused with a reason, the connection ends, and what follows on it is not taken for a request."""
    data, status = MALFORMED[case]
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(data)
        answer = await client.answer()
        await client.send(request("POST", "/user/smuggled", b"charge"))
        assert await client.end() in ("eof", "reset")
        await asyncio.sleep(0.005)
    problem = json.loads(answer.body)
    assert target.seen == []
    assert answer.get("connection") == "close"
    assert 400 <= answer.status < 600
    assert (answer.status, problem["status"], problem["origin"]) == (status, status, "caller")
    assert problem["detail"]


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_request_in_pieces_reaches_nobody(outrider: Outrider, case: str) -> None:
    """Where the segments end makes no difference to what is refused; a body that turns bad later may have begun."""
    data, status = MALFORMED[case]
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for start in range(0, len(data), 3):
            await client.send(data[start : start + 3])
            await asyncio.sleep(0)
        answer = await client.answer()
        assert await client.end() in ("eof", "reset")
        await eventually(lambda: not target.busy, "the target gave up")
    assert answer.status == status
    assert not any(seen.complete for seen in target.seen)


@pytest.mark.parametrize("case", ["gzip, chunked", "chunked in HTTP/1.0", "length and chunked", "huge length", "TRACE"])
async def test_a_refusal_is_heard_by_an_app_that_is_still_sending(outrider: Outrider, case: str) -> None:
    """Closing at once would reset the connection and take the answer with it (RFC 9112 §9.6)."""
    data, status = MALFORMED[case]
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(data)
        for _ in range(20):
            await client.send(b"x" * 1000)
            await asyncio.sleep(0.001)
        assert (await client.answer()).status == status
    assert target.seen == []


async def test_options_asterisk_needs_a_service(outrider: Outrider) -> None:
    """`OPTIONS *` is passed on as it is, when it is clear to whom."""
    async with Target(plain()) as target, outrider(config(target)) as proxy:
        answer = await exchange(proxy.port, b"OPTIONS * HTTP/1.1\r\nHost: user\r\n\r\n")
        lost = await exchange(proxy.port, b"OPTIONS * HTTP/1.1\r\nHost: nobody.test\r\n\r\n")
    assert (answer.status, lost.status) == (200, 502)
    assert [(seen.method, seen.path) for seen in target.seen] == [("OPTIONS", "*")]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(get("/nobody/x"), id="path"),
        pytest.param(get("/"), id="root"),
        pytest.param(get("/User/x"), id="case"),
        pytest.param(get("/%75ser/x"), id="encoded"),
        pytest.param(get("//user/x"), id="double slash"),
        pytest.param(get("/./user/x"), id="dot"),
        pytest.param(get("/user/x", "x-outrider-service: nobody"), id="header"),
        pytest.param(get("http://nobody.test/user/x", host="user"), id="absolute"),
    ],
)
async def test_an_unknown_service_is_never_a_404(outrider: Outrider, data: bytes) -> None:
    """An app reads 404 as "no such user": a name nobody configured is 502, and says which names there are."""
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answer = await client.call(data)
        assert (await client.call(get("/user/x"))).status == 200
    problem = json.loads(answer.body)
    assert (answer.status, problem["error"], problem["origin"]) == (502, "UNKNOWN_SERVICE", "caller")
    assert "user" in problem["detail"]
    assert "error=destination_not_found" in (answer.get("proxy-status") or "")
    assert len(target.seen) == 1


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_tunnels_and_echoes_are_refused(outrider: Outrider, method: str) -> None:
    """CONNECT would go around us, and TRACE would show the app our credentials."""
    path = "user:443" if method == "CONNECT" else "/user/x"
    async with Target(plain()) as target, outrider(config(target)) as proxy:
        answer = await exchange(proxy.port, f"{method} {path} HTTP/1.1\r\nHost: user\r\n\r\n".encode())
    assert (answer.status, target.seen) == (405, [])


NOT_SWITCHED = {
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
    "list with h2c": ("Connection: Upgrade", "Upgrade: websocket, h2c"),
    "not a protocol": ("Connection: Upgrade", "Upgrade: web socket"),
}


@pytest.mark.parametrize("lines", NOT_SWITCHED.values(), ids=NOT_SWITCHED)
@pytest.mark.parametrize("framing", ["none", "length", "chunked"])
@pytest.mark.parametrize("step", [0, 50, 7])
async def test_an_upgrade_is_ignored(outrider: Outrider, lines: tuple[str, ...], framing: str, step: int) -> None:
    """The request is carried as plain HTTP/1.1, body and all, and the next one on the connection, too."""
    if framing == "none":
        data, body = get("/user/x", *lines), b""
    elif framing == "length":
        data, body = (
            request("POST", "/user/x", b"GET /user/evil HTTP/1.1\r\n\r\n", *lines),
            b"GET /user/evil HTTP/1.1\r\n\r\n",
        )
    else:
        data = request("POST", "/user/x", None, *lines, "Transfer-Encoding: chunked") + chunked(b"one", b"two")
        body = b"onetwo"
    data += get("/user/next")
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for start in range(0, len(data), step or len(data)):
            await client.send(data[start : start + (step or len(data))])
            await asyncio.sleep(0)
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    assert [seen.path for seen in target.seen] == ["/x", "/next"]
    assert target.seen[0].body == body
    assert not target.seen[0].names() & {"upgrade", "connection", "http2-settings"}


async def test_empty_lines_before_a_request_are_skipped(outrider: Outrider) -> None:
    """RFC 9112 §2.2: some old clients send an extra line end after a body."""
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(request("POST", "/user/x", b"a") + b"\r\n" + get("/user/y"))
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
    assert [seen.path for seen in target.seen] == ["/x", "/y"]


async def test_a_body_that_looks_like_a_request_is_a_body(outrider: Outrider) -> None:
    """What is inside the declared length is never read as a request."""
    inner = request("POST", "/user/inner", b"charge")
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.call(request("POST", "/user/x", inner))
        await client.call(request("GET", "/user/y", inner))
    assert [(seen.path, seen.body) for seen in target.seen] == [("/x", inner), ("/y", inner)]


# ---------------------------------------------------------------- answers

OK = b"HTTP/1.1 200 OK\r\n"
BAD_ANSWERS = {
    "a tab behind chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\t\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a length of many digits": b"HTTP/1.1 200 OK\r\nContent-Length: %b2\r\n\r\nok" % (b"0" * 30),
    "garbage": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "http/0.9": b"<html>hello</html>",
    "version 2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
    "status 000": b"HTTP/1.1 000 Zero\r\nContent-Length: 2\r\n\r\nok",
    "status 099": b"HTTP/1.1 099 Low\r\nContent-Length: 2\r\n\r\nok",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\nok",
    "request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "folded field": OK + b"X-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok",
    "space before the colon": OK + b"Content-Length : 2\r\n\r\nok",
    "NUL in a value": OK + b"X-A: \x00\r\nContent-Length: 2\r\n\r\nok",
    "bare CR in a value": OK + b"X-A: 1\rX-B: 2\r\nContent-Length: 2\r\n\r\nok",
    "CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok",
    "length and chunked": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "two equal lengths": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nok",
    "negative length": OK + b"Content-Length: -2\r\n\r\nok",
    "signed length": OK + b"Content-Length: +2\r\n\r\nok",
    "huge length": OK + b"Content-Length: 99999999999999999999999\r\n\r\nok",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "gzip": OK + b"Transfer-Encoding: gzip\r\n\r\nok",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "bad chunk size": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
    "chunk size overflow": OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok",
    "unsolicited 101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
    "unsolicited bare 101": b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello",
    "another protocol": b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "another protocol behind an interim": b"HTTP/1.1 103 E\r\n\r\nICE/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "huge head": OK + b"X-A: " + b"x" * 100_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "too many fields": OK + b"X-A: 1\r\n" * 500 + b"Content-Length: 2\r\n\r\nok",
    "endless head": OK + b"X-A: 1\r\n" * 20_000,
    "partial head": OK + b"Content-Le",
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ANSWERS)
async def test_a_malformed_answer_is_a_502(outrider: Outrider, case: str) -> None:
    """The app hears what was wrong, nothing of the answer, and the connection to the target is not used again."""
    script = [raw(BAD_ANSWERS[case], then="close"), plain(200, b"good")]
    async with Target(script) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answer = await client.call(request("POST", "/user/x", b"charge"))
        after = await client.call(get("/user/y"))
    problem = json.loads(answer.body)
    assert (answer.status, problem["status"]) == (502, 502)
    assert problem["error"] in ("INVALID_RESPONSE", "INCOMPLETE_RESPONSE")
    assert problem["detail"]
    assert "outrider; error=http_" in (answer.get("proxy-status") or "")
    assert (after.status, after.body) == (200, b"good")
    assert [seen.connection for seen in target.seen] == [1, 2]


@pytest.mark.parametrize("case", [case for case in BAD_ANSWERS if len(BAD_ANSWERS[case]) < 300])
async def test_a_malformed_answer_in_pieces_never_passes_for_a_good_one(outrider: Outrider, case: str) -> None:
    """Where the segments end makes no difference: 502, or an answer that visibly breaks off."""
    data = BAD_ANSWERS[case]
    half = len(data) // 2
    script = [in_steps(data[:half], data[half:], pause=0.005, then="close"), plain(200, b"good")]
    async with Target(script) as target, outrider(config(target)) as proxy:
        try:
            answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
        except BrokenError:
            pass
        else:
            assert answer.status == 502
        assert (await exchange(proxy.port, get("/user/y"))).body == b"good"
    assert [seen.connection for seen in target.seen] == [1, 2]


EXTRA = {
    "garbage": b"garbage",
    "whole answer": response(200, b"poison"),
    "half answer": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoi",
    "line end": b"\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: poison\r\n\r\n",
}
ENDS = {
    "length": response(200, b"mine"),
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n",
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n",
}


@pytest.mark.parametrize("when", ["together", "right after", "later"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("extra", EXTRA)
async def test_extra_bytes_never_reach_another_call(outrider: Outrider, extra: str, end: str, when: str) -> None:
    """What a target sends beyond its answer is nobody's answer, and the next call gets its own."""
    first, rest = ENDS[end], EXTRA[extra]
    if when == "together":
        said = raw(first + rest)
    else:
        said = in_steps(first, rest, pause=0.0 if when == "right after" else 0.02)
    async with Target([said, plain(200, b"next")]) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            answer = await client.call(get("/user/x"))
            assert answer.body in (b"mine", b"")
            if when != "together":
                await asyncio.sleep(0.04)
            for method in ("POST", "GET"):
                after = await client.call(request(method, "/user/y", b""))
                assert (after.status, after.body, after.interims) == (200, b"next", [])


@pytest.mark.parametrize("extra", ["garbage", "whole answer", "interim"])
async def test_a_body_for_head_never_reaches_another_call(outrider: Outrider, extra: str) -> None:
    """A target that sends a body with its answer to HEAD does not poison what follows."""
    said = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(EXTRA[extra]) + EXTRA[extra]
    async with Target([raw(said), plain(200, b"next")]) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            assert (await client.call(request("HEAD", "/user/x"))).body == b""
            for method in ("POST", "GET"):
                assert (await client.call(request(method, "/user/y", b""))).body == b"next"


@pytest.mark.parametrize("first", ["request", "poison"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_bytes_waiting_on_an_idle_connection_answer_nobody(outrider: Outrider, method: str, first: str) -> None:
    """An answer that was already lying in wait before the request was sent cannot be the answer to it."""
    idle: list[Exchange] = []

    async def first_then_stay(one: Exchange) -> None:
        await one.send(response(200, b"mine"))
        idle.append(one)

    async def by_path(one: Exchange) -> None:
        await (first_then_stay if one.request.path == "/x" else plain(200, b"next"))(one)

    async with Target(by_path) as target, outrider(config(target)) as proxy:
        for _ in range(20):
            async with Client(proxy.port) as client:
                await client.call(get("/user/x"))
                # Both reach the kernel before Outrider looks again, in either order.
                writes = [
                    (client.writer, request(method, "/user/y", b"")),
                    (idle.pop().writer, response(200, b"poison")),
                ]
                for writer, data in writes if first == "request" else writes[::-1]:
                    writer.write(data)
                assert (await client.answer()).body == b"next"


async def test_the_answer_of_a_timed_out_call_reaches_nobody(outrider: Outrider) -> None:
    """A late answer is not taken for the answer to the next call."""

    async def late(one: Exchange) -> None:
        await asyncio.sleep(0.1)
        await one.send(response(200, b"late"))

    more = "attempt_timeout: 50ms, retry: false, circuit_breaker: false"
    async with Target([late, plain(200, b"next")]) as target, outrider(config(target, more)) as proxy:
        async with Client(proxy.port) as client:
            assert (await client.call(get("/user/x"))).status == 504
            for _ in range(20):
                assert (await client.call(get("/user/y"))).body == b"next"
                await asyncio.sleep(0.005)
