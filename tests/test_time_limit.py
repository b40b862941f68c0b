"""No test can hang: the limit interrupts whatever a test waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import uvloop

from tests.time_limit import TimeLimitError, limited

LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)


@pytest.mark.parametrize("factory", LOOPS)
def test_waiting_on_an_event_loop_is_interrupted(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A coroutine that would wait for ever is cancelled, on either loop."""
    with pytest.raises(TimeLimitError), limited(0.05), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.Event().wait())


def test_waiting_for_a_thread_is_interrupted() -> None:
    """So is a wait outside any event loop."""
    with pytest.raises(TimeLimitError), limited(0.05):
        threading.Event().wait(5)


def test_what_ends_in_time_is_left_alone() -> None:
    """Within the limit nothing happens, and nothing is left armed."""
    with limited(5):
        pass
    with pytest.raises(asyncio.CancelledError), limited(5):
        raise asyncio.CancelledError
