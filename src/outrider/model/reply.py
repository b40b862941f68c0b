"""An answer made here instead of by a target, and how a failure becomes one.

The body is RFC 9457 problem details that is also the error envelope of the platforms Outrider serves:
`error` and `message` beside `type` and `title`. `Proxy-Status` is RFC 9209.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from http import HTTPStatus

from outrider.model.failure import Failure

# Characters of a failure's sentence that are told: it may quote what somebody has sent.
_LONGEST_DETAIL = 1000


@dataclass(slots=True)
class Reply:
    """A complete local reply. `failure` says why it was made; None for a declared fallback. `of_target`: it is an
    earlier answer of the target, given again."""

    status: int
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    failure: Failure | None = None
    of_target: bool = False


def reason_phrase(status: int) -> bytes:
    """The standard reason phrase of a status, or nothing for one without a standard phrase."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def proxy_status(failure: Failure) -> bytes:
    """The value of `Proxy-Status` for a failure (RFC 9209 §2)."""
    value = f"outrider; error={failure.kind.proxy_error}"
    if failure.endpoint:
        value += f'; next-hop="{failure.endpoint}"'
    return f"{value}; details={_sf_string(failure.detail[:_LONGEST_DETAIL])}".encode()


def rescue(
    failure: Failure,
    *,
    service: str | None = None,
    correlation_id: str | None = None,
    attempts: int = 0,
    acted_on: bool = False,
) -> Reply:
    """Turn a failure into the reply the app gets.

    `retryable` tells the app whether the same call may succeed later and may be made again: not if `acted_on`, when the
    target may have executed it and must not do so twice.
    """
    kind = failure.kind
    status = kind.status
    detail = failure.detail if len(failure.detail) <= _LONGEST_DETAIL else f"{failure.detail[:_LONGEST_DETAIL]}..."
    problem: dict[str, object] = {
        "type": f"urn:outrider:{kind.slug}",
        "title": kind.title,
        "status": status,
        "detail": detail,
        "instance": f"urn:outrider:call:{correlation_id}" if correlation_id else None,
        "error": kind.code,
        "message": detail,
        "correlationId": correlation_id,
        "origin": kind.origin.value,
        "service": service,
        "attempts": attempts,
        "retryable": not acted_on and (status in (408, 429) or (status >= 502 and kind.origin.value != "caller")),
    }
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"proxy-status", proxy_status(failure)),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b'Outrider realm="service"'))  # RFC 9110 §11.6.1 asks for a challenge
    if failure.tried_enough:
        headers.append((b"x-outrider-retry", b"off"))
    if failure.retry_after is not None:
        seconds = max(1, math.ceil(failure.retry_after))
        problem["retryAfter"] = seconds
        headers.append((b"retry-after", b"%d" % seconds))
    body = json.dumps({k: v for k, v in problem.items() if v is not None}).encode() + b"\n"
    return Reply(status, headers, body, failure)


def _sf_string(text: str) -> str:
    """A structured-field string (RFC 8941 §3.3.3): printable ASCII, quotes and backslashes escaped."""
    printable = "".join(c if 0x20 <= ord(c) < 0x7F else "?" for c in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
