"""Files are read beside the event loop, in a thread that may get stuck: the file system behind a mounted secret can be
away for minutes, and calls must not wait for it, nor the end of the process.

The executor of the event loop is not used, since its few threads are waited for at the end. Here one thread reads
everything, one file after the other. When it takes too long it is left behind, another one takes over what waits, and
the file it is stuck on is not tried again before it has come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from outrider.config.files import UnusableFileError, read_regular

T = TypeVar("T")

# Seconds that reading a file may take.
_PATIENCE = 2.0


async def read_file(path: str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises UnusableFileError, also when its file system does
    not answer in time."""
    return await beside_the_loop(path, lambda: read_regular(path, limit))


async def beside_the_loop(name: str, work: Callable[[], T]) -> T:
    """Run `work`, which reads files, in the thread; returns or raises what it does. Raises UnusableFileError when it
    takes too long. `name` is what it reads: while it is stuck, the same name is not tried again."""
    stuck = _stuck.get(name)
    if stuck is not None and not stuck.over:
        raise UnusableFileError(f"{name} is still not to be had; is its file system there?")
    _stuck.pop(name, None)
    reader = _Reader.present()
    job = _Job(work, asyncio.get_running_loop())
    reader.jobs.put(job)
    try:
        async with asyncio.timeout(_PATIENCE):
            return await job.result
    except TimeoutError:
        if not job.begun:
            raise UnusableFileError(f"{name} could not be read in time, because others were being read") from None
        _stuck[name] = job
        reader.leave_behind()
        raise UnusableFileError(f"{name} could not be read within {_PATIENCE:g} s; is its file system there?") from None


class _Job(Generic[T]):
    """Work for the thread, and its result for the event loop."""

    def __init__(self, work: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self.result: asyncio.Future[T] = loop.create_future()
        self.begun = self.over = False
        self._work = work
        self._loop = loop

    def run(self) -> None:
        """Do it, in the thread."""
        if self.result.cancelled():
            return
        self.begun = True
        value, error = None, None
        try:
            value = self._work()
        except Exception as failure:
            error = failure
        self.over = True
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._settle, value, error)

    def _settle(self, value: Any, error: Exception | None) -> None:
        if self.result.done():
            return
        if error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(value)


class _Reader:
    """One thread and what it is to do. It is a daemon, so the process ends without it."""

    _present: _Reader | None = None

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        Thread(target=self._run, name="files", daemon=True).start()

    @classmethod
    def present(cls) -> _Reader:
        """The one that takes new work."""
        if cls._present is None:
            cls._present = cls()
        return cls._present

    def leave_behind(self) -> None:
        """Have another thread do what waits; this one ends when it comes back."""
        if _Reader._present is not self:
            return
        _Reader._present = successor = _Reader()
        with suppress(Empty):
            while True:
                successor.jobs.put(self.jobs.get_nowait())
        self.jobs.put(None)

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job.run()


_stuck: dict[str, _Job[Any]] = {}
