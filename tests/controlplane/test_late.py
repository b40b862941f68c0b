"""What needs a large import is made when it is asked for, beside everything else."""

from __future__ import annotations

import asyncio
import gc
import threading
from threading import Event

import pytest

from outrider.controlplane.late import Late


async def test_it_is_made_once_and_in_a_thread() -> None:
    """Those who ask at the same time get the same, and the event loop goes on meanwhile."""
    go = Event()
    threads = []

    def load() -> object:
        threads.append(threading.current_thread())
        assert go.wait(5)
        return object()

    late = Late(load)
    asking = [asyncio.create_task(late.get()) for _ in range(3)]
    await asyncio.sleep(0.01)
    go.set()
    made = await asyncio.gather(*asking)
    assert len({id(one) for one in made}) == 1
    assert await late.get() is made[0]
    assert threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


async def test_what_fails_is_tried_again() -> None:
    """The exception is that of the load."""
    results = [ValueError("no"), 7]

    def load() -> int:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    late = Late(load)
    with pytest.raises(ValueError, match="no"):
        await late.get()
    assert await late.get() == 7


@pytest.mark.parametrize("enabled", [True, False])
async def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    """It does not run during the import, and only then."""
    was = gc.isenabled()
    seen = []
    try:
        (gc.enable if enabled else gc.disable)()
        await Late(lambda: seen.append(gc.isenabled())).get()
        assert (seen, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if was else gc.disable)()
        gc.unfreeze()
