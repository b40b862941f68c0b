"""Zombies, where this process is the first of its container: what a command has left behind becomes our child when the
command ends, and only we can take it away."""

from __future__ import annotations

import os
from contextlib import suppress

_EVERY = 2.0


class Orphans:
    """Takes away processes that have ended and that are waited for by nothing else.

    Commands that we have started ourselves are waited for by the event loop, which takes them away the moment they
    end. So a zombie that is still there at the next look is none of those.
    """

    def __init__(self) -> None:
        self._seen = 0

    async def look(self) -> float:
        """Look once; returns the seconds until the next look."""
        self.take_away()
        return _EVERY

    def take_away(self) -> None:
        """Take away the zombies that were here at the last look already."""
        with suppress(ChildProcessError):
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    self._seen = 0
                    break
                if ended.si_pid != self._seen:
                    self._seen = ended.si_pid
                    break
                os.waitpid(ended.si_pid, os.WNOHANG)
