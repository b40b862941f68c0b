"""The life of a call. `carry` is the one coroutine that takes it from the first byte to the last.

Read it top to bottom: admit, attempt by attempt, answer, observe. It is the only place that awaits attempts; `finally`
guarantees that every permit is returned and every attempt sealed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from outrider.dataplane.engine.accounting import charge_open_attempt, finish, note_cancelled, release
from outrider.dataplane.engine.attempts import attempt_until_settled
from outrider.dataplane.engine.fallback import apply_fallback, fallback_reply
from outrider.dataplane.engine.forwarding import answer_here, finish_upload, forward, stream, takes_the_rest, tunnel
from outrider.dataplane.engine.one_attempt import seal, seal_failed
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Response
from outrider.model.outcome import NEUTRAL, Outcome
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.engine.routing import Route

log = logging.getLogger("outrider")


async def carry(call: Call, route: Route) -> None:
    """One request, all its attempts, one answer."""
    outcome = NEUTRAL
    try:
        for policy in route.policies:
            verdict = policy.admit(call)
            if verdict is not None:
                if not isinstance(verdict, (Failure, Reply)):
                    verdict = await verdict
                if verdict is not None:
                    outcome = await _refused(call, route, verdict)
                    return
        result = await attempt_until_settled(call, route)
        if route.fallback is not None:
            result = await apply_fallback(call, route, route.fallback, result)
        if isinstance(result, Response) and result.complete and route.fallback is None and not call.upgrade:
            outcome = forward(call, result)  # the common end
            if call.body is not None and takes_the_rest(call, result):
                await finish_upload(call, outcome)
        else:
            outcome = await _conclude(call, route, result)
    except asyncio.CancelledError:
        charge_open_attempt(call)
        if call.aborted is None:
            note_cancelled(call)
            raise
        answer_here(call, route, call.aborted)
    except Exception:
        log.exception("a bug in Outrider failed a call; please report it")
        call.app.shared.stats.policy_errors += 1
        answer_here(call, route, Failure(Kind.INTERNAL, "Outrider failed to handle this call; its log has the details"))
    finally:
        if call.attempt is not None:
            seal(call.attempt, NEUTRAL)  # in case an exception has kept it open
        release(call, outcome)
        finish(call, outcome)


async def _refused(call: Call, route: Route, verdict: Failure | Reply) -> Outcome:
    """A policy has answered the call, or another service may answer in its place."""
    fallback = route.fallback
    if isinstance(verdict, Failure) and fallback is not None and fallback.services and fallback.covers(verdict):
        return await _conclude(call, route, await apply_fallback(call, route, fallback, verdict))
    answer_here(call, route, verdict)
    return NEUTRAL


async def _conclude(call: Call, route: Route, result: Response | Failure) -> Outcome:
    """What the app gets in the end, where it is not simply a whole answer of the target."""
    if call.upgrade and isinstance(result, Response) and result.switches:
        return await tunnel(call, result)
    reply = fallback_reply(call, route, result)
    if reply is None and isinstance(result, Response):
        outcome = forward(call, result)
        if not result.complete:
            return await stream(call, result, outcome)
        if call.body is not None and takes_the_rest(call, result):
            await finish_upload(call, outcome)
        return outcome
    outcome = seal_failed(call, result)
    if reply is not None:
        answer_here(call, route, reply)
    elif isinstance(result, Failure):
        answer_here(call, route, result)
    return outcome
