"""The concurrency limit: at most so many calls in flight, and every permit comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.call import Call
from outrider.dataplane.policies.concurrency import ConcurrencyLimit
from outrider.model.failure import Kind
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS
from tests.fakes import make_call, make_route

ROUTE = make_route()


def test_up_to_the_limit_and_not_one_more() -> None:
    """The call beyond the limit is told to come back in a second, and which limit it met."""
    limit = ConcurrencyLimit(2)
    assert [limit.admit(make_call()) for _ in range(2)] == [None, None]
    refusal = limit.admit(make_call())
    assert refusal is not None
    assert refusal.kind is Kind.OVERLOADED
    assert refusal.kind.status == 503
    assert refusal.retry_after == 1.0
    assert "max_in_flight=2" in refusal.detail
    assert "user" in refusal.detail


def test_the_end_of_a_call_makes_room_however_it_ended() -> None:
    """Success, failure and hanging up all give the permit back."""
    limit = ConcurrencyLimit(1)
    for outcome in (SUCCESS, FAILURE, NEUTRAL):
        call = make_call()
        assert limit.admit(call) is None
        limit.observe(call, outcome)
    assert limit.in_flight == 0


def test_an_admitted_call_will_report_back() -> None:
    """The policy notes itself in the call, before those that came earlier; a refused call owes nothing."""
    outer, inner = ConcurrencyLimit(1), ConcurrencyLimit(1)
    call, refused = make_call(), make_call()
    outer.admit(call)
    inner.admit(call)
    assert call.permits == (inner, outer)
    outer.admit(refused)
    assert refused.permits == ()


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_permits_are_neither_lost_nor_made_up(most: int, steps: list[bool]) -> None:
    """Whatever calls come and go, as many are in flight as were let in and have not ended."""
    limit = ConcurrencyLimit(most)
    flying: list[Call] = []
    for comes in steps:
        if comes:
            call = make_call(route=ROUTE)
            refused = limit.admit(call) is not None
            assert refused == (len(flying) == most)
            if not refused:
                flying.append(call)
        elif flying:
            limit.observe(flying.pop(), NEUTRAL)
        assert limit.in_flight == len(flying)
