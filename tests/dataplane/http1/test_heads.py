"""Wire: what a head looks like on the wire, and what may never pass from one connection to another."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.call import Call
from outrider.dataplane.http1.heads import (
    CLOSE,
    KEEP,
    MOST_HOPS,
    REQUEST_OWNED,
    has_at_most,
    interim_head,
    names_in_via,
    nominated_fields,
    reply_bytes,
    status_line,
    without,
)
from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream.cluster import Endpoint
from outrider.model.messages import HOP_BY_HOP
from outrider.model.reply import Reply
from tests.fakes import make_call, make_response, sent_head

OURS = REQUEST_OWNED | {b"x-api-key", b"x-correlation-id"}


def make_endpoint(base_path: str = "") -> Endpoint:
    return Endpoint("127.0.0.1", 3001, authority="user.internal:3001", base_path=base_path, stats=ClusterStats())


def make_request(*fields: tuple[bytes, bytes], method: bytes = b"GET", path: bytes = b"/x", **parts: Any) -> Call:
    """A call with these fields, in this order, as the connection from the app reads them."""
    call = make_call(method)
    call.path = path
    call.fields = [(name.lower(), name, value) for name, value in fields]
    for name, value in parts.items():
        setattr(call, name, value)
    return call


def head(
    call: Call,
    *,
    lines: list[bytes] | None = None,
    owned: frozenset[bytes] = OURS,
    base: str = "",
    expect: bool = False,
) -> list[bytes]:
    """The lines of the head that a target gets."""
    call.expect_continue = expect
    raw = sent_head(call, owned, lines or [], make_endpoint(base))
    assert raw.endswith(b"\r\n\r\n")
    return raw[:-4].split(b"\r\n")


def names(lines: list[bytes]) -> list[bytes]:
    return [line.partition(b":")[0].lower() for line in lines[1:]]


# ---------------------------------------------------------------- requests


def test_a_plain_head() -> None:
    """Request line, the target's Host, the app's fields as they were written, and Via."""
    lines = head(make_request((b"Host", b"localhost:4100"), (b"Accept", b"*/*"), (b"X-User-Id", b"7")))
    assert lines == [
        b"GET /x HTTP/1.1",
        b"host: user.internal:3001",
        b"Accept: */*",
        b"X-User-Id: 7",
        b"via: 1.1 outrider",
    ]


def test_repeated_fields_stay_apart_and_in_order() -> None:
    """Two fields of one name are passed on as two, in their order."""
    lines = head(make_request((b"Cookie", b"a=1"), (b"X-A", b"1"), (b"cookie", b"b=2")))
    assert lines[2:5] == [b"Cookie: a=1", b"X-A: 1", b"cookie: b=2"]


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_fields_stay_behind(name: bytes) -> None:
    """A field that belongs to one connection is not passed on, however it is written."""
    for written in (name, name.upper(), name.title()):
        assert name not in names(head(make_request((written, b"x"), (b"X-A", b"1"))))


def test_fields_named_in_connection_stay_behind() -> None:
    """What `Connection` nominates is removed with it (RFC 9110 §7.6.1)."""
    call = make_request((b"Connection", b"X-Trace, close"), (b"X-Trace", b"1"), (b"X-Kept", b"2"))
    call.nominated = nominated_fields(b"X-Trace, close")
    assert names(head(call)) == [b"host", b"x-kept", b"via"]


def test_connection_cannot_remove_an_injected_field() -> None:
    """The app may nominate the credential's header; its own goes, ours is still sent."""
    call = make_request((b"X-Api-Key", b"spoofed"))
    call.nominated = nominated_fields(b"x-api-key, host, content-length, via")
    call.length = 3
    lines = head(call, lines=[b"x-api-key: secret\r\n"])
    assert b"x-api-key: secret" in lines
    assert names(lines).count(b"x-api-key") == 1
    assert {b"host", b"content-length", b"via"} <= set(names(lines))


@pytest.mark.parametrize("name", [b"X-Api-Key", b"x_api_key", b"X_Api-Key", b"X-API_KEY"])
def test_what_the_app_sends_under_our_names_is_dropped(name: bytes) -> None:
    """Also with underscores for dashes: CGI-style servers read both as one."""
    lines = head(make_request((name, b"spoofed")), lines=[b"x-api-key: secret\r\n"])
    assert [line for line in lines if b"spoofed" in line] == []
    assert b"x-api-key: secret" in lines


@pytest.mark.parametrize("name", [b"Content_Length", b"Transfer_Encoding", b"X_Outrider_Attempt"])
def test_framing_and_own_fields_cannot_be_spoofed_with_underscores(name: bytes) -> None:
    """An underscore variant of what frames the message does not reach the target."""
    assert name.lower() not in names(head(make_request((name, b"5"))))


def test_an_underscore_name_that_is_nobodys_is_passed_on() -> None:
    """Only names that would be read as one of ours are dropped."""
    assert b"user_id: 7" in head(make_request((b"user_id", b"7")))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, []),
        ({"length": 0}, [b"content-length: 0"]),
        ({"length": 12}, [b"content-length: 12"]),
        ({"chunked": True}, [b"transfer-encoding: chunked"]),
    ],
)
def test_framing_is_written_once_by_us(parts: dict[str, Any], expected: list[bytes]) -> None:
    """Whatever framing fields the app sent, exactly what was parsed is written."""
    call = make_request((b"Content-Length", b"999"), (b"Transfer-Encoding", b"gzip, chunked"), **parts)
    framing = [line for line in head(call) if line.lower().startswith((b"content-length", b"transfer-encoding"))]
    assert framing == expected


def test_expect_is_sent_only_when_asked() -> None:
    """`Expect` is ours to send: the app's own is taken out."""
    call = make_request((b"Expect", b"100-continue"))
    assert b"expect" not in names(head(call))
    assert head(call, expect=True).count(b"expect: 100-continue") == 1


def test_the_base_path_stands_before_every_path() -> None:
    """A target under a path prefix gets it on every request, except where the target is `*`."""
    assert head(make_request(path=b"/x?y=1"), base="/api")[0] == b"GET /api/x?y=1 HTTP/1.1"
    assert head(make_request(method=b"OPTIONS", path=b"*"), base="/api")[0] == b"OPTIONS * HTTP/1.1"


def test_via_tells_the_version_we_received() -> None:
    """A request from HTTP/1.0 is marked as such, behind what earlier proxies wrote (RFC 9110 §7.6.3)."""
    call = make_request((b"Via", b"1.1 edge"), minor=0)
    assert head(call)[-2:] == [b"Via: 1.1 edge", b"via: 1.0 outrider"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [b"Host", b"TE", b"X-A", b"x_a", b"X-Api-Key", b"X_API_KEY", b"Content-Length", b"Upgrade"]
            ),
            st.sampled_from([b"1", b"a, b", b""]),
        ),
        max_size=12,
    ),
    st.sets(st.sampled_from([b"x-a", b"x-api-key", b"host"])),
)
def test_nothing_of_ours_ever_comes_from_the_app(fields: list[tuple[bytes, bytes]], nominated: set[bytes]) -> None:
    """Whatever the app sends and nominates, our names appear once and with our values."""
    call = make_request(*fields)
    call.nominated = frozenset(nominated)
    lines = head(call, lines=[b"x-api-key: secret\r\n"])
    readable = [name.replace(b"_", b"-") for name in names(lines)]
    assert readable.count(b"x-api-key") == readable.count(b"host") == 1
    assert not {b"te", b"upgrade", b"content-length"} & set(readable)
    assert b"x-api-key: secret" in lines


# ---------------------------------------------------------------- Connection


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"keep-alive", set()),
        (b"Close", set()),
        (b"keep-alive, X-A", {b"x-a"}),
        (b" x-a ,X-B,close", {b"x-a", b"x-b"}),
        (b"upgrade", {b"upgrade"}),
    ],
)
def test_nominated_fields(value: bytes, expected: set[bytes]) -> None:
    """The names a `Connection` value asks to be removed, lower case; `close` and `keep-alive` name none."""
    assert nominated_fields(value) - {b""} == expected


@pytest.mark.parametrize(
    ("via", "found"),
    [
        (b"1.1 outrider", True),
        (b"1.0 a, 1.1 outrider (2), 1.1 b", True),
        (b"1.1\toutrider", True),
        (b"outrider", False),
        (b"1.1 a outrider", False),
        (b"1.1 outrider2, 1.1 notoutrider", False),
        (b"outrider 1.1,", False),
        (b"1.1 outrider" + b"," * (MOST_HOPS - 1), True),
        (b"1.1 outrider" + b"," * MOST_HOPS, False),
        (b"," * 60_000 + b"1.1 outrider", True),
    ],
)
def test_a_proxy_finds_itself_among_the_latest_hops(via: bytes, found: bool) -> None:
    """The second word of a hop is a proxy's name; of a list as long as a head, only its end is looked at."""
    assert names_in_via(via, b"outrider") is found


def test_the_elements_of_a_list_are_counted() -> None:
    """Empty elements count, too: they are what a list of nothing but commas has."""
    assert has_at_most(2, b"a, b")
    assert not has_at_most(2, b"a, b,")
    assert not has_at_most(100, b"," * 100)


def test_without_removes_whole_fields() -> None:
    """A field goes with its value and line end; the others stay as they are."""
    lines = [b"A", b": ", b"1", b"\r\n", b"B", b": ", b"a", b"\r\n", b"a", b": ", b"3", b"\r\n"]
    assert without(lines, frozenset((b"a",))) == [b"B", b": ", b"a", b"\r\n"]


# ---------------------------------------------------------------- answers


def test_status_lines_keep_the_reason_phrase() -> None:
    """A target's reason phrase passes through, standard or not, or missing."""
    response = make_response(200)
    for reason in (b"OK", b"Fine", b""):
        response.reason = reason
        assert status_line(response) == b"HTTP/1.1 200 %b\r\n" % reason
    response.status, response.reason = 799, b"Odd"
    assert status_line(response) == b"HTTP/1.1 799 Odd\r\n"


def test_an_interim_answer_has_no_framing() -> None:
    """A 1xx answer keeps its fields, but never announces a length (RFC 9110 §8.6)."""
    response = make_response(103)
    response.reason = b"Early Hints"
    response.lines = [b"Link", b": ", b"</a>", b"\r\n", b"Content-Length", b": ", b"0", b"\r\n"]
    assert interim_head(response) == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


def undated(raw: bytes) -> bytes:
    """A reply without its `Date`, which must be there once."""
    rest, found = re.subn(rb"\r\ndate: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", b"", raw)
    assert found == 1, raw
    return rest


def test_a_reply_is_whole() -> None:
    """Status line, headers, length, what else we tell, and the body."""
    raw = reply_bytes(Reply(503, [(b"a", b"1")], b"body"), b"x: y\r\n", head_only=False, ending=KEEP)
    assert undated(raw) == b"HTTP/1.1 503 Service Unavailable\r\na: 1\r\ncontent-length: 4\r\nx: y\r\n\r\nbody"


def test_a_reply_that_ends_the_connection_says_so() -> None:
    """`Connection: close` is the last field."""
    raw = reply_bytes(Reply(400), b"", head_only=False, ending=CLOSE)
    assert undated(raw) == b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def test_a_reply_to_head_announces_its_length_but_has_no_body() -> None:
    """HEAD gets the head that GET would get (RFC 9110 §9.3.2)."""
    raw = reply_bytes(Reply(502, [], b"body"), b"", head_only=True, ending=KEEP)
    assert undated(raw) == b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\n"


@pytest.mark.parametrize("status", [204, 304])
def test_a_reply_without_content_has_neither_length_nor_body(status: int) -> None:
    """After 204 and 304 the next byte belongs to the next answer, whatever body was prepared."""
    raw = reply_bytes(Reply(status, [], b'{"accepted": true}'), b"", head_only=False, ending=KEEP)
    assert b"content-length" not in raw
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "host", "sent"),
    [
        (b"/x", b"api.example.com", b"api.example.com"),
        (b"http://public.example.com:8080/x", b"other", b"public.example.com:8080"),
        (b"*", b"api.example.com", b"api.example.com"),
        (b"/x", b"", b"user.internal:3001"),
    ],
)
def test_the_host_of_the_caller_where_the_route_passes_it_on(target: bytes, host: bytes, sent: bytes) -> None:
    """The app is told the host that its caller has called; its own where there is none."""
    call = make_request()
    call.target, call.noted = target, {b"host": host} if host else {}
    call.route.passes_host = True
    assert head(call)[1] == b"host: " + sent
