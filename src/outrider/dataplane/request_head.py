"""A request head, checked and understood: what the parser does not check (docs/decisions/0003), and the facts that
routing, framing and policies need."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from outrider.dataplane.wire import nominated_fields
from outrider.model.failure import Failure, Kind

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.proxy import Proxy

# RFC 9110 §7.2 with RFC 3986 §3.2.2: a registered name, an IPv4 address or a bracketed IPv6 one, and a port.
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(
    rb"http://(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:[/?]|$)", re.IGNORECASE
)
_REFUSED_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))
_MAX_KNOWN_HOSTS: Final = 256


def read_head(call: Call, version: str, proxy: Proxy, may_be_large: bool) -> Failure | None:
    """Check the head of a request and take the facts out of it; why it must be refused, or None.

    `may_be_large` says that the bytes it came in were more than `limits.header_bytes`; only then are they counted.
    """
    if version != "1.1":
        if version != "1.0":
            return Failure(Kind.VERSION, f"HTTP/{version} is not spoken here; use HTTP/1.1")
        call.minor = 0
        call.keep_alive = False
    limits = proxy.limits
    if len(call.fields) > limits.headers or (may_be_large and _size(call) > limits.header_bytes):
        return Failure(Kind.HEAD_TOO_LARGE, "the request head exceeds limits.header_bytes or limits.headers")
    noted = call.noted
    names = proxy.noted
    for lower, _, value in call.fields:
        if lower in names:
            if lower in noted:
                if lower == b"host":
                    return Failure(Kind.BAD_REQUEST, "the request has two Host headers")
                value = noted[lower] + b", " + value  # one value, as RFC 9110 §5.3 combines them
            noted[lower] = value
    target = call.target
    if target[:1] != b"/" or not target.isascii() or b"#" in target or call.method in _REFUSED_METHODS:
        failure = _check_target(call.method, target)
        if failure is not None:
            return failure
    host = noted.get(b"host")
    if host not in proxy.known_hosts:
        failure = _check_host(host, call.minor, proxy)
        if failure is not None:
            return failure
    if len(noted) > 1 or host is None:
        return _check_framing(call, noted, limits.body_bytes)
    return None


def _check_target(method: bytes, target: bytes) -> Failure | None:
    if method == b"CONNECT":
        return Failure(Kind.METHOD_REFUSED, "CONNECT is refused: Outrider does not tunnel")
    if method == b"TRACE":
        return Failure(Kind.METHOD_REFUSED, "TRACE is refused: it would echo credentials to the app")
    if b"#" in target or not target.isascii():
        return Failure(Kind.BAD_REQUEST, "the request target has characters that must be percent-encoded")
    if target == b"*":
        return None if method == b"OPTIONS" else Failure(Kind.BAD_REQUEST, "only OPTIONS may have * as its target")
    if not target.startswith(b"/") and not _ABSOLUTE.match(target):
        return Failure(Kind.BAD_REQUEST, "the request target is neither a path nor an http:// URL")
    return None


def _check_host(host: bytes | None, minor: int, proxy: Proxy) -> Failure | None:
    if host is None:
        return Failure(Kind.BAD_REQUEST, "the request has no Host header") if minor else None
    if not _HOST.fullmatch(host):
        return Failure(Kind.BAD_REQUEST, "the Host header is not a host name")
    if len(proxy.known_hosts) < _MAX_KNOWN_HOSTS:
        proxy.known_hosts.add(host)
    return None


def _check_framing(call: Call, noted: dict[bytes, bytes], most_bytes: int) -> Failure | None:
    """How the message is framed and whether the connection lasts. The parser has refused conflicting lengths."""
    connection = noted.get(b"connection")
    if connection is not None:
        call.nominated = nominated_fields(connection)
        if b"close" in connection.lower():
            call.keep_alive = False
    length = noted.get(b"content-length")
    coding = noted.get(b"transfer-encoding")
    if coding is not None:
        if not call.minor or length is not None:
            return Failure(Kind.BAD_REQUEST, "Transfer-Encoding where it must not be (RFC 9112 §6.1)")
        if coding.strip().lower() != b"chunked":
            return Failure(Kind.NOT_IMPLEMENTED, "the only transfer coding understood is chunked")
        call.chunked = True
    elif length is not None:
        if not length.isdigit():
            return Failure(Kind.BAD_REQUEST, "Content-Length is not a number")
        call.length = int(length)
        if call.length > most_bytes:
            return Failure(Kind.BODY_TOO_LARGE, "the request body exceeds limits.body_bytes")
    if b"expect" in noted and (call.chunked or call.length):
        call.expect_continue = noted[b"expect"].strip().lower() == b"100-continue"
    return None


def _size(call: Call) -> int:
    """Bytes of a request head as it was sent, about."""
    return len(call.target) + sum(len(name) + len(value) + 4 for _, name, value in call.fields)
