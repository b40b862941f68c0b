"""The attempts of a call, one after the other, until one settles it."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from outrider.dataplane.attempt import Attempt
from outrider.dataplane.engine.accounting import note_attempt
from outrider.dataplane.engine.hedging import hedged
from outrider.dataplane.engine.one_attempt import run, seal
from outrider.dataplane.policies.deciders.retry import MAYBE_LATER, TRIED_ENOUGH, Circumstances, Decision
from outrider.model.failure import Failure
from outrider.model.messages import Response

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.engine.routing import Route


async def attempt_until_settled(call: Call, route: Route) -> Response | Failure:
    """Attempt by attempt, until one is good or may not be repeated; returns what the app is to get."""
    retry = route.retry
    if retry.budget is not None:
        retry.budget.deposit(call.started)
    # The first attempt begins with the call, unless that has waited for its turn, or has been elsewhere before.
    earlier = call.attempts
    started = call.started if not call.paused and call.attempt is None else monotonic()
    latest: Response | None = None  # the latest answer of a target, should later attempts not even get that far
    found_open = 0.0  # when the circuit was first found open
    reason = ""  # why there is another attempt, as a metric label
    while True:
        attempt = call.attempt = Attempt(call, route, call.attempts - earlier + 1, started, reason)
        if route.hedge is None:
            result = await run(attempt)
        else:
            result = await hedged(call, route, attempt)
            attempt = call.attempt
        if not attempt.admitted:  # by the breaker: the target was not involved
            if await _wait_for_circuit(call, route, attempt, found_open):
                found_open = found_open or started
                started = monotonic()
                continue
            return _circuit_refused(call, route, attempt, latest, retried=call.attempts > earlier)
        call.attempts += 1
        call.waited += attempt.answered - started
        if _is_good(result):
            if call.history is not None:
                note_attempt(call, attempt)
            return result

        await _renew_credentials(call, route, attempt)
        decision = retry.decide(attempt, circumstances(call, route, attempt), attempt.answered)
        if decision.wait is None:
            return _settled(call, route, attempt, decision)
        note_attempt(call, attempt)
        reason = decision.reason
        seal(attempt, result.outcome)
        if isinstance(result, Response) and result.complete:
            latest = result
        call.note(f"wait {decision.wait * 1000:.0f} ms")
        if decision.wait > 0:
            await asyncio.sleep(decision.wait)
        started = monotonic()
        call.paused += started - attempt.answered


def _is_good(result: Response | Failure) -> bool:
    """Whether no retry rule could ask for another attempt."""
    return isinstance(result, Response) and (
        result.status < 400 or (result.status < 500 and result.status not in MAYBE_LATER)
    )


def circumstances(call: Call, route: Route, attempt: Attempt) -> Circumstances:
    """What the decision about another attempt depends on beside this one."""
    breaker = route.breaker
    return Circumstances(
        has_newer_credential=any(one.replaced_at > attempt.started for one in route.credentials),
        has_previous_credential=any(one.has_previous(attempt.answered) for one in route.credentials),
        # With `wait`, the next attempt waits for the circuit.
        circuit_refuses=breaker is not None and not breaker.worth_waiting and breaker.refusing() > 0,
        has_untried_endpoint=route.cluster.untried(call.tried),
    )


def _settled(call: Call, route: Route, attempt: Attempt, decision: Decision) -> Response | Failure:
    """There is no other attempt: note why, and return what this one has brought."""
    result = attempt.result
    if decision.reason != "not_needed":
        note_attempt(call, attempt)
        call.note(f"no retry: {decision.reason}")
        route.cluster.stats.suppressed[decision.reason] += 1
    elif call.history is not None:
        note_attempt(call, attempt)
    if decision.reason in TRIED_ENOUGH:
        result.tried_enough = True  # the caller of the app must not start all over again
    return result


def _circuit_refused(
    call: Call, route: Route, attempt: Attempt, latest: Response | None, retried: bool
) -> Response | Failure:
    """What the app is to get when the breaker has refused an attempt: the `latest` answer of the target if there is
    one, else the refusal. `retried`: the refused one would have been a retry, which the metrics count as suppressed."""
    result: Response | Failure = latest or attempt.result
    result.tried_enough = retried
    if retried:
        call.note("no retry: circuit_open")
        route.cluster.stats.suppressed["circuit_open"] += 1
    return result


async def _renew_credentials(call: Call, route: Route, attempt: Attempt) -> None:
    """After a 401, have fetched credentials fetched anew, and wait for it: they may have been revoked. Not those that
    were replaced since the attempt began, nor those whose previous value is still to be tried."""
    result = attempt.result
    if not isinstance(result, Response) or result.status != 401 or not call.may_repeat() or call.with_old_keys:
        return
    for credential in route.credentials:
        renewal = credential.renewal
        if (
            renewal is None
            or credential.replaced_at > attempt.started
            or credential.has_previous(attempt.answered)
            or not renewal.begin(attempt.answered)
        ):
            continue
        await renewal.wait(call.deadline - monotonic())
        if credential.replaced_at > attempt.started:
            call.note("a credential was refused and has been fetched anew")


async def _wait_for_circuit(call: Call, route: Route, attempt: Attempt, found_open: float) -> bool:
    """If the route lets calls wait for an open circuit, do so; returns whether there was time for that. `found_open` is
    when the circuit was first found open (monotonic seconds), or 0 for just now."""
    breaker = route.breaker
    if breaker is None or not breaker.worth_waiting:
        return False
    began = monotonic()
    left = min((found_open or attempt.started) + breaker.wait, call.deadline) - began
    if left <= 0:
        return False
    await breaker.changed(left)
    now = monotonic()
    call.paused += now - attempt.started
    if not found_open:
        call.note("waiting for the circuit to close")
    return now < call.deadline
