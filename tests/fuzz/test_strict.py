"""The parser that judges what Outrider writes must itself be above suspicion."""

from __future__ import annotations

import pytest
from fuzz.strict import Message, Reader, chunked, serialize
from hypothesis import given, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)

_TOKEN = "!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz"
_FRAMING = (b"host", b"content-length", b"transfer-encoding", b"connection")
FIELDS = st.lists(
    st.tuples(
        st.text(_TOKEN, min_size=1, max_size=8).map(str.encode).filter(lambda name: name.lower() not in _FRAMING),
        st.text([chr(c) for c in (9, *range(32, 127), *range(128, 256))], max_size=12).map(
            lambda text: text.encode("latin-1").strip(b" \t")
        ),
    ),
    max_size=6,
)


@st.composite
def messages(draw: st.DrawFn, *, responses: bool) -> Message:
    """A clean message with a framing that says where it ends."""
    fields = draw(FIELDS)
    body = draw(st.binary(max_size=50))
    framing = draw(st.sampled_from(("length", "chunked"))) if responses or body else "none"
    if framing == "length":
        fields.append((b"Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        fields.append((b"Transfer-Encoding", b"chunked"))
    if responses:
        status = draw(st.integers(200, 599).filter(lambda status: status not in (204, 304)))
        reason = draw(st.sampled_from((b"", b"OK", b"Not Found", b"Caf\xe9")))
        message = Message(status=status, reason=reason, fields=fields)
    else:
        method = draw(st.sampled_from((b"GET", b"POST", b"M-SEARCH")))
        message = Message(method=method, target=b"/x?y", fields=[(b"Host", b"a"), *fields])
    message.framing = framing
    message.body = bytearray(body)
    return message


def _same(read: Message, written: Message) -> bool:
    pairs = ("method", "target", "status", "reason", "fields", "framing", "body")
    return read.complete and all(getattr(read, name) == getattr(written, name) for name in pairs)


@QUICK
@given(st.data(), st.booleans(), st.booleans())
def test_what_is_written_is_read_again(data: st.DataObject, responses: bool, tolerant: bool) -> None:
    """Any clean messages come out as they went in, whatever the pieces they come in."""
    written = data.draw(st.lists(messages(responses=responses), min_size=1, max_size=3))
    wire = b"".join(serialize(message) for message in written)
    step = data.draw(st.integers(1, 60))
    reader = Reader(responses=responses, tolerant=tolerant)
    for start in range(0, len(wire), step):
        assert reader.partial or start == 0 or reader.offset == start
        reader.feed(wire[start : start + step])
    assert reader.error is None
    assert not reader.partial
    assert len(reader.messages) == len(written)
    assert all(map(_same, reader.messages, written))
    assert (reader.offset, reader.messages[-1].end) == (len(wire), len(wire))


@QUICK
@given(st.binary(max_size=80), st.integers(1, 20), st.booleans(), st.booleans())
def test_any_bytes_are_read_the_same_in_any_pieces(wire: bytes, step: int, responses: bool, tolerant: bool) -> None:
    """The reader never fails, and where pieces end makes no difference to what it has read."""
    start = b"HTTP/1.1 200 OK\r\n" if responses else b"GET / HTTP/1.1\r\nHost: a\r\n"
    wire = start + wire
    whole, split = (Reader(responses=responses, tolerant=tolerant) for _ in range(2))
    whole.feed(wire)
    for at in range(0, len(wire), step):
        split.feed(wire[at : at + step])
    assert split.messages == whole.messages
    assert (split.error is None) == (whole.error is None)


G = b"GET / HTTP/1.1\r\nHost: a\r\n"
P = b"POST / HTTP/1.1\r\nHost: a\r\n"
UNCLEAN_REQUESTS = {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": G + b"Host: a\r\n\r\n",
    "HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw bytes in the target": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty line first": b"\r\n" + G + b"\r\n",
    "bare LF": G + b"X: 1\nY: 2\r\n\r\n",
    "bare CR": G + b"X: 1\rY: 2\r\n\r\n",
    "NUL": G + b"X: \0\r\n\r\n",
    "DEL": G + b"X: \x7f\r\n\r\n",
    "folded": G + b"X: 1\r\n 2\r\n\r\n",
    "space before the colon": G + b"X : 1\r\n\r\n",
    "empty name": G + b": 1\r\n\r\n",
    "no colon": G + b"X\r\n\r\n",
    "two lengths": P + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "length and chunked": P + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "signed length": P + b"Content-Length: +1\r\n\r\na",
    "empty length": P + b"Content-Length:\r\n\r\n",
    "list of codings": P + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunk extension": P + b"Transfer-Encoding: chunked\r\n\r\n1;a\r\na\r\n0\r\n\r\n",
    "chunk without end": P + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "chunk size": P + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    "huge chunk size": P + b"Transfer-Encoding: chunked\r\n\r\n00000000001\r\na\r\n0\r\n\r\n",
    "trailer": P + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n\r\n",
}
UNCLEAN_ANSWERS = {
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no space behind the status": b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
    "status above 599": b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
    "length of an interim": b"HTTP/1.1 103 Hints\r\nContent-Length: 0\r\n\r\n",
    "length of a 204": b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n",
    "coding of a 304": b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n",
    "garbage": b"garbage\r\n\r\n",
}


@pytest.mark.parametrize("case", UNCLEAN_REQUESTS)
def test_unclean_requests_are_noticed(case: str) -> None:
    """Nothing that two readers could take for different requests passes as clean."""
    reader = Reader()
    reader.feed(UNCLEAN_REQUESTS[case])
    assert reader.error is not None


@pytest.mark.parametrize("case", UNCLEAN_ANSWERS)
def test_unclean_answers_are_noticed(case: str) -> None:
    """Nothing that two readers could take for different answers passes as clean."""
    reader = Reader(responses=True)
    reader.feed(UNCLEAN_ANSWERS[case])
    assert reader.error is not None


def test_a_body_until_the_end_is_complete_only_then() -> None:
    """An answer without framing has no other end than that of its connection."""
    reader = Reader(responses=True)
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\nbody")
    assert not reader.messages[0].complete
    reader.end()
    assert reader.messages[0].complete


def test_chunks_are_written_as_they_are_read() -> None:
    """Pieces in chunked framing are one body, and empty pieces do not end it early."""
    reader = Reader()
    reader.feed(P + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([b"one", b"", b"two"]))
    assert bytes(reader.messages[0].body) == b"onetwo"
    assert reader.messages[0].complete
