"""Addresses of the target in its answers, as the app must see them: an app that follows one comes back to the same
service by the way it has used (prefix, port, header, host or forward proxy), not around us or to nowhere.

Rewritten are `Location`, `Content-Location`, `Refresh` and `Link` where they lead to the target itself, and `Path` and
`Domain` of `Set-Cookie`. What leads elsewhere, or is relative to the request, stays as it is.

The target chooses how many addresses there are, so there are bounds on how many of them are looked at: a head of 64 KiB
has room for thousands, and each costs more than its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from outrider.dataplane.engine.routing import Route, bare_host
from outrider.dataplane.http1.heads import ADDRESSED, called_host

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.upstream.cluster import Cluster, Endpoint, Origin

# Links of one answer that are rewritten, and attributes of one cookie that clients get to see. No head has that many
# links in earnest, and a cookie has seven attributes (RFC 6265 §5.2).
MOST_LINKS: Final = 256
MOST_HINTS: Final = 32  # links of one informational answer, of which many may come at once
MOST_ATTRIBUTES: Final = 32
# An http URL up to the end of its authority. With userinfo, or a backslash that some readers take for a slash, it is
# none of the target's.
_ORIGIN: Final = re.compile(
    rb"(https?)://([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?(?=[/?#]|\Z)", re.IGNORECASE
)
_PORTS: Final = {b"http": 80, b"https": 443}
_ENDS: Final = (b"", b"/", b"?", b"#")  # what may follow a complete path
_REFRESH: Final = re.compile(rb"(\s*[0-9.]+\s*[;,]\s*(?:url\s*=\s*)?['\"]?)([^'\"]*)(.*)", re.IGNORECASE | re.DOTALL)
# No URL has a `<`, and each that opens nothing must not be sought an end for up to the end of the value.
_LINK: Final = re.compile(rb"<([^<>]*+)>")


def readdress(lines: list[bytes], call: Call, endpoint: Endpoint | None, start: int, links: int = MOST_LINKS) -> None:
    """Rewrite these field lines (name, colon, value, line end; name, ...) from `start` on, in place. `endpoint` is the
    one that has answered."""
    for at in range(start, len(lines) - 2, 4):
        lower = lines[at].lower()
        if lower not in ADDRESSED:
            continue
        if lower != b"link":
            lines[at + 2] = readdressed(lower, lines[at + 2], call, endpoint)
        elif links:  # 0 would mean all of them
            lines[at + 2], found = _LINK.subn(_link_mover(call, endpoint), lines[at + 2], links)
            links -= found


def _link_mover(call: Call, endpoint: Endpoint | None) -> Callable[[re.Match[bytes]], bytes]:
    """What writes in place of one link."""
    return lambda link: b"<%b>" % relocate(link[1], call, endpoint)


def readdressed(lower: bytes, value: bytes, call: Call, endpoint: Endpoint | None) -> bytes:
    """The value of one field of ADDRESSED other than `Link`, as the app must see it."""
    if lower == b"set-cookie":
        return _scoped(value, call, endpoint)
    if lower == b"refresh":
        refresh = _REFRESH.fullmatch(value)
        if refresh is None:
            return value
        return refresh[1] + relocate(refresh[2], call, endpoint) + refresh[3]
    return relocate(value, call, endpoint)


def relocate(location: bytes, call: Call, endpoint: Endpoint | None) -> bytes:
    """A URL of the target's as a reference that the app resolves against its own request; others as they are."""
    path = location
    if location[:1] != b"/":
        found = _ORIGIN.match(location)
        own = _own_endpoint(found, call, endpoint) if found is not None else None
        if found is None or own is None:
            return location
        path = location[found.end() :]
        endpoint = own
    elif location[1:2] in (b"/", b"\\"):
        return location  # names a host
    moved = _moved(path, call.prefix, endpoint)
    # Without a prefix, a path that begins with two slashes would name a host.
    return location if moved[1:2] in (b"/", b"\\") else moved


def _moved(path: bytes, prefix: bytes, endpoint: Endpoint | None) -> bytes:
    """A path of the target's, without the base path of its URL and under the prefix that the app uses."""
    base = endpoint.base_path if endpoint is not None else b""
    if base and path.startswith(base) and path[len(base) :][:1] in _ENDS:
        path = path[len(base) :]
    return prefix + path if path[:1] == b"/" else b"%b/%b" % (prefix, path)


def _own_endpoint(found: re.Match[bytes], call: Call, endpoint: Endpoint | None) -> Endpoint | None:
    """The endpoint of the called service that this URL leads to; None if it leads elsewhere."""
    origin = _origin(found)
    if endpoint is not None and origin in _origins_of(endpoint.origin, endpoint.host, endpoint.port):
        return endpoint  # of several with one origin, the one that has answered
    cluster = cast(Route, call.route).cluster
    if cluster.by_origin is None:
        cluster.by_origin = _by_origin(cluster)
    return cluster.by_origin.get(origin)


def _by_origin(cluster: Cluster) -> dict[Origin, Endpoint]:
    """The endpoints by all origins that lead to them; of several with one origin, the first."""
    found: dict[Origin, Endpoint] = {}
    for endpoint in cluster.endpoints:
        for origin in _origins_of(endpoint.origin, endpoint.host, endpoint.port):
            found.setdefault(origin, endpoint)
    return found


@lru_cache(maxsize=1024)
def _origins_of(url: bytes, host: str, port: int) -> tuple[Origin, ...]:
    """The origins that lead to an endpoint: that of its URL, and its address with the scheme of that. None if its URL
    has none."""
    found = _ORIGIN.match(url)
    if found is None:
        return ()
    own = _origin(found)
    return own, (own[0], host.lower().encode(), port)


def _origin(found: re.Match[bytes]) -> Origin:
    """Scheme, host and port, comparable."""
    scheme = found[1].lower()
    host = found[2].lower().removesuffix(b".")
    return scheme, host.strip(b"[]"), int(found[3] or _PORTS[scheme])


def _scoped(cookie: bytes, call: Call, endpoint: Endpoint | None) -> bytes:
    """A `Set-Cookie` whose `Path` is where the app finds the service, and without a `Domain` that only the target's own
    host name fits: clients keep cookies by host, and behind one address they would give them to every service
    (RFC 6265 §5). A `__Host-` cookie must have the path `/`, so it stays as it is."""
    if cookie[:7].lower() == b"__host-":
        return cookie
    kept: list[bytes] = []
    with_path = False
    # With a bound on what is looked at, what is behind it must not pass as it is: it may widen the scope again.
    for number, part in enumerate(cookie.split(b";", MOST_ATTRIBUTES + 1)[: MOST_ATTRIBUTES + 1]):
        name, _, value = part.partition(b"=")
        attribute = name.strip().lower() if number else b""
        if attribute == b"path":
            path = value.strip()
            if path[:1] == b"/":
                with_path = True
                part = b"%b=%b" % (name, _cookie_path(path, call.prefix, endpoint))  # noqa: PLW2901 # rewritten
        elif attribute == b"domain" and _fits_only_the_target(value.strip(), call, endpoint):
            continue
        kept.append(part)
    if call.prefix and not with_path and call.path.partition(b"?")[0] == b"/":
        # The default is the directory of the request's path, which for `/service` would be the root.
        kept.append(b" Path=" + call.prefix)
    return b";".join(kept)


def _cookie_path(path: bytes, prefix: bytes, endpoint: Endpoint | None) -> bytes:
    """`/service` fits `/service` and all below it, `/service/` only the latter."""
    moved = _moved(path, prefix, endpoint)
    return prefix if prefix and moved == prefix + b"/" else moved


def _fits_only_the_target(domain: bytes, call: Call, endpoint: Endpoint | None) -> bool:
    """Whether a cookie of this domain could be the target's, but would not be taken from the host the app calls."""
    domain = domain.lower().removeprefix(b".")
    if endpoint is None or not domain:
        return False
    called = bare_host(called_host(call).strip())
    return _matches(bare_host(endpoint.authority), domain) and not _matches(called, domain)


def _matches(host: bytes, domain: bytes) -> bool:
    """Whether a host is within a domain (RFC 6265 §5.1.3)."""
    return host == domain or host.endswith(b"." + domain)
