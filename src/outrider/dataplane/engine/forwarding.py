"""The answer on its way to the app: passed on whole, streamed, tunnelled, or made here."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from outrider.dataplane.engine.fallback import fallback_reply, recorded
from outrider.dataplane.engine.one_attempt import judge_probe, route_of, seal
from outrider.dataplane.runtime.parked import suspended
from outrider.dataplane.tunnel import Tunnel
from outrider.model.failure import Failure
from outrider.model.messages import Response
from outrider.model.outcome import FAILURE, SUCCESS, Outcome, classify
from outrider.model.reply import Reply, rescue

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.engine.routing import Route


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
        for credential in route_of(attempt).credentials:
            if credential.has_previous(attempt.started):
                credential.old_uses += 1
    if outcome is FAILURE:
        call.label = "upstream_error"
    elif call.attempts > 1 and call.label == "ok":
        call.label = "retried"
    if response.complete:
        call.app.send_whole(call, response)
        if call.body is None or not takes_the_rest(call, response):
            seal(attempt, outcome)
        recorded(call, response)
    else:
        call.app.send_head(call, response)
    return outcome


async def stream(call: Call, response: Response, outcome: Outcome) -> Outcome:
    """Let the rest of the body flow from the target's connection to the app's, with backpressure both ways."""
    attempt = call.attempt
    assert attempt is not None
    connection = attempt.connection
    assert connection is not None
    judge_probe(attempt, outcome)
    connection.pipe(call.app, call.recorder)
    while not connection.settled:
        await suspended()
    now = monotonic()
    call.waited = now - call.started - call.paused
    failure = connection.failure
    if failure is None:
        if call.recorder is not None:
            call.recorder.add(response.pieces)
        call.app.send_end(response)
        recorded(call, response)
        if call.body is not None and takes_the_rest(call, response):
            await finish_upload(call, outcome)
        seal(attempt, outcome, now)
        return outcome
    call.failure = failure
    call.label = failure.kind.label
    call.note(f"the answer broke off: {failure.detail}")
    call.app.abort()  # the app must see that something is missing
    seal(attempt, failure.kind.outcome)
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
    judge_probe(attempt, outcome)
    attempt.connection.finish_upload()
    try:
        while not attempt.connection.settled:
            await suspended()
    except asyncio.CancelledError:
        pass  # the app has left or stands still; it was answered, so nothing else has to be said
    seal(attempt, outcome)


async def tunnel(call: Call, response: Response) -> Outcome:
    """Let bytes pass both ways, uninterpreted, until both sides have ended. The deadline was for the agreement."""
    attempt = call.attempt
    assert attempt is not None
    connection = attempt.connection
    assert connection is not None
    app = call.app
    call.status = response.status
    call.committed = True
    judge_probe(attempt, SUCCESS)
    shared = app.shared
    passage = Tunnel(app, connection, shared.timers, shared.limits.tunnel_idle_timeout, app.resume_call)
    app.switch(call, response, passage)
    connection.join(passage)
    stats = route_of(attempt).cluster.stats
    stats.tunnels += 1
    while not passage.over:
        await suspended()
    stats.tunnels -= 1
    if passage.silent:
        shared.stats.reached["tunnel_idle_timeout"] += 1
    stats.tunnelled["sent"] += passage.sent
    stats.tunnelled["received"] += passage.received
    call.tunnelled = monotonic() - attempt.answered
    call.note(f"tunnel: {passage.sent} bytes sent, {passage.received} received; {passage.reason}")
    seal(attempt, SUCCESS)
    return SUCCESS


def answer_here(call: Call, route: Route, verdict: Failure | Reply) -> None:
    """Answer with a reply made here; if an answer has already begun, make it visibly broken instead."""
    if isinstance(verdict, Failure):
        call.failure = verdict
        call.label = verdict.kind.label
    reply = verdict if isinstance(verdict, Reply) else fallback_reply(call, route, verdict)
    if reply is None:
        assert isinstance(verdict, Failure)
        reply = rescue(
            verdict,
            service=route.shown or None,
            correlation_id=call.correlation_id.decode("latin-1") or None,
            attempts=call.attempts,
            acted_on=route.retry.acted_on(call, verdict),
        )
    if call.committed:
        call.app.abort()
        return
    call.status = reply.status
    call.committed = True
    call.app.send_reply(call, reply)
