"""Any fields and any bytes: what may pass does so unchanged, and what may not never reaches the other side."""

from __future__ import annotations

from fuzz.oracle import SECRET
from fuzz.strict import HOP_BY_HOP, Fields
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.workbench import OK, bench, cut, lines

QUICK = settings(max_examples=250, deadline=None, derandomize=True, database=None)

TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
NAMES = st.text(TOKEN, min_size=1, max_size=12).map(str.encode)
VALUES = st.text([chr(c) for c in (9, *range(32, 127), *range(128, 256))], max_size=24).map(
    lambda text: text.encode("latin-1").strip(b" \t")
)
# Fields that Outrider reads, and would act on.
READ = frozenset(
    (
        b"host",
        b"content-length",
        b"expect",
        b"connection",
        b"dapr-app-id",
        b"date",
        b"x-outrider-service",
        b"x-outrider-timeout",
        b"x-outrider-retry",
        b"tracestate",
        b"via",
        b"location",
        b"content-location",
        b"link",
        b"refresh",
        b"set-cookie",
    )
)
OURS = frozenset(
    (
        b"host",
        b"x-api-key",
        b"x-service-name",
        b"x-service-id",
        b"x-outrider-attempt",
        b"x-correlation-id",
        b"traceparent",
        b"x-request-timeout-ms",
        b"x-request-total-timeout-ms",
        b"via",
    )
)
OURS_IN_ANSWERS = (b"x-outrider-attempts", b"server-timing", b"content-length", b"date")
SPOOFED = st.sampled_from(
    sorted(
        (HOP_BY_HOP - {b"connection", b"transfer-encoding", b"upgrade"})
        | {b"x-api-key", b"X-API-Key", b"x_api_key", b"X_Service-Name", b"x-service-id", b"X-Request_Timeout-Ms"}
        | {b"x-outrider-attempt", b"te", b"Keep_Alive"}
    )
)


def _canonical(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


ORDINARY = st.tuples(NAMES, VALUES).filter(lambda one: _canonical(one[0]) not in READ | OURS | HOP_BY_HOP)


@st.composite
def field_sets(draw: st.DrawFn) -> tuple[Fields, set[bytes]]:
    """Fields in any order, some of them not the sender's to choose, and names for `Connection` to nominate."""
    fields = draw(st.lists(st.one_of(ORDINARY, ORDINARY, ORDINARY, st.tuples(SPOOFED, VALUES)), max_size=12))
    if fields and draw(st.booleans()):
        name, value = draw(st.sampled_from(fields))  # a field may stand twice, and its spelling may differ
        fields.append((name.swapcase(), value))
    names = sorted({name for name, _ in fields} | {b"x-api-key", b"host", b"X-Service-Name", b"traceparent", b"via"})
    nominated = draw(st.sets(st.sampled_from(names), max_size=3)) if draw(st.booleans()) else set()
    return fields, nominated


def _surviving(fields: Fields, nominated: set[bytes], owned: frozenset[bytes]) -> Fields:
    gone = {name.lower() for name in nominated}
    return [
        (name, value)
        for name, value in fields
        if _canonical(name) not in owned | HOP_BY_HOP and name.lower() not in gone
    ]


def test_any_fields_of_a_request_pass_unchanged() -> None:
    """The target gets the app's fields, spelled and ordered as sent, less those of one connection, and ours once."""
    with bench() as table:

        @QUICK
        @given(field_sets())
        def check(drawn: tuple[Fields, set[bytes]]) -> None:
            fields, nominated = drawn
            head = b"GET /user/x HTTP/1.1\r\nHost: app.test\r\n" + lines(fields)
            if nominated:
                head += b"Connection: " + b" ,".join(sorted(nominated)) + b"\r\n"
            got = table.run((head + b"\r\n",))
            (request,) = got.requests
            theirs = [field for field in request.fields if _canonical(field[0]) not in OURS]
            assert theirs == _surviving(fields, nominated, OURS)
            names = [_canonical(name) for name, _ in request.fields]
            assert {name: names.count(name) for name in OURS} == dict.fromkeys(OURS, 1)
            assert request.get_all(b"x-api-key") == [SECRET]
            assert [answer.status for answer in got.answers] == [200]

        check()


def test_any_fields_of_an_answer_pass_unchanged() -> None:
    """The app gets the target's fields, spelled and ordered as sent, less those of one connection."""
    with bench() as table:

        @QUICK
        @given(field_sets())
        def check(drawn: tuple[Fields, set[bytes]]) -> None:
            fields, nominated = drawn
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + lines(fields)
            if nominated:
                head += b"Connection: " + b" ,".join(sorted(nominated)) + b"\r\n"
            got = table.run((b"GET /user/x HTTP/1.1\r\nHost: a\r\n\r\n",), ((head + b"\r\nok",),))
            (answer,) = got.answers
            theirs = [field for field in answer.fields if field[0].lower() not in OURS_IN_ANSWERS]
            gone = {name.lower() for name in nominated} | HOP_BY_HOP
            assert theirs == [(name, value) for name, value in fields if name.lower() not in gone]
            assert bytes(answer.body) == b"ok"

        check()


ODDS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b": ",
    b" ",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"5",
    b"chunked",
    b"Content-Length: 5\r\n",
)
START_REQUEST = (b"", b"", b"GET /user/x HTTP/1.1\r\n", b"GET /user/x HTTP/1.1\r\nHost: a\r\n", b"POST /user/")
MORE_REQUEST = (
    b"Host: a\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"GET ",
    b"HTTP/1.1",
    b"/user/x",
    b"Connection: upgrade\r\n",
)
START_ANSWER = (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 1")
MORE_ANSWER = (b"HTTP/1.1 ", b"200 ", b"OK", b"103", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n")


def garbage(start: tuple[bytes, ...], more: tuple[bytes, ...]) -> st.SearchStrategy[tuple[bytes, ...]]:
    """Bytes without any plan, after a beginning that gets them taken seriously, in segments."""
    pieces = st.lists(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from((*ODDS, *more))), max_size=12)
    whole = st.tuples(st.sampled_from(start), pieces).map(lambda drawn: drawn[0] + b"".join(drawn[1]))
    return st.tuples(whole, st.sets(st.integers(1, 80), max_size=4)).map(lambda drawn: cut(*drawn))


def test_any_bytes_from_an_app_stop_here() -> None:
    """Garbage is refused or cut off in time, and nothing of it reaches the target but a request it really was."""
    with bench() as table:

        @settings(QUICK, max_examples=120)
        @given(garbage(START_REQUEST, MORE_REQUEST))
        def check(segments: tuple[bytes, ...]) -> None:
            # A line that is no HTTP ends what would otherwise only be waiting for more.
            table.run((*segments, b"\r\n\r\n\0\r\n\r\n"), ((OK,),) * 9)

        check()


def test_any_bytes_from_a_target_stop_here() -> None:
    """Garbage is answered with a 502 or a visible break, and the next call gets its own answer."""
    with bench() as table:

        @settings(QUICK, max_examples=200)
        @given(garbage(START_ANSWER, MORE_ANSWER), st.sampled_from((b"GET", b"HEAD", b"POST")))
        def check(segments: tuple[bytes, ...], method: bytes) -> None:
            table.run((method + b" /user/x HTTP/1.1\r\nHost: a\r\n\r\n",), (segments,), then="close")

        check()
