"""What is counted and told of a call, and how what it was lent is returned."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from outrider.dataplane.runtime.counters import bucket_of
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Response
from outrider.model.outcome import SUCCESS, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call


def release(call: Call, outcome: Outcome) -> None:
    """Tell the policies that let the call in how it ended, the latest first."""
    permits = call.permits
    while permits:
        permits.pop().observe(call, outcome)


def note_cancelled(call: Call) -> None:
    """The app hung up, or its connection was cut because we have to stop: there is no answer, and no blame."""
    if call.app.shared.stopped:
        call.failure = Failure(Kind.STOPPED, "Outrider was stopped before the answer was complete")
        call.label = Kind.STOPPED.label
        call.status = Kind.STOPPED.status
        call.note("cut off: Outrider was stopped")
        return
    call.failure = Failure(Kind.CANCELLED, "the app closed its connection before the answer was complete")
    call.label = Kind.CANCELLED.label
    call.status = Kind.CANCELLED.status
    call.note("the app hung up")


def charge_open_attempt(call: Call) -> None:
    """The time of an attempt that was cut short was spent on the target, not by us."""
    now = monotonic()
    if call.committed:
        call.waited = now - call.started - call.paused
    elif call.attempt is not None and call.attempt.unfinished:
        call.waited += now - call.attempt.started
        if call.attempt.admitted:
            call.attempts += 1
            if call.history is not None:
                note_attempt(call, call.attempt, "given up", now)


def note_attempt(call: Call, attempt: Attempt, how: str = "", now: float = 0.0) -> None:
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
    count = stats.requests.get(key)
    if count is None:
        stats.first(*key)
    else:
        stats.requests[key] = count + 1
    duration = stats.duration
    duration.counts[bucket_of(seconds)] += 1
    duration.sum += seconds
    proxy = call.app.shared
    added = call.overhead(seconds)
    overhead = proxy.stats.overhead
    overhead.counts[bucket_of(added)] += 1
    overhead.sum += added
    if outcome is not SUCCESS or call.history is not None or proxy.report_all:
        proxy.report(call, seconds)
    call.attempt = None  # it holds the call, the call holds it
