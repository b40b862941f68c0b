"""URLs of targets: what is accepted, and a sentence of its own for each thing that is not.

A complaint never repeats user names, passwords or queries: these are where people put secrets.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

_LATER: Final = ("consul+", "k8s+")
_SCHEMES: Final = ("http", "https")
_PREFIXES: Final = ("dns+", "dnssrv+")
_URL: Final = re.compile(
    r"(?:dns\+|dnssrv\+)?https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?(?:/[^?#\s]*)?"
)
_FINDERS: Final = "dns+http://name:port, dnssrv+http://name and file+/path find endpoints by themselves"

Fault = tuple[str, str]
"""A sentence that says what is wrong, and a remedy, which may be empty."""


def later_scheme(text: str) -> str | None:
    """The prefix of a kind of URL that belongs to the contract but does not work yet, or None."""
    return next((prefix for prefix in _LATER if text.startswith(prefix)), None)


def target_url_fault(text: str) -> Fault | None:
    """What is wrong with the URL of a target, or None."""
    if text.startswith("file+"):
        path = text.removeprefix("file+")
        return (
            None if path.startswith("/") and len(path) > 1 else ("file+ needs an absolute path", "file+/etc/users.yaml")
        )
    scheme, separator, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    authority_end = min((authority.find(mark) for mark in "?#" if mark in authority), default=len(authority))
    authority, tail = authority[:authority_end], authority[authority_end:] + slash + path
    fault = (
        _scheme_fault(scheme, separator, text)
        or _authority_fault(scheme, authority)
        or _tail_fault(tail)
        or _port_fault(scheme, authority)
    )
    if fault is None and not _URL.fullmatch(text):
        return "expected a URL like http://user-service:3001", _FINDERS
    return fault


def wrong_port(text: str) -> str | None:
    """A sentence about the port of any URL, user information allowed, if it has one that cannot be; else None."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "unix":
        return None
    fault = _port_fault(scheme, re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2])
    return fault[0] if fault is not None else None


def _scheme_fault(scheme: str, separator: str, text: str) -> Fault | None:
    if not text:
        return "the URL is empty", "give one like http://user-service:3001"
    if not separator:
        if "/" not in text and "@" not in text and not re.search(r"\s", text):
            return f"expected a URL like http://user-service:3001, got {text}", f"write http://{text}"
        return "expected a URL like http://user-service:3001; this one has no http:// in front", _FINDERS
    prefix = next((one for one in _PREFIXES if scheme.startswith(one)), "")
    name = scheme.removeprefix(prefix)
    if name in _SCHEMES:
        return None
    if name == "unix":
        return "Unix sockets cannot be targets", "let the service listen on 127.0.0.1"
    if name in ("ws", "wss"):
        plain = name.replace("ws", "http")
        return f"{name}:// is not a scheme for a target", f"write {plain}://; WebSocket passes through it"
    if re.fullmatch(r"[A-Za-z0-9+.-]{1,20}", name):
        return f"{name}:// is not a scheme for a target", "http:// and https:// are; " + _FINDERS
    return "expected a URL like http://user-service:3001", _FINDERS


def _authority_fault(scheme: str, authority: str) -> Fault | None:
    if "@" in authority:
        remedy = "declare them under credentials, as the header authorization, and name them in auth"
        return "a URL must not hold a user name or password", remedy
    if re.search(r"\s", authority):
        return "a URL must not hold spaces", ""
    if "{" in authority or "$" in authority:
        return "a URL is not a template", 'write "${NAME}" to take it from a variable'
    host = authority.rpartition(":")[0] if re.search(r":\d*$", authority) else authority
    if not authority or (authority.startswith(":") and authority.count(":") == 1):
        return f"the URL names no host behind {scheme}://", "http://user-service:3001 is one that does"
    if authority.startswith("["):
        literal, bracket, port = authority[1:].partition("]")
        if not bracket or not _is_ipv6(literal) or not re.fullmatch(r"(?::\d*)?", port):
            return "this is not an IPv6 address in brackets", "write http://[2001:db8::1]:3001"
        return None
    if authority.count(":") > 1:
        remedy = f"write {scheme}://[{authority if _is_ipv6(authority) else host}]..."
        return "an IPv6 address needs brackets in a URL", remedy
    name = authority.partition(":")[0]
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        return "a host is letters, digits, dots, dashes and underscores", "write an international name in its xn-- form"
    return None


def _tail_fault(tail: str) -> Fault | None:
    """A query or fragment behind host and path, or a path that would not stand in a request line as it is."""
    if "?" in tail:
        return (
            "the URL of a target has no query: paths are appended to it",
            "leave out everything from the question mark",
        )
    if "#" in tail:
        return "the URL of a target has no fragment", "leave out everything from the #"
    if re.search(r"\s", tail):
        return "a URL must not hold spaces", "write %20"
    if not tail.isascii() or not tail.isprintable():
        return "the path of a URL must be printable ASCII", "percent-encode the rest: /caf%C3%A9"
    return None


def _port_fault(scheme: str, authority: str) -> Fault | None:
    found = re.search(r":([^\]:]*)$", authority)
    if found is None:
        return None
    port = found[1]
    if scheme.startswith("dnssrv+"):
        return "SRV records bring their own port", "leave the port out, or use dns+"
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        return (
            f"the port {port[:20] or 'behind the colon'} is not between 1 and 65535",
            "http://user-service:3001 has one",
        )
    return None


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
