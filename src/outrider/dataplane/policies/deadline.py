"""The call's time: bounded by `timeout` and `total_timeout`, shortened by the app, told to the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from outrider.dataplane.policy import Policy
from outrider.dataplane.runtime.timers import NEVER
from outrider.model.failure import Failure, Kind
from outrider.model.units import parse_duration

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

TIMEOUT_HEADER: Final = b"x-outrider-timeout"
_LONGEST: Final = 32  # characters of a duration


class Deadline(Policy):
    """Sets by when the head of the answer must be here (`timeout`), and by when all of it (`total_timeout`); both in
    seconds, NEVER for no limit. Tells the target what is left of that."""

    __slots__ = ("_heeds_app", "_lines", "timeout", "total_timeout")

    def __init__(self, timeout: float, total_timeout: float = NEVER, *, heeds_app: bool = True) -> None:
        """`heeds_app`: whether the app may shorten it with `x-outrider-timeout`."""
        self.owned = frozenset((b"x-request-timeout-ms", b"x-request-total-timeout-ms"))
        self._heeds_app = heeds_app
        self.timeout = min(timeout, total_timeout)
        self.total_timeout = total_timeout
        self._lines: dict[float, bytes] = {}  # by seconds: as many as the routes of this policy have times

    def admit(self, call: Call) -> Failure | None:
        """`x-outrider-timeout` only ever shortens; one that cannot be read is the app's mistake."""
        if TIMEOUT_HEADER in call.noted and self._heeds_app:
            return self._shortened(call, call.noted[TIMEOUT_HEADER])
        call.deadline = call.started + self.timeout
        call.ends = call.started + self.total_timeout
        return None

    def _shortened(self, call: Call, asked: bytes) -> Failure | None:
        """What the app asks for bounds everything, the body of the answer included."""
        if len(asked) > _LONGEST:
            return Failure(Kind.BAD_REQUEST, "x-outrider-timeout is not a duration like 800ms")
        try:
            timeout = parse_duration(asked.decode("latin-1"))
        except ValueError as error:
            return Failure(Kind.BAD_REQUEST, f"x-outrider-timeout: {error}")
        if timeout <= 0:
            return Failure(Kind.DEADLINE, "x-outrider-timeout leaves no time for the call")
        call.deadline = call.started + min(self.timeout, timeout)
        call.ends = call.started + min(self.total_timeout, timeout)
        return None

    def stamp(self, attempt: Attempt) -> bytes:
        """The time in milliseconds until the head of the answer must be there, after which no one waits for it; and the
        time for all of it where that is another one, `none` for no limit. A receiver that does not know the second
        field takes the first one for both."""
        call = attempt.call
        if attempt.sent == attempt.started and call.ends == NEVER:
            # Most attempts: on a kept connection, and with a whole share of the time or all of it.
            if attempt.due != call.deadline:
                return self._line(attempt.limit)
            if call.deadline == attempt.started + self.timeout:
                return self._line(self.timeout)
        left = attempt.due - attempt.sent
        whole = call.ends - attempt.sent
        if whole == NEVER:
            return _line(left)
        if whole <= left:
            return b"x-request-timeout-ms: %d\r\n" % _milliseconds(whole)
        return b"x-request-timeout-ms: %d\r\nx-request-total-timeout-ms: %d\r\n" % (
            _milliseconds(left),
            _milliseconds(whole),
        )

    def _line(self, left: float) -> bytes:
        """The lines for so many seconds, which are the same again and again."""
        line = self._lines.get(left)
        if line is None:
            line = self._lines[left] = _line(left)
        return line


def _milliseconds(left: float) -> int:
    return max(1, round(left * 1000))


def _line(left: float) -> bytes:
    """What bounds the head alone."""
    if left == NEVER:
        return b""
    return b"x-request-timeout-ms: %d\r\nx-request-total-timeout-ms: none\r\n" % _milliseconds(left)
