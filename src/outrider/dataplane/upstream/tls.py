"""TLS to targets: the context connections are made with, sessions to resume, and why a handshake failed.

Not compiled: it runs once per connection, and `SSLContext` can only be extended by an ordinary class.
"""

from __future__ import annotations

import ssl
from time import monotonic
from typing import Any

from outrider.model.failure import Kind

_MAX_SESSIONS = 512  # of a context, which services share
# Seconds for which one is offered before another one is taken, and between two looks at a server that gives none.
_KEPT_FOR = 300.0
_LOOK_AGAIN = 60.0

# OpenSSL's words for a certificate of ours that the other side wants, or does not like.
_ABOUT_OUR_CERTIFICATE = (
    "CERTIFICATE_REQUIRED",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNKNOWN_CA",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_ACCESS_DENIED",
)


class ResumingContext(ssl.SSLContext):
    """A client context that offers the latest session to a server it has spoken to: one round trip and the
    certificates saved (RFC 8446 §2.2). Event loops have no parameter for that, but they all call `wrap_bio`."""

    sessions: dict[str | None, ssl.SSLSession]
    taken_at: dict[str, float]  # when each was taken, in monotonic seconds

    def __new__(cls) -> ResumingContext:
        context: ResumingContext = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.sessions = {}
        context.taken_at = {}
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As the event loop calls it, with the session it does not know of."""
        name = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname
        offered = session or self.sessions.get(name)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, offered)


class ClientTls:
    """How the connections of a cluster are secured. Replaced as a whole when a file changes: connections made with
    an earlier one are not used again."""

    __slots__ = ("context", "peer_expires", "server_name")

    def __init__(self, context: ResumingContext, server_name: str) -> None:
        """`server_name` is sent as SNI and must be in the target's certificate."""
        self.context = context
        self.server_name = server_name
        self.peer_expires = 0.0  # Unix time; of the certificate the target showed last

    def made(self, transport: Any) -> str:
        """Look at a connection that was just made: whether it was `full` work or `resumed` a session."""
        secured: ssl.SSLObject = transport.get_extra_info("ssl_object")
        shown = _certificate(secured)
        if "notAfter" in shown:
            self.peer_expires = float(ssl.cert_time_to_seconds(str(shown["notAfter"])))
        return "resumed" if secured.session_reused else "full"

    def remember(self, connection: ssl.SSLObject | None) -> None:
        """Keep the session of a connection that has served a call, for the next ones, unless there is a recent one.

        Each look at `SSLObject.session` leaks a copy of it, 6.5 kB, in CPython 3.11 (`PySSL_get_session` makes one and
        forgets it). So a session is used for several connections, and another one taken every few minutes at most.
        """
        taken_at, now = self.context.taken_at, monotonic()
        known = taken_at.get(self.server_name)
        if connection is None or (now - known < _KEPT_FOR if known is not None else len(taken_at) >= _MAX_SESSIONS):
            return
        session = connection.session
        if session is not None and session.has_ticket:
            self.context.sessions[self.server_name] = session
            taken_at[self.server_name] = now
        else:
            taken_at[self.server_name] = now - _KEPT_FOR + _LOOK_AGAIN


def _certificate(secured: ssl.SSLObject) -> dict[str, Any]:
    """What the other side has shown; nothing, if it has already left again."""
    try:
        return dict(secured.getpeercert() or {})
    except ValueError:
        return {}


def peer_names(secured: ssl.SSLObject) -> tuple[str, ...]:
    """The DNS names and URIs in the verified certificate of the other side; without any, its common name."""
    shown = _certificate(secured)
    names = [str(value) for kind, value in shown.get("subjectAltName", ()) if kind in ("DNS", "URI")]
    if not shown.get("subjectAltName"):  # RFC 9525 §6.3: a common name beside alternative names says nothing
        names = [str(value) for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
    return tuple(dict.fromkeys(names))


def refused_our_certificate(error: Exception | None) -> bool:
    """Whether the other side ended the connection because of our certificate, or the lack of one. With TLS 1.3 it
    says so only after the handshake, and before it has read anything we sent (RFC 8446 §4.4.2.4)."""
    return isinstance(error, ssl.SSLError) and any(word in str(error) for word in _ABOUT_OUR_CERTIFICATE)


def why_no_handshake(error: ssl.SSLError, name: str, expected: str) -> tuple[Kind, str]:
    """The kind of a failed handshake with the endpoint `name`, and a sentence with a remedy."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message or str(error)
        return Kind.TLS_CERTIFICATE, f"the certificate of {name} is not trusted as {expected}: {said}"
    if refused_our_certificate(error):
        return Kind.TLS_ALERT, f"{name} does not accept our certificate (tls.cert): {_short(error)}"
    if "ALERT" in (error.reason or ""):
        return Kind.TLS_ALERT, f"{name} refused the handshake: {_short(error)}; does it want a certificate (tls.cert)?"
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return Kind.TLS_FAILED, f"{name} does not speak TLS; should its URL begin with http:// ?"
    return Kind.TLS_FAILED, f"no TLS with {name}: {_short(error)}"


def _short(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
