"""Keys made here: what makes a POST repeatable that came without one."""

from __future__ import annotations

import re

import pytest

from outrider.dataplane.call import Call
from outrider.dataplane.policies.idempotency_key import MintKey
from outrider.model.outcome import SUCCESS
from tests.fakes import make_call

UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def keys(call: Call) -> list[bytes]:
    """The values that the target gets."""
    return [value for lower, _, value in call.fields if lower == b"idempotency-key" and lower not in call.nominated]


def minted(call: Call) -> Call:
    assert MintKey().admit(call) is None
    return call


@pytest.mark.parametrize("method", [b"POST", b"PATCH"])
def test_a_call_without_a_key_gets_one(method: bytes) -> None:
    """One, in the field and in what the other policies read."""
    call = minted(make_call(method))
    (made,) = keys(call)
    assert UUID.fullmatch(made)
    assert call.noted[b"idempotency-key"] == made


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
def test_what_is_repeatable_anyway_needs_none(method: bytes) -> None:
    """RFC 9110 section 9.2.2."""
    assert keys(minted(make_call(method))) == []


def test_the_apps_own_key_stays() -> None:
    """It knows better what is the same call."""
    call = minted(make_call(b"POST", {b"Idempotency-Key": b"mine"}))
    assert keys(call) == [b"mine"]


@pytest.mark.parametrize("empty", [b""])
def test_an_empty_key_is_none(empty: bytes) -> None:
    """It is replaced, and does not stand beside the new one."""
    (made,) = keys(minted(make_call(b"POST", {b"Idempotency-Key": empty})))
    assert UUID.fullmatch(made)


def test_a_key_that_would_not_get_through_is_none() -> None:
    """What `Connection` asks to be taken off would leave the target without one."""
    call = make_call(b"POST", {b"Idempotency-Key": b"mine"})
    call.nominated = frozenset((b"idempotency-key", b"x-other"))
    (made,) = keys(minted(call))
    assert made != b"mine"
    assert call.nominated == {b"x-other"}


def test_every_call_gets_its_own() -> None:
    """And keeps it: it is the call's, and not an attempt's."""
    made = [keys(minted(make_call(b"POST")))[0] for _ in range(100)]
    assert len(set(made)) == 100
    call = minted(make_call(b"POST"))
    before = keys(call)
    assert keys(minted(call)) == before


def test_it_makes_the_call_repeatable() -> None:
    """That is what it is for."""
    call = make_call(b"POST")
    assert not call.route.retry.repeatable(call)
    assert call.route.retry.repeatable(minted(call))


def test_it_holds_nothing() -> None:
    """There is nothing to give back when a call is over."""
    call = minted(make_call(b"POST"))
    assert call.permits == []
    MintKey().observe(call, SUCCESS)
