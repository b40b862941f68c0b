"""The parser of requests: pieces with no more than one whole request in each, at a cost linear in what is read."""

from __future__ import annotations

from typing import Any, cast

import pytest

from outrider.dataplane.http1.request_parser import CHUNKED, RequestParser

HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


class Heard:
    """What a connection hears of chunked requests."""

    def __init__(self) -> None:
        self.parser = RequestParser(cast(Any, self))
        self.body = b""
        self.messages = 0

    def on_message_begin(self) -> None:
        self.parser.message_begins()

    def on_headers_complete(self) -> None:
        self.parser.head_ends(CHUNKED)

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.parser.message_ends()
        self.messages += 1


class Sought(bytes):
    """Bytes that count how many of them are sought through."""

    total = 0

    def find(self, *what: Any) -> int:
        found = super().find(*what)
        start = what[1] if len(what) > 1 else 0
        self.total += (found if found >= 0 else len(self)) - start
        return found


@pytest.mark.parametrize("line", [b" RTSP/\n", b"\n RTSP/", b" HTTP/\n", b" RTSP/ HTTP/\n", b"\n"])
def test_a_body_full_of_first_lines_is_sought_through_once(line: bytes) -> None:
    """A body may be nothing but what looks like the first lines of requests: each byte is looked at a few times, not
    once for every line before it."""
    body = line * 1000
    heard = Heard()
    heard.parser.feed_data(HEAD)
    data = Sought(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    heard.parser.feed_data(data)
    assert (heard.body, heard.messages) == (body, 1)
    assert data.total <= 4 * len(data)


def test_requests_behind_such_a_body_are_found() -> None:
    """What has been sought for one piece holds for the following ones, and not for the next read."""
    heard = Heard()
    body = b" RTSP/\n HTTP/\n" * 3
    message = HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    heard.parser.feed_data(message * 3 + b"FIND" + message[4:])
    heard.parser.feed_data(message)
    assert (heard.body, heard.messages) == (body * 5, 5)
