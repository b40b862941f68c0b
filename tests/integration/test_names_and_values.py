"""Names and values of fields: what is part of a value, which names are one to some reader, and what many cost."""

from __future__ import annotations

import json
from time import thread_time

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import Target, exchange, get, plain, raw

KEY = "key-of-the-platform-0123456789abcdef"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# What CGI-style servers read as one with a dash (RFC 3875 §4.1.18).
MARKS = "._~!#$%&'*+^`|"


def guarded(app: Target, more: str = "") -> str:
    return f"""
inbound:
  listen: 127.0.0.1:0
  app: '{app.url}'
  accept: [{{ header: x-api-key, values: [{KEY}], caller: web }}]
  {more}
services: {{ other: 'http://127.0.0.1:9' }}
"""


@pytest.mark.parametrize("behind", [" ", "\t", " \t ", "   "])
async def test_blanks_behind_a_value_are_no_part_of_it(outrider: Outrider, behind: str) -> None:
    """They are taken off where the head is read (RFC 9110 §5.5): a key is the right key, an id the same id, a user the
    same user to a rate limit, and the app gets the value alone."""
    more = "rate_limit: { rate: 1/h, burst: 1, key: 'header:x-user-id' }"
    async with Target(plain()) as app, outrider(guarded(app, more)) as proxy:
        port = proxy.app.ports["inbound.listen"]
        lines = [f"x-api-key: {KEY}{behind}", f"x-correlation-id: abc{behind}", f"traceparent: {TRACE}{behind}"]
        first = await exchange(port, get("/x", *lines, f"x-user-id: u1{behind}"))
        second = await exchange(port, get("/x", *lines, "x-user-id: u1"))
    assert (first.status, second.status) == (200, 429)
    (seen,) = app.seen
    assert (b"x-user-id", b"u1") in seen.headers
    assert seen.get("x-correlation-id") == "abc"
    assert seen.get("traceparent") == TRACE


async def test_blanks_behind_a_value_of_an_answer(outrider: Outrider) -> None:
    """The same the other way: what the target says is understood, and passed on without them."""
    answer = (
        b"HTTP/1.1 503 No\r\nretry-after: 1 \t\r\nx-a: b\t \r\nx-outrider-retry: off \r\ncontent-length: 2 \t\r\n\r\nno"
    )
    async with Target(raw(answer)) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        got = await exchange(proxy.port, get("/user/x"))
        assert len(target.seen) == 1  # it has said that it must not be tried again
    assert got.status == 503
    assert (got.get("x-a"), got.get("retry-after"), got.body) == ("b", "1", b"no")


@pytest.mark.parametrize("mark", MARKS)
async def test_no_mark_in_a_name_passes_for_a_dash(outrider: Outrider, mark: str) -> None:
    """What an unproven caller may not say about itself or a user, and what only Outrider says, is taken off however its
    name is written; names that mean nothing to anybody pass."""
    names = ["X-User-Id", "X-Outrider-Caller", "X-Original-Url", "X-Http-Method-Override", "X-Forwarded-For"]
    odd = [name.replace("-", mark) for name in names] + [f"X-User{mark}Id"]
    more = "protect: [/internal]\n  allow: [{ caller: web, match: '* /**' }]"
    async with Target(plain()) as app, outrider(guarded(app, more)) as proxy:
        lines = [*(f"{name}: 1" for name in odd), f"x{mark}y: 2"]
        assert (await exchange(proxy.app.ports["inbound.listen"], get("/x", *lines))).status == 200
    (seen,) = app.seen
    assert not seen.names() & {name.lower() for name in odd}
    assert seen.get(f"x{mark}y") == "2"


@pytest.mark.parametrize("mark", MARKS)
async def test_a_credential_comes_once_whatever_the_mark(outrider: Outrider, mark: str) -> None:
    """On the way out, too: the app's own `x.api.key` would be read as ours."""
    text = """
credentials: { k: { header: x-api-key, value: ours } }
defaults: { auth: k, headers: { set: { X_Tenant: t }, remove: [x-debug-all] } }
services: { user: 'URL' }
"""
    names = [name.replace("-", mark) for name in ("x-api-key", "x-tenant", "x-debug-all", "x-outrider-timeout")]
    async with Target(plain()) as target, outrider(text.replace("URL", target.url)) as proxy:
        await exchange(proxy.port, get("/user/x", *(f"{name}: theirs" for name in names)))
    (seen,) = target.seen
    assert not [value for _, value in seen.headers if value == b"theirs"]
    assert seen.get_all("x-api-key") == ["ours"]


async def test_a_targets_many_connection_fields_cost_little(outrider: Outrider) -> None:
    """Fourteen thousand of them are looked at once, and are more than a head may have."""
    fields = b"".join(b"connection: x%d\r\n" % number for number in range(14_000))
    async with Target(raw(b"HTTP/1.1 200 OK\r\n" + fields + b"content-length: 0\r\n\r\n")) as target:
        text = f"services: {{ user: {{ url: '{target.url}', retry: false }} }}\nlimits: {{ header_bytes: 1MiB }}"
        async with outrider(text) as proxy:
            started = thread_time()
            answer = await exchange(proxy.port, get("/user/x"))
            took = thread_time() - started
    assert answer.status == 502
    assert took < 0.2


async def test_what_connection_names_in_several_fields(outrider: Outrider) -> None:
    """All of them together say what ends here, both ways."""
    head = b"HTTP/1.1 200 OK\r\nconnection: x-a\r\nx-a: 1\r\nx-b: 2\r\nx-c: 3\r\nConnection: keep-alive, X-B\r\n"
    async with Target(raw(head + b"content-length: 0\r\n\r\n")) as target:
        async with outrider(f"services: {{ user: '{target.url}' }}") as proxy:
            lines = ["connection: x-d", "x-d: 1", "x-e: 2", "connection: X-E", "x-f: 3"]
            answer = await exchange(proxy.port, get("/user/x", *lines))
    assert answer.names() & {"x-a", "x-b", "x-c"} == {"x-c"}
    assert target.seen[0].names() & {"x-d", "x-e", "x-f"} == {"x-f"}


@pytest.mark.parametrize("digits", [21, 5000])
async def test_a_length_of_many_zeros(outrider: Outrider, digits: int) -> None:
    """The parser takes any number of zeros in front; what no message needs is refused."""
    async with Target(plain()) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        line = f"content-length: {'0' * digits}"
        answer = await exchange(proxy.port, f"POST /user/x HTTP/1.1\r\nhost: a\r\n{line}\r\n\r\n".encode())
    assert answer.status == 400


REFUSED = {
    "an unknown service": get("/nobody/x"),
    "a bad host": get("/user/x", host="a/b"),
    "two hosts": get("/user/x", "host: b"),
    "not HTTP": b"hello\r\n\r\n",
    "TRACE": b"TRACE /user/x HTTP/1.1\r\nhost: a\r\n\r\n",
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_without_a_route_can_be_found_again(outrider: Outrider, case: str) -> None:
    """Its body carries a correlation id: the one that was sent, or a new one."""
    text = "defaults: { correlation: { header: x-flow } }\nservices: { user: 'http://127.0.0.1:9' }"
    async with outrider(text) as proxy:
        answer = await exchange(proxy.port, REFUSED[case])
        assert len(json.loads(answer.body)["correlationId"]) == 36
        if case != "not HTTP":
            sent = REFUSED[case].replace(b"\r\n\r\n", b"\r\nX-Flow: mine\r\n\r\n")
            assert json.loads((await exchange(proxy.port, sent)).body)["correlationId"] == "mine"
