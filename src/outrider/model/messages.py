"""Requests and responses as the connection edges read them.

Request fields are triples `(lower-case name, name as sent, value)`, in order of arrival: the lower-case name is
computed once, where the field is parsed, and every later comparison uses it.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from outrider.model.outcome import Outcome, classify

Field = tuple[bytes, bytes, bytes]
NO_NAMES: Final[frozenset[bytes]] = frozenset()

# Fields that belong to one connection, framing included (RFC 9110 §7.6.1), and Trailer, because trailers are
# not passed on. None of them is ever copied; those that are needed are written anew.
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"http2-settings",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


def is_field_value(text: str) -> bool:
    """Whether text of ours may stand in a header: one line of printable ASCII."""
    return text.isascii() and text.isprintable()


def as_field_value(text: str) -> str:
    """Text that is not ours to choose, such as a host name, so that it may stand in a header: percent-encoded where it
    may not stand there as it is (RFC 3986 §2.1)."""
    return text if is_field_value(text) else quote(text, safe=_PRINTABLE, errors="surrogateescape")


_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Request:
    """The head of one request from the app.

    `minor` is the HTTP/1 minor version (0 or 1); `length` the declared body length in bytes (None: none declared);
    `nominated` the field names that `Connection` asked to be removed (RFC 9110 §7.6.1); `noted` the values of the
    few fields that some part of Outrider reads, by lower-case name; `trailers` says that the
    app takes trailer fields behind an answer (RFC 9110 §10.1.4); `upgrade` the protocols it asks to switch to,
    if they may be passed on (RFC 9110 §7.8).
    """

    __slots__ = (
        "chunked",
        "expect_continue",
        "fields",
        "keep_alive",
        "length",
        "method",
        "minor",
        "nominated",
        "noted",
        "target",
        "trailers",
        "upgrade",
    )

    def __init__(self, target: bytes) -> None:
        self.method = b""
        self.target = target
        self.minor = 1
        self.fields: list[Field] = []
        self.noted: dict[bytes, bytes] = {}
        self.nominated = NO_NAMES
        self.length: int | None = None
        self.chunked = False
        self.keep_alive = True
        self.expect_continue = False
        self.trailers = False
        self.upgrade = b""


class Response:
    """One response from a target: its head, and the body pieces not yet passed on.

    With neither `length` (bytes) nor `chunked` the body ends with the connection. `lines` are the end-to-end fields
    as they will be passed on: name, colon, value, line end; name, colon, ... `addressed` says that there may be
    addresses of the target among them, `dated` that `Date` is.
    `complete` is set with the last body byte. `trailers` are the
    trailer fields that may be passed on, as lines, all of them among `trailer_names`. `switches` says that what follows
    is not HTTP any more but the protocol `upgrade`; `tried_below` that another Outrider, nearer to the fault, has
    given up on this, `tried_enough` that we have: whoever called us is told.
    """

    __slots__ = (
        "addressed",
        "chunked",
        "complete",
        "dated",
        "keep_alive",
        "length",
        "lines",
        "pieces",
        "rate_limit",
        "reason",
        "retry_after",
        "status",
        "switches",
        "trailer_names",
        "trailers",
        "tried_below",
        "tried_enough",
        "upgrade",
    )

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""
        self.lines: list[bytes] = []
        self.pieces: list[bytes] = []
        self.length: int | None = None
        self.chunked = False
        self.keep_alive = False
        self.complete = False
        self.addressed = self.dated = False
        self.retry_after: bytes | None = None
        self.rate_limit: bytes | None = None  # when there will be room again, in one of several notations
        self.upgrade = b""
        self.switches = self.tried_below = self.tried_enough = False
        self.trailer_names = NO_NAMES
        self.trailers = b""

    @property
    def outcome(self) -> Outcome:
        """What its status says about the target."""
        return classify(self.status)
