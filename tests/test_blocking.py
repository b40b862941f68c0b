"""Blocking work: what hangs holds up nothing but its like, and threads do not pile up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from time import monotonic

import pytest

from outrider.blocking import run_apart


async def test_it_gives_the_result_or_the_exception() -> None:
    """The work's own result or exception comes back to the caller."""
    assert await run_apart("sum", lambda: 1 + 1, 5) == 2
    with pytest.raises(ZeroDivisionError):
        await run_apart("sum", lambda: 1 // 0, 5)
    assert await run_apart("sum", lambda: 3, 5) == 3


async def test_a_hang_holds_up_only_its_like() -> None:
    """Work with another key passes; work with the same key waits no longer than its own time limit, and starts no
    second thread."""
    release = threading.Event()
    before = threading.active_count()
    try:
        with pytest.raises(TimeoutError):
            await run_apart("hung", release.wait, 0.02)
        started = monotonic()
        for _ in range(40):
            with pytest.raises(TimeoutError):
                await run_apart("hung", lambda: None, 0.01)
        assert await asyncio.gather(*(run_apart(number, lambda: 1, 5) for number in range(20))) == [1] * 20
        assert monotonic() - started < 2
        assert threading.active_count() <= before + 21  # the twenty may be just ending
    finally:
        release.set()
    assert await run_apart("hung", lambda: "again", 5) == "again"


async def test_the_same_key_one_after_the_other() -> None:
    """Two pieces of work with one key never run at the same time, and each gives its own result."""
    under_way: list[int] = []

    def work(number: int) -> int:
        under_way.append(number)
        assert len(under_way) == 1
        under_way.remove(number)
        return number

    def fail() -> None:
        raise ValueError("only for the one who asked")

    failing = asyncio.create_task(run_apart("same", fail, 5))
    numbers = range(10)
    assert await asyncio.gather(*(run_apart("same", lambda n=n: work(n), 5) for n in numbers)) == list(numbers)
    with pytest.raises(ValueError, match="only for"):
        await failing


def test_a_hang_does_not_keep_the_process() -> None:
    """A process whose blocking work hangs still ends when its loop has ended."""
    program = (
        "import asyncio, contextlib, time\n"
        "from outrider.blocking import run_apart\n"
        "async def main():\n"
        "    with contextlib.suppress(TimeoutError):\n"
        "        await run_apart('hung', lambda: time.sleep(60), 0.01)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=20).returncode == 0
