"""One try at one endpoint: breaker, balance, connect, stamp, send, wait for the head.

Everything that belongs to a try (its number, endpoint, connection, times) lives and dies here. Its outcome is
sealed exactly once, when nothing more can happen to it.
"""

from __future__ import annotations

from asyncio import CancelledError, Task
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from outrider.dataplane.http1.heads import request_head
from outrider.dataplane.policies.deciders.retry import parse_retry_after, unsent
from outrider.dataplane.runtime.parked import suspended
from outrider.dataplane.runtime.timers import NEVER
from outrider.dataplane.upstream.dial import dial
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Response
from outrider.model.outcome import FAILURE, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.upstream.cluster import Endpoint
    from outrider.dataplane.upstream.connection import Upstream


class Attempt:
    """The `number`-th try of a call, counted from 1. Times are monotonic seconds."""

    __slots__ = (
        "_sealed",
        "admitted",
        "answered",
        "call",
        "connection",
        "due",
        "endpoint",
        "excused",
        "generation",
        "limit",
        "number",
        "probe",
        "reason",
        "result",
        "resume",
        "sent",
        "served_from",
        "started",
    )

    def __init__(self, call: Call, number: int, started: float, reason: str = "") -> None:
        """`reason` is the metric label of why this is not the first attempt of the call, empty if it is."""
        self.call = call
        self.number = number
        self.reason = reason
        self.started = self.sent = self.served_from = self.answered = started
        route = call.route
        limit = route.attempt_timeout
        if route.last_takes_all and not route.retry.may_follow(call, number):
            limit = NEVER
        self.limit = limit  # seconds; NEVER for all that the call has left
        due = started + limit
        self.due = due if due < call.deadline else call.deadline
        self.endpoint: Endpoint | None = None
        self.connection: Upstream | None = None
        self.generation = -1  # the breaker's at admission; -1 when it is not to be told (any more)
        self.probe = False  # it is to find out about an endpoint in doubt
        self.excused = False  # it failed where others stand ready: the service as a whole has not
        self.resume: Callable[[], None] = call.downstream.resume_call  # wakes whoever runs this
        self.admitted = False  # by the breaker; if not, Outrider itself refused and no target was involved
        self.result: Response | Failure = _NOT_YET
        self._sealed = False

    async def run(self) -> Response | Failure:
        """Make the attempt. The result also stands in `result`. Nothing is sent twice here: a kept connection that
        turns out to be closed is replaced by a fresh one only if the target provably has not got the request."""
        call = self.call
        route = call.route
        breaker = route.breaker
        if breaker is not None and (refusal := breaker.admit(self)) is not None:
            self.result = refusal
            return refusal
        self.admitted = True
        if self.reason:
            route.cluster.stats.retries[self.reason] += 1
        endpoint = self.endpoint = route.cluster.pick(call, self.started)
        if endpoint is None:
            self.result = Failure(Kind.NO_ENDPOINT, f"no endpoint of {route.cluster.shown} is available")
            return self.result
        if route.cluster.probe_given:
            route.cluster.probe_given = False
            self.probe = True
        endpoint.in_flight += 1
        if call.method == b"CONNECT" or (self.reason in _ON_A_FRESH_CONNECTION and endpoint in call.tried):
            connection = None
        else:
            connection = endpoint.pool.lease()
        call.tried += (endpoint,)

        while True:
            if connection is None:
                dialled = await self._dial(endpoint)
                if isinstance(dialled, Failure):
                    self.result = dialled
                    break
                connection = dialled
            self._send(endpoint, connection)
            if not connection.settled:
                await suspended()
            self.result = connection.failure or connection.response
            if not connection.reused or not self._was_stale(connection, self.result):
                break
            endpoint.stats.connects["stale"] += 1
            connection.end(self.started)
            connection = self.connection = None  # and only a reused one can be stale
            self.result = _NOT_YET
        self.answered = answered = monotonic()
        if answered - self.served_from > _WORTH_A_LOOK:
            # What we stood still was not the target's time.
            self.served_from += call.downstream.proxy.timers.stood_still(self.served_from, answered)
        return self.result

    @property
    def latency(self) -> float:
        """Seconds that the target took: until the head of the answer came, or the attempt failed. How long the app took
        to send the request is not the target's time."""
        return self.answered - self.served_from

    @property
    def unfinished(self) -> bool:
        """Whether it has neither an answer nor a failure yet."""
        return self.result is _NOT_YET

    @property
    def unsent(self) -> bool:
        """Whether provably nothing of the request reached the target."""
        return unsent(self.result)

    @property
    def on_kept_connection(self) -> bool:
        """Whether it was sent on a connection that earlier exchanges had used. Asked before the attempt is sealed."""
        return self.connection is not None and self.connection.reused

    @property
    def refused(self) -> bool:
        """Whether nobody listens there."""
        return isinstance(self.result, Failure) and self.result.kind is Kind.CONNECT_REFUSED

    def seal(self, outcome: Outcome, now: float | None = None) -> None:
        """Fix the outcome: tell the breaker, the balance and the metrics, once. The connection goes back, at
        `now` if that is later than the head of the answer."""
        if self._sealed or not self.admitted:
            return
        self._sealed = True
        route = self.call.route
        if self.endpoint is not None:
            self.endpoint.in_flight -= 1
            if self.probe:
                self.endpoint.probing = False
            if route.cluster.several or self.endpoint.doubtful:
                self._tell_the_cluster(self.endpoint, outcome, now or self.answered)
        if route.breaker is not None:
            if (
                outcome is FAILURE
                and not self.excused
                and isinstance(self.result, Response)
                and self.result.retry_after is not None
            ):
                route.breaker.asked_to_wait(parse_retry_after(self.result.retry_after) or 0.0)
            route.breaker.observe(self, outcome)
        if self.connection is not None:
            self.connection.end(now or self.answered)
        result = self.result
        label = result.status if isinstance(result, Response) else result.kind.slug
        route.cluster.stats.attempts[label] += 1

    def _tell_the_cluster(self, endpoint: Endpoint, outcome: Outcome, now: float) -> None:
        """What the balance learns from this attempt. One that was given up has taken at least as long as it took; one
        whose answer broke off has failed now, however early its head came."""
        cluster = self.call.route.cluster
        seconds = self.answered - self.served_from
        if self.result is _NOT_YET or outcome is FAILURE:
            now = monotonic()
        if self.result is _NOT_YET:
            seconds = now - self.served_from if self.call.all_here() else 0.0
        cluster.observe(endpoint, outcome, self.started, seconds, now)
        self.excused = outcome is FAILURE and cluster.has_better_than(endpoint)

    def is_probe(self) -> bool:
        """Whether the breaker lent this attempt one of its few permits. A probe is judged by the head of its
        answer, because the body may be a stream that lasts for hours."""
        breaker = self.call.route.breaker
        return breaker is not None and breaker.probing(self)

    def judge_head(self, outcome: Outcome) -> None:
        """Give the breaker its verdict before the body has come; the seal later says nothing more to it."""
        breaker = self.call.route.breaker
        if breaker is not None:
            breaker.observe(self, outcome)
            self.generation = -1

    async def _dial(self, endpoint: Endpoint) -> Upstream | Failure:
        route = self.call.route
        left = self.due - monotonic()
        if left <= 0:
            return Failure(Kind.DEADLINE, "the call's timeout passed before the target could be reached")
        proxy = self.call.downstream.proxy
        # A task of its own, because asyncio's time limits need one; connecting is not the common case.
        raw = self.call.method == b"CONNECT"
        dialling = proxy.loop.create_task(
            dial(endpoint, proxy.timers, proxy.names, min(route.connect_timeout, left), raw)
        )
        try:
            connection = await dialling
        except CancelledError:
            dialling.add_done_callback(_hang_up)
            raise
        self.sent = monotonic()
        return connection

    def _send(self, endpoint: Endpoint, connection: Upstream) -> None:
        """Send the request; the connection resumes the call when there is an answer, or a reason why not."""
        call = self.call
        route = call.route
        self.connection = connection
        body = call.body
        if call.all_here():
            connection.begin(self, self.due)
        else:  # the target cannot answer what it has not got: see `upload_ended`
            self.due = call.deadline
            connection.begin(self, min(self.due, self.sent + route.body_idle / 4))
        if connection.settled:
            return  # it has died since it was chosen
        if connection.raw:
            connection.connected()
            return
        lines = [stamp.stamp(self) for stamp in route.stamps]
        head = request_head(call, endpoint, route.owned, lines, call.expect_continue and not call.continued)
        if body is None:
            connection.write(head)
        elif (whole := body.whole()) is not None:
            connection.write(head + whole)
        else:
            connection.write(head)
            body.attach(connection)

    def upload_ended(self) -> None:
        """The app has sent the last byte of its body: from here the target has a full attempt to answer, unless it is
        slow to take what has been sent."""
        connection = self.connection
        if connection is None or connection.upload_finished():
            return
        if connection.failure is None and self.unfinished:
            self._serve_from(monotonic())
            connection.watch_upload(self.served_from)

    def taken(self, now: float) -> None:
        """The target was slow to take the request, and has all of it now. The time for that was its own to use, so all
        clocks of the call begin anew: it is not to be given up for an answer that it could not yet begin."""
        call = self.call
        call.deadline = max(call.deadline, min(now + call.deadline - call.started, call.ends))
        self._serve_from(now)

    def has_more_time(self) -> bool:
        """Whether this is the last attempt after all, because its body has outgrown what is kept for another one: then
        it may use all that is left, and `due` says until when."""
        route = self.call.route
        if self.limit == NEVER or not route.last_takes_all or route.retry.may_follow(self.call, self.number):
            return False
        self.limit = NEVER
        self.due = self.call.deadline
        return True

    def _serve_from(self, now: float) -> None:
        self.served_from = now
        self.due = min(now + self.limit, self.call.deadline)

    def _was_stale(self, connection: Upstream, result: Response | Failure) -> bool:
        """Whether the target had given this kept connection up before the request reached it, be it with a 408 as a
        last word (RFC 9110 §15.5.9), and the request is still here as a whole."""
        if isinstance(result, Failure):
            given_up = result.kind is Kind.CLOSED_UNSENT
        else:
            given_up = result.status == 408 and connection.untouched()
        return given_up and self.call.may_repeat()


def _hang_up(dialling: Task[Upstream | Failure]) -> None:
    """A connection that came about although nobody wants it any more."""
    if not dialling.cancelled() and not isinstance(connection := dialling.result(), Failure):
        connection.close()


# Reasons for a retry after which no other kept connection to the same endpoint is trusted.
_ON_A_FRESH_CONNECTION: Final = frozenset(("reset", "408"))
# Seconds that an attempt must have taken before it matters whether we stood still meanwhile.
_WORTH_A_LOOK: Final = 0.1
_NOT_YET: Final = Failure(Kind.CANCELLED, "the attempt was given up before it ended")
