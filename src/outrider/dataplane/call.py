"""One request of the app, and what becomes of it. A record: what acts on it is in `engine`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider.dataplane.runtime.timers import NEVER
from outrider.model.failure import Failure
from outrider.model.messages import Request
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.body import RequestBody
    from outrider.dataplane.inbound_context import Context
    from outrider.dataplane.policy import Permit
    from outrider.dataplane.ports import AppConnection, Target
    from outrider.dataplane.recorder import Recorder
    from outrider.dataplane.route import RouteFacts


class Call(Request):
    """One downstream request and its one answer. Times are monotonic seconds.

    `path` is what the target sees, `prefix` what was taken off in front of it. `permits` are what policies have
    lent it, the latest last. `aborted` says why the call must stop although the app is
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
        "app",
        "attempt",
        "attempts",
        "body",
        "caller",
        "committed",
        "contexts",
        "continued",
        "correlation_id",
        "deadline",
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

    route: RouteFacts

    def __init__(self, app: AppConnection, target: bytes, started: float) -> None:
        super().__init__(target)
        self.app = app
        self.started = started
        self.deadline = started
        self.ends = NEVER
        self.path = self.prefix = self.correlation_id = self.traceparent = self._request_id = b""
        self.body: RequestBody | None = None
        self.attempt: Attempt | None = None
        self.attempts = 0
        self.tried: tuple[Target, ...] = ()
        self.permits: list[Permit] = []
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
