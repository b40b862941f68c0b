"""Work that goes on for as long as the sidecar runs: it looks at something again and again, whatever a look meets.

There is one way to do that, `repeat`, so that no loop can die of an exception that its author did not think of: too
many open files, a name server that answers nonsense, a bug of ours. A failed look is never the end of looking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from outrider.model.failure import LOCAL_ERRORS

log = logging.getLogger("outrider")

# Seconds until the next look after one that has failed unexpectedly, doubling: first, and cap.
_AGAIN_FIRST, _AGAIN_LAST = 0.5, 15.0
# Seconds that work may take to end after it was cancelled.
_AFTERWARDS = 1.0

# Looks once; returns after how many seconds to look again.
Look = Callable[[], Awaitable[float]]


async def repeat(what: str, look: Look, after: float = 0.0) -> None:
    """Call `look` until cancelled: first after so many seconds, then each time after as many as it has returned.

    An exception is logged when it is the first in a row, and the next look comes half a second later, then later and
    later. `what` names the work in the log.
    """
    failures = 0
    pause = after
    while True:
        await asyncio.sleep(pause)
        try:
            pause = await look()
        except Exception as error:
            failures += 1
            pause = min(_AGAIN_LAST, _AGAIN_FIRST * 2.0 ** min(failures - 1, 10))
            if failures == 1:
                _complain(what, error)
        else:
            if failures:
                log.info("%s: it works again after %d failures", what, failures)
            failures = 0


async def repeat_steps(what: str, step: Callable[[float], Awaitable[float]], pause: float) -> None:
    """As `repeat`, for steps that do the waiting themselves, because something may bring them forward: `step` waits so
    many seconds, looks, and returns how many the next one is to wait."""

    async def look() -> float:
        nonlocal pause
        seconds, pause = pause, 0.0  # after a failure, `repeat` waits
        pause = await step(seconds)
        return 0.0

    await repeat(what, look)


async def look_once(what: str, look: Callable[[], Awaitable[Any]]) -> Any:
    """Look once; returns what `look` returns. After an exception, which is logged, the seconds until the next look."""
    try:
        return await look()
    except Exception as error:
        _complain(what, error)
        return _AGAIN_FIRST


class Upkeep:
    """The tasks of one process that go on until the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._beginning: dict[asyncio.Future[None], str] = {}

    def go_on(self, *work: Coroutine[Any, Any, None]) -> None:
        """Run these until the end."""
        for one in work:
            self._run(one)

    def begin(self, what: str, first: Callable[[], Awaitable[Any]], then: Callable[[Any], Awaitable[None]]) -> None:
        """Look once at once, and then watch until the end. `then` gets what `first` returned, or
        after a failure the seconds until the next look."""
        looked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beginning[looked] = what

        async def work() -> None:
            try:
                found = await look_once(what, first)
            finally:
                self._beginning.pop(looked, None)
                if not looked.done():
                    looked.set_result(None)
            await then(found)

        self._run(work())

    async def begun(self, seconds: float) -> tuple[str, ...]:
        """Wait until everything has looked once, but no longer than this; returns the names of what has not."""
        if self._beginning:
            await asyncio.wait(list(self._beginning), timeout=seconds)
        return tuple(self._beginning.values())

    async def stop(self) -> None:
        """End all of them, and give them a moment to close what they have open."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_AFTERWARDS)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that ends by itself, with an exception, must not do so unseen: that is a bug."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a bug in Outrider ended one of its tasks; please report it", exc_info=task.exception())


def is_own(error: BaseException | None) -> bool:
    """Whether an error says that this machine is short of something, and nothing about the other side."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _complain(what: str, error: Exception) -> None:
    """Say once that a look has failed: in a line where the system is short of something, else as a bug."""
    if isinstance(error, OSError):
        log.error("%s: %s; it is tried again", what, error.strerror or error)
    else:
        log.error("%s failed because of a bug in Outrider; it is tried again", what, exc_info=error)
