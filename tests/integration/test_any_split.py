"""Where one segment ends and the next begins is the network's business, and means nothing."""

from __future__ import annotations

from fuzz.strict import Reader, chunked
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.workbench import bench, cut

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)

BODIES = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    st.just(b"GET /user/inner HTTP/1.1\r\nHost: a\r\n\r\n"),
    st.just(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
    st.just(b"0\r\n\r\n"),
    st.just(b"LIST /user/inner HTTP/1.1\r\nHost: a\r\n\r\nLIS"),
    st.integers(2000, 9000).map(lambda size: bytes(range(256)) * (size // 256)),  # more than is kept for a retry
)
METHODS = b"GET HEAD POST PUT DELETE PATCH OPTIONS LIST VERSION-CONTROL DESCRIBE GETX G mark^1 SOURCE PUTT".split()
EXTENSIONS = st.sampled_from((b"", b"", b";a", b";a=b"))
TRAILERS = st.sampled_from((b"", b"", b"X-T: 1\r\n", b"X-Api-Key: evil\r\nHost: evil\r\n"))


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """A body in chunks, with what may stand beside them."""
    pieces = draw(st.lists(BODIES.filter(bool), max_size=4))
    if draw(st.booleans()):
        return chunked(pieces)
    extension = draw(EXTENSIONS)
    wire = b"".join(b"%X%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return wire + b"000" + extension + b"\r\n" + draw(TRAILERS) + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One valid request."""
    method = draw(st.sampled_from(METHODS))
    head = method + b" /user/%d HTTP/1.1\r\nHost: app.test\r\n" % draw(st.integers(0, 99))
    head += draw(st.sampled_from((b"", b"X-A: 1\r\n", b"Connection: keep-alive\r\n", b"X-Empty:\r\nX-B:2 \t\r\n")))
    how = draw(st.sampled_from(("none", "length", "chunked", "upgrade")))
    if how == "length":
        body = draw(BODIES)
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if how == "chunked":
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + draw(chunks())
    if how == "upgrade":  # which is never passed on to this protocol
        return head + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    return head + b"\r\n"


def places(data: bytes, draw: st.DrawFn) -> set[int]:
    """Where to cut: a few places, a run of single bytes, or everywhere in a short message."""
    few = draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=6))
    if draw(st.booleans()):
        return few
    start = draw(st.integers(0, max(0, len(data) - 1)))
    return few | set(range(start, min(len(data), start + draw(st.sampled_from((4, 40, 120))))))


@st.composite
def split_requests(draw: st.DrawFn) -> tuple[bytes, tuple[bytes, ...]]:
    """Some valid requests behind one another, and the same in segments."""
    whole = b"".join(draw(st.lists(requests(), min_size=1, max_size=4)))
    if draw(st.booleans()):
        last = (b"GET /user/old HTTP/1.0\r\n\r\n", b"GET /user/end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        whole += draw(st.sampled_from(last))
    return whole, cut(whole, places(whole, draw))


def test_any_split_of_requests_is_the_same_to_everybody() -> None:
    """However the requests of an app are cut, the target gets each of them whole, in order, and so come the answers."""
    with bench() as table:

        @QUICK
        @given(split_requests())
        def check(stream: tuple[bytes, tuple[bytes, ...]]) -> None:
            whole, segments = stream
            sent = Reader(tolerant=True)
            sent.feed(whole)
            assert sent.error is None
            assert not sent.partial
            got = table.run(segments)
            assert [(one.method, bytes(one.body)) for one in got.requests] == [
                (one.method, bytes(one.body)) for one in sent.messages
            ]
            assert [one.target for one in got.requests] == [one.target.removeprefix(b"/user") for one in sent.messages]
            assert [one.status for one in got.answers] == [200] * len(sent.messages)
            assert got.lasting() == table.run((whole,)).lasting()

        check()


INTERIMS = st.lists(
    st.sampled_from(
        (
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            b"HTTP/1.1 102 Processing\r\nConnection: x-a\r\nX-A: 1\r\n\r\n",
        )
    ),
    max_size=3,
)


STATUSES = (b"200 OK", b"200", b"404 Not\tFound \xe9", b"204 No Content", b"304 Not Modified", b"500 E", b"299 ")


@st.composite
def split_answers(draw: st.DrawFn) -> tuple[bytes, bytes, tuple[bytes, ...], str]:
    """A request, a valid answer to it, the answer in segments, and what the target then does."""
    method = draw(st.sampled_from((b"GET", b"GET", b"HEAD", b"POST")))
    minor = draw(st.sampled_from((1, 1, 1, 0)))
    status = draw(
        st.sampled_from((b"200 OK", b"200", b"404 Not\tFound \xe9", b"204 No Content", b"304 N", b"500 E", b"299 "))
    )
    head = b"HTTP/1.%d " % minor + status + b"\r\nX-A: 1\r\n"
    then = "keep"
    bodyless = method == b"HEAD" or status[:3] in (b"204", b"304")
    how = draw(st.sampled_from(("length", "chunked", "close"))) if minor else draw(st.sampled_from(("length", "close")))
    if how == "length":
        body = draw(BODIES)
        head += b"Content-Length: %d\r\n" % len(body) if status[:3] != b"204" else b""
    elif how == "chunked":
        head += b"Transfer-Encoding: chunked\r\n" if status[:3] != b"204" else b""
        body = draw(chunks())
    else:
        body = draw(BODIES)
        head += b"Connection: close\r\n"
        then = "close"
    interims = b"".join(draw(INTERIMS)) if minor else b""
    whole = interims + head + b"\r\n" + (b"" if bodyless else body)
    request = method + b" /user/x HTTP/1.1\r\nHost: a\r\n\r\n"
    return request, whole, cut(whole, places(whole, draw)), then


def test_any_split_of_an_answer_is_the_same_to_the_app() -> None:
    """However the answer of a target is cut, the app gets its head, its body and its informational answers."""
    with bench() as table:

        @QUICK
        @given(split_answers())
        def check(stream: tuple[bytes, bytes, tuple[bytes, ...], str]) -> None:
            request, whole, segments, then = stream
            said = Reader(responses=True, tolerant=True, methods=[request.split()[0]])
            said.feed(whole)
            said.end()
            assert said.error is None
            got = table.run((request,), (segments,), then=then)
            # 100 Continue is for who asked for it, and nobody did.
            expected = [one for one in said.messages if one.status != 100]
            assert [(one.status, bytes(one.body), one.complete) for one in got.answers] == [
                (one.status, bytes(one.body), one.complete) for one in expected
            ]
            assert got.lasting() == table.run((request,), ((whole,),), then=then).lasting()

        check()
