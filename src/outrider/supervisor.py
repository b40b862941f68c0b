"""`workers: N`: several processes share the listening sockets, and one more answers for all of them.

    supervisor (this process)      holds the sockets, restarts what dies, passes orders on; does nothing else
    ├── worker 0 … N-1             each a whole sidecar (`outrider.app`) on the shared sockets
    └── front                      the telemetry and admin ports, which ask the workers (`controlplane/front.py`)

The sockets belong to the supervisor: while a worker is away, the others accept what comes, and if all are away it
waits in the kernel's queue. Each worker counts for itself; rates and concurrency limits are divided among them.

A signal is for the supervisor, even where it was sent to the whole group, as terminals and service managers do. Workers
take their orders from it over a line (`controlplane/intercom.py`).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, sleep
from types import FrameType

import uvloop

from outrider.app import allow_descriptors, most_connections, run_worker
from outrider.config.resolve import Resolved
from outrider.controlplane.intercom import (
    ADMIN,
    ALIVE,
    DRAIN,
    DROPPED,
    HOLD,
    QUIT,
    READY,
    RELOAD,
    STANDING,
    STOP,
    TELEMETRY,
    Inherited,
    Line,
    Standing,
    Visits,
)
from outrider.controlplane.telemetry.logs import DirectLog, Logs, log_directly, say_directly
from outrider.errors import EXIT_FAILED, EXIT_OK, StartError
from outrider.ports import bind_all

log = logging.getLogger("outrider")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Seconds that a process must have lived for its next end to be treated as the first.
_STABLE = 10.0
# Seconds without a sign of life after which a process is taken for hung, and killed.
_HUNG = 30.0
# Seconds between two looks of our own beyond which it was we who slept.
_ASLEEP = 5.0
# Seconds that a process may take beyond the drain limit, and after an order to stop at once.
_GRACE, _AT_ONCE = 5.0, 3.0
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FRONT = "front"
# The exit code of a process that could not start for reasons that trying again does not mend.
_CANNOT_START = 3


@dataclass(slots=True, eq=False)
class _Child:
    """One process to keep alive. `again_at` is when to start it again, while it is away; `kill_at` when to end it by
    force, unless it has ended by itself."""

    name: str
    run: Callable[[Line], int]
    pid: int = 0
    line: Line | None = None
    started: float = 0.0
    heard: float = 0.0
    pause: float = field(default=_FIRST_PAUSE)
    again_at: float = 0.0
    kill_at: float = float("inf")


class Supervisor:
    """Starts the processes and looks after them until it is told to stop."""

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self._children: list[_Child] = []
        self._standing = Standing()
        self._signals = 0  # to stop, so far
        self._stopping = ""  # the order that has been given
        self._failed = False
        self._ever_ready = False
        self._looked = monotonic()
        self._log: DirectLog | None = None
        self._counted = (0, 0)  # the front that has been told how many lines were dropped, and how many
        self._news, self._bell = socket.socketpair()  # a byte for every signal

    def run(self) -> int:
        """Run until stopped; returns the exit code. Raises StartError if a port is not to be had."""
        config = self._resolved.config
        self._log = log_directly(config.observability.log.level)
        self._hear_signals()
        allow_descriptors(most_connections(config))
        sockets = bind_all(self._resolved)
        visits = [Visits() for _ in range(config.workers)]
        for number in range(config.workers):
            self._children.append(_Child(f"worker {number}", self._worker(number, sockets, visits[number])))
        self._children.append(_Child(_FRONT, self._front(sockets, visits)))
        gc.collect()
        gc.freeze()  # so that the children share these pages for as long as they live
        while any(child.pid for child in self._children) or not self._stopping:
            try:
                self._look_after()
            except Exception:  # whatever it was: without us there is nobody who looks after them
                log.exception("a bug in Outrider met the supervisor; it goes on")
                sleep(_FIRST_PAUSE)
        return EXIT_FAILED if self._failed else EXIT_OK

    def _hear_signals(self) -> None:
        self._news.setblocking(False)
        self._bell.setblocking(False)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _noted)

    def _worker(self, number: int, sockets: dict[str, socket.socket], visits: Visits) -> Callable[[Line], int]:
        def run(line: Line) -> int:
            return run_worker(self._resolved, Inherited(number, sockets, line, visits, self._standing))

        return run

    def _front(self, sockets: dict[str, socket.socket], visits: list[Visits]) -> Callable[[Line], int]:
        def run(line: Line) -> int:
            from outrider.controlplane.front import serve_front

            options = self._resolved.config.observability.log
            logs = Logs(options.level, repeats=options.most_alike)
            try:
                front = serve_front(self._resolved.config, sockets[TELEMETRY], sockets[ADMIN], visits, line, logs)
                uvloop.run(front)
            finally:
                logs.close()
            return EXIT_OK

        return run

    # ---------------------------------------------------------------- processes

    def _start(self, child: _Child) -> None:
        ours, theirs = socket.socketpair()
        child.started = child.heard = monotonic()
        # A signal between the fork and the child's own handlers would ring our bell.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            ours.close()
            theirs.close()
            self._again_later(child, f"cannot be started: {error.strerror}")
            return
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            theirs.close()
            child.pid, child.line, child.kill_at = pid, Line(ours), float("inf")
            return
        code = EXIT_FAILED
        try:
            ours.close()
            self._become_a_child()
            code = child.run(Line(theirs))
        except StartError as error:
            say_directly(f"outrider: {error}\n")
            code = _CANNOT_START
        except BaseException:
            say_directly(traceback.format_exc())
        finally:
            os._exit(code)  # nothing of the supervisor's is to be run or flushed here

    def _become_a_child(self) -> None:
        """Let go of what is the supervisor's alone. Signals are not for this process: it takes them, so that they do
        not end it, and does nothing. (Ignoring them would be passed on to the commands that it starts.)"""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else _noted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._news.close()
        self._bell.close()
        for other in self._children:
            if other.line is not None:  # the end of a line must be seen when the supervisor is gone
                other.line.close()

    def _reap(self) -> None:
        """Note which children have ended, and when they may start again. We may be process 1, so what others have left
        behind is taken away, too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = next((one for one in self._children if one.pid == pid), None)
            if child is not None:
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, code: int) -> None:
        child.pid = 0
        if child.line is not None:
            self._hear(child)  # its last words
        if child.line is not None:
            child.line.close()
            child.line = None
        if self._stopping:
            self._failed = self._failed or (code != EXIT_OK and child.name != _FRONT)
        elif code == _CANNOT_START and not self._ever_ready:
            self._failed = True
            self._order(STOP)  # it has said why; the next one would say the same
        else:
            self._again_later(child, f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}")

    def _again_later(self, child: _Child, why: str) -> None:
        now = monotonic()
        child.pause = _FIRST_PAUSE if now - child.started > _STABLE else min(child.pause * 2, _LONGEST_PAUSE)
        child.again_at = now + child.pause
        fields: dict[str, object] = {"process": child.name, "why": why, "again_after_ms": round(child.pause * 1000)}
        log.error("a process ended and is started again", extra={"fields": fields})

    # ---------------------------------------------------------------- the loop

    def _look_after(self) -> None:
        """Wait for something to happen, or for the time of something to come, and see to it."""
        if not self._stopping:
            for child in self._children:
                if not child.pid and child.again_at <= monotonic():
                    self._start(child)
        poller = select.poll()
        poller.register(self._news, select.POLLIN)
        lines = {child.line.fileno(): child for child in self._children if child.line is not None}
        for number in lines:
            poller.register(number, select.POLLIN)
        happened = [number for number, _ in poller.poll(self._patience() * 1000)]
        now = monotonic()
        if now - self._looked > _ASLEEP:  # stopped and continued, with everybody else
            for child in self._children:
                child.heard = now
        self._looked = now
        for number in happened:
            if number in lines:
                self._hear(lines[number])
        if self._news.fileno() in happened:
            for received in self._news.recv(4096):
                self._signalled(signal.Signals(received))
        self._reap()
        self._end_by_force(monotonic())
        self._say_what_was_dropped()
        if self._stopping:
            self._stop_the_front()

    def _patience(self) -> float:
        """Seconds until the next thing is due."""
        now = monotonic()
        due = [child.again_at if not child.pid else child.kill_at for child in self._children]
        return max(0.0, min(1.0, min(due) - now)) if not self._stopping else 0.2

    def _hear(self, child: _Child) -> None:
        """What a child has to say."""
        assert child.line is not None
        lines = child.line.heard()
        if lines is None:
            child.line.close()
            child.line = None
            return
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == ALIVE:
                child.heard = monotonic()
            elif word == READY:
                self._ever_ready = True
            elif word == STANDING:
                held = self._standing.note(rest)
                if held is not None:  # for a worker that has just been started without knowing it
                    self._tell_workers(f"{HOLD} {json.dumps(held)}")
            elif word in (DRAIN, QUIT):
                self._order(word)

    def _signalled(self, number: signal.Signals) -> None:
        """The first signal to stop lets work end, the second does not. An order is no signal: a sidecar that has been
        told to drain, and then gets SIGTERM, goes on draining."""
        if number == signal.SIGHUP:
            self._tell_workers(RELOAD)
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._signals += 1
            self._order(STOP if self._signals > 1 else QUIT if number == signal.SIGINT else DRAIN)

    def _order(self, order: str) -> None:
        """Tell the workers to end, and see to it that they do."""
        first = not self._stopping
        self._stopping = order
        self._tell_workers(order)
        now = monotonic()
        limit = _AT_ONCE if order == STOP else self._resolved.config.shutdown.drain + _GRACE
        for child in self._children:
            if child.name != _FRONT and (first or order == STOP):
                child.kill_at = now + limit

    def _tell_workers(self, words: str) -> None:
        for child in self._children:
            if child.line is not None and child.name != _FRONT:
                child.line.say(words)

    def _say_what_was_dropped(self) -> None:
        """Keep the front informed of what it shows as a metric, also one that has just been started."""
        front, dropped = self._children[-1], self._log.dropped if self._log is not None else 0
        if dropped and front.line is not None and self._counted != (front.pid, dropped):
            front.line.say(f"{DROPPED} {dropped}")
            self._counted = (front.pid, dropped)

    def _end_by_force(self, now: float) -> None:
        """What hangs, and what does not end although it was told to."""
        for child in self._children:
            hung = now - child.heard > _HUNG
            if child.pid and (hung or now > child.kill_at):
                fields: dict[str, object] = {"process": child.name}
                why = "gives no sign of life" if hung else "does not end"
                log.error("a process %s and is killed", why, extra={"fields": fields})
                os.kill(child.pid, signal.SIGKILL)
                child.heard, child.kill_at = now, now + _HUNG

    def _stop_the_front(self) -> None:
        """The front is the last to go: until then somebody may ask how the workers are."""
        front = self._children[-1]
        if front.line is not None and not any(child.pid for child in self._children[:-1]):
            front.line.say(STOP)
            front.kill_at = min(front.kill_at, monotonic() + _AT_ONCE)


def _noted(number: int, frame: FrameType | None) -> None:
    """A signal has come: the bell has rung for it, where it is for us."""
