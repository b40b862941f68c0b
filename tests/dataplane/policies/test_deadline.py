"""The deadline: bounds the call, is only ever shortened, and tells the target what is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.call import Call
from outrider.dataplane.policies.deadline import Deadline
from outrider.dataplane.runtime.timers import NEVER
from outrider.model.failure import Kind, Origin
from outrider.model.outcome import NEUTRAL
from outrider.model.units import format_duration
from tests.fakes import make_attempt, make_call, make_route


def make_asking(asked: bytes | None) -> Call:
    return make_call(headers={b"x-outrider-timeout": asked} if asked is not None else None, now=1000.0)


def told(deadline: Deadline, call: Call, *, attempt_timeout: float, started: float, sent: float) -> bytes:
    """What the target is told of an attempt that begins and is sent at these times."""
    call.route = make_route(attempt_timeout=attempt_timeout)
    attempt = make_attempt(call, now=started)
    attempt.sent = sent
    return deadline.stamp(attempt)


def test_the_timeout_counts_from_the_arrival_of_the_call() -> None:
    """`timeout` after it came in, a call is over."""
    call = make_asking(None)
    assert Deadline(10).admit(call) is None
    assert call.deadline == 1010


@pytest.mark.parametrize(
    ("asked", "deadline"),
    [(b"800ms", 1000.8), (b"1m30s", 1010), (b"10s", 1010), (b"9999h", 1010)],
)
def test_the_app_may_shorten_but_not_lengthen(asked: bytes, deadline: float) -> None:
    """`x-outrider-timeout` counts where it is the shorter one."""
    call = make_asking(asked)
    assert Deadline(10).admit(call) is None
    assert call.deadline == pytest.approx(deadline)


@pytest.mark.parametrize("asked", [b"0s", b"5s", b"nonsense"])
def test_it_may_be_for_others_than_the_one_who_calls(asked: bytes) -> None:
    """`x-outrider-timeout` is for apps; the guard does not read what a caller of the app writes there."""
    call = make_asking(asked)
    assert Deadline(10, heeds_app=False).admit(call) is None
    assert call.deadline == call.started + 10


def test_no_time_at_all_is_refused_at_once() -> None:
    """A call whose deadline has passed on arrival is not sent to anybody."""
    refusal = Deadline(10).admit(make_asking(b"0s"))
    assert refusal is not None
    assert refusal.kind is Kind.DEADLINE


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_shorter_one_always_wins(timeout: float, asked: float) -> None:
    """Whatever is configured and whatever is asked for, a call never has more than either."""
    text = format_duration(round(asked, 3))
    call = make_asking(text.encode())
    Deadline(timeout).admit(call)
    assert call.deadline <= 1000 + min(timeout, round(asked, 3)) + 0.01


def test_without_a_timeout_the_app_may_still_set_one() -> None:
    """No limit of ours is no reason to ignore the app's."""
    unbounded, bounded = make_asking(None), make_asking(b"2s")
    for call in (unbounded, bounded):
        Deadline(NEVER).admit(call)
    assert (unbounded.deadline, bounded.deadline) == (NEVER, 1002)


@pytest.mark.parametrize("asked", [b"", b"800", b"fast", b"-1s", b"1s, 2s", b"1e3s", b"\xb2s", b"\xff\xfe", b"inf"])
def test_what_cannot_be_read_is_the_apps_mistake(asked: bytes) -> None:
    """A 400 that says what was expected; a limit that was asked for is never silently dropped."""
    failure = Deadline(10).admit(make_asking(asked))
    assert failure is not None
    assert failure.kind is Kind.BAD_REQUEST
    assert failure.kind.origin is Origin.CALLER
    assert failure.detail.startswith("x-outrider-timeout: expected a duration")


def test_it_holds_no_permit() -> None:
    """The end of a call gives nothing back."""
    call = make_asking(None)
    deadline = Deadline(10)
    deadline.admit(call)
    deadline.observe(call, NEUTRAL)
    assert call.permits == []


# ---------------------------------------------------------------- what the target is told


def admitted(deadline: Deadline, asked: bytes | None = None) -> Call:
    call = make_asking(asked)
    deadline.admit(call)
    return call


def test_the_target_is_told_its_attempt_timeout() -> None:
    """While the call has more time than one attempt, the attempt's time is what is left."""
    deadline = Deadline(10)
    line = told(deadline, admitted(deadline), attempt_timeout=5, started=1000, sent=1000)
    assert line == b"x-request-timeout-ms: 5000\r\nx-request-total-timeout-ms: none\r\n"


def test_the_target_is_told_what_is_left_of_the_call() -> None:
    """A late attempt has only the rest of the call's time."""
    deadline = Deadline(10)
    line = told(deadline, admitted(deadline), attempt_timeout=5, started=1007.5, sent=1007.5)
    assert line == b"x-request-timeout-ms: 2500\r\nx-request-total-timeout-ms: none\r\n"


@pytest.mark.parametrize(
    ("total", "attempt", "line"),
    [
        (60, 5, b"x-request-timeout-ms: 5000\r\nx-request-total-timeout-ms: 60000\r\n"),
        (10, 5, b"x-request-timeout-ms: 5000\r\nx-request-total-timeout-ms: 10000\r\n"),
        (10, 10, b"x-request-timeout-ms: 10000\r\n"),
        (3, 5, b"x-request-timeout-ms: 3000\r\n"),
    ],
)
def test_the_target_is_told_what_bounds_the_body(total: float, attempt: float, line: bytes) -> None:
    """Where the whole has another bound than the head, both are told; else one field says it."""
    deadline = Deadline(10, total)
    assert told(deadline, admitted(deadline), attempt_timeout=attempt, started=1000, sent=1000) == line


def test_only_the_head_is_bounded_by_default() -> None:
    """`timeout` is for the head of the answer; `total_timeout` and the app's own word bound everything."""
    for deadline, asked, head, whole in (
        (Deadline(10), None, 10, NEVER),
        (Deadline(10, 30), None, 10, 30),
        (Deadline(10, 3), None, 3, 3),
        (Deadline(10), b"2s", 2, 2),
        (Deadline(10), b"20s", 10, 20),
        (Deadline(NEVER, 30), b"40s", 30, 30),
    ):
        call = admitted(deadline, asked)
        assert (call.deadline - 1000, call.ends - 1000) == (head, whole)


def test_a_shortened_call_is_told_as_such() -> None:
    """The app's own limit travels on."""
    deadline = Deadline(10)
    line = told(deadline, admitted(deadline, b"800ms"), attempt_timeout=5, started=1000, sent=1000)
    assert line == b"x-request-timeout-ms: 800\r\n"


def test_time_spent_connecting_is_not_promised_again() -> None:
    """What connecting took is gone."""
    deadline = Deadline(10)
    line = told(deadline, admitted(deadline), attempt_timeout=5, started=1000, sent=1000.75)
    assert line == b"x-request-timeout-ms: 4250\r\nx-request-total-timeout-ms: none\r\n"


def test_never_less_than_a_millisecond() -> None:
    """Zero would mean "no limit" to some."""
    deadline = Deadline(10)
    for sent in (1009.99999, 1010.5):
        line = told(deadline, admitted(deadline), attempt_timeout=5, started=1009, sent=sent)
        assert line == b"x-request-timeout-ms: 1\r\nx-request-total-timeout-ms: none\r\n"


@pytest.mark.parametrize("sent", [1000.0, 1003.0])
def test_without_any_limit_nothing_is_told(sent: float) -> None:
    """No line at all where there is no limit."""
    deadline = Deadline(NEVER)
    assert told(deadline, admitted(deadline), attempt_timeout=NEVER, started=1000, sent=sent) == b""


@given(st.floats(0.001, 20), st.floats(0.001, 20), st.floats(0, 15), st.floats(0, 3))
def test_the_target_is_never_promised_more_than_there_is(
    timeout: float, attempt_timeout: float, later: float, connecting: float
) -> None:
    """What is told ends, within rounding, no later than call and attempt do."""
    deadline = Deadline(timeout)
    started = 1000 + later
    sent = started + connecting
    line = told(deadline, admitted(deadline), attempt_timeout=attempt_timeout, started=started, sent=sent)
    left = int(line.split()[1])
    end = min(1000 + timeout, started + attempt_timeout)
    assert left == 1 or sent + left / 1000 <= end + 0.001


def test_the_field_is_owned() -> None:
    """The app's own word on it does not reach the target beside ours."""
    assert Deadline(10).owned == {b"x-request-timeout-ms", b"x-request-total-timeout-ms"}
