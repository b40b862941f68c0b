"""Tells the app who has called the guard: `X-Forwarded-For`, `-Host` and `-Proto`.

Frameworks believe these headers from loopback, which is where the guard calls from. So what a caller sends under these
and related names is only passed on if it has proven itself; then the guard adds its own caller to the list, as every
proxy on the way does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from outrider.dataplane.http1.heads import called_host
from outrider.dataplane.policy import Policy
from outrider.model.messages import NO_NAMES
from outrider.model.patterns import HeaderNames

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

FOR: Final = b"x-forwarded-for"
HOST: Final = b"x-forwarded-host"
PROTO: Final = b"x-forwarded-proto"
WRITTEN: Final = frozenset((FOR, HOST, PROTO))
# By these, frameworks, gateways and their plugins say where a request has come from, over what, and for whom.
_CLAIMS: Final = (
    "forwarded",
    "x-forwarded",
    "x-forwarded-*",
    "x-original-*",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-remote-*",
    "x-proxyuser-ip",
    "x-scheme",
    "x-url-scheme",
    "x-envoy-external-address",
    "client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "cf-visitor",
    "fastly-client-ip",
    "front-end-https",
)


class Forwarded(Policy):
    """Takes such headers off calls of the unproven. With `adds`, writes the guard's own; `secure` says that its
    listener has TLS."""

    __slots__ = ("_adds", "_claims", "_proto")

    def __init__(self, *, adds: bool, secure: bool) -> None:
        self._adds = adds
        self._claims = HeaderNames(_CLAIMS)
        self._proto = b"https" if secure else b"http"
        self.owned = WRITTEN if adds else NO_NAMES

    def admit(self, call: Call) -> None:
        """Every call may go. Stands behind the guard, which knows who has proven to call."""
        if not call.caller:
            taken = frozenset(lower for lower, _, _ in call.fields if self._claims.have(lower))
            if taken:
                call.nominated = call.nominated | taken

    def stamp(self, attempt: Attempt) -> bytes:
        """Our caller, the host it has called and how; behind, or instead of, what a proven caller says."""
        if not self._adds:
            return b""
        call = attempt.call
        address = call.app.peer_address()
        host, proto = called_host(call), self._proto
        if call.caller:
            said = call.noted
            nominated = call.nominated
            if FOR in said and FOR not in nominated:
                address = b"%b, %b" % (said[FOR], address) if address else said[FOR]
            if HOST in said and HOST not in nominated:
                host = said[HOST]
            if PROTO in said and PROTO not in nominated:
                proto = said[PROTO]
        line = b"x-forwarded-proto: %b\r\n" % proto
        if address:
            line += b"x-forwarded-for: %b\r\n" % address
        return line + b"x-forwarded-host: %b\r\n" % host if host else line
