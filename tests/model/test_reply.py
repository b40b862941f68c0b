"""How a failure becomes the reply that the app gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.model.failure import Failure, Kind
from outrider.model.reply import Reply, proxy_status, reason_phrase, rescue


def body_of(reply: Reply) -> dict[str, Any]:
    made = json.loads(reply.body)
    assert isinstance(made, dict)
    return made


def test_problem_details_and_error_envelope() -> None:
    """The body is RFC 9457 problem details, and the platforms' `error` and `message` beside them."""
    reply = rescue(Failure(Kind.CIRCUIT_OPEN, "open"), service="user", correlation_id="c1", attempts=2)
    assert reply.status == 503
    assert (b"content-type", b"application/problem+json") in reply.headers
    assert body_of(reply) == {
        "type": "urn:outrider:circuit-open",
        "title": "Circuit open",
        "status": 503,
        "detail": "open",
        "instance": "urn:outrider:call:c1",
        "error": "CIRCUIT_OPEN",
        "message": "open",
        "correlationId": "c1",
        "origin": "proxy",
        "service": "user",
        "attempts": 2,
        "retryable": True,
    }


def test_what_is_unknown_is_left_out() -> None:
    """Without service and correlation id the body has no such members, rather than nulls."""
    body = body_of(rescue(Failure(Kind.BAD_REQUEST, "bad")))
    assert not {"service", "correlationId", "instance", "retryAfter"} & set(body)
    assert body["attempts"] == 0


@pytest.mark.parametrize(("seconds", "told"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (30.0, 30)])
def test_retry_after_in_whole_seconds(seconds: float, told: int) -> None:
    """Retry-After is rounded up, is at least a second, and stands in head and body alike."""
    reply = rescue(Failure(Kind.RATE_LIMITED, "slow down", retry_after=seconds))
    assert dict(reply.headers)[b"retry-after"] == str(told).encode()
    assert body_of(reply)["retryAfter"] == told


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [
        (Kind.CIRCUIT_OPEN, True),
        (Kind.RATE_LIMITED, True),
        (Kind.OVERLOADED, True),
        (Kind.ATTEMPT_TIMEOUT, True),
        (Kind.RESET, True),
        (Kind.REQUEST_TIMEOUT, True),
        (Kind.BAD_REQUEST, False),
        (Kind.UNKNOWN_SERVICE, False),
        (Kind.VERSION, False),
        (Kind.INTERNAL, False),
    ],
)
def test_retryable(kind: Kind, retryable: bool) -> None:
    """`retryable` says whether the same call may succeed later, and never when it may have been executed already."""
    assert body_of(rescue(Failure(kind, "x")))["retryable"] is retryable
    assert body_of(rescue(Failure(kind, "x"), acted_on=True))["retryable"] is False


def test_who_is_not_authenticated_is_told_how() -> None:
    """A 401 without a challenge would not be one (RFC 9110 section 11.6.1); no other status has one."""
    for kind in Kind:
        headers = dict(rescue(Failure(kind, "x")).headers)
        assert (b"www-authenticate" in headers) == (kind.status == 401)


def test_proxy_status() -> None:
    """Proxy-Status names the error, the target and the detail."""
    failure = Failure(Kind.RESET, 'it said "no"', endpoint="10.0.0.1:3001")
    assert proxy_status(failure) == (
        b'outrider; error=connection_terminated; next-hop="10.0.0.1:3001"; details="it said \\"no\\""'
    )


@given(st.text(max_size=60))
def test_any_detail_is_one_line(detail: str) -> None:
    """No detail can break out of the header line, or out of the quotes of its value."""
    value = proxy_status(Failure(Kind.RESET, detail))
    assert all(0x20 <= byte < 0x7F for byte in value)
    quoted = value.partition(b"details=")[2]
    inner = quoted[1:-1].replace(b"\\\\", b"").replace(b'\\"', b"")
    assert quoted[:1] == quoted[-1:] == b'"'
    assert b'"' not in inner
    assert b"\\" not in inner


@given(st.text(max_size=60), st.sampled_from(Kind))
def test_any_failure_becomes_a_reply(detail: str, kind: Kind) -> None:
    """Every failure has a reply of its own status whose body repeats the detail."""
    reply = rescue(Failure(kind, detail))
    assert reply.status == kind.status
    assert body_of(reply)["detail"] == detail
    assert reply.failure is not None
    assert reply.failure.kind is kind


def test_reason_phrases() -> None:
    """Known statuses have their phrase, others none."""
    assert reason_phrase(503) == b"Service Unavailable"
    assert reason_phrase(299) == b""


def test_a_sentence_of_any_length_makes_a_reply_of_bounded_size() -> None:
    """A failure may quote what a target or a caller has sent; the answer repeats a bounded part of it."""
    reply = rescue(Failure(Kind.INVALID_RESPONSE, "\xff" * 60_000))
    assert len(reply.body) < 16_000
    assert sum(len(name) + len(value) for name, value in reply.headers) < 2_000
