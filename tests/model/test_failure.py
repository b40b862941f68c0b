"""The table of failures: what reply, retry, breaker, metrics and log agree on."""

from __future__ import annotations

import re

import pytest

from outrider.model.failure import Kind, Origin, Phase
from outrider.model.outcome import FAILURE, NEUTRAL

# The tokens that RFC 9209 section 2.3 registers, as far as a proxy for plain HTTP may need them.
REGISTERED = {
    "dns_timeout",
    "dns_error",
    "destination_not_found",
    "destination_unavailable",
    "destination_ip_unroutable",
    "connection_refused",
    "connection_terminated",
    "connection_timeout",
    "connection_limit_reached",
    "http_request_error",
    "tls_alert_received",
    "tls_certificate_error",
    "tls_protocol_error",
    "http_request_denied",
    "http_response_incomplete",
    "http_response_header_section_size",
    "http_response_timeout",
    "http_protocol_error",
    "proxy_internal_error",
    "proxy_loop_detected",
}
OUTCOMES = {
    "rejected",
    "upstream_error",
    "timeout",
    "circuit_open",
    "rate_limited",
    "overloaded",
    "credential_missing",
    "store_unavailable",
    "cancelled",
    "unauthenticated",
    "forbidden",
}


@pytest.mark.parametrize("kind", Kind)
def test_every_row_is_well_formed(kind: Kind) -> None:
    """Every failure has a slug, an error status, a registered Proxy-Status token, a title and a flag."""
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.slug)
    assert 400 <= kind.status <= 599
    assert kind.proxy_error in REGISTERED
    assert kind.title
    assert re.fullmatch(r"[A-Z]+|-", kind.flag)
    assert kind.label in OUTCOMES


@pytest.mark.parametrize("kind", Kind)
def test_code_is_the_slug_in_capitals(kind: Kind) -> None:
    """The error code of the reply body is the slug, upper case."""
    assert kind.code.lower().replace("_", "-") == kind.slug


@pytest.mark.parametrize("kind", Kind)
def test_blame_decides_the_outcome(kind: Kind) -> None:
    """Nothing that the caller did, or that was refused here, counts against the target."""
    if kind.origin in (Origin.CALLER, Origin.PROXY):
        assert kind.outcome is NEUTRAL
        assert kind.phase is None or kind is Kind.LOCAL_FAULT  # which may be over, or spare another endpoint


@pytest.mark.parametrize("kind", Kind)
def test_what_may_be_tried_again_counts_as_failure(kind: Kind) -> None:
    """Whatever has a phase was an attempt that failed, unless this machine has."""
    assert kind.phase is None or kind.outcome is FAILURE or kind is Kind.LOCAL_FAULT


@pytest.mark.parametrize(
    "kind",
    [
        Kind.CONNECT_REFUSED,
        Kind.UNREACHABLE,
        Kind.DNS,
        Kind.CONNECT_TIMEOUT,
        Kind.TLS_CERTIFICATE,
        Kind.CLOSED_UNSENT,
    ],
)
def test_nothing_was_sent(kind: Kind) -> None:
    """Failing to connect is the phase in which nothing was sent."""
    assert kind.phase is Phase.CONNECT


@pytest.mark.parametrize("kind", [Kind.RESET, Kind.INVALID_RESPONSE, Kind.INCOMPLETE, Kind.ATTEMPT_TIMEOUT])
def test_something_was_sent(kind: Kind) -> None:
    """Once something was sent, the failure is never told as one of connecting."""
    assert kind.phase in (Phase.RESET, Phase.TIMEOUT)


def test_unknown_service_is_not_404() -> None:
    """A caller would read 404 as a business answer, so a wrong name is a 502."""
    assert Kind.UNKNOWN_SERVICE.status == 502


def test_refusals_have_their_own_outcome() -> None:
    """Metrics tell the three refusals apart from each other and from the target's errors."""
    labels = [Kind.RATE_LIMITED.label, Kind.OVERLOADED.label, Kind.CIRCUIT_OPEN.label]
    assert labels == ["rate_limited", "overloaded", "circuit_open"]


def test_who_may_not_call_is_told_apart() -> None:
    """Who has not proven who calls is told apart from who may not do that, and both from a malformed request."""
    labels = [Kind.UNAUTHENTICATED.label, Kind.UNIDENTIFIED.label, Kind.FORBIDDEN.label]
    assert labels == ["unauthenticated", "unauthenticated", "forbidden"]
    assert [Kind.UNAUTHENTICATED.status, Kind.UNIDENTIFIED.status, Kind.FORBIDDEN.status] == [401, 400, 403]
    assert [Kind.IN_PROGRESS.label, Kind.KEY_REUSED.label] == ["rejected", "rejected"]
    assert [Kind.IN_PROGRESS.status, Kind.KEY_REUSED.status] == [409, 422]


def test_phases_are_the_words_of_the_configuration() -> None:
    """`retry.on_errors` uses the names of the phases."""
    assert {phase.value for phase in Phase} == {"connect", "reset", "timeout"}


def test_kinds_are_distinct_keys() -> None:
    """Kinds with the same slug are still different rows."""
    assert len(dict.fromkeys(Kind)) == len(list(Kind))
    assert Kind.CONNECT_REFUSED is not Kind.UNREACHABLE
