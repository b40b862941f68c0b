"""The guard: who is let in, who is not, and that nobody is told why."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.call import Call
from outrider.dataplane.http1.heads import REQUEST_OWNED
from outrider.dataplane.policies.guard import guard as guard_module
from outrider.dataplane.policies.guard.guard import CallerName, CertificateProof, Guard, KeyProof, Proof, Rule
from outrider.model.failure import Kind
from outrider.model.reply import rescue
from tests.fakes import make_attempt, make_call, sent_head

KEY = "k" * 32
NEW = "n" * 32
IDENTITY = ("x-user-*", "x-service-*", "x-tenant")


NAMED = CallerName("{header:x-service-name}")  # as a service says it beside its key


def key(*values: str, header: str = "x-service-key", require: Sequence[str] = (), forward: bool = False) -> KeyProof:
    return KeyProof(header, values, NAMED, require, forward)


def make_guard(
    *proofs: Proof,
    protect: Sequence[str] = ("/internal/**",),
    rules: Sequence[tuple[str, str]] | None = None,
) -> Guard:
    made = None if rules is None else [Rule(caller, match) for caller, match in rules]
    return Guard(proofs, protect=protect, rules=made, identity=IDENTITY)


def arriving(
    path: str = "/internal/users",
    method: str = "GET",
    headers: Sequence[tuple[str, str]] = (),
    certificate: Sequence[str] = (),
) -> Call:
    """A call as it comes in: every field as it is, and noted as one value."""
    call = make_call(method.encode())
    call.path = path.encode("latin-1")
    for name, value in headers:
        lower, given_value = name.lower().encode(), value.encode("latin-1")
        call.fields.append((lower, name.encode(), given_value))
        call.noted[lower] = call.noted[lower] + b", " + given_value if lower in call.noted else given_value
    cast(Any, call.app).peer_names = tuple(certificate)
    return call


def sent_on(guard: Guard, call: Call) -> list[bytes]:
    """The fields that the app gets, lower case."""
    head = sent_head(call, REQUEST_OWNED | guard.owned, [guard.stamp(make_attempt(call))])
    return [line.lower() for line in head.split(b"\r\n")[1:] if line]


# ---------------------------------------------------------------- the table

RIGHT = ("x-service-key", KEY)
ORDERS = ("x-service-name", "orders")
USER = ("x-user-id", "7")
READS = [("orders", "GET /internal/users/**"), ("bill*", "* /internal/bills"), ("*", "GET /internal/ping")]
FROM_MESH = CertificateProof(["orders.mesh", "*.bills.mesh", "spiffe://mesh/ns/prod/sa/users"])


@dataclass
class Case:
    """A call, and what becomes of it: let in as `caller` (empty: unproven), or refused as `kind` for `reason`."""

    guard: Guard
    call: Call
    caller: str = ""
    kind: Kind | None = None
    reason: str = ""


def let_in(guard: Guard, call: Call, caller: str) -> Case:
    return Case(guard, call, caller)


def passes(guard: Guard, call: Call) -> Case:
    """It is not protected."""
    return Case(guard, call)


def refused(guard: Guard, call: Call, reason: str) -> Case:
    return Case(guard, call, "", Kind.UNAUTHENTICATED, reason)


def forbidden(guard: Guard, call: Call, caller: str) -> Case:
    return Case(guard, call, caller, Kind.FORBIDDEN, "not_allowed")


def ruled() -> Guard:
    return make_guard(key(KEY), rules=READS)


def by(name: str, path: str, method: str = "GET") -> Call:
    return arriving(path, method, [RIGHT, ("x-service-name", name)])


CASES: dict[str, Case] = {
    # a key
    "the key": let_in(make_guard(key(KEY)), arriving(headers=[RIGHT]), "unnamed"),
    "the key and a name": let_in(make_guard(key(KEY)), arriving(headers=[RIGHT, ORDERS]), "orders"),
    "no key": refused(make_guard(key(KEY)), arriving(), "no_key"),
    "a wrong key": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", "x" * 32)]), "wrong_key"),
    "an empty key": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", "")]), "wrong_key"),
    "all but the end of it": refused(
        make_guard(key(KEY)), arriving(headers=[("x-service-key", KEY[:-1])]), "wrong_key"
    ),
    "more than it": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", KEY + "k")]), "wrong_key"),
    "another case": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", KEY.upper())]), "wrong_key"),
    "a blank in front": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", " " + KEY)]), "wrong_key"),
    "a blank behind": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", KEY + " ")]), "wrong_key"),
    "a tab behind": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", KEY + "\t")]), "wrong_key"),
    "a blank alone": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", " ")]), "wrong_key"),
    "in quotes": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", f'"{KEY}"')]), "wrong_key"),
    "as a bearer": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", f"Bearer {KEY}")]), "wrong_key"),
    "two in one": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", f"{KEY}, {KEY}")]), "wrong_key"),
    "not ASCII": refused(make_guard(key(KEY)), arriving(headers=[("x-service-key", "\xff\xfe")]), "wrong_key"),
    "odd case of the name": let_in(make_guard(key(KEY)), arriving(headers=[("X-sERVICE-kEY", KEY)]), "unnamed"),
    "odd case in the configuration": let_in(
        make_guard(key(KEY, header="X-Service-KEY")), arriving(headers=[RIGHT]), "unnamed"
    ),
    "underscores": refused(make_guard(key(KEY)), arriving(headers=[("x_service_key", KEY)]), "no_key"),
    "one underscore": refused(make_guard(key(KEY)), arriving(headers=[("x-service_key", KEY)]), "no_key"),
    "in another header": refused(make_guard(key(KEY)), arriving(headers=[("authorization", KEY)]), "no_key"),
    "in the query": refused(make_guard(key(KEY)), arriving(f"/internal/users?x-service-key={KEY}"), "no_key"),
    "twice the same": refused(make_guard(key(KEY)), arriving(headers=[RIGHT, RIGHT]), "key_twice"),
    "right, then wrong": refused(make_guard(key(KEY)), arriving(headers=[RIGHT, ("X-Service-Key", "x")]), "key_twice"),
    "wrong, then right": refused(make_guard(key(KEY)), arriving(headers=[("X-Service-Key", "x"), RIGHT]), "key_twice"),
    "right and with underscores": let_in(
        make_guard(key(KEY)), arriving(headers=[RIGHT, ("x_service_key", "x")]), "unnamed"
    ),
    "the old one of two": let_in(make_guard(key(KEY, NEW)), arriving(headers=[RIGHT]), "unnamed"),
    "the new one of two": let_in(make_guard(key(KEY, NEW)), arriving(headers=[("x-service-key", NEW)]), "unnamed"),
    "none of two": refused(make_guard(key(KEY, NEW)), arriving(headers=[("x-service-key", "x")]), "wrong_key"),
    "both of two": refused(make_guard(key(KEY, NEW)), arriving(headers=[("x-service-key", KEY + NEW)]), "wrong_key"),
    "no value configured": refused(make_guard(key()), arriving(headers=[RIGHT]), "not_configured"),
    "an empty value configured": refused(
        make_guard(key("")), arriving(headers=[("x-service-key", "")]), "not_configured"
    ),
    "only empty values": refused(make_guard(key("", "")), arriving(headers=[RIGHT]), "not_configured"),
    "an empty value beside a good one": refused(
        make_guard(key("", KEY)), arriving(headers=[("x-service-key", "")]), "wrong_key"
    ),
    "a good value beside an empty one": let_in(make_guard(key("", KEY)), arriving(headers=[RIGHT]), "unnamed"),
    "no value and no key": refused(make_guard(key()), arriving(), "no_key"),
    "nothing is accepted": refused(make_guard(), arriving(headers=[RIGHT]), "no_proof"),
    # several proofs
    "the second proof": let_in(
        make_guard(key(KEY), key(NEW, header="x-old-key")), arriving(headers=[("x-old-key", NEW)]), "unnamed"
    ),
    "the first is wrong, the second right": let_in(
        make_guard(key(KEY), key(NEW, header="x-old-key")),
        arriving(headers=[("x-service-key", "x"), ("x-old-key", NEW)]),
        "unnamed",
    ),
    "the key of the other proof": refused(
        make_guard(key(KEY), key(NEW, header="x-old-key")), arriving(headers=[("x-old-key", KEY)]), "wrong_key"
    ),
    "what was tried says more": refused(
        make_guard(FROM_MESH, key(KEY)), arriving(headers=[("x-service-key", "x")]), "wrong_key"
    ),
    "nothing was tried": refused(make_guard(FROM_MESH, key(KEY)), arriving(), "no_certificate"),
    # headers that must be there
    "a required header": let_in(
        make_guard(key(KEY, require=["X-User-Id"])), arriving(headers=[RIGHT, USER]), "unnamed"
    ),
    "a required header is missing": Case(
        make_guard(key(KEY, require=["x-user-id"])),
        arriving(headers=[RIGHT]),
        "unnamed",
        Kind.UNIDENTIFIED,
        "not_identified",
    ),
    "a required header is empty": Case(
        make_guard(key(KEY, require=["x-user-id"])),
        arriving(headers=[RIGHT, ("x-user-id", "")]),
        "unnamed",
        Kind.UNIDENTIFIED,
        "not_identified",
    ),
    "one of two required headers": Case(
        make_guard(key(KEY, require=["x-user-id", "x-tenant"])),
        arriving(headers=[RIGHT, USER]),
        "unnamed",
        Kind.UNIDENTIFIED,
        "not_identified",
    ),
    "a required header with an underscore": Case(
        make_guard(key(KEY, require=["x-user-id"])),
        arriving(headers=[RIGHT, ("x_user_id", "7")]),
        "unnamed",
        Kind.UNIDENTIFIED,
        "not_identified",
    ),
    "a required header and a wrong key": refused(
        make_guard(key(KEY, require=["x-user-id"])), arriving(headers=[("x-service-key", "x"), USER]), "wrong_key"
    ),
    "required only where it is protected": let_in(
        make_guard(key(KEY, require=["x-user-id"])), arriving("/public", headers=[RIGHT]), "unnamed"
    ),
    "required by the other proof": let_in(
        make_guard(key(KEY, require=["x-user-id"]), key(NEW, header="x-old-key")),
        arriving(headers=[("x-old-key", NEW)]),
        "unnamed",
    ),
    # certificates
    "a certificate": let_in(make_guard(FROM_MESH), arriving(certificate=["orders.mesh"]), "orders.mesh"),
    "the second name": let_in(make_guard(FROM_MESH), arriving(certificate=["a.other", "orders.mesh"]), "orders.mesh"),
    "a name by wildcard": let_in(make_guard(FROM_MESH), arriving(certificate=["a.bills.mesh"]), "a.bills.mesh"),
    "a URI": let_in(
        make_guard(FROM_MESH),
        arriving(certificate=["spiffe://mesh/ns/prod/sa/users"]),
        "spiffe://mesh/ns/prod/sa/users",
    ),
    "no certificate": refused(make_guard(FROM_MESH), arriving(), "no_certificate"),
    "another certificate": refused(make_guard(FROM_MESH), arriving(certificate=["a.mesh"]), "other_certificate"),
    "a longer name": refused(make_guard(FROM_MESH), arriving(certificate=["orders.mesh.evil"]), "other_certificate"),
    "something before the name": refused(
        make_guard(FROM_MESH), arriving(certificate=["evil-orders.mesh"]), "other_certificate"
    ),
    "a wildcard covers one label": refused(
        make_guard(FROM_MESH), arriving(certificate=["a.b.bills.mesh"]), "other_certificate"
    ),
    "a wildcard covers no missing label": refused(
        make_guard(FROM_MESH), arriving(certificate=["bills.mesh"]), "other_certificate"
    ),
    "a wildcard covers no part of a label": refused(
        make_guard(FROM_MESH), arriving(certificate=["a.xbills.mesh"]), "other_certificate"
    ),
    "a URI below": refused(
        make_guard(FROM_MESH), arriving(certificate=["spiffe://mesh/ns/prod/sa/users/x"]), "other_certificate"
    ),
    "a name in a header": refused(
        make_guard(FROM_MESH), arriving(headers=[("x-forwarded-client-cert", "orders.mesh")]), "no_certificate"
    ),
    # rules
    "a rule": let_in(ruled(), by("orders", "/internal/users/7"), "orders"),
    "a rule's own path": let_in(ruled(), by("orders", "/internal/users"), "orders"),
    "a rule and a trailing slash": let_in(ruled(), by("orders", "/internal/users/7/"), "orders"),
    "a rule and another case": let_in(ruled(), by("orders", "/Internal/Users/7"), "orders"),
    "a rule and a query": let_in(ruled(), by("orders", "/internal/users/7?x=/internal/bills"), "orders"),
    "another method": forbidden(ruled(), by("orders", "/internal/users/7", "DELETE"), "orders"),
    "HEAD is not GET": forbidden(ruled(), by("orders", "/internal/users/7", "HEAD"), "orders"),
    "a method in lower case": forbidden(ruled(), by("orders", "/internal/users/7", "get"), "orders"),
    "another path": forbidden(ruled(), by("orders", "/internal/bills"), "orders"),
    "another caller": forbidden(ruled(), by("stock", "/internal/users/7"), "stock"),
    "a caller with more to its name": forbidden(ruled(), by("orders2", "/internal/users/7"), "orders2"),
    "a caller in capitals": forbidden(ruled(), by("ORDERS", "/internal/users/7"), "ORDERS"),
    "a caller by its beginning": let_in(ruled(), by("billing", "/internal/bills", "PUT"), "billing"),
    "a beginning alone": let_in(ruled(), by("bill", "/internal/bills"), "bill"),
    "another beginning": forbidden(ruled(), by("xbill", "/internal/bills"), "xbill"),
    "a rule for all callers": let_in(ruled(), by("stock", "/internal/ping"), "stock"),
    "a rule for all is for proven ones": refused(ruled(), arriving("/internal/ping", headers=[ORDERS]), "no_key"),
    "no rule at all": forbidden(make_guard(key(KEY), rules=[]), by("orders", "/internal/users"), "orders"),
    "rules are about what is protected": let_in(ruled(), by("stock", "/public"), "stock"),
    "up and out of what is allowed": forbidden(ruled(), by("orders", "/internal/users/../bills"), "orders"),
    "up, encoded": forbidden(ruled(), by("orders", "/internal/users/%2e%2e/bills"), "orders"),
    "up, encoded twice": forbidden(ruled(), by("orders", "/internal/users/%252e%252e/bills"), "orders"),
    "up, with a parameter": forbidden(ruled(), by("orders", "/internal/users/..;/bills"), "orders"),
    "up, by backslashes": forbidden(ruled(), by("orders", "/internal/users\\..\\bills"), "orders"),
    "up and back": let_in(ruled(), by("orders", "/internal/users/x/../y"), "orders"),
    "into what is allowed, from outside": forbidden(ruled(), by("orders", "/internal/x/../users/7"), "orders"),
    "encoded within what is allowed": let_in(ruled(), by("orders", "/internal/users/J%C3%BCrgen"), "orders"),
    "a parameter after what is allowed": forbidden(ruled(), by("billing", "/internal/bills;x"), "billing"),
    # what is not protected
    "public": passes(make_guard(key(KEY)), arriving("/public")),
    "public, with a key": let_in(make_guard(key(KEY)), arriving("/public", headers=[RIGHT]), "unnamed"),
    "public, with a wrong key": passes(make_guard(key(KEY)), arriving("/public", headers=[("x-service-key", "x")])),
    "public, with two keys": passes(make_guard(key(KEY)), arriving("/public", headers=[RIGHT, RIGHT])),
    "public, and nothing is configured": passes(make_guard(), arriving("/public")),
    "nothing is protected": passes(make_guard(key(KEY), protect=[]), arriving()),
    "everything is protected": refused(make_guard(key(KEY), protect=["/**"]), arriving("/"), "no_key"),
    "every method is protected": refused(make_guard(key(KEY)), arriving(method="PROPFIND"), "no_key"),
    "protected, in capitals": refused(make_guard(key(KEY)), arriving("/INTERNAL/x"), "no_key"),
    "protected in capitals": refused(make_guard(key(KEY), protect=["/Internal/**"]), arriving(), "no_key"),
    "protected, encoded": refused(make_guard(key(KEY)), arriving("/%69nternal/users"), "no_key"),
    "protected, encoded twice": refused(make_guard(key(KEY)), arriving("/%2569nternal/users"), "no_key"),
    "protected, from above": refused(make_guard(key(KEY)), arriving("/public/../internal/x"), "no_key"),
    "protected, on the way elsewhere": refused(make_guard(key(KEY)), arriving("/internal/../public"), "no_key"),
    "protected, doubled slash": refused(make_guard(key(KEY)), arriving("//internal/x"), "no_key"),
    "protected, parameter": refused(make_guard(key(KEY)), arriving("/internal;x/y"), "no_key"),
    "protected, backslash": refused(make_guard(key(KEY)), arriving("/\\internal\\x"), "no_key"),
    "protected, without a pattern for below": refused(
        make_guard(key(KEY), protect=["/internal"]), arriving("/internal/users/1"), "no_key"
    ),
    "protected, with a format": refused(make_guard(key(KEY)), arriving("/internal.json"), "no_key"),
    "protected, trimmed": refused(make_guard(key(KEY)), arriving("/%20internal%0b/x"), "no_key"),
    "what only begins alike": passes(make_guard(key(KEY), protect=["/internal"]), arriving("/internals")),
    "protected, trailing slash": refused(make_guard(key(KEY)), arriving("/internal/"), "no_key"),
    "protected with a trailing slash": refused(
        make_guard(key(KEY), protect=["/internal/"]), arriving("/internal/"), "no_key"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """Kind, reason, caller, counts and note are what they should be, for everybody the same way."""
    case = CASES[name]
    guard, call = case.guard, case.call
    failure = guard.admit(call)
    assert (failure.kind if failure else None) is case.kind
    assert call.caller == case.caller
    assert dict(guard.refused) == ({case.reason: 1} if case.reason else {})
    assert (guard.proven, guard.public) == (bool(case.caller), case.kind is None and not case.caller)
    if failure is None:
        assert call.history is None
    else:
        assert call.history is not None
        (note,) = call.history
        assert note.startswith(f"guard: {case.reason}; ")


def test_there_are_enough_cases() -> None:
    """The table is the specification; it does not shrink unnoticed."""
    assert len(CASES) > 100


# ---------------------------------------------------------------- what the caller is told


def test_everybody_unproven_is_told_the_same() -> None:
    """Whether there was a key, two, or a wrong one, shows neither in the detail nor anywhere in the answer."""
    told = set()
    for case in CASES.values():
        if case.kind is Kind.UNAUTHENTICATED:
            call = arriving()
            call.fields, call.noted, call.path = case.call.fields, case.call.noted, case.call.path
            call.app = case.call.app
            failure = case.guard.admit(call)
            assert failure is not None
            reply = rescue(failure, service="user", correlation_id="c")
            told.add((reply.status, tuple(reply.headers), reply.body))
    assert len(told) == 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kind is not None])
def test_no_answer_tells_the_reason_or_the_key(name: str) -> None:
    """What helps operators is for them alone; a key is for nobody's eyes, not even in the log."""
    case = CASES[name]
    call = arriving()
    call.fields, call.noted, call.path, call.method = (
        case.call.fields,
        case.call.noted,
        case.call.path,
        case.call.method,
    )
    call.app = case.call.app
    failure = case.guard.admit(call)
    assert failure is not None
    body = rescue(failure).body.decode()
    assert case.reason not in body
    for secret in (KEY, NEW):
        assert secret not in body
        assert secret not in " ".join(call.history or ())


def test_the_log_shows_who_it_claims_to_be() -> None:
    """As a claim, in quotes, on one line, and not without end."""
    call = arriving(headers=[("x-service-name", "orders\x1b[2J" + "x" * 1000)])
    make_guard(key(KEY)).admit(call)
    assert call.history is not None
    assert "claims to be 'orders\\x1b[2J" in call.history[0]
    assert len(call.history[0]) < 200
    call = arriving()
    make_guard(key(KEY)).admit(call)
    assert call.history == ["guard: no_key; the caller gives no name"]


# ---------------------------------------------------------------- what the app gets

CLAIMS = [
    ("X-User-Id", "7"),
    ("x_user_id", "8"),
    ("X-User_Roles", "admin"),
    ("X_Service-Name", "orders"),
    ("x-service-name", "orders"),
    ("X-Tenant", "a"),
    ("x_tenant", "b"),
]
OTHERS = [("x-users", "kept"), ("x-userid", "kept"), ("x-tenants", "kept"), ("accept", "*/*"), ("cookie", "a=b")]


def test_the_unproven_do_not_say_who_they_are() -> None:
    """What passes unproven comes without any of the headers that say who somebody is, however they are written."""
    guard = make_guard(key(KEY))
    call = arriving("/public", headers=[*CLAIMS, *OTHERS])
    assert guard.admit(call) is None
    fields = sent_on(guard, call)
    for name, value in CLAIMS:
        assert f"{name}: {value}".lower().encode() not in fields
    for name, value in OTHERS:
        assert f"{name}: {value}".encode() in fields


def test_the_proven_do() -> None:
    """A service may say for whom it calls, on public paths too."""
    for path in ("/public", "/internal/users"):
        guard = make_guard(key(KEY))
        call = arriving(path, headers=[RIGHT, *CLAIMS, *OTHERS])
        assert guard.admit(call) is None
        fields = sent_on(guard, call)
        for name, value in [*CLAIMS, *OTHERS]:
            assert f"{name}: {value}".lower().encode() in fields


IN_OUR_NAME = [
    ("x-outrider-critical", "false"),
    ("x-outrider-attempt", "2"),
    ("X-Outrider-Operation", "POST /payments"),
    ("X.Outrider.Caller", "orders"),
    ("x_outrider_service", "ledger"),
    ("x-outrider-degraded", "static"),
    ("x-outrider-anything", "at all"),
]


def test_strangers_say_nothing_in_our_name() -> None:
    """Neither to the app nor to policies: what a sidecar says of a call counts from proven callers only."""
    guard = make_guard(key(KEY))
    call = arriving("/public", headers=IN_OUR_NAME)
    assert guard.admit(call) is None
    assert not [field for field in sent_on(guard, call) if b"outrider" in field and not field.startswith(b"via:")]
    assert not [name for name in call.noted if name in (b"x-outrider-critical", b"x-outrider-attempt")]


def test_the_proven_say_in_our_name_what_sidecars_say() -> None:
    """That a call is not critical goes on; the number of the try is known; nothing else reaches the app, also not what
    has no meaning today."""
    guard = make_guard(key(KEY))
    call = arriving("/public", headers=[RIGHT, ORDERS, *IN_OUR_NAME])
    assert guard.admit(call) is None
    ours = [field for field in sent_on(guard, call) if b"outrider" in field and not field.startswith(b"via:")]
    assert ours == [b"x-outrider-critical: false", b"x-outrider-caller: orders"]
    assert call.noted[b"x-outrider-attempt"] == b"2"


def test_what_a_caller_takes_is_counted_by_its_proof() -> None:
    """A caller that chooses its name gets no second share by another name; one whose name is proven has its own."""
    fixed = KeyProof("x-own-key", [NEW], CallerName("ledger"), name="inbound.accept[1]")
    shared = KeyProof("x-service-key", [KEY], NAMED, name="inbound.accept[0]")
    guard = make_guard(fixed, shared)
    accounts = []
    for headers in ([RIGHT, ORDERS], [RIGHT, ("x-service-name", "bills")], [("x-own-key", NEW)], []):
        call = arriving(headers=headers)
        guard.admit(call)
        accounts.append(guard.account(call))
    assert accounts == ["inbound.accept[0].values[0]", "inbound.accept[0].values[0]", "ledger", ""]


def test_a_wrong_key_is_no_key() -> None:
    """Who shows something wrong on a public path may say no more than who shows nothing."""
    guard = make_guard(key(KEY))
    call = arriving("/public", headers=[("x-service-key", "x"), ("x-user-id", "7")])
    assert guard.admit(call) is None
    assert not any(b"x-user-id" in line for line in sent_on(guard, call))


@pytest.mark.parametrize("path", ["/public", "/internal/users"])
def test_the_key_stays_here(path: str) -> None:
    """The app does not get to see it, in any spelling, unless that is wanted."""
    given_headers = [RIGHT, ("x_service_key", KEY)]
    for forward in (False, True):
        guard = make_guard(key(KEY, forward=forward))
        call = arriving(path, headers=given_headers)
        assert guard.admit(call) is None
        assert any(KEY.encode() in line for line in sent_on(guard, call)) == forward


def test_who_calls_is_ours_to_say() -> None:
    """The app reads it in one header, which nobody else can set."""
    guard = make_guard(key(KEY))
    forged = [("X-Outrider-Caller", "admin"), ("x_outrider_caller", "admin")]
    call = arriving(headers=[RIGHT, ORDERS, *forged])
    guard.admit(call)
    callers = [line for line in sent_on(guard, call) if line.replace(b"_", b"-").startswith(b"x-outrider-caller")]
    assert callers == [b"x-outrider-caller: orders"]
    call = arriving("/public", headers=forged)
    guard.admit(call)
    assert not any(b"admin" in line for line in sent_on(guard, call))


def test_a_required_header_that_does_not_get_through_is_missing() -> None:
    """`Connection: x-user-id` has it taken off on the way: the app would not get what the guard has promised."""
    call = arriving(headers=[RIGHT, USER])
    call.nominated = frozenset((b"x-user-id",))
    failure = make_guard(key(KEY, require=["x-user-id"])).admit(call)
    assert failure is not None
    assert failure.kind is Kind.UNIDENTIFIED


@given(st.text(min_size=1, max_size=50))
def test_any_caller_is_one_header_line(caller: str) -> None:
    """Whatever a proof says, the app gets one line of printable ASCII for it."""
    guard = make_guard(key(KEY))
    call = arriving()
    call.caller = caller
    line = guard.stamp(make_attempt(call))
    assert line.startswith(b"x-outrider-caller: ")
    assert line.endswith(b"\r\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-2])


# ---------------------------------------------------------------- comparing


@pytest.mark.parametrize("shown", ["x" * 32, KEY[:31] + "x", "x" + KEY[1:], KEY, NEW, "", "k", KEY * 10])
def test_every_key_costs_the_same(shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All values are compared, and in full: time tells neither which was meant nor how much of it was right."""
    compared: list[tuple[int, int]] = []
    original = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return original(one, other)

    monkeypatch.setattr(guard_module, "compare_digest", counting)
    key(KEY, NEW, "third" * 8).prove(arriving(headers=[("x-service-key", shown)]))
    assert compared == [(size, len(shown)) for size in (32, 32, 40)]


@given(st.binary(max_size=100))
def test_no_bytes_are_the_key(value: bytes) -> None:
    """Nothing but the key proves anything, and nothing breaks the proof."""
    proof = key(KEY)
    call = arriving()
    call.fields.append((b"x-service-key", b"x-service-key", value))
    call.noted[b"x-service-key"] = value
    assert bool(proof.prove(call)[0]) == (value == KEY.encode())


# ---------------------------------------------------------------- change


def test_keys_can_be_replaced() -> None:
    """From one moment to the next, without a gap while both are there."""
    proof = key(KEY)
    old, new = arriving(headers=[RIGHT]), arriving(headers=[("x-service-key", NEW)])
    assert (proof.prove(old)[1], proof.prove(new)[1]) == ("", "wrong_key")
    proof.replace([KEY, NEW])
    assert (proof.prove(old)[1], proof.prove(new)[1]) == ("", "")
    proof.replace([NEW])
    assert (proof.prove(old)[1], proof.prove(new)[1]) == ("wrong_key", "")
    proof.replace([""])
    assert (proof.prove(old)[1], proof.prove(new)[1]) == ("not_configured", "not_configured")


def test_refusals_are_counted_by_reason() -> None:
    """A metric tells a rotation gone wrong from somebody who knocks at all doors."""
    guard = make_guard(key(KEY))
    for headers in ([], [], [("x-service-key", "x")], [RIGHT], [RIGHT, RIGHT]):
        guard.admit(arriving(headers=headers))
    guard.admit(arriving("/public"))
    assert dict(guard.refused) == {"no_key": 2, "wrong_key": 1, "key_twice": 1}
    assert (guard.proven, guard.public) == (1, 1)


# ---------------------------------------------------------------- certificates


@pytest.mark.parametrize(
    "name",
    ["spiffe://evil/x.bills.mesh", "admin@evil.bills.mesh", ".bills.mesh", "https://a.bills.mesh", "a b.bills.mesh"],
)
def test_a_wildcard_stands_for_a_label(name: str) -> None:
    """A URI or a mail address in a certificate that ends like the pattern is no host below it."""
    assert CertificateProof(["*.bills.mesh"]).prove(arriving(certificate=[name])) == ("", "other_certificate")


# ---------------------------------------------------------------- anything at all


@given(st.text("/abi.%2eEfF;\\nternal?", max_size=40), st.sampled_from(["GET", "POST"]))
def test_nobody_gets_in_without_proof(rest: str, method: str) -> None:
    """Whatever follows the protected beginning, it is refused; and whatever it is, nothing breaks."""
    guard = make_guard(key(KEY))
    failure = guard.admit(arriving("/internal/" + rest, method))
    assert failure is not None
    assert failure.kind is Kind.UNAUTHENTICATED
    guard.admit(arriving("/" + rest, method))


# ---------------------------------------------------------------- who still shows an old key


def test_uses_of_several_keys_are_counted() -> None:
    """By key and caller, so that an operator sees when the old one can go; with one key there is nothing to see."""
    guard = Guard([KeyProof("x-service-key", [KEY, NEW], NAMED, name="k")], protect=["/**"], several_keys=True)
    for value, caller in ((KEY, "web"), (NEW, "web"), (NEW, "shop"), (NEW, "shop"), ("wrong" * 8, "mallory")):
        guard.admit(arriving(headers=[("x-service-key", value), ("x-service-name", caller)]))
    assert guard.key_uses == {"k.values[0]": {"web": 1}, "k.values[1]": {"web": 1, "shop": 2}}
    alone = make_guard(key(KEY))
    alone.admit(arriving(headers=[RIGHT]))
    assert alone.key_uses == {}


def test_who_is_counted_is_bounded() -> None:
    """A caller who invents names cannot fill the memory, or the metrics."""
    guard = Guard([KeyProof("x-service-key", [KEY, NEW], NAMED, name="k")], protect=["/**"], several_keys=True)
    for number in range(1000):
        guard.admit(arriving(headers=[RIGHT, ("x-service-name", f"caller-{number}")]))
    uses = guard.key_uses["k.values[0]"]
    assert len(uses) == 129
    assert uses["others"] == 1000 - 128


@pytest.mark.parametrize("path", ["/%20" * 5000, "/a/../" * 2000 + "%252e", "/%2569" * 1000])
def test_proof_comes_before_the_path_is_read(path: str) -> None:
    """A proven caller that no rule bounds may send any path, and one that proves nothing learns from no path of it more
    than 401 where everything is protected."""
    guard = Guard([key(KEY)], protect=["/internal"])
    assert guard.admit(arriving(path, headers=[("x-service-key", KEY), ORDERS])) is None
    unproven = Guard([key(KEY)], protect=["/"]).admit(arriving(path))
    assert unproven is not None
    assert unproven.kind is Kind.UNAUTHENTICATED


def test_a_path_with_too_many_readings_is_refused() -> None:
    """Where it depends on the path, one that nobody can be sure about is closed."""
    failure = Guard([key(KEY)], protect=["/internal"]).admit(arriving("/%20" * 5000))
    assert failure is not None
    assert failure.kind is Kind.BAD_REQUEST
