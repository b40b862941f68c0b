"""Pipeline: the policies stand in their documented order, and only those that were asked for."""

from __future__ import annotations

from typing import Any

from outrider.dataplane.engine.pipeline import Parts, around_the_call, into_each_attempt, owned_by
from outrider.dataplane.http1.heads import REQUEST_OWNED
from outrider.dataplane.policies.concurrency.limit import ConcurrencyLimit
from outrider.dataplane.policies.context import Context
from outrider.dataplane.policies.credentials import Credential
from outrider.dataplane.policies.deadline import Deadline
from outrider.dataplane.policies.headers import Headers
from outrider.dataplane.policies.rate_limit import RateLimit
from outrider.dataplane.policies.template import Template
from outrider.dataplane.runtime.ids import ENTROPY
from outrider.model.failure import Failure
from tests.fakes import make_attempt, make_call, make_route


def make_parts(**parts: Any) -> Parts:
    values: dict[str, Any] = {
        "deadline": Deadline(10, 5),
        "context": Context(b"x-correlation-id", ENTROPY.uuid7),
        "headers": Headers({}, ()),
    }
    return Parts(**{**values, **parts})


def test_what_is_not_configured_is_not_on_the_path() -> None:
    """Without limits only deadline and context are asked."""
    parts = make_parts()
    assert around_the_call(parts) == (parts.deadline, parts.context)


def test_the_order_around_the_call() -> None:
    """Deadline, context, rate limit, concurrency: outermost first."""
    parts = make_parts(rate_limit=RateLimit(1, 1, 1), concurrency=ConcurrencyLimit(1))
    assert around_the_call(parts) == (parts.deadline, parts.context, parts.rate_limit, parts.concurrency)


def test_the_order_within_an_attempt() -> None:
    """Credentials, headers, context, deadline: proof of who we are comes first, the time left last."""
    keys = [Credential("x-api-key", "a"), Credential("authorization", "b")]
    parts = make_parts(credentials=keys)
    assert into_each_attempt(parts) == (*keys, parts.headers, parts.context, parts.deadline)


def test_a_refused_call_already_has_its_correlation_id() -> None:
    """The app can look up why it was refused."""
    parts = make_parts(rate_limit=RateLimit(1, 60, 1))
    route = make_route(policies=around_the_call(parts))
    for refused in (False, True):
        call = make_call(route=route)
        verdicts = [policy.admit(call) for policy in route.policies]
        assert isinstance(verdicts[-1], Failure) == refused
        assert call.correlation_id


def test_a_call_beyond_the_rate_takes_no_permit() -> None:
    """The rate is asked before the bulkhead, so a refused call holds nothing."""
    concurrency = ConcurrencyLimit(5)
    policies = around_the_call(make_parts(rate_limit=RateLimit(1, 60, 1), concurrency=concurrency))
    for _ in range(3):
        call = make_call()
        for policy in policies:
            if policy.admit(call) is not None:
                break
    assert concurrency.in_flight == 1


def test_a_name_with_underscores_owns_its_dashes_too() -> None:
    """Whichever way our header is written, the app's other spelling of it is dropped."""
    owned = owned_by([Credential("X_Service-Key", "secret")])
    assert {b"x_service-key", b"x-service-key"} <= owned


def test_everything_a_stamp_writes_is_owned() -> None:
    """No line of ours can be doubled by the app: each name that is written is also taken out."""
    headers = Headers({"X-Service-Name": Template("booking", {})}, ["X-Debug"])
    parts = make_parts(credentials=[Credential("X-Api-Key", "secret")], headers=headers)
    stamps = into_each_attempt(parts)
    owned = owned_by(stamps)
    call = make_call()
    parts.context.admit(call)
    written = b"".join(stamp.stamp(make_attempt(call)) for stamp in stamps)
    names = {line.partition(b":")[0].lower() for line in written.split(b"\r\n") if line}
    assert names <= owned
    assert {b"x-api-key", b"x-service-name", b"traceparent", b"x-outrider-attempt"} <= names
    assert {b"x-request-timeout-ms", b"x-request-total-timeout-ms"} <= names
    assert owned >= REQUEST_OWNED | {b"x-debug"}
