"""One try at one endpoint: its number, times, connection and result. A record: what makes it is in `engine`."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from outrider.dataplane.runtime.timers import NEVER
from outrider.model.failure import Failure, Kind, Phase
from outrider.model.messages import Response

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.ports import Target, TargetConnection
    from outrider.dataplane.route import RouteFacts


class Attempt:
    """The `number`-th try of a call, counted from 1. Times are monotonic seconds."""

    __slots__ = (
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
        "route",
        "sealed",
        "sent",
        "served_from",
        "started",
    )

    def __init__(self, call: Call, route: RouteFacts, number: int, started: float, reason: str = "") -> None:
        """`reason` is the metric label of why this is not the first attempt of the call, empty if it is."""
        self.call = call
        self.route = route
        self.number = number
        self.reason = reason
        self.started = self.sent = self.served_from = self.answered = started
        limit = route.attempt_timeout
        if route.last_takes_all and not route.rules.may_follow(call, number):
            limit = NEVER
        self.limit = limit  # seconds; NEVER for all that the call has left
        due = started + limit
        self.due = due if due < call.deadline else call.deadline
        self.endpoint: Target | None = None
        self.connection: TargetConnection | None = None
        self.generation = -1  # the breaker's at admission; -1 when it is not to be told (any more)
        self.probe = False  # it is to find out about an endpoint in doubt
        self.excused = False  # it failed where others stand ready: the service as a whole has not
        self.resume: Callable[[], None] = call.app.resume_call  # wakes whoever runs this
        self.admitted = False  # by the breaker; if not, Outrider itself refused and no target was involved
        self.result: Response | Failure = PENDING
        self.sealed = False

    @property
    def latency(self) -> float:
        """Seconds that the target took: until the head of the answer came, or the attempt failed. How long the app took
        to send the request is not the target's time."""
        return self.answered - self.served_from

    @property
    def unfinished(self) -> bool:
        """Whether it has neither an answer nor a failure yet."""
        return self.result is PENDING

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
        route = self.route
        if self.limit == NEVER or not route.last_takes_all or route.rules.may_follow(self.call, self.number):
            return False
        self.limit = NEVER
        self.due = self.call.deadline
        return True

    def _serve_from(self, now: float) -> None:
        self.served_from = now
        self.due = min(now + self.limit, self.call.deadline)


def unsent(result: Response | Failure) -> bool:
    """Whether provably nothing of the request reached the target."""
    return isinstance(result, Failure) and (result.kind.phase is Phase.CONNECT or result.kind is Kind.NO_ENDPOINT)


# Where an attempt has no result yet.
PENDING: Final = Failure(Kind.CANCELLED, "the attempt was given up before it ended")
