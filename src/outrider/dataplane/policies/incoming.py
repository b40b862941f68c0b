"""What an inbound call brings that bounds it: its caller's deadline, and the app's own health."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from outrider.dataplane.policy import Policy
from outrider.dataplane.runtime.timers import NEVER
from outrider.model.failure import Failure, Kind

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

_MILLISECONDS: Final = (b"x-request-timeout-ms", b"x-envoy-expected-rq-timeout-ms")
_GRPC: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_GRPC_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_DIGITS: Final = re.compile(rb"-?\d{1,12}")
_TOTAL: Final = b"x-request-total-timeout-ms"
READ: Final = frozenset((*_MILLISECONDS, _TOTAL, b"grpc-timeout"))


class IncomingDeadline(Policy):
    """Keeps to the time that the caller gives: `x-request-timeout-ms`, `x-envoy-expected-rq-timeout-ms`, or
    `grpc-timeout`; the shortest of them. It bounds everything, the body of the answer included, unless the caller says
    that its time is only for the head. What has already expired is refused before the app gets it."""

    __slots__ = ()

    def admit(self, call: Call) -> Failure | None:
        if READ.isdisjoint(call.noted):
            return None
        left = time_left(call.noted)
        if left is None:
            return None
        if left <= 0:
            return Failure(Kind.DEADLINE, "the caller's time for this call has already passed")
        call.deadline = min(call.deadline, call.started + left)
        call.ends = min(call.ends, call.started + whole_time_left(call.noted, left))
        return None


class AppHealth(Policy):
    """Refuses calls while the app does not answer its health check: at once, and with that reason."""

    __slots__ = ("_healthy",)

    def __init__(self, healthy: Callable[[], bool]) -> None:
        """`healthy` says whether the app answers its health check."""
        super().__init__()
        self._healthy = healthy

    def admit(self, call: Call) -> Failure | None:
        if self._healthy():
            return None
        return Failure(Kind.NO_ENDPOINT, "the app behind this guard does not answer its health check", retry_after=1.0)


def whole_time_left(noted: dict[bytes, bytes], left: float) -> float:
    """Seconds that the caller leaves for all of the answer, where it leaves `left` for the head: as another sidecar
    says beside `x-request-timeout-ms` (policies/deadline.py), else no more than for the head."""
    said = noted.get(_TOTAL, b"").strip()
    if said == b"none":
        whole = NEVER
    elif _DIGITS.fullmatch(said):
        whole = int(said) / 1000
    else:
        return left
    others = time_left({name: value for name, value in noted.items() if name != _MILLISECONDS[0]})
    return max(left, whole if others is None else min(whole, others))


def time_left(noted: dict[bytes, bytes]) -> float | None:
    """Seconds that the caller leaves for a call; None where it says nothing that can be read."""
    found = []
    for name in _MILLISECONDS:
        value = noted.get(name, b"")
        if _DIGITS.fullmatch(value):
            found.append(int(value) / 1000)
    match = _GRPC.fullmatch(noted.get(b"grpc-timeout", b""))
    if match is not None:
        found.append(int(match[1]) * _GRPC_UNITS[match[2]])
    return min(found) if found else None
