"""Bytes both ways, between an app and a target that have left HTTP: after 101 (RFC 9110 §7.8), or on CONNECT.

Nothing is parsed, nothing is kept; a side that cannot take more makes the other wait. When one side ends, the other
is told and may still finish. The tunnel is over when both have ended, when either is lost, or when nothing has moved
for `limits.tunnel_idle_timeout`.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from outrider.dataplane.runtime.timers import NEVER, Timed, Timers

if TYPE_CHECKING:
    from outrider.dataplane.ports import Connection


class Tunnel(Timed):
    """Between `app` and `target`. `sent` and `received` count bytes, seen from the app; `reason` is why it ended."""

    __slots__ = (
        "_app",
        "_app_ended",
        "_idle",
        "_moved",
        "_target",
        "_target_ended",
        "_timers",
        "_wake_call",
        "over",
        "reason",
        "received",
        "sent",
        "silent",
    )

    def __init__(
        self, app: Connection, target: Connection, timers: Timers, idle: float, wake_call: Callable[[], None]
    ) -> None:
        """`idle` is in seconds; `wake_call` is called once, when the tunnel is over."""
        self._app = app
        self._target = target
        self._timers = timers
        self._idle = idle
        self._wake_call = wake_call
        self._moved = monotonic()
        self._app_ended = self._target_ended = False
        self.over = self.silent = False
        self.reason = ""
        self.sent = self.received = 0
        self.due = NEVER
        self.wake = NEVER
        timers.arm(self, self._moved + idle)

    def from_app(self, data: bytes) -> None:
        """Bytes from the app."""
        self.sent += len(data)
        self._moved = monotonic()
        self._target.write(data)

    def from_target(self, data: bytes) -> None:
        """Bytes from the target."""
        self.received += len(data)
        self._moved = monotonic()
        self._app.write(data)

    def full(self, side: Connection, full: bool) -> None:
        """One side cannot take more, or can again: the other waits meanwhile."""
        source = self._target if side is self._app else self._app
        if full:
            source.pause_reading()
        else:
            source.resume_reading()

    def ended(self, side: Connection) -> None:
        """One side will send nothing more; it may still be listening."""
        if side is self._app:
            self._app_ended = True
            self._target.end_writing()
        else:
            self._target_ended = True
            self._app.end_writing()
        if self._app_ended and self._target_ended:
            self.finish("both sides ended")

    def lost(self, side: Connection) -> None:
        """One side is gone."""
        self.finish("the app left" if side is self._app else "the target left")

    def expired(self, now: float) -> None:
        """Look whether anything has moved lately."""
        if now - self._moved >= self._idle:
            self.silent = True
            self.finish("nothing moved for limits.tunnel_idle_timeout")
        else:
            self._timers.arm(self, self._moved + self._idle)

    def finish(self, reason: str) -> None:
        """Close both sides, and let the call end."""
        if self.over:
            return
        self.over = True
        self.reason = reason
        self._timers.forget(self)
        self._target.leave()
        self._app.leave()
        self._wake_call()
