"""Methods that the parser does not know: any token is one (RFC 9110 §9.1)."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Client,
    Target,
    chunked,
    close_unanswered,
    echo,
    exchange,
    plain,
    request,
)
from tests.integration.workbench import bench, cut

METHODS = ["LIST", "VERSION-CONTROL", "list", "M", "GETX", "DESCRIBE", "SOURCE", "BASELINE-CONTROL", "a.b!c~d", "PUTT"]


def one_service(target: Target, more: str = "") -> str:
    return f"services:\n  user: {{ url: '{target.url}', {more} }}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("body", [None, b"", b"some body"])
async def test_any_token_is_a_method(outrider: Outrider, method: str, body: bytes | None) -> None:
    """It reaches the target as it was sent, with its body."""
    async with Target(echo) as target, outrider(one_service(target)) as proxy:
        answer = await exchange(proxy.port, request(method, "/user/x", body))
    assert answer.status == 200
    (seen,) = target.seen
    assert (seen.method, seen.path, seen.body) == (method, "/x", body or b"")


async def test_a_chunked_body_and_an_upgrade_of_such_a_method(outrider: Outrider) -> None:
    """Framing does not depend on the method; a protocol that may not be switched to is ignored, as for others."""
    head = b"LIST /user/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"
    upgrade = b"connection: upgrade\r\nupgrade: h2c\r\n"
    async with Target(echo) as target, outrider(one_service(target)) as proxy, Client(proxy.port) as client:
        for more in (b"", upgrade):
            assert (await client.call(head + more + b"\r\n" + chunked(b"ab", b"c"))).body == b"abc"
        assert (await client.call(b"LIST /user/y HTTP/1.1\r\nhost: a\r\n" + upgrade + b"\r\n")).status == 200
    assert [seen.method for seen in target.seen] == ["LIST"] * 3


async def test_such_a_method_is_not_repeated(outrider: Outrider) -> None:
    """It is not known to be safe: only a route that names it may repeat it."""
    more = "routes: [{ match: 'LIST /again', retry: { methods: [LIST] } }]"
    async with Target(close_unanswered) as target, outrider(one_service(target, more)) as proxy:
        assert (await exchange(proxy.port, request("LIST", "/user/once"))).status == 502
        assert len(target.seen) == 1
        await exchange(proxy.port, request("LIST", "/user/again"))
        assert len(target.seen) > 2


async def test_such_a_method_in_metrics(outrider: Outrider) -> None:
    """All of them are counted as one, as strangers may invent as many as they like."""
    async with Target(plain()) as target, outrider(one_service(target)) as proxy:
        for method in METHODS:
            await exchange(proxy.port, request(method, "/user/x"))
        stats = proxy.app.runtime.compiled.routes[0].stats
    assert dict(stats.requests) == {(b"_OTHER", 200, "ok"): len(METHODS)}


STREAM = (
    b"\r\nLIST /user/1 HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /user/2 HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nLIST /x H",
    b"VERSION-CONTROL /user/3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    b"6\r\n\r\n\r\nLI\r\n1d\r\nLIST /user/x HTTP/1.1\r\n\r\nLIST\r\n0\r\nx-t: 1\r\n\r\n",
    b"GETX /user/4 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nab\n",
    b"\r\n\r\nDESCRIBE /user/5 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    b"content-length: 2\r\n\r\nab",
    b"LIST /user/6 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    b"PURGE /user/7 HTTP/1.1\r\nhost: a\r\n\r\n",
    b"unlisted /user/8 HTTP/1.1\r\nhost: a\r\n\r\n",
)
EXPECTED = [
    (b"LIST", b"/1", b""),
    (b"POST", b"/2", b"LIST /x H"),
    (b"VERSION-CONTROL", b"/3", b"\r\n\r\nLI" + b"LIST /user/x HTTP/1.1\r\n\r\nLIST"),
    (b"GETX", b"/4", b"ab\n"),
    (b"DESCRIBE", b"/5", b"ab"),
    (b"LIST", b"/6", b""),
    (b"PURGE", b"/7", b""),
    (b"unlisted", b"/8", b""),
]


def test_wherever_a_stream_of_such_requests_is_cut() -> None:
    """At any one place, into single bytes, or not at all: the target gets the same requests, in order."""
    whole = b"".join(STREAM)
    cuts = [set(), set(range(1, len(whole))), *({place} for place in range(1, len(whole)))]
    with bench() as table:
        for places in cuts:
            got = table.run(cut(whole, places))
            assert [(one.method, one.target, bytes(one.body)) for one in got.requests] == EXPECTED, places
            assert [one.status for one in got.answers] == [200] * len(EXPECTED), places


def test_what_follows_a_request_of_such_a_method_is_not_lost() -> None:
    """A malformed one behind it is refused, and nothing of it reaches the target."""
    for bad in (b"get /user/x HTTP/1.1\r\nhost: a\r\n\r\n", b"(LIST) /user/x HTTP/1.1\r\n\r\n", b"LIST" * 40):
        with bench() as table:
            got = table.run((STREAM[0] + bad,))
            assert [one.method for one in got.requests] == [b"LIST"]
            assert [one.status for one in got.answers] == [200, 400]
