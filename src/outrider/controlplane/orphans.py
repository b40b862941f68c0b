"""Zombies, where this process is the first of its container: what a command has left behind becomes our child when the
command ends, and only we can take it away."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from time import monotonic

_EVERY = 5.0
# Seconds for which a process must have been a zombie. One that we have started is waited for by what has started it, at
# most for as long as a command may take.
_LEFT_ALONE = 15.0


class Orphans:
    """Takes away processes that have ended and that are waited for by nothing else."""

    def __init__(self) -> None:
        self._zombies: dict[int, float] = {}  # since when

    async def look(self) -> float:
        """Look once; returns the seconds until the next look."""
        self.take_away(monotonic())
        return _EVERY

    def take_away(self, now: float) -> None:
        """Take away the zombies that have been there for long enough."""
        self._zombies = {pid: self._zombies.get(pid, now) for pid in _children() if _has_ended(pid)}
        for pid, since in self._zombies.items():
            if now - since >= _LEFT_ALONE:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _children() -> list[int]:
    """The children of all threads of this process (proc(5)); none where the kernel does not tell."""
    found: list[int] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += map(int, file.read_text().split())
    return found


def _has_ended(pid: int) -> bool:
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return False
