"""What the app is told of the guard's caller."""

from __future__ import annotations

from typing import Any, cast

import pytest

from outrider.dataplane.call import Call
from outrider.dataplane.http1.heads import REQUEST_OWNED
from outrider.dataplane.policies.forwarded import Forwarded
from tests.fakes import make_attempt, make_call, sent_head


def sent_on(policy: Forwarded, call: Call) -> dict[str, str]:
    """The fields that the app gets, by lower-case name; none may come twice."""
    policy.admit(call)
    owned = REQUEST_OWNED | policy.owned
    head = sent_head(call, owned, [policy.stamp(make_attempt(call))]).decode()
    fields = [line.partition(": ")[::2] for line in head.split("\r\n")[1:] if line]
    assert len({name.lower() for name, _ in fields}) == len(fields), fields
    return {name.lower(): value for name, value in fields if name.lower() not in ("host", "via")}


def called(caller: str = "", **fields: str) -> Call:
    headers = {name.replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    call = make_call(headers={b"Host": b"api.test", **headers})
    call.fields = [field for field in call.fields if field[0] != b"host"]
    call.caller = caller
    return call


OURS = {"x-forwarded-for": "192.0.2.7", "x-forwarded-host": "api.test", "x-forwarded-proto": "http"}


@pytest.mark.parametrize(
    "name",
    [
        "Forwarded",
        "X-Forwarded-For",
        "x-forwarded-proto",
        "X-Forwarded-Prefix",
        "X-Forwarded-User",
        "X_Forwarded_For",
        "X-Real-IP",
        "True-Client-IP",
        "X-Original-Forwarded-For",
        "Front-End-Https",
    ],
)
@pytest.mark.parametrize("adds", [True, False])
def test_what_the_unproven_claim_is_taken_off(name: str, adds: bool) -> None:
    """Nothing that says where a call has come from is believed of a stranger, however it is spelled."""
    call = called(Accept="*/*")
    call.fields.append((name.lower().encode(), name.encode(), b"10.9.9.9"))
    assert sent_on(Forwarded(adds=adds, secure=False), call) == {"accept": "*/*", **(OURS if adds else {})}


def test_what_a_proven_caller_says_is_added_to() -> None:
    """A proven caller vouches for what it has been told; the guard adds the caller itself."""
    call = called("gateway", X_Forwarded_For="203.0.113.9", X_Forwarded_Proto="https", Forwarded="for=203.0.113.9")
    assert sent_on(Forwarded(adds=True, secure=False), call) == {
        "forwarded": "for=203.0.113.9",
        "x-forwarded-for": "203.0.113.9, 192.0.2.7",
        "x-forwarded-host": "api.test",
        "x-forwarded-proto": "https",
    }


def test_what_a_proven_caller_has_named_in_connection_ends_here() -> None:
    """A field that belongs to the connection is not continued."""
    call = called("gateway", X_Forwarded_For="203.0.113.9")
    call.nominated = frozenset((b"x-forwarded-for",))
    assert sent_on(Forwarded(adds=True, secure=True), call) == {**OURS, "x-forwarded-proto": "https"}


def test_without_an_address_there_is_none() -> None:
    """A caller on a Unix socket has no address, and none is made up."""
    call = called()
    cast(Any, call.app).address = b""
    assert sent_on(Forwarded(adds=True, secure=False), call) == {
        "x-forwarded-host": "api.test",
        "x-forwarded-proto": "http",
    }
