"""The life of a call. `carry` is the one coroutine that sees it from the first byte to the last.

Read it top to bottom: admit, attempt by attempt, answer, observe. It is the only place that awaits attempts;
`finally` guarantees that whatever was admitted hears how it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from outrider.dataplane.attempt import Attempt
from outrider.dataplane.stats import BUCKETS, bucket_of
from outrider.dataplane.suspend import suspended
from outrider.dataplane.tunnel import Tunnel
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Request, Response
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, Outcome, classify
from outrider.model.reply import Reply, rescue

if TYPE_CHECKING:
    from outrider.dataplane.cluster import Endpoint
    from outrider.dataplane.downstream import Downstream
    from outrider.dataplane.policies import Policy
    from outrider.dataplane.replay import RequestBody
    from outrider.dataplane.routing import Route

log = logging.getLogger("outrider")


class Call(Request):
    """One downstream request and its one answer. Times are monotonic seconds.

    `path` is what the target sees, `prefix` what was taken off in front of it. `permits` are the policies that let
    the call in and want to hear how it ended, the latest first. `aborted` says why the call must stop although the
    app is still there; `committed` that the head of an answer is on its way; `continued` that the app has been told
    100 Continue. `waited`, `paused` and `tunnelled` are the seconds spent on targets, in back-off, and after the
    protocol was switched. `history` is None unless
    something other than one plain try happened.
    """

    __slots__ = (
        "_request_id",
        "aborted",
        "attempt",
        "attempts",
        "body",
        "committed",
        "continued",
        "correlation_id",
        "deadline",
        "downstream",
        "failure",
        "history",
        "label",
        "path",
        "paused",
        "permits",
        "prefix",
        "route",
        "started",
        "status",
        "traceparent",
        "tried",
        "tunnelled",
        "waited",
    )

    route: Route

    def __init__(self, downstream: Downstream, target: bytes, started: float) -> None:
        super().__init__(target)
        self.downstream = downstream
        self.started = started
        self.deadline = started
        self.path = self.prefix = self.correlation_id = self.traceparent = self._request_id = b""
        self.body: RequestBody | None = None
        self.attempt: Attempt | None = None
        self.attempts = 0
        self.tried: tuple[Endpoint, ...] = ()
        self.permits: tuple[Policy, ...] = ()
        self.history: list[str] | None = None
        self.label = "ok"
        self.status = 0
        self.failure: Failure | None = None
        self.aborted: Failure | None = None
        self.committed = self.continued = False
        self.waited = self.paused = self.tunnelled = 0.0

    def request_id(self, make: Callable[[], bytes]) -> bytes:
        """An id of this call alone, the same on every attempt; made when first asked for."""
        if not self._request_id:
            self._request_id = make()
        return self._request_id

    def overhead(self, seconds: float) -> float:
        """What of the `seconds` since the call came in was spent neither on targets nor in back-off."""
        return seconds - self.waited - self.paused

    def note(self, sentence: str) -> None:
        """Add to the story of this call, as log and explain tell it."""
        if self.history is None:
            self.history = []
        self.history.append(sentence)


async def carry(call: Call) -> None:
    """One request, all its attempts, one answer."""
    outcome = NEUTRAL
    try:
        for policy in call.route.policies:
            verdict = policy.admit(call)
            if verdict is not None:
                if not isinstance(verdict, (Failure, Reply)):
                    verdict = await verdict
                if verdict is not None:
                    answer_here(call, verdict)
                    return
        result = await first_good(call)
        if call.upgrade and isinstance(result, Response) and result.switches:
            outcome = await tunnel(call, result)
        elif isinstance(result, Response) and (call.route.fallback is None or not covered(call, result)):
            outcome = forward(call, result)
            if not result.complete:
                outcome = await stream(call, result, outcome)
        else:
            outcome = give_up_on(call, result)
            answer_here(call, result)
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
        for policy in call.permits:
            policy.observe(call, outcome)
        finish(call, outcome)


async def first_good(call: Call) -> Response | Failure:
    """Attempt by attempt, until one is good or may not be repeated; what the app is to get."""
    route = call.route
    retry = route.retry
    stats = route.cluster.stats
    if retry.budget is not None:
        retry.budget.deposit(call.started)
    started = call.started
    latest: Response | None = None  # the latest answer of a target, should later attempts not even get that far
    while True:
        attempt = call.attempt = Attempt(call, call.attempts + 1, started)
        result = await attempt.run()
        if not attempt.admitted:  # by the breaker: the target was not involved
            return latest or result
        call.attempts += 1
        call.waited += attempt.answered - started
        if isinstance(result, Response) and result.status < 429:
            if call.history is not None:
                describe(call, attempt)
            return result

        decision = retry.decide(call, attempt, attempt.answered)
        if decision.wait is None:
            if decision.reason != "not_needed":
                describe(call, attempt)
                call.note(f"no retry: {decision.reason}")
                stats.suppressed[decision.reason] += 1
            return result
        describe(call, attempt)
        stats.retries[decision.reason] += 1
        if isinstance(result, Response):
            attempt.seal(classify(result.status))
            latest = result if result.complete else latest
        else:
            attempt.seal(result.kind.outcome)
        call.note(f"wait {decision.wait * 1000:.0f} ms")
        if decision.wait > 0:
            await asyncio.sleep(decision.wait)
        started = monotonic()
        call.paused += started - attempt.answered


def forward(call: Call, response: Response) -> Outcome:
    """Pass a target's answer on, whole or as far as it has come."""
    attempt = call.attempt
    assert attempt is not None
    call.status = status = response.status
    call.committed = True
    outcome = SUCCESS if status < 400 else classify(status)
    if outcome is FAILURE:
        call.label = "upstream_error"
    elif call.attempts > 1:
        call.label = "retried"
    if response.complete:
        call.downstream.send_whole(call, response)
        attempt.seal(outcome)
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
    connection.pipe(call.downstream)
    while not connection.settled:
        await suspended()
    now = monotonic()
    call.waited = now - call.started - call.paused
    failure = connection.failure
    if failure is None:
        call.downstream.send_end(response)
        attempt.seal(outcome, now)
        return outcome
    call.failure = failure
    call.label = failure.kind.label
    call.note(f"the answer broke off: {failure.detail}")
    call.downstream.abort()  # the app must see that something is missing
    attempt.seal(failure.kind.outcome)
    return failure.kind.outcome


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
    assert call.attempt is not None
    outcome = classify(result.status) if isinstance(result, Response) else result.kind.outcome
    if isinstance(result, Failure):
        call.failure = result
    call.attempt.seal(outcome)
    return outcome


def covered(call: Call, result: Response | Failure) -> bool:
    """Whether the route has a fallback that stands in for this result."""
    fallback = call.route.fallback
    return fallback is not None and fallback.covers(result)


def answer_here(call: Call, verdict: Failure | Reply | Response) -> None:
    """Answer with a reply made here; if an answer has already begun, make it visibly broken instead."""
    if isinstance(verdict, Failure):
        call.failure = verdict
        call.label = verdict.kind.label
    if isinstance(verdict, Reply):
        reply = verdict
    elif covered(call, verdict):
        assert call.route.fallback is not None
        reply = call.route.fallback.reply(verdict)
        call.label = "fallback"
    else:
        assert isinstance(verdict, Failure)
        reply = rescue(
            verdict,
            service=call.route.cluster.name or None,
            correlation_id=call.correlation_id.decode("latin-1") or None,
            attempts=call.attempts,
        )
    if call.committed:
        call.downstream.abort()
        return
    call.status = reply.status
    call.committed = True
    call.downstream.send_reply(call, reply)


def cancelled(call: Call) -> None:
    """The app hung up: nobody hears an answer, and nobody is to blame."""
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


def describe(call: Call, attempt: Attempt) -> None:
    """One sentence on how an attempt ended."""
    result = attempt.result
    what = str(result.status) if isinstance(result, Response) else result.detail
    where = f" at {attempt.endpoint.name}" if attempt.endpoint is not None else ""
    call.note(f"try {attempt.number}{where}: {what} after {attempt.latency * 1000:.0f} ms")


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
