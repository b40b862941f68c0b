"""The call's time: bounded by `timeout`, shortened by the app, told to the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from outrider.dataplane.timers import NEVER
from outrider.model.failure import Failure, Kind
from outrider.model.outcome import Outcome
from outrider.model.units import parse_duration

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

TIMEOUT_HEADER: Final = b"x-outrider-timeout"


class Deadline:
    """Turns `timeout` into the call's deadline, and tells the target what is left of that or of `attempt_timeout`.
    Both in seconds; NEVER for none."""

    __slots__ = ("_full", "attempt_timeout", "timeout")

    owned = frozenset((b"x-request-timeout-ms",))

    def __init__(self, timeout: float, attempt_timeout: float) -> None:
        self.timeout = timeout
        self.attempt_timeout = attempt_timeout
        self._full = _line(attempt_timeout)

    def admit(self, call: Call) -> Failure | None:
        """`x-outrider-timeout` only ever shortens; one that cannot be read is the app's mistake."""
        if TIMEOUT_HEADER in call.noted:
            return self._shortened(call, call.noted[TIMEOUT_HEADER])
        call.deadline = call.started + self.timeout
        return None

    def _shortened(self, call: Call, asked: bytes) -> Failure | None:
        try:
            timeout = parse_duration(asked.decode("latin-1"))
        except ValueError as error:
            return Failure(Kind.BAD_REQUEST, f"x-outrider-timeout: {error}")
        if timeout <= 0:
            return Failure(Kind.DEADLINE, "x-outrider-timeout leaves no time for the call")
        call.deadline = call.started + min(self.timeout, timeout)
        return None

    def observe(self, call: Call, outcome: Outcome) -> None:
        """It holds no permit."""

    def stamp(self, attempt: Attempt) -> bytes:
        """The time left for this attempt in milliseconds: after that nobody waits for its answer."""
        if attempt.sent == attempt.started and attempt.due != attempt.call.deadline:
            return self._full
        return _line(attempt.due - attempt.sent)


def _line(left: float) -> bytes:
    return b"" if left == NEVER else b"x-request-timeout-ms: %d\r\n" % max(1, round(left * 1000))
