"""The life of a call. `carry` is the one coroutine that sees it from the first byte to the last.

Read it top to bottom: admit, attempt by attempt, answer, observe. It is the only place that awaits attempts;
`finally` guarantees that whatever was admitted hears how it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from outrider.dataplane.attempt import Attempt
from outrider.dataplane.engine.fallback import record, recorded, sink, stand_in
from outrider.dataplane.engine.hedging import race
from outrider.dataplane.engine.pipeline import FOR_EVERY_CALL
from outrider.dataplane.http1.request_checks import climbs
from outrider.dataplane.inbound_context import Context
from outrider.dataplane.policies.deciders.retry import MAYBE_LATER, TRIED_ENOUGH
from outrider.dataplane.policies.fallback import Fallback, cause
from outrider.dataplane.policies.last_good import Recorder
from outrider.dataplane.runtime.counters import BUCKETS, bucket_of
from outrider.dataplane.runtime.parked import suspended
from outrider.dataplane.runtime.timers import NEVER
from outrider.dataplane.tunnel import Tunnel
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Request, Response
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, Outcome, classify
from outrider.model.reply import Reply, rescue

if TYPE_CHECKING:
    from outrider.dataplane.body import RequestBody
    from outrider.dataplane.downstream.connection import Downstream
    from outrider.dataplane.engine.routing import Route
    from outrider.dataplane.policy import Policy
    from outrider.dataplane.upstream.cluster import Endpoint

log = logging.getLogger("outrider")


class Call(Request):
    """One downstream request and its one answer. Times are monotonic seconds.

    `path` is what the target sees, `prefix` what was taken off in front of it. `permits` are the policies that let the
    call in and want to hear how it ended, the latest last. `aborted` says why the call must stop although the app is
    still there, `reply` what is answered instead of carrying it; `committed` that the head of an answer is on its way;
    `continued` that the app has been told 100 Continue. `recorder` takes down an answer that may stand in for a later
    one; `caller` is who has proven to call, and `contexts` what is kept of inbound calls for the app's own ones;
    `unstoppable` that it goes on to its end even if the app leaves; `with_old_keys` that the target has not taken our
    present ones. `waited`, `paused` and `tunnelled` are the seconds spent on targets, in back-off or in a queue, and
    after the protocol was switched. `deadline` is when the head of the answer must be here, `ends` when all of it.
    `history` is None unless something other than one plain try happened.
    """

    __slots__ = (
        "_request_id",
        "aborted",
        "attempt",
        "attempts",
        "body",
        "caller",
        "committed",
        "contexts",
        "continued",
        "correlation_id",
        "deadline",
        "downstream",
        "ends",
        "failure",
        "history",
        "label",
        "path",
        "paused",
        "permits",
        "prefix",
        "recorder",
        "reply",
        "route",
        "started",
        "status",
        "traceparent",
        "tried",
        "tunnelled",
        "unstoppable",
        "waited",
        "with_old_keys",
    )

    route: Route

    def __init__(self, downstream: Downstream, target: bytes, started: float) -> None:
        super().__init__(target)
        self.downstream = downstream
        self.started = started
        self.deadline = started
        self.ends = NEVER
        self.path = self.prefix = self.correlation_id = self.traceparent = self._request_id = b""
        self.body: RequestBody | None = None
        self.attempt: Attempt | None = None
        self.attempts = 0
        self.tried: tuple[Endpoint, ...] = ()
        self.permits: list[Policy] = []
        self.history: list[str] | None = None
        self.recorder: Recorder | None = None
        self.caller = ""
        self.contexts: tuple[Context, ...] = ()
        self.label = "ok"
        self.status = 0
        self.failure: Failure | None = None
        self.aborted: Failure | None = None
        self.reply: Reply | None = None
        self.committed = self.continued = self.unstoppable = self.with_old_keys = False
        self.waited = self.paused = self.tunnelled = 0.0

    def request_id(self, make: Callable[[], bytes]) -> bytes:
        """An id of this call alone, the same on every attempt; made when first asked for."""
        if not self._request_id:
            self._request_id = make()
        return self._request_id

    def overhead(self, seconds: float) -> float:
        """What of the `seconds` since the call came in was spent neither on targets nor in back-off."""
        return seconds - self.waited - self.paused

    def may_repeat(self) -> bool:
        """Whether the request can be sent again: not if more of its body has gone than was kept."""
        return self.body is None or self.body.replayable

    def all_here(self) -> bool:
        """Whether the app has sent all of the request."""
        return self.body is None or self.body.complete

    def goes_on(self) -> bool:
        """Whether it goes on to its end although its app has left: only if all of the request has come."""
        return self.unstoppable and self.all_here()

    def forget_request(self) -> None:
        """Let go of head and body, which may be large: the call has ended, and its connection keeps it until the next
        one comes, which may be in an hour."""
        self.fields = []
        self.noted = {}
        self.target = self.path = self.prefix = b""
        if self.body is not None and self.body.complete:
            self.body.forget()

    def end_by(self, moment: float) -> None:
        """Let it take no longer than until then, in monotonic seconds; also the attempt that is under way."""
        self.deadline = min(self.deadline, moment)
        self.ends = min(self.ends, moment)
        attempt = self.attempt
        if attempt is not None:
            attempt.due = min(attempt.due, moment)
            if attempt.connection is not None:
                attempt.connection.rearm(attempt.due)

    def note(self, sentence: str) -> None:
        """Add to the story of this call, as log and explain tell it."""
        if self.history is None:
            self.history = []
        self.history.append(sentence)


async def carry(call: Call) -> None:
    """One request, all its attempts, one answer."""
    outcome = NEUTRAL
    route = call.route
    try:
        for policy in route.policies:
            verdict = policy.admit(call)
            if verdict is not None:
                if not isinstance(verdict, (Failure, Reply)):
                    verdict = await verdict
                if verdict is not None:
                    outcome = await refused(call, verdict)
                    return
        result = await first_good(call)
        if route.fallback is not None:
            result = await degraded(call, route.fallback, result)
        if isinstance(result, Response) and result.complete and route.fallback is None and not call.upgrade:
            outcome = forward(call, result)  # the common end
            if call.body is not None and takes_the_rest(call, result):
                await finish_upload(call, outcome)
        else:
            outcome = await conclude(call, result)
    except asyncio.CancelledError:
        account_for_the_rest(call)
        if call.aborted is None:
            cancelled(call)
            raise
        answer_here(call, call.aborted)
    except Exception:
        log.exception("a bug in Outrider failed a call; please report it")
        call.downstream.proxy.stats.policy_errors += 1
        answer_here(call, Failure(Kind.INTERNAL, "Outrider failed to handle this call; its log has the details"))
    finally:
        if call.attempt is not None:
            call.attempt.seal(NEUTRAL)  # in case nobody has sealed it
        if call.route is not route:
            call.route = route  # another service has stood in; the call is still this one's
        release(call, outcome)
        finish(call, outcome)


async def refused(call: Call, verdict: Failure | Reply) -> Outcome:
    """A call that a policy has answered, or for which another service may stand in."""
    fallback = call.route.fallback
    if isinstance(verdict, Failure) and fallback is not None and fallback.elsewhere and fallback.covers(verdict):
        return await conclude(call, await degraded(call, fallback, verdict))
    answer_here(call, verdict)
    return NEUTRAL


async def conclude(call: Call, result: Response | Failure) -> Outcome:
    """What the app gets in the end."""
    if call.upgrade and isinstance(result, Response) and result.switches:
        return await tunnel(call, result)
    reply = stand_in(call, result) if call.route.fallback is not None else None
    if reply is None and isinstance(result, Response):
        outcome = forward(call, result)
        if not result.complete:
            return await stream(call, result, outcome)
        if call.body is not None and takes_the_rest(call, result):
            await finish_upload(call, outcome)
        return outcome
    outcome = give_up_on(call, result)
    if reply is not None:
        answer_here(call, reply)
    elif isinstance(result, Failure):
        answer_here(call, result)
    return outcome


async def first_good(call: Call) -> Response | Failure:
    """Attempt by attempt, until one is good or may not be repeated; what the app is to get."""
    route = call.route
    retry = route.retry
    stats = route.cluster.stats
    if retry.budget is not None:
        retry.budget.deposit(call.started)
    # The first attempt begins with the call, unless that has waited for its turn, or has been elsewhere before.
    earlier = call.attempts
    started = call.started if not call.paused and call.attempt is None else monotonic()
    latest: Response | None = None  # the latest answer of a target, should later attempts not even get that far
    found_open = 0.0  # when the circuit was first found open
    reason = ""  # why there is another attempt, as a metric label
    while True:
        attempt = call.attempt = Attempt(call, call.attempts - earlier + 1, started, reason)
        if route.hedge is None:
            result = await attempt.run()
        else:
            result = await race(call, attempt)
            attempt = call.attempt
        if not attempt.admitted:  # by the breaker: the target was not involved
            if await worth_another_look(call, attempt, found_open):
                found_open = found_open or started
                started = monotonic()
                continue
            return refused_attempt(call, attempt, latest, retried=call.attempts > earlier)
        call.attempts += 1
        call.waited += attempt.answered - started
        if isinstance(result, Response) and (
            result.status < 400 or (result.status < 500 and result.status not in MAYBE_LATER)
        ):
            if call.history is not None:
                describe(call, attempt)
            return result

        await renew_refused(call, attempt)
        decision = retry.decide(call, attempt, attempt.answered)
        if decision.wait is None:
            if decision.reason != "not_needed" or call.history is not None:
                describe(call, attempt)
            if decision.reason != "not_needed":
                call.note(f"no retry: {decision.reason}")
                stats.suppressed[decision.reason] += 1
            if decision.reason in TRIED_ENOUGH:
                result.tried_enough = True  # whoever called us must not start all over again
            return result
        describe(call, attempt)
        reason = decision.reason
        attempt.seal(result.outcome)
        if isinstance(result, Response) and result.complete:
            latest = result
        call.note(f"wait {decision.wait * 1000:.0f} ms")
        if decision.wait > 0:
            await asyncio.sleep(decision.wait)
        started = monotonic()
        call.paused += started - attempt.answered


def refused_attempt(call: Call, attempt: Attempt, latest: Response | None, retried: bool) -> Response | Failure:
    """What the app is to get when the breaker has refused an attempt: the `latest` answer of the target if there is
    one, else the refusal. `retried`: the refused one would have been a retry, which the metrics count as suppressed."""
    result: Response | Failure = latest or attempt.result
    result.tried_enough = retried
    if retried:
        call.note("no retry: circuit_open")
        call.route.cluster.stats.suppressed["circuit_open"] += 1
    return result


async def renew_refused(call: Call, attempt: Attempt) -> None:
    """After a 401, have fetched credentials fetched anew, and wait for it: they may have been revoked. Not those that
    were replaced since the attempt began, nor those whose previous value is still to be tried."""
    result = attempt.result
    if not isinstance(result, Response) or result.status != 401 or not call.may_repeat() or call.with_old_keys:
        return
    for credential in call.route.credentials:
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


async def worth_another_look(call: Call, attempt: Attempt, found_open: float) -> bool:
    """Whether the route lets calls wait for an open circuit, and there was time for that. `found_open` is when it was
    first found open, or 0 for just now."""
    breaker = call.route.breaker
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


def forward(call: Call, response: Response) -> Outcome:
    """Pass a target's answer on, whole or as far as it has come."""
    attempt = call.attempt
    assert attempt is not None
    call.status = status = response.status
    call.committed = True
    if response.tried_enough:
        response.lines += (b"x-outrider-retry", b": ", b"off", b"\r\n")
    if call.recorder is not None:
        call.recorder.add(response.pieces)
    outcome = SUCCESS if status < 400 else classify(status)
    if call.with_old_keys and status != 401:
        for credential in call.route.credentials:
            if credential.has_previous(attempt.started):
                credential.old_uses += 1
    if outcome is FAILURE:
        call.label = "upstream_error"
    elif call.attempts > 1 and call.label == "ok":
        call.label = "retried"
    if response.complete:
        call.downstream.send_whole(call, response)
        if call.body is None or not takes_the_rest(call, response):
            attempt.seal(outcome)
        recorded(call, response)
    else:
        call.downstream.send_head(call, response)
    return outcome


async def stream(call: Call, response: Response, outcome: Outcome) -> Outcome:
    """Let the rest of the body flow from the target's connection to the app's, with backpressure both ways."""
    attempt = call.attempt
    assert attempt is not None
    connection = attempt.connection
    assert connection is not None
    if attempt.is_probe():
        attempt.judge_head(outcome)
    connection.pipe(sink(call))
    while not connection.settled:
        await suspended()
    now = monotonic()
    call.waited = now - call.started - call.paused
    failure = connection.failure
    if failure is None:
        if call.recorder is not None:
            call.recorder.add(response.pieces)
        call.downstream.send_end(response)
        recorded(call, response)
        if call.body is not None and takes_the_rest(call, response):
            await finish_upload(call, outcome)
        attempt.seal(outcome, now)
        return outcome
    call.failure = failure
    call.label = failure.kind.label
    call.note(f"the answer broke off: {failure.detail}")
    call.downstream.abort()  # the app must see that something is missing
    attempt.seal(failure.kind.outcome)
    return failure.kind.outcome


def takes_the_rest(call: Call, response: Response) -> bool:
    """Whether the target, which has answered, is to get the rest of the request that the app is still sending: unless
    it has refused it, or is gone."""
    attempt = call.attempt
    return (
        not call.all_here()
        and response.status < 400
        and attempt is not None
        and attempt.connection is not None
        and attempt.connection.alive
    )


async def finish_upload(call: Call, outcome: Outcome) -> None:
    """The app has its answer, and the target gets the rest of the request, for as long as it moves."""
    attempt = call.attempt
    assert attempt is not None
    assert attempt.connection is not None
    if attempt.is_probe():
        attempt.judge_head(outcome)
    attempt.connection.finish_upload()
    try:
        while not attempt.connection.settled:
            await suspended()
    except asyncio.CancelledError:
        pass  # the app has left or stands still; it was answered, so nothing else has to be said
    attempt.seal(outcome)


async def tunnel(call: Call, response: Response) -> Outcome:
    """Let bytes pass both ways, uninterpreted, until both sides have ended. The deadline was for the agreement."""
    attempt = call.attempt
    assert attempt is not None
    connection = attempt.connection
    assert connection is not None
    app = call.downstream
    call.status = response.status
    call.committed = True
    if attempt.is_probe():
        attempt.judge_head(SUCCESS)
    proxy = app.proxy
    passage = Tunnel(app, connection, proxy.timers, proxy.limits.tunnel_idle_timeout, app.resume_call)
    app.switch(call, response, passage)
    connection.join(passage)
    stats = call.route.cluster.stats
    stats.tunnels += 1
    while not passage.over:
        await suspended()
    stats.tunnels -= 1
    if passage.silent:
        proxy.stats.reached["tunnel_idle_timeout"] += 1
    stats.tunnelled["sent"] += passage.sent
    stats.tunnelled["received"] += passage.received
    call.tunnelled = monotonic() - attempt.answered
    call.note(f"tunnel: {passage.sent} bytes sent, {passage.received} received; {passage.reason}")
    attempt.seal(SUCCESS)
    return SUCCESS


def give_up_on(call: Call, result: Response | Failure) -> Outcome:
    """Seal the last attempt of a call that will be answered here."""
    if isinstance(result, Failure):
        call.failure = result
    if call.attempt is not None:
        call.attempt.seal(result.outcome)
    return result.outcome


async def degraded(call: Call, fallback: Fallback, result: Response | Failure) -> Response | Failure:
    """What becomes of a result where something may stand in for it: good answers are taken down, and for bad ones the
    services that stand in are asked, one after the other. If none of them has an answer, it remains as it was."""
    if not fallback.covers(result):
        record(call, result)
        return result
    home, last = call.route, call.attempt
    if not fallback.elsewhere or not may_go_elsewhere(call) or (isinstance(result, Response) and not result.complete):
        return result  # the rest of a broken-off answer could not be had any more once its connection is given up
    release(call, give_up_on(call, result))
    call.failure = None
    for service in fallback.elsewhere:
        if call.upgrade or monotonic() >= call.deadline or (service.confined and climbs(call.path)):
            break
        call.note(f"asking {service.name} in place of {home.cluster.name}")
        call.route = service.route_for(call.method, call.path)
        call.tried = ()
        call.with_old_keys = False
        if not await let_in(call, call.route.policies[FOR_EVERY_CALL:]):
            release(call, NEUTRAL)
            continue
        answer = await first_good(call)
        if isinstance(answer, Response) and not fallback.covers(answer):
            marked = f"service; name={service.name}; cause={cause(result)}".encode()
            answer.lines += (b"x-outrider-degraded", b": ", marked, b"\r\n")
            call.label = "fallback"
            return answer
        go_on = may_go_elsewhere(call)
        release(call, give_up_on(call, answer))
        call.failure = None
        if not go_on:
            break
    call.route, call.attempt = home, last
    return result


async def let_in(call: Call, policies: Sequence[Policy]) -> bool:
    """Whether these policies, too, let the call in: what `carry` does in line, for a coroutine costs every call."""
    for policy in policies:
        verdict = policy.admit(call)
        if verdict is not None and not isinstance(verdict, (Failure, Reply)):
            verdict = await verdict
        if verdict is not None:
            return False
    return True


def may_go_elsewhere(call: Call) -> bool:
    """Whether the request may be sent once more, to somebody else, after the latest attempt."""
    attempt = call.attempt
    return call.may_repeat() and (
        attempt is None or not attempt.admitted or attempt.unsent or call.route.retry.repeatable(call)
    )


def release(call: Call, outcome: Outcome) -> None:
    """Tell the policies that let the call in how it ended, the latest first."""
    permits = call.permits
    while permits:
        permits.pop().observe(call, outcome)


def answer_here(call: Call, verdict: Failure | Reply) -> None:
    """Answer with a reply made here; if an answer has already begun, make it visibly broken instead."""
    if isinstance(verdict, Failure):
        call.failure = verdict
        call.label = verdict.kind.label
    reply = verdict if isinstance(verdict, Reply) else stand_in(call, verdict)
    if reply is None:
        assert isinstance(verdict, Failure)
        reply = rescue(
            verdict,
            service=call.route.cluster.shown or None,
            correlation_id=call.correlation_id.decode("latin-1") or None,
            attempts=call.attempts,
            acted_on=call.route.retry.acted_on(call, verdict),
        )
    if call.committed:
        call.downstream.abort()
        return
    call.status = reply.status
    call.committed = True
    call.downstream.send_reply(call, reply)


def cancelled(call: Call) -> None:
    """The app hung up, or its connection was cut because we have to stop: there is no answer, and no blame."""
    if call.downstream.proxy.stopped:
        call.failure = Failure(Kind.STOPPED, "Outrider was stopped before the answer was complete")
        call.label = Kind.STOPPED.label
        call.status = Kind.STOPPED.status
        call.note("cut off: Outrider was stopped")
        return
    call.failure = Failure(Kind.CANCELLED, "the app closed its connection before the answer was complete")
    call.label = Kind.CANCELLED.label
    call.status = Kind.CANCELLED.status
    call.note("the app hung up")


def account_for_the_rest(call: Call) -> None:
    """The time of an attempt that was cut short was spent on the target, not by us."""
    now = monotonic()
    if call.committed:
        call.waited = now - call.started - call.paused
    elif call.attempt is not None and call.attempt.unfinished:
        call.waited += now - call.attempt.started
        if call.attempt.admitted:
            call.attempts += 1
            if call.history is not None:
                describe(call, call.attempt, "given up", now)


def describe(call: Call, attempt: Attempt, how: str = "", now: float = 0.0) -> None:
    """One sentence on how an attempt ended; `how` and when if it was cut short."""
    result = attempt.result
    what = how or (str(result.status) if isinstance(result, Response) else result.detail)
    where = f" at {attempt.endpoint.name}" if attempt.endpoint is not None else ""
    seconds = (now or attempt.answered) - attempt.started
    call.note(f"try {attempt.number}{where}: {what} after {seconds * 1000:.0f} ms")


def finish(call: Call, outcome: Outcome) -> None:
    """Count the call, and report it if there is something to report."""
    seconds = monotonic() - call.started - call.tunnelled
    stats = call.route.stats
    key = (call.method, call.status, call.label)
    if key in stats.requests:
        stats.requests[key] += 1
    else:
        stats.first(*key)
    duration = stats.duration
    duration.counts[bucket_of(BUCKETS, seconds)] += 1
    duration.sum += seconds
    proxy = call.downstream.proxy
    added = call.overhead(seconds)
    overhead = proxy.stats.overhead
    overhead.counts[bucket_of(BUCKETS, added)] += 1
    overhead.sum += added
    if outcome is not SUCCESS or call.history is not None or proxy.report_all:
        proxy.report(call, seconds)
    call.attempt = None  # it holds the call, the call holds it
