"""The parser of requests (httptools), and what it cannot do: methods that it does not know.

It refuses them where they begin. Any token is a method (RFC 9110 §9.1), so such a request is read again as one with
another method, and the real one is remembered (docs/decisions/0015). To know where the refused request began, no piece
that the parser is fed has more than one whole request in it. All lengths are bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import httptools

from outrider.model.methods import is_other_spelling

CHUNKED: Final = -1  # in place of a length
UNKNOWN: Final = -2  # where it ends only httptools knows
_NONE: Final = -3
# Stands for the method that the parser does not know: it says nothing about a body, and is no method of RTSP or ICE.
_STAND_IN: Final = b"PUT"
# Of methods that the parser does not know. The longest registered one has 16 characters.
_LONGEST: Final = 64
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Methods that the parser knows, but not of HTTP.
_OF_RTSP: Final = frozenset(
    b"ANNOUNCE DESCRIBE FLUSH GET_PARAMETER PAUSE PLAY RECORD REDIRECT SETUP SET_PARAMETER TEARDOWN".split()
)
_END: Final = b"\n\r\n"  # of a head
_LONGEST_END: Final = 3


class RequestParser:
    """Feeds httptools, which calls back to `protocol`; that must say when a message begins, its head ends and it ends.

    `between` says that no message has begun since the last one ended; `head` are the bytes of the head that is being
    read, from its first line on.
    """

    __slots__ = (
        "_ended",
        "_head_begins_again",
        "_held",
        "_in_head",
        "_left",
        "_method",
        "_named",
        "_parser",
        "_protocol",
        "between",
        "head",
    )

    def __init__(self, protocol: Any, head_begins_again: Callable[[], None] | None = None) -> None:
        """Without a `protocol` it stands for no parser, and cannot be fed. `head_begins_again` is called when what has
        been read of a head is read once more, since the parser did not know its method."""
        self._protocol = protocol
        self._head_begins_again = head_begins_again
        self._parser: Any = httptools.HttpRequestParser(protocol) if protocol is not None else None
        self._held = b""  # the beginning of a method that the parser does not know
        self._method = b""  # the one that something stands for
        self._left = 0  # of the body that is being read, or CHUNKED, or UNKNOWN
        self._ended = _NONE  # how much was left of the body of the message that has ended in this piece
        self._named = -1  # where the data that is being fed names HTTP next, or its size; -1 if not sought yet
        self._in_head = False
        self.between = True
        self.head = b""

    # What the protocol has to say.

    def message_begins(self) -> None:
        """A message has begun."""
        self.between = False
        self._in_head = True
        self._left = UNKNOWN

    def head_ends(self, length: int) -> None:
        """Its head is complete; a body of this length follows, one that is CHUNKED, or an UNKNOWN one."""
        self._in_head = False
        self._left = length
        self._method = b""
        self.head = b""

    def message_ends(self) -> None:
        """It is complete."""
        self.between = True
        self._ended = self._left

    # What the protocol may ask, in the callback at the end of a head.

    def get_method(self) -> bytes:
        """The method of the request, as it was sent."""
        method: bytes = self._method or self._parser.get_method()
        return method

    def get_http_version(self) -> str:
        version: str = self._parser.get_http_version()
        return version

    def should_upgrade(self) -> bool:
        return bool(self._parser.should_upgrade())

    def feed_data(self, data: bytes) -> None:
        """Read on. Raises what httptools raises; HttpParserUpgrade says where in `data` what follows begins."""
        offset = 0
        if self._held:
            offset = len(self._held)
            data = self._held + data
            self._held = b""
        start, size = 0, len(data)
        self._named = -1
        while start < size:
            body = self._body_begins(data, start)
            stop = self._stop(data, start, body)
            piece = data[start:stop] if start or stop < size else data
            try:
                self._feed(piece, body - start)
            except httptools.HttpParserUpgrade as upgrade:
                raise httptools.HttpParserUpgrade(start - offset + upgrade.args[0]) from None
            start = stop

    def _body_begins(self, data: bytes, start: int) -> int:
        """Where in `data` the present message's body begins, or continues; behind its end if not there."""
        if self.between:
            end = data.find(_END, start)
            return end + _LONGEST_END if end >= 0 else len(data) + 1
        if self._in_head:
            seam = self.head[1 - _LONGEST_END :]
            end = (seam + data[start:]).find(_END)
            return start + end + _LONGEST_END - len(seam) if end >= 0 else len(data) + 1
        return start

    def _stop(self, data: bytes, start: int, body: int) -> int:
        """Where the next piece must end, so that no two requests are whole in it."""
        size = len(data)
        if body >= size:
            return size
        if body > start:
            # Behind a head may come its body and part of a line: they need no piece of their own.
            return size if self._next_request(data, body) < 0 else body
        if self._left >= 0:
            return min(size, start + self._left) if self._left else size
        if self._left == CHUNKED:
            # It ends with a line, and the next request is one.
            named = self._next_request(data, start)
            if named >= 0:
                stop = data.rfind(b"\n", start, named) + 1
                return stop if stop > start else data.find(b"\n", named) + 1 or size
        return size

    def _next_request(self, data: bytes, start: int) -> int:
        """Where a first line names its protocol, or a body looks like it; -1 if nowhere. What has been sought through
        for one piece is not for the next one: a body may have a piece for each of its lines."""
        if self._named < start:
            found = data.find(b" HTTP/", start)
            self._named = found if found >= 0 else len(data)
        return self._named if self._named < len(data) else data.find(b" RTSP/", start)

    def _feed(self, piece: bytes, body: int) -> None:
        """Feed one piece, in which the body begins or continues at `body`."""
        if self.between:
            self.head = piece
        elif self._in_head:
            self.head += piece
        self._ended = _NONE
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            raise
        except httptools.HttpParserError as error:
            request = self._behind_message(piece, body) if self._ended != _NONE else self.head
            if not self._is_of_its_method(error, request) or not self._read_again(request, len(piece)):
                raise  # and is kept in no variable of another frame: its traceback would hold that
            return
        if self._left >= 0 and not self.between and not self._in_head:
            self._left -= len(piece) - body
        elif self._in_head and self._ended != _NONE:
            self.head = self._behind_message(piece, body)

    def _is_of_its_method(self, error: Exception, request: bytes) -> bool:
        """Whether the parser has given up on a request because it does not know its method."""
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            return True
        if isinstance(error, httptools.HttpParserCallbackError) or not self._in_head:
            return False
        if request.lstrip(b"\r\n").partition(b" ")[0] not in _OF_RTSP:
            return False
        if self._head_begins_again is not None:
            self._head_begins_again()
        return True

    def _behind_message(self, piece: bytes, body: int) -> bytes:
        """What follows the message that has ended in this piece: part of a first line."""
        if self._ended >= 0:
            return piece[body + self._ended :]
        return piece[piece.rfind(b"\n") + 1 :]

    def _read_again(self, data: bytes, size: int) -> bool:
        """Read a request with a method that the parser does not know, or wait for the rest of the method. `data` ends
        where a piece of this size does. False if it is no method either."""
        self._parser = httptools.HttpRequestParser(self._protocol)
        self.between = True
        self._in_head = False
        request = data.lstrip(b"\r\n")
        method, blank, rest = request.partition(b" ")
        if not _TOKEN.fullmatch(method) or len(method) > _LONGEST or self._method:
            return False
        if not blank:
            self._held = request
            return True
        if is_other_spelling(method):
            return False
        self._method = method
        again = b"%b %b" % (_STAND_IN, rest)
        try:
            self._feed(again, self._body_begins(again, 0))
        except httptools.HttpParserUpgrade as upgrade:
            raise httptools.HttpParserUpgrade(upgrade.args[0] + size - len(again)) from None
        return True


def names_other_protocol(head: bytes) -> bool:
    """Whether the first line of a head says RTSP or ICE, which the parser takes for HTTP."""
    start = head if head[:1] not in (b"\r", b"\n") else head.lstrip(b"\r\n")
    return start.find(b" HTTP/", 0, start.find(b"\n")) < 0
