"""What the app gets in place of a bad result: another service's answer, an earlier good one, or a prepared one."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from outrider.dataplane.engine.accounting import release
from outrider.dataplane.engine.attempts import attempt_until_settled
from outrider.dataplane.engine.one_attempt import seal_failed
from outrider.dataplane.engine.pipeline import FOR_EVERY_CALL
from outrider.dataplane.http1.request_checks import has_dot_segments
from outrider.dataplane.policies.fallback import cause
from outrider.model.failure import Failure
from outrider.model.messages import Response
from outrider.model.outcome import NEUTRAL
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.engine.routing import Fallback, Route
    from outrider.dataplane.policy import Policy


async def apply_fallback(
    call: Call, route: Route, fallback: Fallback, result: Response | Failure
) -> Response | Failure:
    """What becomes of a result where something may stand in for it: good answers are taken down, and for bad ones the
    services that stand in are asked, one after the other. If none of them has an answer, it remains as it was."""
    if not fallback.covers(result):
        _record(call, fallback, result)
        return result
    last = call.attempt
    if not fallback.services or not _may_fail_over(call, route) or _is_broken_off(result):
        return result
    release(call, seal_failed(call, result))
    call.failure = None
    for service in fallback.services:
        if call.upgrade or monotonic() >= call.deadline or (service.confined and has_dot_segments(call.path)):
            break
        call.note(f"asking {service.name} in place of {route.service}")
        other = service.route_for(call.method, call.path)
        call.tried = ()
        call.with_old_keys = False
        if not await _admit_all(call, other.policies[FOR_EVERY_CALL:]):
            release(call, NEUTRAL)
            continue
        answer = await attempt_until_settled(call, other)
        if isinstance(answer, Response) and not fallback.covers(answer):
            marked = f"service; name={service.name}; cause={cause(result)}".encode()
            answer.lines += (b"x-outrider-degraded", b": ", marked, b"\r\n")
            call.label = "fallback"
            return answer
        go_on = _may_fail_over(call, other)
        release(call, seal_failed(call, answer))
        call.failure = None
        if not go_on:
            break
    call.attempt = last
    return result


def fallback_reply(call: Call, route: Route, result: Response | Failure) -> Reply | None:
    """What the fallback of the route has in place of this result; None if the app is to get the result itself."""
    fallback = route.fallback
    if fallback is None or not fallback.covers(result):
        return None
    reply = fallback.reply(call, result)
    if reply is not None:
        call.label = "fallback"
    return reply


def recorded(call: Call, response: Response) -> None:
    """The answer has passed whole: keep what was taken down of it."""
    if call.recorder is not None:
        call.recorder.keep(call, response, call.recorder)


async def _admit_all(call: Call, policies: Sequence[Policy]) -> bool:
    """Whether these policies, too, let the call in: what `carry` does in line, since a coroutine costs every call."""
    for policy in policies:
        verdict = policy.admit(call)
        if verdict is not None and not isinstance(verdict, (Failure, Reply)):
            verdict = await verdict
        if verdict is not None:
            return False
    return True


def _may_fail_over(call: Call, route: Route) -> bool:
    """Whether the request may be sent once more, to another service, after the latest attempt."""
    attempt = call.attempt
    return call.may_repeat() and (
        attempt is None or not attempt.admitted or attempt.unsent or route.retry.repeatable(call)
    )


def _is_broken_off(result: Response | Failure) -> bool:
    """Whether the rest of an answer could not be had any more once its connection is given up."""
    return isinstance(result, Response) and not result.complete


def _record(call: Call, fallback: Fallback, result: Response | Failure) -> None:
    """Begin to take a good answer down, where it may have to stand in for a later one."""
    if fallback.last_good is not None and isinstance(result, Response):
        call.recorder = fallback.last_good.recorder(call, result)
