"""URLs of targets: what is accepted, and a sentence of its own for each thing that is not.

A complaint never repeats user names, passwords or queries: these are where people put secrets.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

from outrider.config.wording import Sentence, say

_LATER: Final = ("consul+", "k8s+")
_SCHEMES: Final = ("http", "https")
_PREFIXES: Final = ("dns+", "dnssrv+")
_URL: Final = re.compile(
    r"(?:dns\+|dnssrv\+)?https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?(?:/[^?#\s]*)?"
)
_FINDERS: Final = "dns+http://name:port, dnssrv+http://name and file+/path find endpoints by themselves"

Fault = tuple[Sentence, Sentence]
"""A sentence that says what is wrong, and a remedy, which may be empty."""


def _fault(message: str, remedy: str = "", **values: object) -> Fault:
    """A fault from two templates."""
    return say(message, **values), say(remedy, **values)


def later_scheme(text: str) -> str | None:
    """The prefix of a kind of URL that belongs to the contract but does not work yet, or None."""
    return next((prefix for prefix in _LATER if text.startswith(prefix)), None)


def target_url_fault(text: str) -> Fault | None:
    """What is wrong with the URL of a target, or None."""
    if text.startswith("file+"):
        path = text.removeprefix("file+")
        good = path.startswith("/") and len(path) > 1
        return None if good else _fault("file+ needs an absolute path", "file+/etc/users.yaml")
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
        return _fault("expected a URL like http://user-service:3001", _FINDERS)
    return fault


def issuer_url_fault(text: str) -> Fault | None:
    """What is wrong with the URL of a token endpoint, or None. It may have a query and has no fragment (RFC 6749
    section 3.2)."""
    if not text.startswith(("http://", "https://")):
        return _fault("expected the URL of the token endpoint", "token_url: https://login.example.com/oauth2/token")
    if re.search(r"^[^/]*//[^/?#]*@", text):
        return _fault("a URL must not hold a user name or password", "they belong in client_id and client_secret")
    if "#" in text:
        return _fault("the URL of a token endpoint has no fragment", "leave out everything from the #")
    url, _, query = text.partition("?")
    return _text_fault(query) or target_url_fault(url)


def wrong_port(text: str) -> Sentence | None:
    """A sentence about the port of any URL, user information allowed, if it has one that cannot be; else None."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "unix":
        return None
    fault = _port_fault(scheme, re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2])
    return fault[0] if fault is not None else None


def _scheme_fault(scheme: str, separator: str, text: str) -> Fault | None:
    if not text:
        return _fault("the URL is empty", "give one like http://user-service:3001")
    if not separator:
        if "/" not in text and "@" not in text and not re.search(r"\s", text):
            message = "expected a URL like http://user-service:3001, got {got}"
            return _fault(message, "write http://{got}", got=text)
        return _fault("expected a URL like http://user-service:3001; this one has no http:// in front", _FINDERS)
    prefix = next((one for one in _PREFIXES if scheme.startswith(one)), "")
    name = scheme.removeprefix(prefix)
    if name in _SCHEMES:
        return None
    if name == "unix":
        return _fault("Unix sockets cannot be targets", "let the service listen on 127.0.0.1")
    if name in ("ws", "wss"):
        remedy = "write {plain}://; WebSocket passes through it"
        return _fault("{name}:// is not a scheme for a target", remedy, name=name, plain=name.replace("ws", "http"))
    if re.fullmatch(r"[A-Za-z0-9+.-]{1,20}", name):
        return _fault("{name}:// is not a scheme for a target", "http:// and https:// are; " + _FINDERS, name=name)
    return _fault("expected a URL like http://user-service:3001", _FINDERS)


def _authority_fault(scheme: str, authority: str) -> Fault | None:
    if "@" in authority:
        remedy = "declare them under credentials, as the header authorization, and name them in auth"
        return _fault("a URL must not hold a user name or password", remedy)
    if re.search(r"\s", authority):
        return _fault("a URL must not hold spaces", "write %20 in the path; a host has none")
    if "{" in authority or "$" in authority:
        return _fault("a URL is not a template", 'write "${{NAME}}" to take it from a variable')
    host = authority.rpartition(":")[0] if re.search(r":\d*$", authority) else authority
    if not authority or (authority.startswith(":") and authority.count(":") == 1):
        message = "the URL names no host behind {scheme}://"
        return _fault(message, "http://user-service:3001 is one that does", scheme=scheme)
    if authority.startswith("["):
        literal, bracket, port = authority[1:].partition("]")
        if not bracket or not _is_ipv6(literal) or not re.fullmatch(r"(?::\d*)?", port):
            return _fault("this is not an IPv6 address in brackets", "write http://[2001:db8::1]:3001")
        return None
    if authority.count(":") > 1:
        remedy = "write {scheme}://[{host}]..."
        host = authority if _is_ipv6(authority) else host
        return _fault("an IPv6 address needs brackets in a URL", remedy, scheme=scheme, host=host)
    name = authority.partition(":")[0]
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        message = "a host is letters, digits, dots, dashes and underscores"
        return _fault(message, "write an international name in its xn-- form")
    return None


def _tail_fault(tail: str) -> Fault | None:
    """A query or fragment behind host and path, or a path that would not stand in a request line as it is."""
    if "?" in tail:
        message = "the URL of a target has no query: paths are appended to it"
        return _fault(message, "leave out everything from the question mark")
    if "#" in tail:
        return _fault("the URL of a target has no fragment", "leave out everything from the #")
    return _text_fault(tail)


def _text_fault(tail: str) -> Fault | None:
    """What of a path or query would not stand in a request line as it is."""
    if re.search(r"\s", tail):
        return _fault("a URL must not hold spaces", "write %20")
    if not tail.isascii() or not tail.isprintable():
        return _fault("the path of a URL must be printable ASCII", "percent-encode the rest: /caf%C3%A9")
    return None


def _port_fault(scheme: str, authority: str) -> Fault | None:
    found = re.search(r":([^\]:]*)$", authority)
    if found is None:
        return None
    port = found[1]
    if scheme.startswith("dnssrv+"):
        return _fault("SRV records bring their own port", "leave the port out, or use dns+")
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        example = "http://user-service:3001 has one"
        if not port:
            return _fault("there is no port behind the colon", example)
        return _fault("the port {port} is not between 1 and 65535", example, port=port[:20])
    return None


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
