"""What an inbound call brings that bounds it: its caller's time, and the app's health."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.policies.incoming import READ, AppHealth, IncomingDeadline, time_left
from outrider.model.failure import Kind
from outrider.model.outcome import SUCCESS
from tests.fakes import make_call, make_cluster


@pytest.mark.parametrize(
    ("headers", "left"),
    [
        ({}, None),
        ({b"x-request-timeout-ms": b"1500"}, 1.5),
        ({b"x-envoy-expected-rq-timeout-ms": b"250"}, 0.25),
        ({b"x-request-timeout-ms": b"1500", b"x-envoy-expected-rq-timeout-ms": b"250"}, 0.25),
        ({b"grpc-timeout": b"2H"}, 7200.0),
        ({b"grpc-timeout": b"2M"}, 120.0),
        ({b"grpc-timeout": b"2S"}, 2.0),
        ({b"grpc-timeout": b"200m"}, 0.2),
        ({b"grpc-timeout": b"200u"}, 0.0002),
        ({b"grpc-timeout": b"200n"}, 0.0000002),
        ({b"grpc-timeout": b"1S", b"x-request-timeout-ms": b"500"}, 0.5),
        ({b"x-request-timeout-ms": b"0"}, 0.0),
        ({b"x-request-timeout-ms": b"-5"}, -0.005),
    ],
    ids=str,
)
def test_the_callers_time(headers: dict[bytes, bytes], left: float | None) -> None:
    """In milliseconds, or as gRPC writes it; the shortest that is said."""
    assert time_left(headers) == (None if left is None else pytest.approx(left))


@pytest.mark.parametrize("value", [b"", b"soon", b"1.5", b"1e3", b"1_000", b"+5", b"5, 5", b"1" * 13, b"0x10"])
def test_what_cannot_be_read_says_nothing(value: bytes) -> None:
    """A caller that cannot write a number gets the time that everybody gets."""
    assert time_left({b"x-request-timeout-ms": value}) is None


@pytest.mark.parametrize("value", [b"5", b"S", b"5s", b"5h", b"123456789S", b"-5S", b"5 S", b"5SS"])
def test_what_is_no_grpc_timeout(value: bytes) -> None:
    """At most eight digits and one of six letters."""
    assert time_left({b"grpc-timeout": value}) is None


def test_a_deadline_is_shortened_never_lengthened() -> None:
    """The caller's time holds if it is shorter than ours."""
    for said, expected in ((b"500", 0.5), (b"60000", 10.0)):
        call = make_call(headers={b"x-request-timeout-ms": said}, timeout=10.0)
        assert IncomingDeadline().admit(call) is None
        assert call.deadline - call.started == pytest.approx(expected)


def test_without_a_word_nothing_changes() -> None:
    """Most callers say nothing."""
    call = make_call(timeout=10.0)
    assert IncomingDeadline().admit(call) is None
    assert call.deadline - call.started == pytest.approx(10.0)


@pytest.mark.parametrize("said", [b"0", b"-1", b"-999999"])
def test_what_is_too_late_is_not_begun(said: bytes) -> None:
    """Nobody waits for the answer any more, so the app is not asked."""
    failure = IncomingDeadline().admit(make_call(headers={b"x-request-timeout-ms": said}))
    assert failure is not None
    assert failure.kind is Kind.DEADLINE


@given(st.dictionaries(st.sampled_from(sorted(READ)), st.binary(max_size=20)))
def test_any_bytes_are_a_time_or_none(headers: dict[bytes, bytes]) -> None:
    """Whatever stands there, nothing is raised, and the time is never longer than ours."""
    call = make_call(headers=headers, timeout=10.0)
    failure = IncomingDeadline().admit(call)
    assert failure is not None or call.started < call.deadline <= call.started + 10.0


def test_while_the_app_is_ill_nobody_is_let_in() -> None:
    """At once, with that reason, and with a word on when to come back."""
    cluster = make_cluster(endpoints=2)
    health = AppHealth(cluster.has_healthy)
    assert health.admit(make_call()) is None
    cluster.found_healthy(cluster.endpoints[0], False, 1000.0)
    assert health.admit(make_call()) is None
    cluster.found_healthy(cluster.endpoints[1], False, 1000.0)
    failure = health.admit(make_call())
    assert failure is not None
    assert failure.kind is Kind.NO_ENDPOINT
    assert failure.retry_after == 1.0
    cluster.found_healthy(cluster.endpoints[0], True, 1000.0)
    assert health.admit(make_call()) is None


def test_they_hold_nothing() -> None:
    """There is nothing to give back when a call is over."""
    call = make_call()
    IncomingDeadline().admit(call)
    AppHealth(make_cluster().has_healthy).admit(call)
    assert call.permits == []
    IncomingDeadline().observe(call, SUCCESS)
    AppHealth(make_cluster().has_healthy).observe(call, SUCCESS)
