"""Heads to bytes, and the hop-by-hop rules of RFC 9110 §7.6.1.

A head is rebuilt field by field; framing fields are written by us from what was parsed, so that no two
parsers can disagree about where a message ends.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Final

from outrider.model.messages import HOP_BY_HOP, NO_NAMES, Request, Response
from outrider.model.patterns import dashed
from outrider.model.reply import Reply, reason_phrase

# What Outrider itself writes into or takes out of requests, whatever the configuration says.
REQUEST_OWNED: Final = HOP_BY_HOP | frozenset(
    (
        b"host",
        b"content-length",
        b"expect",
        b"x-outrider-attempt",
        b"x-outrider-caller",
        b"x-outrider-retry",
        b"x-outrider-service",
        b"x-outrider-timeout",
        b"dapr-app-id",
        b"x-request-timeout-ms",
        b"x-request-total-timeout-ms",
    )
)

# How the names of our own fields begin, and what an app may say to the sidecar of the service that it calls, beside
# what is written anew for every attempt: see policies/criticality.py.
IN_OUR_NAME: Final = b"x-outrider-"
_SAID_TO_SIDECARS: Final = frozenset((b"x-outrider-critical",))

# Response fields that may hold an address of the target's own: see relocation.py.
ADDRESSED: Final = frozenset((b"content-location", b"link", b"location", b"refresh", b"set-cookie"))

# How targets say when there will be room again, beside `Retry-After`: draft-ietf-httpapi-ratelimit-headers, its earlier
# versions, and what was common before.
_RATE_LIMITS: Final = frozenset((b"ratelimit", b"ratelimit-reset", b"x-ratelimit-reset"))

# Response fields that we read and pass on.
PASSED_ON: Final = ADDRESSED | _RATE_LIMITS | frozenset((b"date", b"retry-after", b"www-authenticate"))

# Response fields that are not simply passed on: hop-by-hop ones, ours, and those that we must read.
RESPONSE_NOTED: Final = (
    HOP_BY_HOP
    | PASSED_ON
    | frozenset(
        (
            b"content-length",
            b"x-outrider-attempts",
            b"x-outrider-degraded",
            b"x-outrider-retry",
        )
    )
)

# Names that have turned out to be nothing but letters, digits and dashes, so that only odd ones cost more than a look.
# It begins with common ones, which strangers with many names of their own cannot crowd out.
_PLAIN_NAMES: Final = {
    *b"accept accept-encoding accept-language authorization baggage cache-control connection content-length".split(),
    *b"content-type cookie host idempotency-key if-none-match origin referer traceparent tracestate user-agent".split(),
    *b"x-api-key x-correlation-id x-forwarded-for x-request-id x-service-id x-service-name x-user-id".split(),
}
_MOST_PLAIN_NAMES: Final = 1024
_LONGEST_PLAIN_NAME: Final = 64
_PLAIN_CONNECTION: Final = frozenset((b"keep-alive", b"close"))

# Trailer fields are for what the target can only say at the end; these belong in front, or are nobody's to set there
# (RFC 9110 §6.5.1).
_NEVER_TRAILERS: Final = RESPONSE_NOTED | frozenset(
    (
        b"age",
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expires",
        b"host",
        b"pragma",
        b"proxy-status",
        b"server",
        b"vary",
        b"via",
    )
)


def trailer_names(announced: bytes) -> frozenset[bytes]:
    """Of the names in a `Trailer` field those that may be passed on, lower case."""
    names = frozenset(name.strip(b" \t").lower() for name in announced.split(b","))
    return frozenset(name for name in names - _NEVER_TRAILERS if _TOKEN.fullmatch(name))


_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")

# The parser leaves the blanks in front of a value out, but not those behind it.
OWS: Final = b" \t"
BLANK: Final = 0x20  # no byte of a value is lower than that but a tab

LAST_CHUNK: Final = b"0\r\n\r\n"


def authenticates_connection(scheme: bytes) -> bool:
    """Whether an `Authorization` or `WWW-Authenticate` value is of a scheme that proves who somebody is for all that
    comes on the connection (RFC 4559 §6), instead of for one request."""
    return _BY_CONNECTION.search(scheme) is not None


_BY_CONNECTION: Final = re.compile(rb"(?:^|,)[ \t]*(?:ntlm|negotiate)(?:[ \t,]|$)", re.IGNORECASE)


def names_in_via(via: bytes, pseudonym: bytes) -> bool:
    """Whether a `Via` value names this proxy among its latest MOST_HOPS: the call has been here before (RFC 9110
    §7.6.3). Every hop writes behind those before it, so a call that runs in a circle is found there."""
    if via.find(pseudonym) < 0:
        return False
    return any(hop.split(None, 2)[1:2] == [pseudonym] for hop in via.rsplit(b",", MOST_HOPS)[-MOST_HOPS:])


MOST_HOPS: Final = 256


def last_chunk(response: Response) -> bytes:
    """The end of a chunked answer, with its trailers if there are any."""
    return b"0\r\n%b\r\n" % response.trailers if response.trailers else LAST_CHUNK


# How the head of an answer ends.
CLOSE: Final = b"connection: close\r\n\r\n"
KEEP: Final = b"\r\n"


def nominated_fields(connection: bytes) -> frozenset[bytes]:
    """The field names that a `Connection` value asks to be removed, lower case. Whoever sends it chooses how many there
    are: ask `has_at_most` before."""
    value = connection.lower()
    if value in _PLAIN_CONNECTION:
        return NO_NAMES
    return frozenset(token.strip() for token in value.split(b",")) - _PLAIN_CONNECTION


def has_at_most(most: int, value: bytes) -> bool:
    """Whether a list such as `Connection` has no more elements than that, empty ones counted (RFC 9110 §5.6.1: a
    reasonable number of them is to be accepted)."""
    return value.count(b",") < most


def request_head(
    request: Request, path: bytes, host_line: bytes, owned: frozenset[bytes], lines: list[bytes], expect: bool
) -> bytes:
    """The head sent to a target: the app's own fields, then the lines that policies wrote.

    `host_line` ends the request line and names the host. `owned` are the names that policies of this route write (with
    REQUEST_OWNED): what the app sent under these names is dropped, however they are `dashed`. The last line ends the
    head.
    """
    parts = [request.method, b" ", path, host_line]
    nominated = request.nominated
    for lower, name, value in request.fields:
        if lower in owned or lower in nominated or (lower not in _PLAIN_NAMES and _is_one_of(lower, owned)):
            continue
        parts += (name, b": ", value, b"\r\n")
    if request.chunked:
        parts.append(b"transfer-encoding: chunked\r\n")
    elif request.length is not None:
        parts.append(b"content-length: %d\r\n" % request.length)
    if expect:
        parts.append(b"expect: 100-continue\r\n")
    if request.upgrade:
        parts += (b"connection: upgrade\r\nupgrade: ", request.upgrade, b"\r\n")
    elif request.trailers:
        parts.append(b"te: trailers\r\nconnection: te\r\n")
    parts += lines
    return b"".join(parts)


def called_host(request: Request) -> bytes:
    """The host that a request names, with its port if it has one; empty if none. The authority of an absolute URL
    counts for more than `Host` (RFC 9112 §3.2.2)."""
    target = request.target
    if target[:1] != b"/" and target != b"*":
        return target.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
    return request.noted.get(b"host", b"")


def _is_one_of(lower: bytes, owned: frozenset[bytes]) -> bool:
    """Whether a name that has not been seen yet, or has odd characters, is one of these for its reader. Of the names
    that begin as ours do, those that are ours to read or write pass, and all others are dropped: a later version may
    give them a meaning that no caller of today has meant."""
    plain = dashed(lower)
    if plain.startswith(IN_OUR_NAME):
        return plain != lower or plain in owned or plain not in _SAID_TO_SIDECARS
    if plain != lower:
        return plain in owned
    if len(_PLAIN_NAMES) < _MOST_PLAIN_NAMES and len(lower) <= _LONGEST_PLAIN_NAME:
        _PLAIN_NAMES.add(lower)
    return False


def status_line(response: Response) -> bytes:
    """The status line of a target's answer, reason phrase included."""
    line = _STATUS_LINES.get((response.status, response.reason))
    return line or b"HTTP/1.1 %d %b\r\n" % (response.status, _CONTROL.sub(b"", response.reason))


_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]+")  # the parser lets these pass in a reason phrase
_STATUS_LINES: Final = {
    (status.value, status.phrase.encode()): b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


def without(lines: list[bytes], names: frozenset[bytes]) -> list[bytes]:
    """Field lines less the fields with these lower-case names."""
    return [
        part
        for start in range(0, len(lines), 4)
        if lines[start].lower() not in names
        for part in lines[start : start + 4]
    ]


class _DateLine:
    """The `Date` of the present second, made once a second."""

    __slots__ = ("line", "since", "until")

    def __init__(self) -> None:
        self.since = self.until = 0.0
        self.line = b""


_date: Final = _DateLine()


def date_line() -> bytes:
    """The field line that says when an answer was made (RFC 9110 §6.6.1)."""
    now = time()
    if not _date.since <= now < _date.until:
        _date.since = float(int(now))
        _date.until = _date.since + 1
        _date.line = f"date: {formatdate(_date.since, usegmt=True)}\r\n".encode()
    return _date.line


def interim_head(response: Response) -> bytes:
    """An informational (1xx) response as it is passed on."""
    lines = without(response.lines, frozenset((b"content-length",)))
    return b"".join((status_line(response), *lines, b"\r\n"))


def reply_bytes(reply: Reply, extra: bytes, *, head_only: bool, ending: bytes) -> bytes:
    """A local reply, whole; `ending` is the end of its head. A reply to HEAD announces the length its body would have
    had."""
    parts = [b"HTTP/1.1 %d %b\r\n" % (reply.status, reason_phrase(reply.status))]
    if all(name.lower() != b"date" for name, _ in reply.headers):
        parts.append(date_line())
    for name, value in reply.headers:
        parts += (name, b": ", value, b"\r\n")
    if reply.status >= 200 and reply.status not in (204, 304):
        parts.append(b"content-length: %d\r\n" % len(reply.body))
    parts.append(extra)
    parts.append(ending)
    if not head_only and reply.status >= 200 and reply.status not in (204, 304):
        parts.append(reply.body)
    return b"".join(parts)
