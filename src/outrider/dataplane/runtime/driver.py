"""Drives the coroutine of a call from the events it waits for.

An asyncio task would be woken through a future and the ready queue of the loop, twice per call. A call waits
for one thing at a time, and whoever brings it (the target's connection, mostly) can just as well resume the
coroutine there and then: docs/decisions/0002 has the numbers. Anything slower (connecting, a back-off, a policy
that waits) is an ordinary future or task, and is awaited as such.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

from outrider.dataplane.runtime.parked import SUSPENDED

log = logging.getLogger("outrider")

_END: Final[Any] = object()


class Drive:
    """Runs one coroutine after another, never two at a time; `ended()`, if there is one, is called after each."""

    __slots__ = ("_cancelled", "_ended", "_future", "_steps")

    def __init__(self, ended: Callable[[], None] | None = None) -> None:
        self._steps: Generator[Any, Any, None] | None = None  # of the coroutine that is run
        self._future: asyncio.Future[Any] | None = None
        self._cancelled = False
        self._ended = ended

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine up to its first wait, or to its end."""
        self._steps = work.__await__()
        self._cancelled = False
        self.resume()

    def resume(self, _: object = None) -> None:
        """What the coroutine was waiting for has come."""
        steps = self._steps
        if steps is None:
            return
        self._future = None
        try:
            # With a default, the end of the coroutine raises nothing.
            future = steps.throw(self._stop()) if self._cancelled else next(steps, _END)
        except (StopIteration, asyncio.CancelledError):
            self._end()
        except Exception:
            log.exception("a bug in Outrider broke a connection; please report it")
            self._end()
        else:
            if future is _END:
                self._end()
                return
            if future is None:
                future = _next_turn()  # a bare yield, as of asyncio.sleep(0)
            if future is not SUSPENDED:
                self._future = future
                # The protocol between Future.__await__ and whoever drives it, as in asyncio.Task.
                future._asyncio_future_blocking = False
                future.add_done_callback(self.resume)

    def cancel(self) -> None:
        """Raise CancelledError where the coroutine waits."""
        future = self._future
        if future is None:
            self._cancelled = True
            self.resume()
        elif not future.cancel():
            self._cancelled = True  # it is done already, and the callback that resumes us is on its way

    def tell(self, ended: Callable[[], None] | None) -> None:
        """Call this from now on after each coroutine. None when nothing is run any more: the object that has a drive
        and is told by it would otherwise be kept in memory by the cycle."""
        self._ended = ended

    def _end(self) -> None:
        self._steps = None
        if self._ended is not None:
            self._ended()

    def _stop(self) -> asyncio.CancelledError:
        self._cancelled = False
        return asyncio.CancelledError()


def _next_turn() -> asyncio.Future[None]:
    """A future that is done with the next turn of the loop."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def done() -> None:
        if not future.done():
            future.set_result(None)

    loop.call_soon(done)
    return future
