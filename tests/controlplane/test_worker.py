"""One thread beside the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from threading import Event, current_thread

from outrider.controlplane.idempotency.worker import Worker


async def test_pieces_are_done_in_their_order_in_one_thread() -> None:
    """Whatever becomes of each."""
    worker, done = Worker("test"), []

    def piece(number: int) -> str:
        done.append(number)
        if number == 3:
            raise ValueError("three")
        return current_thread().name

    results = await asyncio.gather(*(worker.do(partial(piece, n)) for n in range(6)), return_exceptions=True)
    assert done == list(range(6))
    assert [str(result) for result in results] == ["test", "test", "test", "three", "test", "test"]
    worker.end()


async def test_how_long_it_has_been_busy_is_known() -> None:
    """Also while it does not come back."""
    worker, go_on, begun = Worker("test"), Event(), Event()

    def hang() -> None:
        begun.set()
        go_on.wait(10)

    working = worker.do(hang)
    begun.wait(10)
    await asyncio.sleep(0.02)
    assert worker.busy_for > 0.01
    go_on.set()
    await working
    assert worker.busy_for == 0.0
    worker.end()


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    """The process ends, as it would be killed otherwise."""
    text = (
        "import asyncio, time; from outrider.controlplane.idempotency.worker import Worker\n"
        "async def main(): Worker('test').do(lambda: time.sleep(60)); await asyncio.sleep(0.05)\n"
        "asyncio.run(main())"
    )
    assert subprocess.run([sys.executable, "-c", text], timeout=20, check=False).returncode == 0


async def test_the_end_of_a_worker_comes_after_its_work() -> None:
    """What it was given before is done."""
    worker = Worker("test")
    working = worker.do(lambda: 1)
    worker.end()
    assert await working == 1
