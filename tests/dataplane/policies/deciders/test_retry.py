"""Retry: what is tried again, when, and the reason for every "no"."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from time import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.body import RequestBody
from outrider.dataplane.call import Call
from outrider.dataplane.engine.attempts import circumstances
from outrider.dataplane.policies.deciders.breaker import Breaker, BreakerSettings
from outrider.dataplane.policies.deciders.budget import RetryBudget
from outrider.dataplane.policies.deciders.retry import (
    TRIED_ENOUGH,
    Circumstances,
    Decision,
    Retry,
    again,
    parse_reset,
    parse_retry_after,
)
from outrider.dataplane.upstream.cluster import Cluster
from outrider.model.failure import Failure, Kind, Phase
from outrider.model.messages import Response
from tests.fakes import make_attempt, make_call, make_cluster, make_response, make_route

IDEMPOTENT = [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"]
OTHERS = [b"POST", b"PATCH", b"PROPFIND"]
UNSENT = [
    Kind.CONNECT_REFUSED,
    Kind.UNREACHABLE,
    Kind.DNS,
    Kind.CONNECT_TIMEOUT,
    Kind.TLS_CERTIFICATE,
    Kind.TLS_ALERT,
    Kind.TLS_FAILED,
    Kind.CLOSED_UNSENT,
    Kind.LOCAL_FAULT,
]
SENT = [Kind.RESET, Kind.INVALID_RESPONSE, Kind.RESPONSE_HEAD_TOO_LARGE, Kind.INCOMPLETE, Kind.ATTEMPT_TIMEOUT]
FINAL = [kind for kind in Kind if kind not in UNSENT + SENT]
RETRIED_STATUSES = [500, 502, 503, 504]
KEY = {b"idempotency-key": b"abc"}
OFF = {b"x-outrider-retry": b"off"}


def make_body(kept: bool) -> RequestBody:
    body = RequestBody(cast(Any, None), 10 if kept else 0, chunked=False)
    body.feed(b"body")
    body.finish()
    return body


def judge(
    result: Response | Failure | Kind | int,
    method: bytes = b"GET",
    headers: dict[bytes, bytes] | None = None,
    *,
    number: int = 1,
    body: RequestBody | None = None,
    breaker: Breaker | None = None,
    cluster: Cluster | None = None,
    timeout: float = 10.0,
    after: float = 0.0,
    **settings: Any,
) -> Decision:
    """The decision on the `number`-th attempt of a call, `after` seconds into it; without jitter."""
    if isinstance(result, Kind):
        result = Failure(result, "")
    elif isinstance(result, int):
        result = make_response(result)
    retry = Retry(**{"jitter": lambda low, high: high, **settings})
    route = make_route(cluster, retry=retry, breaker=breaker)
    call = make_call(method, headers, route=route, body=body, timeout=timeout)
    attempt = make_attempt(call, result, number=number)
    return route.retry.decide(attempt, circumstances(call, route, attempt), call.started + after)


def yes(decision: Decision) -> bool:
    return decision.wait is not None


def open_breaker() -> Breaker:
    breaker = Breaker("user", BreakerSettings(open_first=60.0, open_cap=60.0))
    breaker.hold_open()
    return breaker


# ---------------------------------------------------------------- methods and faults


@pytest.mark.parametrize("method", IDEMPOTENT)
@pytest.mark.parametrize("fault", [*UNSENT, *SENT, *RETRIED_STATUSES])
def test_idempotent_methods_are_retried_on_every_fault(method: bytes, fault: Kind | int) -> None:
    """RFC 9110 §9.2.2: what may be repeated is repeated, and the reason is the fault."""
    decision = judge(fault, method)
    assert yes(decision)
    expected = str(fault) if isinstance(fault, int) else cast(Phase, fault.phase).value
    assert decision.reason == expected


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("fault", UNSENT)
def test_any_method_is_retried_when_nothing_was_sent(method: bytes, fault: Kind) -> None:
    """A POST whose connection was refused has done nothing yet."""
    assert judge(fault, method) == Decision(0.025, "connect")


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("fault", [*SENT, *RETRIED_STATUSES])
def test_other_methods_are_not_repeated(method: bytes, fault: Kind | int) -> None:
    """A POST that may have arrived, or was answered 503, is not sent again: no card is charged twice."""
    assert judge(fault, method) == Decision(None, "not_idempotent")


@pytest.mark.parametrize("fault", [*UNSENT, *SENT, *RETRIED_STATUSES])
def test_an_idempotency_key_makes_a_post_repeatable(fault: Kind | int) -> None:
    """The app has taken care of repetition."""
    assert yes(judge(fault, b"POST", KEY))


def test_an_empty_idempotency_key_is_none() -> None:
    """A header without a value promises nothing."""
    for value in (b"",):
        assert judge(503, b"POST", {b"idempotency-key": value}) == Decision(None, "not_idempotent")


def test_an_idempotency_key_that_the_target_never_sees_is_none() -> None:
    """Removed by the app's `Connection`, or by the route, it protects from nothing."""
    nominated = make_call(b"POST", KEY)
    nominated.nominated = frozenset((b"idempotency-key",))
    removed = make_call(b"POST", KEY, route=make_route(owned=frozenset((b"idempotency-key",))))
    for call in (nominated, removed):
        assert not call.route.retry.repeatable(call)


def test_a_route_may_allow_a_method() -> None:
    """The route's own word makes POST repeatable, and can take GET out."""
    assert yes(judge(503, b"POST", methods=frozenset((b"POST",))))
    assert judge(503, b"GET", methods=frozenset((b"POST",))).reason == "not_idempotent"


@pytest.mark.parametrize("fault", [*FINAL, 200, 204, 302, 400, 401, 404, 408, 409, 425, 501, 505])
def test_what_is_no_fault_needs_no_retry(fault: Kind | int) -> None:
    """Success, the app's own mistakes, our own refusals, and a used-up deadline are final."""
    assert judge(fault) == Decision(None, "not_needed")


def test_statuses_and_errors_are_settings() -> None:
    """Only what the route lists is retried."""
    assert judge(500, on_status=frozenset((503,))).reason == "not_needed"
    assert yes(judge(418, on_status=frozenset((418,))))
    only = frozenset((Phase.CONNECT,))
    assert judge(Kind.RESET, on_errors=only).reason == judge(Kind.ATTEMPT_TIMEOUT, on_errors=only).reason
    assert yes(judge(Kind.DNS, on_errors=only))
    assert judge(Kind.DNS, on_errors=frozenset()).reason == "not_needed"


# ---------------------------------------------------------------- every "no"


def test_switched_off() -> None:
    """`retry: false` says so, for any fault."""
    assert judge(503, max_retries=0) == Decision(None, "off")
    assert judge(Kind.CONNECT_REFUSED, max_retries=0) == Decision(None, "off")


@pytest.mark.parametrize("value", [b"off", b"OFF", b"Off"])
def test_switched_off_by_the_app(value: bytes) -> None:
    """`x-outrider-retry: off` holds even when nothing was sent."""
    for fault in (503, Kind.CONNECT_REFUSED):
        assert judge(fault, headers={b"x-outrider-retry": value}) == Decision(None, "caller")


def test_another_word_from_the_app_changes_nothing() -> None:
    """Only `off` is off."""
    assert yes(judge(503, headers={b"x-outrider-retry": b"on"}))


def test_max_retries_counts_the_attempts_after_the_first() -> None:
    """With 3 there are four attempts, and no fifth."""
    assert [yes(judge(503, number=number, timeout=60)) for number in (1, 2, 3, 4)] == [True, True, True, False]
    assert judge(503, number=4).reason == "exhausted"
    assert judge(Kind.CONNECT_REFUSED, number=4).reason == "exhausted"


def test_a_body_that_was_not_kept_cannot_be_sent_again() -> None:
    """Unless nothing of it was sent."""
    assert yes(judge(503, b"PUT", body=make_body(kept=True)))
    assert judge(503, b"PUT", body=make_body(kept=False)) == Decision(None, "body_too_large")
    assert yes(judge(Kind.CONNECT_REFUSED, b"PUT", body=make_body(kept=False)))


def test_no_retry_into_an_open_circuit() -> None:
    """It would be refused, and cost the budget."""
    budget = RetryBudget(0.0, reserve=1)
    assert judge(503, breaker=open_breaker(), budget=budget) == Decision(None, "circuit_open")
    assert budget.withdraw(1000.0)
    assert yes(judge(503, breaker=Breaker("user", BreakerSettings())))


def test_with_wait_a_retry_may_wait_for_the_circuit() -> None:
    """Its next attempt does, as any other call; but not for one that is held open by hand."""
    breaker = Breaker("user", BreakerSettings(consecutive_failures=1, wait=1.0))
    breaker.hold_open()
    assert judge(503, breaker=breaker) == Decision(None, "circuit_open")
    breaker.held = ""  # open all the same, by its own rules
    assert yes(judge(503, breaker=breaker))


def test_no_retry_past_the_deadline() -> None:
    """A pause that ends when nobody waits any more is not begun, and not paid for."""
    budget = RetryBudget(0.0, reserve=1)
    assert judge(503, timeout=1.0, after=0.98, budget=budget) == Decision(None, "deadline")
    assert judge(503, timeout=0.025, budget=budget) == Decision(None, "deadline")
    assert judge(503, timeout=1.0, after=2.0, budget=budget) == Decision(None, "deadline")
    assert yes(judge(503, timeout=1.0, after=0.97, budget=budget))


def test_without_a_deadline_there_is_always_time() -> None:
    """A call without timeout is retried however late it is."""
    assert yes(judge(503, timeout=0.0, after=1e6))


def test_no_retry_beyond_the_budget() -> None:
    """When the budget is used up, the answer stands; a yes is paid at once."""
    budget = RetryBudget(0.0, reserve=2)
    assert [judge(503, budget=budget).reason for _ in range(3)] == ["503", "503", "budget"]


def test_only_a_yes_is_charged() -> None:
    """No reason for a "no" costs anything."""
    budget = RetryBudget(0.0, reserve=1)
    for _ in range(5):
        judge(200, budget=budget)
        judge(503, b"POST", budget=budget)
        judge(503, headers=OFF, budget=budget)
        judge(503, number=9, budget=budget)
        judge(503, max_retries=0, budget=budget)
        judge(503, b"PUT", body=make_body(kept=False), budget=budget)
    assert judge(503, budget=budget).reason == "503"


def test_another_endpoint_after_a_refused_connection_is_free_once() -> None:
    """Going on to a place not yet tried adds no load; a second time it is paid for."""
    nothing = RetryBudget(0.0, reserve=0)
    two = make_cluster(endpoints=2)
    assert yes(judge(Kind.CONNECT_REFUSED, cluster=two, budget=nothing))
    assert judge(Kind.CONNECT_REFUSED, cluster=two, budget=nothing, number=2).reason == "budget"
    assert judge(503, cluster=two, budget=nothing).reason == "budget"


def test_the_only_endpoint_is_not_free() -> None:
    """Trying the same place again adds load, even when the connection was refused."""
    nothing = RetryBudget(0.0, reserve=0)
    retry = Retry(budget=nothing)
    call = make_call(route=make_route(retry=retry))
    call.tried = call.route.cluster.endpoints
    attempt = make_attempt(call, Failure(Kind.CONNECT_REFUSED, ""))
    assert retry.decide(attempt, Circumstances(), 1000.0) == Decision(None, "budget")


# ---------------------------------------------------------------- retries of others

AGAIN = {b"x-outrider-attempt": b"2"}


@pytest.mark.parametrize(
    ("value", "is_again"),
    [(None, False), (b"", False), (b"0", False), (b"1", False), (b"2", True)],
)
def test_again(value: bytes | None, is_again: bool) -> None:
    """A second attempt of whoever called the app is a retry; a first one, or none that is counted, is not."""
    assert again(value) == is_again


def test_a_call_that_is_a_retry_is_not_retried() -> None:
    """Otherwise every hop of a chain multiplies the load on its end."""
    for fault in (503, Kind.RESET, Kind.ATTEMPT_TIMEOUT):
        assert judge(fault, headers=AGAIN) == Decision(None, "is_retry")
    assert yes(judge(503, headers={b"x-outrider-attempt": b"1"}))


def test_a_retry_whose_connection_was_refused_goes_elsewhere() -> None:
    """Where nothing was sent there is no load to multiply."""
    assert judge(Kind.CONNECT_REFUSED, headers=AGAIN) == Decision(0.025, "connect")


def test_the_apps_own_no_is_stronger() -> None:
    """`x-outrider-retry: off` on a retry is the app's word, even when nothing was sent."""
    for fault in (503, Kind.CONNECT_REFUSED):
        assert judge(fault, headers=AGAIN | OFF) == Decision(None, "caller")


@pytest.mark.parametrize(
    ("headers", "who"),
    [({}, None), (AGAIN, "is_retry"), (OFF, "caller"), (AGAIN | OFF, "caller"), ({b"x-outrider-retry": b"on"}, None)],
)
def test_forbidden(headers: dict[bytes, bytes], who: str | None) -> None:
    """Who has said no, as a word for the metric."""
    assert Retry().forbidden(make_call(headers=headers)) == who


def test_what_was_tried_enough_below_is_not_tried_again() -> None:
    """A sidecar nearer to the fault has given up: we would only start it all over again."""
    answer = make_response(503)
    answer.tried_below = True
    assert judge(answer) == Decision(None, "tried_below")
    assert judge(answer, max_retries=0) == Decision(None, "off")


def test_which_refusals_are_told_to_the_caller() -> None:
    """Given up for load's sake must not be tried again further up; given up for safety's sake is the caller's own."""
    breaker, nothing = open_breaker(), RetryBudget(0.0, reserve=0)
    answer = make_response(503)
    answer.tried_below = True
    enough = [
        judge(503, number=9),
        judge(503, budget=nothing),
        judge(503, headers=AGAIN),
        judge(answer),
        judge(503, breaker=breaker),
    ]
    others = [judge(503, b"POST"), judge(503, headers=OFF), judge(503, max_retries=0), judge(200)]
    assert {decision.reason for decision in enough} == TRIED_ENOUGH
    assert not {decision.reason for decision in others} & TRIED_ENOUGH


# ---------------------------------------------------------------- the whole table


def expected(
    fault: Kind | int, method: bytes, key: bool, off: bool, most: int, number: int, kept: bool, shut: bool
) -> str:
    """The decision table of the design, in words; retries are called `yes`."""
    if fault not in UNSENT + SENT + RETRIED_STATUSES:
        return "not_needed"
    if most == 0:
        return "off"
    if off:
        return "caller"
    if number > most:
        return "exhausted"
    if fault not in UNSENT:
        if method not in IDEMPOTENT and not key:
            return "not_idempotent"
        if not kept:
            return "body_too_large"
    return "circuit_open" if shut else "yes"


@pytest.mark.parametrize("fault", [*Kind, 200, 404, 429, 500, 501, 502, 503, 504])
def test_the_whole_table(fault: Kind | int) -> None:
    """Each fault against method, key, the app's word, attempts, body and circuit, in every combination."""
    shut_breaker = open_breaker()
    for method, key, off, most, number, kept, shut in itertools.product(
        (b"GET", b"DELETE", b"POST", b"PATCH"),
        (False, True),
        (False, True),
        (0, 1, 3),
        (1, 3, 4),
        (False, True),
        (False, True),
    ):
        headers = {**(KEY if key else {}), **(OFF if off else {})}
        decision = judge(
            fault,
            method,
            headers,
            number=number,
            max_retries=most,
            body=make_body(kept),
            breaker=shut_breaker if shut else None,
        )
        wanted = expected(fault, method, key, off, most, number, kept, shut)
        assert ("yes" if yes(decision) else decision.reason) == wanted


@given(
    st.sampled_from([*Kind, *range(200, 600)]),
    st.sampled_from(OTHERS),
    st.integers(1, 5),
    st.sampled_from([None, b"0", b"1", b"soon"]),
    st.booleans(),
)
def test_no_card_is_charged_twice(
    fault: Kind | int, method: bytes, number: int, retry_after: bytes | None, kept: bool
) -> None:
    """By default no fault whatever repeats a request that may have been acted on and must not be repeated."""
    result = make_response(fault, retry_after) if isinstance(fault, int) else Failure(fault, "")
    decision = judge(result, method, number=number, body=make_body(kept), max_retries=10)
    assert not yes(decision) or fault in UNSENT


# ---------------------------------------------------------------- Retry-After


def pause(status: int, retry_after: bytes | None, **parts: Any) -> Decision:
    return judge(make_response(status, retry_after), timeout=3600, **parts)


def in_seconds(seconds: float) -> bytes:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True).encode()


@pytest.mark.parametrize("status", [429, 503])
def test_the_target_says_when(status: int) -> None:
    """Its pause is kept, and spread by up to half, so that not all come back at once."""
    assert pause(status, b"2") == Decision(3.0, str(status))
    assert pause(status, b"2", jitter=lambda low, high: low) == Decision(2.0, str(status))


def test_429_only_with_a_word_on_when() -> None:
    """A target that says "too many" without saying until when is left alone."""
    assert judge(429) == Decision(None, "not_needed")
    assert judge(429, on_status=frozenset((429,))) == Decision(None, "not_needed")
    assert yes(judge(make_response(429, b"1")))


def test_a_429_to_a_post_is_not_repeated() -> None:
    """The rule about methods comes before the target's invitation."""
    assert judge(make_response(429, b"1"), b"POST") == Decision(None, "not_idempotent")


@pytest.mark.parametrize("status", [500, 502, 504])
def test_retry_after_means_something_only_with_429_and_503(status: int) -> None:
    """On other statuses our own back-off holds."""
    assert pause(status, b"100") == Decision(0.025, str(status))


def test_a_date_is_a_pause_too() -> None:
    """The second form of RFC 9110 §10.2.3."""
    decision = pause(503, in_seconds(60), jitter=lambda low, high: low)
    assert decision.wait == pytest.approx(60, abs=2)


@pytest.mark.parametrize(
    "retry_after", [b"0", in_seconds(-3600), b"Sun, 06 Nov 1994 08:49:37 GMT"], ids=["0", "past", "old"]
)
def test_a_time_that_has_come_means_the_usual_pause(retry_after: bytes) -> None:
    """Zero and the past do not make us come back without any back-off."""
    assert pause(503, retry_after) == Decision(0.025, "503")


@pytest.mark.parametrize("retry_after", [b"soon", b"-1", b"1.5", b"", b"\xff", b"1 2"])
def test_nonsense_means_the_usual_pause(retry_after: bytes) -> None:
    """A 503 with an unreadable Retry-After is a 503."""
    assert pause(503, retry_after) == Decision(0.025, "503")


@pytest.mark.parametrize("retry_after", [b"301", b"99999999999999999999", in_seconds(7200)], ids=["301", "9s", "later"])
@pytest.mark.parametrize("status", [429, 503])
def test_too_long_a_pause_is_a_no(status: int, retry_after: bytes) -> None:
    """The answer goes back now, with its Retry-After, instead of a wait for nobody."""
    assert pause(status, retry_after) == Decision(None, "deadline")


def test_a_pause_past_the_deadline_is_a_no() -> None:
    """However short, it must fit into the call."""
    assert judge(make_response(503, b"8"), timeout=10) == Decision(None, "deadline")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"0", 0),
        (b"120", 120),
        (b"007", 7),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 0),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 0),
        (b"Sun Nov  6 08:49:37 1994", 0),
        (b"soon", None),
        (b"", None),
        (b"-5", None),
        (b"+5", None),
        (b"1.5", None),
        (b"5s", None),
        (b"0x10", None),
        ("²".encode("latin-1"), None),
        (b"Mon, 32 Jan 2024 00:00:00 GMT", None),
        (b"Mon, 01 Jan 2024 25:00:00 GMT", None),
        (b"Mon, 01 Jan 2024 00:00:00 +9999", None),
        (b"Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
    ],
)
def test_parse_retry_after(value: bytes | None, seconds: float | None) -> None:
    """Seconds, or any of the three date forms; a past date is now, nonsense is nothing."""
    assert parse_retry_after(value) == seconds


def test_a_date_without_a_zone_is_taken_as_gmt() -> None:
    """The asctime form has no zone, and HTTP dates are GMT."""
    moment = datetime.now(UTC) + timedelta(seconds=100)
    assert parse_retry_after(moment.strftime("%a %b %d %H:%M:%S %Y").encode()) == pytest.approx(100, abs=2)


_date_words = ["Mon,", "01", "Jan", "2024", "00:00:00", "GMT", "+0000", "-9999", "99999999999999999999", ":", "-", ","]


@given(st.one_of(st.binary(), st.lists(st.sampled_from(_date_words)).map(lambda words: " ".join(words).encode())))
def test_no_retry_after_breaks_anything(value: bytes) -> None:
    """Whatever a target sends, it is a number of seconds from now on, or nothing."""
    seconds = parse_retry_after(value)
    assert seconds is None or seconds >= 0


# ---------------------------------------------------------------- back-off


def test_the_pause_doubles_up_to_the_cap() -> None:
    """25 ms, 50, 100 and so on, never more than a second."""
    waits = [judge(503, number=number, max_retries=99, timeout=3600).wait for number in range(1, 12)]
    assert waits == pytest.approx([0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1, 1])


def test_a_back_off_of_nothing_is_no_pause() -> None:
    """`0ms..0ms` retries at once, which is a yes."""
    assert judge(503, first=0.0, cap=0.0) == Decision(0.0, "503")


@given(st.integers(1, 50), st.floats(0.001, 1), st.floats(1, 10))
def test_full_jitter(number: int, first: float, cap: float) -> None:
    """Every pause lies between nothing and the doubled, capped first one."""
    retry = Retry(first=first, cap=cap, max_retries=100)
    call = make_call(route=make_route(retry=retry), timeout=3600)
    decision = retry.decide(make_attempt(call, make_response(503), number=number), Circumstances(), call.started)
    assert decision.wait is not None
    assert 0 <= decision.wait <= min(cap, first * 2 ** (number - 1))


def test_jitter_is_spread_over_the_whole_range() -> None:
    """Calls that failed together do not come back together."""
    waits = [judge(503, number=6, max_retries=9, jitter=Retry().jitter).wait or 0.0 for _ in range(300)]
    assert min(waits) < 0.2
    assert max(waits) > 0.6
    assert len(set(waits)) > 290


# ---------------------------------------------------------------- who may be repeated


@pytest.mark.parametrize(
    ("method", "headers", "repeatable"),
    [(b"GET", {}, True), (b"POST", {}, False), (b"POST", KEY, True), (b"PUT", {}, True), (b"get", {}, False)],
)
def test_repeatable(method: bytes, headers: dict[bytes, bytes], repeatable: bool) -> None:
    """Idempotent by method or by key; methods are case-sensitive."""
    call: Call = make_call(method, headers)
    assert call.route.retry.repeatable(call) == repeatable


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b'"default";r=0;t=30', 30.0),
        (b"limit=100, remaining=0, reset=12", 12.0),
        (b"7", 7.0),
        (b" 7 ", 7.0),
        (b"soon", None),
        (b"", None),
        (b"reset=-3", None),
        (b"t=99999999999999999999", None),
        (None, None),
    ],
)
def test_the_reset_of_a_rate_limit(value: bytes | None, seconds: float | None) -> None:
    """Every common notation is read; nonsense is no wish."""
    assert parse_reset(value) == seconds


def test_a_reset_may_be_a_moment() -> None:
    """A Unix time is so many seconds from now, and none if it has passed."""
    assert parse_reset(b"%d" % (time() + 20)) == pytest.approx(20, abs=2)
    assert parse_reset(b"1000000001") == 0.0


def test_a_reset_as_long_as_a_head_is_not_looked_for() -> None:
    """A target cannot make us search 64 kB for every answer."""
    assert parse_reset(b"a;" * 30_000 + b"t=30") is None
    assert parse_reset(b"a;" * 300 + b"t=30") == 30


def test_a_429_with_a_reset_is_tried_again_after_it() -> None:
    """As with Retry-After, which comes first if both are there."""
    answer = make_response(429)
    answer.rate_limit = b'"default";r=0;t=2'
    decision = judge(answer)
    assert decision.reason == "429"
    assert decision.wait is not None
    assert 2.0 <= decision.wait <= 3.0
    answer.retry_after = b"4"
    decision = judge(answer)
    assert decision.wait is not None
    assert 4.0 <= decision.wait <= 6.0


# ---------------------------------------------------------------- what the app is told


@pytest.mark.parametrize("kind", [Kind.RESET, Kind.ATTEMPT_TIMEOUT, Kind.DEADLINE, Kind.INCOMPLETE, Kind.CALL_ENDED])
def test_what_may_have_been_executed(kind: Kind) -> None:
    """A POST that was sent and failed may have been executed; a GET, a keyed POST, or one that was not sent may be made
    again."""
    failure = Failure(kind, "x")
    keyed = {b"Idempotency-Key": b"k"}
    cases = [(b"POST", {}, 1, True), (b"POST", keyed, 1, False), (b"GET", {}, 1, False), (b"POST", {}, 0, False)]
    for method, headers, attempts, expected in cases:
        call = make_call(method, headers)
        call.attempts = attempts
        assert Retry().acted_on(call, failure) is expected


@pytest.mark.parametrize("kind", [*UNSENT, Kind.CIRCUIT_OPEN, Kind.OVERLOADED, Kind.RATE_LIMITED])
def test_what_was_not_executed(kind: Kind) -> None:
    """Refused here or not sent: the same call may be made again, whatever its method."""
    call = make_call(b"POST")
    call.attempts = 1
    assert not Retry().acted_on(call, Failure(kind, "x"))
