"""Work that may block for long or for ever (files on a hung mount, the system's name lookups), kept off the event loop.

Every piece of work has a key, and a thread of its own: what hangs holds up nothing but later work with the same key, of
which at most one piece runs at a time, so threads cannot pile up. Shared pools of threads fail on both counts. The
threads are daemons: they do not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

_running: dict[Hashable, Future[Any]] = {}


async def run_apart(key: Hashable, work: Callable[[], T], timeout: float) -> T:
    """The result of `work`, or its exception. Raises TimeoutError after `timeout` seconds; the work itself cannot be
    stopped, and work with the same key waits until it has ended. Raises OSError if no thread can be started."""
    ends = monotonic() + timeout
    while (earlier := _running.get(key)) is not None:
        await _wait(earlier, ends)
    outcome = _start(key, work)
    await _wait(outcome, ends)
    return outcome.result()


def _start(key: Hashable, work: Callable[[], T]) -> Future[T]:
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # from now on it cannot be cancelled

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            _running.pop(key, None)
            outcome.set_exception(error)
        else:
            _running.pop(key, None)
            outcome.set_result(result)

    _running[key] = outcome
    try:
        Thread(target=run, name=f"outrider {key}", daemon=True).start()
    except RuntimeError as error:  # the limit of threads is reached
        del _running[key]
        raise OSError(errno.EAGAIN, str(error)) from None
    return outcome


async def _wait(outcome: Future[Any], ends: float) -> None:
    """Return when the outcome is there; raises TimeoutError at `ends` (monotonic seconds)."""
    waiting = asyncio.wrap_future(outcome)
    try:
        done, _ = await asyncio.wait((waiting,), timeout=max(0.0, ends - monotonic()))
        if not done:
            raise TimeoutError
        waiting.exception()  # marks it as seen
    finally:
        waiting.cancel()
