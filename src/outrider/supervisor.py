"""`workers: N`: several processes share the listening sockets, and one more answers for all of them.

    supervisor (this process)      holds the sockets, restarts what dies, passes signals on; does nothing else
    ├── worker 0 … N-1             each a whole sidecar (`outrider.app`) on the shared sockets
    └── front                      the telemetry and admin ports, which ask the workers (`controlplane/front.py`)

The sockets belong to the supervisor: while a worker is away, the others accept what comes, and if all are away it
waits in the kernel's queue. Each worker counts for itself; rates and concurrency limits are divided among them.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import uvloop

from outrider.app import Inherited, allow_descriptors, run_worker
from outrider.config.resolve import Resolved
from outrider.controlplane.telemetry.logs import Logs, log_directly
from outrider.errors import EXIT_FAILED, EXIT_OK, StartError
from outrider.ports import ADMIN, TELEMETRY, bind_all

log = logging.getLogger("outrider")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Seconds that a process must have lived for its next end to be treated as the first.
_STABLE = 10.0
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(slots=True)
class _Child:
    """One process to keep alive. `again_at` is when to start it again, while it is away."""

    name: str
    run: Callable[[], int]
    pid: int = 0
    started: float = 0.0
    pause: float = field(default=_FIRST_PAUSE)
    again_at: float = 0.0


class Supervisor:
    """Starts the processes and looks after them until it is told to stop."""

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self._children: list[_Child] = []
        self._stopping = 0
        self._failed = False

    def run(self) -> int:
        """Run until stopped; returns the exit code. Raises StartError if a port is not to be had."""
        config = self._resolved.config
        log_directly(config.observability.log.level)
        allow_descriptors(config.limits.downstream_connections)
        sockets = bind_all(self._resolved)
        folder = Path(tempfile.mkdtemp(prefix="outrider-"))
        alive, our_life = os.pipe()  # reads as ended, in every child, when this process is gone
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for number in range(config.workers):
                inherited = Inherited(number, sockets, folder / f"{number}", alive)
                self._children.append(_Child(f"worker {number}", self._worker(inherited, our_life)))
            self._children.append(_Child("front", self._front(sockets, folder, alive, our_life)))
            gc.collect()
            gc.freeze()  # so that the children share these pages for as long as they live
            for child in self._children:
                self._start(child)
            return self._look_after()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _worker(self, inherited: Inherited, our_life: int) -> Callable[[], int]:
        def run() -> int:
            os.close(our_life)
            return run_worker(self._resolved, inherited)

        return run

    def _front(self, sockets: dict[str, socket.socket], folder: Path, alive: int, our_life: int) -> Callable[[], int]:
        def run() -> int:
            os.close(our_life)
            from outrider.controlplane.front import serve_front

            logs = Logs(self._resolved.config.observability.log.level)
            try:
                uvloop.run(serve_front(self._resolved.config, sockets[TELEMETRY], sockets[ADMIN], folder, alive))
            finally:
                logs.close()
            return EXIT_OK

        return run

    def _start(self, child: _Child) -> None:
        child.started = monotonic()
        child.pid = os.fork()
        if child.pid:
            return
        code = EXIT_FAILED
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            code = child.run()
        except StartError as error:
            os.write(2, f"outrider: {error}\n".encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # nothing of the supervisor's is to be run or flushed here

    def _look_after(self) -> int:
        """Until the last child has gone after an order to stop: reap, start again, pass signals on."""
        while any(child.pid for child in self._children) or not self._stopping:
            waits = [child.again_at - monotonic() for child in self._children if not child.pid]
            received = signal.sigtimedwait(_SIGNALS, max(0.0, min(waits, default=60.0)))
            if received is None or received.si_signo == signal.SIGCHLD:
                self._reap()
            elif received.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._stopping += 1
                self._pass_on(signal.Signals(received.si_signo))
            else:
                self._pass_on(signal.SIGHUP)
            if self._stopping:
                self._stop_the_front()
            else:
                for child in self._children:
                    if not child.pid and child.again_at <= monotonic():
                        self._start(child)
        return EXIT_FAILED if self._failed else EXIT_OK

    def _reap(self) -> None:
        """Note which children have ended, and when they may start again."""
        for child in self._children:
            if not child.pid or os.waitpid(child.pid, os.WNOHANG)[0] == 0:
                continue
            now = monotonic()
            child.pid = 0
            child.pause = _FIRST_PAUSE if now - child.started > _STABLE else min(child.pause * 2, _LONGEST_PAUSE)
            child.again_at = now + child.pause
            if not self._stopping:
                fields: dict[str, object] = {"process": child.name, "again_after_ms": round(child.pause * 1000)}
                log.error("a process ended and is started again", extra={"fields": fields})

    def _pass_on(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.pid and child.name != "front":
                os.kill(child.pid, number)

    def _stop_the_front(self) -> None:
        """The front is the last to go: until then somebody may ask how the workers are."""
        workers = [child for child in self._children if child.name != "front" and child.pid]
        front = self._children[-1]
        if not workers and front.pid:
            os.kill(front.pid, signal.SIGTERM)
