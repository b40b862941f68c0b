"""One attempt at one endpoint: breaker, balance, connect, stamp, send, wait for the head; and how it is sealed.

The outcome of an attempt is sealed exactly once, when nothing more can happen to it.
"""

from __future__ import annotations

from asyncio import CancelledError, Task
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from outrider.dataplane.attempt import PENDING, Attempt
from outrider.dataplane.engine.routing import Route
from outrider.dataplane.http1.heads import called_host, request_head
from outrider.dataplane.policies.deciders.retry import parse_retry_after
from outrider.dataplane.runtime.parked import suspended
from outrider.dataplane.upstream.cluster import Endpoint
from outrider.dataplane.upstream.dial import dial
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Response
from outrider.model.outcome import FAILURE, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.route import RouteFacts
    from outrider.dataplane.upstream.connection import Upstream

# Reasons for a retry after which no other kept connection to the same endpoint is trusted.
_ON_A_FRESH_CONNECTION: Final = frozenset(("reset", "408"))
# Seconds that an attempt must have taken before it matters whether this process stood still meanwhile.
_WORTH_A_LOOK: Final = 0.1


async def run(attempt: Attempt) -> Response | Failure:
    """Make the attempt. The result also stands in `attempt.result`. Nothing is sent twice here: a kept connection that
    turns out to be closed is replaced by a fresh one only if the target provably has not got the request."""
    call = attempt.call
    route = route_of(attempt)
    breaker = route.breaker
    if breaker is not None and (refusal := breaker.admit(attempt)) is not None:
        attempt.result = refusal
        return refusal
    attempt.admitted = True
    cluster = route.cluster
    if attempt.reason:
        cluster.stats.retries[attempt.reason] += 1
    endpoint = cluster.pick(call, route.retry, attempt.started)
    attempt.endpoint = endpoint
    if endpoint is None:
        attempt.result = Failure(Kind.NO_ENDPOINT, f"no endpoint of {cluster.shown} is available")
        return attempt.result
    if cluster.probe_given:
        cluster.probe_given = False
        attempt.probe = True
    endpoint.in_flight += 1
    if call.method == b"CONNECT" or (attempt.reason in _ON_A_FRESH_CONNECTION and endpoint in call.tried):
        connection = None
    else:
        connection = endpoint.pool.lease()
    call.tried += (endpoint,)

    while True:
        if connection is None:
            dialled = await _dial(attempt, route, endpoint)
            if isinstance(dialled, Failure):
                attempt.result = dialled
                break
            connection = dialled
        _send(attempt, route, endpoint, connection)
        if not connection.settled:
            await suspended()
        attempt.result = connection.failure or connection.response
        if not connection.reused or not _was_stale(attempt, connection, attempt.result):
            break
        endpoint.stats.connects["stale"] += 1
        connection.end(attempt.started)
        connection = attempt.connection = None  # and only a reused one can be stale
        attempt.result = PENDING
    attempt.answered = answered = monotonic()
    if answered - attempt.served_from > _WORTH_A_LOOK:
        # Time in which this process stood still was not the target's.
        attempt.served_from += call.app.shared.timers.stood_still(attempt.served_from, answered)
    return attempt.result


def route_of(attempt: Attempt) -> Route:
    """The whole route of an attempt: of the service that is asked, which may stand in for that of the call."""
    return cast(Route, attempt.route)


def seal(attempt: Attempt, outcome: Outcome, now: float = 0.0) -> None:
    """Fix the outcome, once: breaker, balance and metrics learn of it, and the connection goes back, at `now`
    (monotonic seconds) if that is later than the head of the answer."""
    if attempt.sealed or not attempt.admitted:
        return
    attempt.sealed = True
    route = route_of(attempt)
    now = now or attempt.answered
    if attempt.endpoint is not None:
        endpoint = cast(Endpoint, attempt.endpoint)
        endpoint.in_flight -= 1
        if attempt.probe:
            endpoint.probing = False
        if route.cluster.several or endpoint.doubtful:
            _teach_cluster(attempt, route, endpoint, outcome, now)
    result = attempt.result
    breaker = route.breaker
    if breaker is not None:
        if outcome is FAILURE and not attempt.excused and isinstance(result, Response) and result.retry_after:
            breaker.asked_to_wait(parse_retry_after(result.retry_after) or 0.0)
        breaker.observe(attempt, outcome)
    if attempt.connection is not None:
        attempt.connection.end(now)
    label = result.status if isinstance(result, Response) else result.kind.slug
    route.cluster.stats.attempts[label] += 1


def seal_failed(call: Call, result: Response | Failure) -> Outcome:
    """Seal the last attempt of a call that will be answered here; returns what its result says about the target."""
    if isinstance(result, Failure):
        call.failure = result
    if call.attempt is not None:
        seal(call.attempt, result.outcome)
    return result.outcome


def judge_probe(attempt: Attempt, outcome: Outcome) -> None:
    """If the breaker lent this attempt one of its few probe permits, give it the verdict before the body has come: the
    body may be a stream that lasts for hours. The seal later says nothing more to the breaker."""
    breaker = route_of(attempt).breaker
    if breaker is not None and breaker.probing(attempt):
        breaker.observe(attempt, outcome)
        attempt.generation = -1


def _teach_cluster(attempt: Attempt, route: Route, endpoint: Endpoint, outcome: Outcome, now: float) -> None:
    """What the balance learns from this attempt. One that was given up has taken at least as long as it took; one
    whose answer broke off has failed now, however early its head came."""
    cluster = route.cluster
    seconds = attempt.answered - attempt.served_from
    if attempt.result is PENDING or outcome is FAILURE:
        now = monotonic()
    if attempt.result is PENDING:
        seconds = now - attempt.served_from if attempt.call.all_here() else 0.0
    cluster.observe(endpoint, outcome, attempt.started, seconds, now)
    attempt.excused = outcome is FAILURE and cluster.has_better_than(endpoint)


async def _dial(attempt: Attempt, route: Route, endpoint: Endpoint) -> Upstream | Failure:
    left = attempt.due - monotonic()
    if left <= 0:
        return Failure(Kind.DEADLINE, "the call's timeout passed before the target could be reached")
    proxy = attempt.call.app.shared
    # A task of its own, because asyncio's time limits need one; connecting is not the common case.
    raw = attempt.call.method == b"CONNECT"
    dialling = proxy.loop.create_task(dial(endpoint, proxy.timers, proxy.names, min(route.connect_timeout, left), raw))
    try:
        connection = await dialling
    except CancelledError:
        dialling.add_done_callback(_close_unwanted)
        raise
    attempt.sent = monotonic()
    return connection


def _send(attempt: Attempt, route: Route, endpoint: Endpoint, connection: Upstream) -> None:
    """Send the request; the connection resumes the call when there is an answer, or a reason why not."""
    call = attempt.call
    attempt.connection = connection
    body = call.body
    if call.all_here():
        connection.begin(attempt, attempt.due)
    else:  # the target cannot answer what it has not got: see `upload_ended`
        attempt.due = call.deadline
        connection.begin(attempt, min(attempt.due, attempt.sent + route.body_idle / 4))
    if connection.settled:
        return  # it has died since it was chosen
    if connection.raw:
        connection.connected()
        return
    head = head_for(call, route, endpoint, [stamp.stamp(attempt) for stamp in route.stamps])
    if body is None:
        connection.write(head)
    elif (whole := body.whole()) is not None:
        connection.write(head + whole)
    else:
        connection.write(head)
        body.attach(connection)


def head_for(call: Call, route: RouteFacts, endpoint: Endpoint, lines: list[bytes]) -> bytes:
    """The head that this endpoint is sent, with these `lines` of the policies."""
    host_line = endpoint.host_line
    if route.passes_host and (host := called_host(call)):  # with HTTP/1.0 the caller may have named none
        host_line = b" HTTP/1.1\r\nhost: %b\r\n" % host
    lines.append(route.via_1_1 if call.minor else route.via_1_0)
    expect = call.expect_continue and not call.continued
    return request_head(call, _path_at(call, endpoint), host_line, route.owned, lines, expect)


def _path_at(call: Call, endpoint: Endpoint) -> bytes:
    """The path of the call as this endpoint has it, behind the path of its URL. A request for no more than the name of
    a service, as in `/echo?n=1`, asks for the path of its URL; with a slash behind the name it asks for one behind that
    path, which is another resource."""
    base, path = endpoint.base_path, call.path
    if not base or path == b"*":
        return path
    if call.prefix and path[:2] in (b"/", b"/?") and not call.target.partition(b"?")[0].endswith(b"/"):
        return base + path[1:]
    return base + path


def _was_stale(attempt: Attempt, connection: Upstream, result: Response | Failure) -> bool:
    """Whether the target had given this kept connection up before the request reached it, be it with a 408 as a
    last word (RFC 9110 §15.5.9), and the request is still here as a whole."""
    if isinstance(result, Failure):
        given_up = result.kind is Kind.CLOSED_UNSENT
    else:
        given_up = result.status == 408 and connection.untouched()
    return given_up and attempt.call.may_repeat()


def _close_unwanted(dialling: Task[Upstream | Failure]) -> None:
    """A connection has come about although its call has been given up."""
    if not dialling.cancelled() and not isinstance(connection := dialling.result(), Failure):
        connection.close()
