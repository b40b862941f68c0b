"""One thread that works for the event loop, piece by piece, and does not keep the process from ending.

An executor of the standard library would: its threads are waited for at the exit, and one that is stuck in a hung mount
never ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Runs what it is given in the order of arrival, in a thread that begins with the first piece."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._since = 0.0  # when the thread began what it is at (monotonic seconds); 0: it is idle

    @property
    def busy_for(self) -> float:
        """Seconds since the thread began what it is at; 0 if it is idle."""
        since = self._since
        return monotonic() - since if since else 0.0

    def do(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """The result of `work` to come, or its exception. Raises RuntimeError if there can be no more threads."""
        if self._thread is None:
            thread = Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        outcome: Future[T] = Future()
        outcome.set_running_or_notify_cancel()  # from now on it cannot be cancelled
        self._queue.put((work, outcome))
        return asyncio.wrap_future(outcome)

    def end(self) -> None:
        """End the thread when all that it has been given is done."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread = None

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            work, outcome = piece
            self._since = monotonic()
            try:
                result = work()
            except BaseException as error:
                self._since = 0.0
                outcome.set_exception(error)
            else:
                self._since = 0.0
                outcome.set_result(result)
            del piece, work, outcome
