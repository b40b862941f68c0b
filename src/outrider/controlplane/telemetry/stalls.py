"""Notices when the event loop stands still, and says in which function.

Everything a worker does happens in one loop: a function that takes half a second delays every call by half a second.
A heartbeat of the loop measures how late it is itself. Meanwhile a thread looks whether the heartbeat has come, and if
not, what the loop is doing just then; the heartbeat after the stall tells. The thread needs the interpreter's lock to
look: a single long step of C code is seen when it has ended, in the function that called it. Compiled code leaves no
frames, so there the nearest interpreted caller is named, or nothing.
"""

from __future__ import annotations

import logging
import sys
import threading
from asyncio import AbstractEventLoop, TimerHandle
from collections import Counter
from time import monotonic, thread_time
from types import FrameType
from typing import Final

from outrider.dataplane.runtime.counters import Histogram

log = logging.getLogger("outrider")

# Seconds between heartbeats, and between looks of the thread.
_BEAT: Final = 0.05
_LOOK: Final = 0.05
# Seconds of lateness that are counted as a stall, that are told, and after which one is told that does not end.
COUNTED: Final = 0.01
TOLD: Final = 0.1
_ENDLESS: Final = 10.0
# Frames that are shown of a stack, innermost first.
_MOST_FRAMES: Final = 6
# Where the loop itself is running: whatever stands still is not Python code.
_LOOPS: Final = ("asyncio.runners", "asyncio.base_events", "asyncio.events", "selectors", "uvloop")
_NOWHERE: Final = "code that leaves no frames"


class Stalls:
    """Watches one event loop from `start` to `stop`. `seconds` are the stalls so far, by how long they were."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self.seconds = Histogram()
        self._due = 0.0  # when the next heartbeat should come; monotonic seconds
        self._busy = 0.0  # CPU seconds of the loop's thread at the last one
        self._seen: Counter[str] = Counter()  # where the loop was found in the present stall
        self._next: TimerHandle | None = None
        self._loop_thread = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="outrider-stalls", daemon=True)

    def start(self) -> None:
        """Begin to watch. Must be called in the loop."""
        self._loop_thread = threading.get_ident()
        self._due = monotonic()
        self._busy = thread_time()
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if self._next is not None:
            self._next.cancel()

    def _beat(self) -> None:
        now, busy = monotonic(), thread_time()
        late = now - self._due
        if late >= COUNTED:
            self.seconds.observe(late)
            if late >= TOLD:
                self._tell(late, busy - self._busy)
        self._seen.clear()
        self._due, self._busy = now + _BEAT, busy
        self._next = self._loop.call_later(_BEAT, self._beat)

    def _tell(self, late: float, busy: float) -> None:
        where = self._seen.most_common(1)[0][0] if self._seen else _NOWHERE
        function, _, callers = where.partition(" < ")
        fields = {"function": function, "called_by": callers, "seconds": round(late, 3), "cpu_seconds": round(busy, 3)}
        # A process that was stopped, or got no CPU, did nothing wrong; a function that waits for something did.
        doing = "busy" if busy > late / 2 else "waiting, or without a CPU"
        log.warning(
            "the event loop stood still for %d ms in %s (%s)", late * 1000, function, doing, extra={"fields": fields}
        )

    def _watch(self) -> None:
        """The thread: find out what the loop is doing while its heartbeat is late."""
        told = 0.0
        while not self._stopped.wait(_LOOK):
            due = self._due
            late = monotonic() - due
            if late < TOLD:
                continue
            where = _where(sys._current_frames().get(self._loop_thread))
            if self._due == due:  # it is still the same stall
                self._seen[where] += 1
            if late >= _ENDLESS and told != due:
                told = due
                log.error("the event loop has been standing still for %d s in %s", late, where)


def _where(frame: FrameType | None) -> str:
    """The innermost function of a stack and its callers, as far as they are not the loop's own."""
    names: list[str] = []
    while frame is not None and len(names) < _MOST_FRAMES:
        module = str(frame.f_globals.get("__name__", "?"))
        if module.startswith(_LOOPS):
            break
        names.append(f"{module}.{frame.f_code.co_qualname}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(names) or _NOWHERE
