"""A request head, checked and understood: what the parser does not check (docs/decisions/0003), and the facts that
routing, framing and policies need."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

from outrider.dataplane.http1.heads import has_at_most, nominated_fields
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Request

# RFC 9110 §7.2 with RFC 3986 §3.2.2: a name, an IPv4 address or a bracketed IPv6 one, and a port. Of a registered
# name only the unreserved characters: commas and the like stand in no name that resolves, only in attacks.
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?")
_ABSOLUTE: Final = re.compile(rb"http://([^/?#@]+)(?:[/?]|$)", re.IGNORECASE)
# A dot segment, also percent-encoded (more than once), with other separators, a parameter, or what some readers trim
# around it: what one who normalises would climb by.
_CLIMBS: Final = re.compile(
    rb"(?:[/\\]|%(?:25)*+(?:2f|5c))(?:%(?:25)*+(?:[01][0-9a-f]|20|7f))*+"
    rb"(?:\.|%(?:25)*+2e){1,2}"
    rb"(?:[/\\;]|%(?:25)*+(?:2f|5c|3b|[01][0-9a-f]|20|7f)|$)",
    re.IGNORECASE,
)
# What may be asked for in `Upgrade` (RFC 9110 §7.8), and what is never passed on: it would take the connection to
# a protocol that carries requests of its own, past every policy.
_PROTOCOLS: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:/[!#$%&'*+.^_`|~0-9A-Za-z-]+)?")
_NEVER_SWITCH: Final = (b"h2c", b"h2", b"http", b"tls")
# Protocols and transfer codings of one request, beyond which none is taken up: it need not be (RFC 9110 §7.8, §10.1.4).
_MOST_PROTOCOLS: Final = 32
_MOST_CODINGS: Final = 32
_OWS: Final = b" \t"
_HASH: Final = 0x23  # a number, as in heads.py
_SPECIAL_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))
_LONGEST_LENGTH: Final = 20  # digits; the parser takes any number of zeros in front
_MAX_KNOWN_HOSTS: Final = 256
_LONGEST_HOST: Final = 262  # that is worth keeping: a name of 255 bytes, and a port


class HeadChecks:
    """Checks request heads, and takes the facts out of them.

    `max_bytes` and `max_fields` bound a head; `noted` are the names whose values somebody reads, lower case; `reached`
    counts how often a limit was met, by its key under `limits`.
    """

    __slots__ = ("_hosts", "_max_bytes", "_max_fields", "_noted", "_reached")

    def __init__(self, max_bytes: int, max_fields: int, noted: frozenset[bytes], reached: dict[str, int]) -> None:
        self._max_bytes = max_bytes
        self._max_fields = max_fields
        self._noted = noted
        self._reached = reached
        self._hosts: set[bytes | None] = set()  # values of Host that have been found good

    def read(self, request: Request, version: str, may_be_large: bool) -> Failure | None:
        """Check the head of a request and take the facts out of it; why it must be refused, or None.

        `may_be_large` says that the bytes it came in were more than `limits.header_bytes`; only then are they counted.
        """
        if version != "1.1":
            if version != "1.0":
                return Failure(Kind.VERSION, f"HTTP/{version} is not spoken here; use HTTP/1.1")
            request.minor = 0
            request.keep_alive = False
        if len(request.fields) > self._max_fields or (may_be_large and _size(request) > self._max_bytes):
            return self._too_large(request)
        noted = request.noted
        names = self._noted
        repeated = False
        for lower, _, value in request.fields:
            if lower in names:
                if lower in noted:
                    repeated = True
                noted[lower] = value
        if repeated and _combine(request, names):
            return Failure(Kind.BAD_REQUEST, "the request has two Host headers")
        target = request.target
        if target[:1] != b"/" or not target.isascii() or _HASH in target or request.method in _SPECIAL_METHODS:
            failure = _check_target(request.method, target)
            if failure is not None:
                return failure
        host = noted.get(b"host")
        if host not in self._hosts:
            failure = self._check_host(host, request.minor)
            if failure is not None:
                return failure
        return self._check_framing(request, noted) if len(noted) > 1 or host is None else None

    def _check_framing(self, request: Request, noted: dict[bytes, bytes]) -> Failure | None:
        connection = noted.get(b"connection")
        if connection is not None and not has_at_most(self._max_fields, connection):
            self._reached["headers"] += 1
            return Failure(
                Kind.HEAD_TOO_LARGE, "Connection has more names than a request may have fields (limits.headers)"
            )
        return _check_framing(request, noted)

    def _too_large(self, request: Request) -> Failure:
        most = self._max_fields
        if len(request.fields) > most:
            self._reached["headers"] += 1
            return Failure(Kind.HEAD_TOO_LARGE, f"the request has more than {most} fields (limits.headers)")
        self._reached["header_bytes"] += 1
        return Failure(Kind.HEAD_TOO_LARGE, "the request head exceeds limits.header_bytes")

    def _check_host(self, host: bytes | None, minor: int) -> Failure | None:
        if host is None:
            return Failure(Kind.BAD_REQUEST, "the request has no Host header") if minor else None
        if not _is_host(host):
            return Failure(Kind.BAD_REQUEST, "the Host header is not a host name")
        if len(self._hosts) < _MAX_KNOWN_HOSTS and len(host) <= _LONGEST_HOST:
            self._hosts.add(host)
        return None


def _combine(request: Request, names: frozenset[bytes]) -> bool:
    """Give fields that came more than once one value, as RFC 9110 §5.3 combines them; whether Host is one of them."""
    values: dict[bytes, list[bytes]] = {}
    for lower, _, value in request.fields:
        if lower in names:
            values.setdefault(lower, []).append(value)
    for lower, several in values.items():
        request.noted[lower] = b", ".join(several)
    return len(values.get(b"host", ())) > 1


def has_dot_segments(path: bytes) -> bool:
    """Whether a path has dot segments, plain or encoded: somebody who normalises would read another path."""
    return _CLIMBS.search(path.partition(b"?")[0]) is not None


def wanted_upgrade(request: Request) -> bytes:
    """The protocols that a request asks to switch to and that may be passed on; empty if none.

    Any method may ask (RFC 9110 §7.8): `docker attach` and `kubectl exec` POST. Where the message ends and the other
    protocol begins must be clear, so a body must have a declared length.
    """
    value = request.noted[b"upgrade"]
    if (
        not has_at_most(_MOST_PROTOCOLS, value)
        or request.method == b"HEAD"
        or not request.minor
        or request.chunked
        or b"upgrade" not in request.nominated
    ):
        return b""
    protocols = [one.strip(_OWS) for one in value.split(b",")]
    for protocol in protocols:
        if not _PROTOCOLS.fullmatch(protocol) or protocol.lower().partition(b"/")[0] in _NEVER_SWITCH:
            return b""
    return value


def _check_target(method: bytes, target: bytes) -> Failure | None:
    if method == b"TRACE":
        return Failure(Kind.METHOD_REFUSED, "TRACE is refused: it would echo credentials to the app")
    if method == b"CONNECT":
        if _is_host(target) and b":" in target.rpartition(b"]")[2]:
            return None
        return Failure(Kind.BAD_REQUEST, "the target of CONNECT must be HOST:PORT")
    if _HASH in target or not target.isascii():
        return Failure(Kind.BAD_REQUEST, "the request target has characters that must be percent-encoded")
    if target == b"*":
        return None if method == b"OPTIONS" else Failure(Kind.BAD_REQUEST, "only OPTIONS may have * as its target")
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.match(target)
        if absolute is None or not _is_host(absolute[1]):
            return Failure(Kind.BAD_REQUEST, "the request target is neither a path nor an http:// URL")
    return None


def _is_host(authority: bytes) -> bool:
    """Whether this is a host, with or without a port."""
    match = _HOST.fullmatch(authority)
    if match is None or int(match[2] or b"0") > 65535:
        return False
    if match[1] is not None:
        try:
            IPv6Address(match[1].decode())
        except ValueError:
            return False
    return True


def _check_framing(request: Request, noted: dict[bytes, bytes]) -> Failure | None:
    """How the message is framed and whether the connection lasts. The parser has refused conflicting lengths."""
    connection = noted.get(b"connection")
    if connection is not None:
        request.nominated = nominated_fields(connection)
        options = connection.lower()
        if options.find(b"close") >= 0:
            request.keep_alive = False
        elif not request.minor and b"keep-alive" in _tokens(options) and request.target.startswith(b"/"):
            request.keep_alive = True  # asked for by HTTP/1.0; a forward proxy must not (RFC 9112 §9.3)
    length = noted.get(b"content-length")
    coding = noted.get(b"transfer-encoding")
    if coding is not None:
        if not request.minor or length is not None:
            return Failure(Kind.BAD_REQUEST, "Transfer-Encoding where it must not be (RFC 9112 §6.1)")
        if coding.lower() != b"chunked":
            return Failure(Kind.NOT_IMPLEMENTED, "the only transfer coding understood is chunked")
        request.chunked = True
    elif length is not None:
        if not length.isdigit() or len(length) > _LONGEST_LENGTH:
            return Failure(Kind.BAD_REQUEST, "Content-Length is not a number, or one with too many digits")
        request.length = int(length)
    if b"te" in noted and request.minor and b"te" in request.nominated:
        codings = noted[b"te"]
        request.trailers = has_at_most(_MOST_CODINGS, codings) and b"trailers" in _tokens(codings.lower())
    if b"expect" in noted and request.minor and (request.chunked or request.length):
        request.expect_continue = noted[b"expect"].lower() == b"100-continue"
    return None


def _tokens(value: bytes) -> list[bytes]:
    return [one.strip(_OWS) for one in value.split(b",")]


def _size(request: Request) -> int:
    """Bytes of a request head as it was sent, about."""
    return len(request.target) + sum(len(name) + len(value) + 4 for _, name, value in request.fields)
