"""A test may fail; it never hangs. Every phase of a test (set-up, call, tear-down) has a limit in seconds.

At the limit the phase is interrupted where it stands, and the stacks of all threads are printed. Code on an event loop
is interrupted by cancelling its tasks, because uvloop passes exceptions of signal handlers to its exception handler
instead of raising them. A phase that ignores that, or blocks outside the interpreter, ends the whole run a little
later.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

LIMIT = 60.0
# Seconds between the interruption and the end of the whole run, if the interruption did not help.
GRACE = 20.0


class TimeLimitError(Exception):
    """A phase of a test took longer than its limit."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt the block after `seconds`, and raise TimeLimitError. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    expired = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal expired
        expired = True
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        loop = asyncio._get_running_loop()
        if loop is None:
            raise TimeLimitError(f"interrupted after {seconds:g} s")
        # The loop must be woken as well: it goes on waiting for its sockets after a signal.
        loop.call_soon_threadsafe(_cancel_all, loop, f"interrupted after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__)
    try:
        yield
    except asyncio.CancelledError:
        if not expired:
            raise
        raise TimeLimitError(f"interrupted after {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def _cancel_all(loop: asyncio.AbstractEventLoop, why: str) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel(why)


def _limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("time_limit")
    return float(marker.args[0]) if marker else LIMIT


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    with limited(_limit(item)):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with limited(_limit(item)):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    with limited(_limit(item)):
        yield
