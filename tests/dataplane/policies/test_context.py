"""Context: every call has a correlation id and a valid trace context, the app's own where it sent them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.policies.context import Context
from outrider.model.outcome import NEUTRAL
from tests.fakes import make_attempt, make_call

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = b"00f067aa0ba902b7"
GOOD = b"00-" + TRACE + b"-" + SPAN + b"-01"


def make_context(header: bytes = b"X-Correlation-Id") -> Context:
    return Context(header, lambda: b"made-here")


def traced(traceparent: bytes) -> bytes:
    """The trace context that a target sees for what the app sent."""
    call = make_call(headers={b"traceparent": traceparent})
    make_context().admit(call)
    return call.traceparent


def test_the_apps_correlation_id_is_passed_on() -> None:
    """An id that came in goes out, byte for byte."""
    call = make_call(headers={b"x-correlation-id": b"from the app/7"})
    make_context().admit(call)
    assert call.correlation_id == b"from the app/7"


@pytest.mark.parametrize("sent", [b"\xff" * 60_000, b"x" * 257, b"caf\xc3\xa9", b"a\tb", b"a\x7fb"])
def test_an_id_that_cannot_be_shown_is_replaced(sent: bytes) -> None:
    """Ids are logged, echoed and kept, so one that is too long or not visible ASCII is not taken."""
    call = make_call(headers={b"x-correlation-id": sent})
    make_context().admit(call)
    assert call.correlation_id == b"made-here"


def test_a_long_id_is_passed_on() -> None:
    """256 characters are allowed."""
    call = make_call(headers={b"x-correlation-id": b"x" * 256})
    make_context().admit(call)
    assert call.correlation_id == b"x" * 256


@pytest.mark.parametrize("headers", [{}, {b"x-correlation-id": b""}])
def test_without_one_an_id_is_made(headers: dict[bytes, bytes]) -> None:
    """A missing or empty id is made up here."""
    call = make_call(headers=headers)
    make_context().admit(call)
    assert call.correlation_id == b"made-here"


def test_the_header_can_be_another() -> None:
    """The configured header is read in any case and written as configured."""
    call = make_call(headers={b"x-request-id": b"7", b"x-correlation-id": b"8"})
    context = make_context(b"X-Request-ID")
    context.admit(call)
    assert call.correlation_id == b"7"
    assert context.stamp(make_attempt(call)).startswith(b"X-Request-ID: 7\r\n")


def test_both_fields_are_written_and_owned() -> None:
    """What is stamped is taken out of what the app sent."""
    context = make_context()
    call = make_call(headers={b"traceparent": GOOD})
    context.admit(call)
    assert context.stamp(make_attempt(call)) == b"X-Correlation-Id: made-here\r\ntraceparent: " + GOOD + b"\r\n"
    assert context.owned == {b"x-correlation-id", b"traceparent"}


def test_every_attempt_has_the_same_context() -> None:
    """A retry can be found under the ids of the first try."""
    context, call = make_context(), make_call()
    context.admit(call)
    assert context.stamp(make_attempt(call, number=1)) == context.stamp(make_attempt(call, number=2))


def test_calls_have_traces_of_their_own() -> None:
    """Two calls without a trace do not end up in the same one."""
    context, calls = make_context(), [make_call(), make_call()]
    for call in calls:
        assert context.admit(call) is None
        context.observe(call, NEUTRAL)
    assert calls[0].traceparent[:35] != calls[1].traceparent[:35]
    assert calls[0].permits == []


@pytest.mark.parametrize(
    "traceparent",
    [
        GOOD,
        b"00-" + TRACE + b"-" + SPAN + b"-00",
        b"00-" + TRACE + b"-" + SPAN + b"-ff",
        b"01-" + TRACE + b"-" + SPAN + b"-01",
        b"cc-" + TRACE + b"-" + SPAN + b"-01-what-the-future-will-be-like",
    ],
)
def test_a_valid_traceparent_is_passed_on(traceparent: bytes) -> None:
    """As the app sent it, sampling flag included; later versions may have more fields."""
    assert traced(traceparent) == traceparent


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"00-" + b"0" * 32 + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"ff-" + TRACE + b"-" + SPAN + b"-01",
        b"00-" + TRACE[:-1] + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"0-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + SPAN[:-1] + b"-01",
        b"00-" + TRACE + b"-" + SPAN + b"-1",
        b"00-" + TRACE + b"-" + SPAN + b"-011",
        b"00-" + TRACE.upper() + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + SPAN.upper() + b"-01",
        b"00-" + TRACE + b"-" + SPAN,
        b"00-" + TRACE + b"-" + SPAN + b"-01.",
        b"00-" + TRACE + b"-" + SPAN + b"-01-extra",
        b"01-" + TRACE + b"-" + SPAN + b"-01.what",
        b"0-" + TRACE + b"-" + SPAN + b"-01",
        b"00-" + TRACE.replace(b"4", b"g") + b"-" + SPAN + b"-01",
        b"00_" + TRACE + b"_" + SPAN + b"_01",
        GOOD + b", " + GOOD,
        b" " + GOOD,
    ],
)
def test_an_invalid_traceparent_starts_a_new_trace(traceparent: bytes) -> None:
    """W3C trace-context §3.2.2: what is malformed is not passed on; version 00 has exactly four fields."""
    new = traced(traceparent)
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", new)
    assert TRACE not in new


@given(st.binary(max_size=70))
def test_a_target_always_gets_a_well_formed_traceparent(traceparent: bytes) -> None:
    """Whatever the app sends, the head stays one line per field."""
    assert re.fullmatch(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[^\r\n]*)?", traced(traceparent))
