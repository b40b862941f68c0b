"""Every way a call can fail: how it is answered, who is to blame, and what may be done about it.

One table, so that the reply, the retry decision, the breaker, the metrics and the log agree. The statuses and
`Proxy-Status` error tokens follow RFC 9209 §2.3; the flags are Envoy's response flags, which operators know.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from typing import Final

from outrider.model.outcome import FAILURE, NEUTRAL, Outcome

# Errors of this machine that say nothing about whatever was to be reached: no descriptor, memory, local port or thread
# left, no network, not this kind of network.
LOCAL_ERRORS: Final = frozenset(
    (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
        errno.EAFNOSUPPORT,
        errno.ENETDOWN,
    )
)


class Origin(Enum):
    """Who is to blame."""

    CALLER = "caller"
    PROXY = "proxy"
    NETWORK = "network"
    TARGET = "target"


class Phase(Enum):
    """What a failed attempt means for trying again; the values are the words of `retry.on_errors`."""

    CONNECT = "connect"  # nothing was sent: any method may be tried again (RFC 9110 §9.2.2)
    RESET = "reset"  # sent, then the connection or the answer broke
    TIMEOUT = "timeout"  # sent, and no answer in time


class Kind(Enum):
    """One row per failure: slug, status, Proxy-Status error, title, origin, flag, phase, outcome, outcome label."""

    BAD_REQUEST = ("bad-request", 400, "http_request_error", "Malformed request", Origin.CALLER, "DPE")
    METHOD_REFUSED = ("method-refused", 405, "http_request_error", "Method refused", Origin.CALLER, "DPE")
    REQUEST_TIMEOUT = ("request-timeout", 408, "http_request_error", "Request too slow", Origin.CALLER, "DPE")
    BODY_TOO_LARGE = ("body-too-large", 413, "http_request_error", "Request body too large", Origin.CALLER, "DPE")
    HEAD_TOO_LARGE = ("head-too-large", 431, "http_request_error", "Request head too large", Origin.CALLER, "DPE")
    NOT_IMPLEMENTED = ("not-implemented", 501, "http_request_error", "Not implemented", Origin.CALLER, "DPE")
    VERSION = ("http-version", 505, "http_request_error", "HTTP version not supported", Origin.CALLER, "DPE")
    UNKNOWN_SERVICE = ("unknown-service", 502, "destination_not_found", "Unknown service", Origin.CALLER, "NR")

    LOOP_DETECTED = ("loop-detected", 508, "proxy_loop_detected", "The call leads in a circle", Origin.CALLER, "DPE")

    UNAUTHENTICATED = ("unauthorized", 401, "http_request_denied", "Not authenticated", Origin.CALLER, "UAEX",
                       None, NEUTRAL, "unauthenticated")  # fmt: skip
    UNIDENTIFIED = ("bad-request", 400, "http_request_denied", "Identification missing", Origin.CALLER, "UAEX",
                    None, NEUTRAL, "unauthenticated")  # fmt: skip
    FORBIDDEN = ("forbidden", 403, "http_request_denied", "Not allowed", Origin.CALLER, "UAEX",
                 None, NEUTRAL, "forbidden")  # fmt: skip
    IN_PROGRESS = ("in-progress", 409, "http_request_denied", "The same call is under way", Origin.CALLER, "DPE")
    KEY_REUSED = ("key-reused", 422, "http_request_error", "Idempotency-Key used for another call", Origin.CALLER,
                  "DPE")  # fmt: skip

    RATE_LIMITED = ("rate-limited", 429, "http_request_denied", "Rate limit reached", Origin.PROXY, "RL",
                    None, NEUTRAL, "rate_limited")  # fmt: skip
    OVERLOADED = ("overloaded", 503, "connection_limit_reached", "Too many calls in flight", Origin.PROXY, "UO",
                  None, NEUTRAL, "overloaded")  # fmt: skip
    CIRCUIT_OPEN = ("circuit-open", 503, "destination_unavailable", "Circuit open", Origin.PROXY, "UO",
                    None, NEUTRAL, "circuit_open")  # fmt: skip
    CREDENTIAL_MISSING = ("credential-missing", 503, "proxy_internal_error", "Credential not available", Origin.PROXY,
                          "-", None, NEUTRAL, "credential_missing")  # fmt: skip
    STORE_UNAVAILABLE = ("store-unavailable", 503, "proxy_internal_error", "Repetitions cannot be recognised",
                         Origin.PROXY, "-", None, NEUTRAL, "store_unavailable")  # fmt: skip
    INTERNAL = ("internal", 500, "proxy_internal_error", "Internal error of the proxy", Origin.PROXY, "-")

    NO_ENDPOINT = ("no-endpoint", 503, "destination_unavailable", "No healthy endpoint", Origin.NETWORK, "UH")
    LOCAL_FAULT = ("local-fault", 503, "proxy_internal_error", "No connection can be begun here", Origin.PROXY, "-",
                   Phase.CONNECT, NEUTRAL, "overloaded")  # fmt: skip
    CONNECT_REFUSED = ("connect-failed", 502, "connection_refused", "Connection refused", Origin.NETWORK, "UF",
                       Phase.CONNECT, FAILURE)  # fmt: skip
    UNREACHABLE = ("connect-failed", 502, "destination_ip_unroutable", "Target unreachable", Origin.NETWORK, "UF",
                   Phase.CONNECT, FAILURE)  # fmt: skip
    DNS = ("dns-failed", 502, "dns_error", "Host name not found", Origin.NETWORK, "UF", Phase.CONNECT, FAILURE)
    CONNECT_TIMEOUT = ("timeout", 504, "connection_timeout", "Connecting took too long", Origin.NETWORK, "UT",
                       Phase.CONNECT, FAILURE, "timeout")  # fmt: skip
    TLS_CERTIFICATE = ("tls-certificate", 502, "tls_certificate_error", "Certificate not trusted", Origin.TARGET, "UF",
                       Phase.CONNECT, FAILURE)  # fmt: skip
    TLS_ALERT = ("tls-refused", 502, "tls_alert_received", "TLS refused by the target", Origin.TARGET, "UF",
                 Phase.CONNECT, FAILURE)  # fmt: skip
    TLS_FAILED = ("tls-failed", 502, "tls_protocol_error", "No TLS handshake", Origin.TARGET, "UF",
                  Phase.CONNECT, FAILURE)  # fmt: skip
    RESET = ("connection-reset", 502, "connection_terminated", "Connection broken", Origin.NETWORK, "UC",
             Phase.RESET, FAILURE)  # fmt: skip
    # Closed in an orderly way before anything of the request had reached the target's kernel.
    CLOSED_UNSENT = ("connection-reset", 502, "connection_terminated", "Connection broken", Origin.NETWORK, "UC",
                     Phase.CONNECT, FAILURE)  # fmt: skip
    INVALID_RESPONSE = ("invalid-response", 502, "http_protocol_error", "Invalid answer from the target",
                        Origin.TARGET, "UPE", Phase.RESET, FAILURE)  # fmt: skip
    RESPONSE_HEAD_TOO_LARGE = ("invalid-response", 502, "http_response_header_section_size",
                               "Response head too large", Origin.TARGET, "UPE", Phase.RESET, FAILURE)  # fmt: skip
    INCOMPLETE = ("incomplete-response", 502, "http_response_incomplete", "Answer cut short", Origin.TARGET, "UC",
                  Phase.RESET, FAILURE)  # fmt: skip
    ATTEMPT_TIMEOUT = ("timeout", 504, "http_response_timeout", "No answer in time", Origin.TARGET, "UT",
                       Phase.TIMEOUT, FAILURE, "timeout")  # fmt: skip
    DEADLINE = ("timeout", 504, "http_response_timeout", "The call's time is used up", Origin.TARGET, "UT",
                None, FAILURE, "timeout")  # fmt: skip

    # The call's time ended while everything moved, or was used up by the app: no fault of the target.
    CALL_ENDED = ("timeout", 504, "http_response_timeout", "The call's time is used up", Origin.CALLER, "UT",
                  None, NEUTRAL, "timeout")  # fmt: skip
    # Never answered with either: the head of an answer is already there.
    APP_STALLED = ("app-stalled", 504, "http_response_timeout", "The app stopped reading", Origin.CALLER, "DC",
                   None, NEUTRAL, "cancelled")  # fmt: skip

    # Never answered with: nobody is there to hear it. 499 is what the log and the metric say.
    CANCELLED = ("cancelled", 499, "connection_terminated", "The app hung up", Origin.CALLER, "DC",
                 None, NEUTRAL, "cancelled")  # fmt: skip

    STOPPED = ("stopped", 503, "proxy_internal_error", "Outrider was stopped", Origin.PROXY, "-",
               None, NEUTRAL, "cancelled")  # fmt: skip

    CALLER_LEFT = ("caller-left", 503, "connection_terminated", "The app's own caller has left", Origin.CALLER, "DC",
                   None, NEUTRAL, "cancelled")  # fmt: skip

    def __init__(  # noqa: PLR0913 # the columns of the table above
        self,
        slug: str,
        status: int,
        proxy_error: str,
        title: str,
        origin: Origin,
        flag: str,
        phase: Phase | None = None,
        outcome: Outcome = NEUTRAL,
        label: str = "upstream_error",
    ) -> None:
        self.slug = slug
        self.status = status
        self.proxy_error = proxy_error
        self.title = title
        self.origin = origin
        self.flag = flag
        self.phase = phase
        self.outcome = outcome
        self.label = "rejected" if origin is Origin.CALLER and label == "upstream_error" else label

    # Enum would otherwise hash the name on every lookup in a per-call table.
    __hash__ = object.__hash__

    @property
    def code(self) -> str:
        """The stable upper-case error code of the reply body, e.g. `CIRCUIT_OPEN`."""
        return self.slug.replace("-", "_").upper()


@dataclass(slots=True)
class Failure:
    """One failure that happened: its kind, a sentence for people, and when to come back.

    `retry_after` is in seconds; `endpoint` is `host:port` of the target involved, if any. `tried_enough`: trying again
    from further away would only add load.
    """

    kind: Kind
    detail: str
    retry_after: float | None = None
    endpoint: str | None = None
    tried_enough: bool = False

    @property
    def outcome(self) -> Outcome:
        """What it says about the target."""
        return self.kind.outcome


def body_too_large(size: int, limit: int, inbound: bool, *, complete: bool = True) -> Failure:
    """A request body of `size` bytes where `limit` are allowed. Without `complete`, `size` is only what has come so
    far."""
    has = f"has {size} bytes" if complete else f"has {size} bytes so far"
    key = "inbound.body_bytes" if inbound else "limits.body_bytes"
    return Failure(Kind.BODY_TOO_LARGE, f"the request body {has}; {key} allows {limit}")
