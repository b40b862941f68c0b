"""A request head, checked and understood: what the parser does not check (docs/decisions/0003), and the facts that
routing, framing and policies need."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Final

from outrider.dataplane.http1.heads import has_at_most, nominated_fields
from outrider.model.failure import Failure, Kind

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.downstream.proxy import Proxy

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
_HASH: Final = 0x23  # a number, as in wire.py
_SPECIAL_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))
_LONGEST_LENGTH: Final = 20  # digits; the parser takes any number of zeros in front
_MAX_KNOWN_HOSTS: Final = 256
_LONGEST_HOST: Final = 262  # that is worth keeping: a name of 255 bytes, and a port


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
    if len(call.fields) > limits.headers:
        proxy.stats.reached["headers"] += 1
        return Failure(Kind.HEAD_TOO_LARGE, f"the request has more than {limits.headers} fields (limits.headers)")
    if may_be_large and _size(call) > limits.header_bytes:
        proxy.stats.reached["header_bytes"] += 1
        return Failure(Kind.HEAD_TOO_LARGE, "the request head exceeds limits.header_bytes")
    noted = call.noted
    names = proxy.noted
    repeated = False
    for lower, _, value in call.fields:
        if lower in names:
            if lower in noted:
                repeated = True
            noted[lower] = value
    if repeated and _combine(call, names):
        return Failure(Kind.BAD_REQUEST, "the request has two Host headers")
    target = call.target
    if target[:1] != b"/" or not target.isascii() or _HASH in target or call.method in _SPECIAL_METHODS:
        failure = _check_target(call.method, target)
        if failure is not None:
            return failure
    host = noted.get(b"host")
    if host not in proxy.known_hosts:
        failure = _check_host(host, call.minor, proxy)
        if failure is not None:
            return failure
    return _check_framing(call, noted, proxy) if len(noted) > 1 or host is None else None


def _combine(call: Call, names: frozenset[bytes]) -> bool:
    """Give fields that came more than once one value, as RFC 9110 §5.3 combines them; whether Host is one of them."""
    values: dict[bytes, list[bytes]] = {}
    for lower, _, value in call.fields:
        if lower in names:
            values.setdefault(lower, []).append(value)
    for lower, several in values.items():
        call.noted[lower] = b", ".join(several)
    return len(values.get(b"host", ())) > 1


def climbs(path: bytes) -> bool:
    """Whether a path has dot segments, plain or encoded: somebody who normalises would read another path."""
    return _CLIMBS.search(path.partition(b"?")[0]) is not None


def wanted_upgrade(call: Call) -> bytes:
    """The protocols that a request asks to switch to and that may be passed on; empty if none.

    Any method may ask (RFC 9110 §7.8): `docker attach` and `kubectl exec` POST. Where the message ends and the other
    protocol begins must be clear, so a body must have a declared length.
    """
    value = call.noted[b"upgrade"]
    if (
        not has_at_most(_MOST_PROTOCOLS, value)
        or call.method == b"HEAD"
        or not call.minor
        or call.chunked
        or b"upgrade" not in call.nominated
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


def _check_host(host: bytes | None, minor: int, proxy: Proxy) -> Failure | None:
    if host is None:
        return Failure(Kind.BAD_REQUEST, "the request has no Host header") if minor else None
    if not _is_host(host):
        return Failure(Kind.BAD_REQUEST, "the Host header is not a host name")
    if len(proxy.known_hosts) < _MAX_KNOWN_HOSTS and len(host) <= _LONGEST_HOST:
        proxy.known_hosts.add(host)
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


def _check_framing(call: Call, noted: dict[bytes, bytes], proxy: Proxy) -> Failure | None:
    """How the message is framed and whether the connection lasts. The parser has refused conflicting lengths."""
    connection = noted.get(b"connection")
    if connection is not None:
        if not has_at_most(proxy.limits.headers, connection):
            proxy.stats.reached["headers"] += 1
            return Failure(
                Kind.HEAD_TOO_LARGE, "Connection has more names than a request may have fields (limits.headers)"
            )
        call.nominated = nominated_fields(connection)
        options = connection.lower()
        if options.find(b"close") >= 0:
            call.keep_alive = False
        elif not call.minor and b"keep-alive" in _tokens(options) and call.target.startswith(b"/"):
            call.keep_alive = True  # asked for by HTTP/1.0; a forward proxy must not (RFC 9112 §9.3)
    length = noted.get(b"content-length")
    coding = noted.get(b"transfer-encoding")
    if coding is not None:
        if not call.minor or length is not None:
            return Failure(Kind.BAD_REQUEST, "Transfer-Encoding where it must not be (RFC 9112 §6.1)")
        if coding.lower() != b"chunked":
            return Failure(Kind.NOT_IMPLEMENTED, "the only transfer coding understood is chunked")
        call.chunked = True
    elif length is not None:
        if not length.isdigit() or len(length) > _LONGEST_LENGTH:
            return Failure(Kind.BAD_REQUEST, "Content-Length is not a number, or one with too many digits")
        call.length = int(length)
    if b"te" in noted and call.minor and b"te" in call.nominated:
        codings = noted[b"te"]
        call.trailers = has_at_most(_MOST_CODINGS, codings) and b"trailers" in _tokens(codings.lower())
    if b"expect" in noted and call.minor and (call.chunked or call.length):
        call.expect_continue = noted[b"expect"].lower() == b"100-continue"
    return None


def _tokens(value: bytes) -> list[bytes]:
    return [one.strip(_OWS) for one in value.split(b",")]


def _size(call: Call) -> int:
    """Bytes of a request head as it was sent, about."""
    return len(call.target) + sum(len(name) + len(value) + 4 for _, name, value in call.fields)
