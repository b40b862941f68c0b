"""Work that goes on until the end, whatever one look meets."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
from collections.abc import Iterator

import pytest

from outrider.controlplane import upkeep
from outrider.controlplane.orphans import Orphans
from outrider.controlplane.upkeep import Upkeep, is_own, look_once, repeat


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_AGAIN_FIRST", 0.001)
    monkeypatch.setattr(upkeep, "_AGAIN_LAST", 0.002)


class Looks:
    """Raises these in turn; None is a good look."""

    def __init__(self, *script: Exception | None) -> None:
        self._script: Iterator[Exception | None] = iter(script)
        self.count = 0
        self.over = asyncio.Event()

    async def __call__(self) -> float:
        error = next(self._script, StopAsyncIteration())
        if isinstance(error, StopAsyncIteration):
            self.over.set()
            return 60.0
        self.count += 1
        if error is not None:
            raise error
        return 0.0


async def end_of(looks: Looks) -> None:
    task = asyncio.create_task(repeat("endpoints of user", looks))
    async with asyncio.timeout(2):
        await looks.over.wait()
    assert not task.done()
    task.cancel()


async def test_a_failed_look_is_not_the_end_of_looking(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a lack of descriptors nor a bug ends it; each row of failures is one line in the log."""
    caplog.set_level(logging.INFO, "outrider")
    short = OSError(errno.EMFILE, "Too many open files")
    looks = Looks(None, short, short, short, None, ValueError("a bug"), None)
    await end_of(looks)
    assert looks.count == 7
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "endpoints of user: Too many open files; it is tried again",
        "endpoints of user: it works again after 3 failures",
        "endpoints of user failed because of a bug in Outrider; it is tried again",
        "endpoints of user: it works again after 1 failures",
    ]


async def test_the_pause_grows_while_looks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second, doubling up to fifteen; after a good look it begins anew."""
    monkeypatch.undo()
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(upkeep.asyncio, "sleep", sleep)
    failure = RuntimeError()
    looks = Looks(*[failure] * 7, None, failure)

    async def look() -> float:
        found = await looks()
        if found:
            raise asyncio.CancelledError
        return found

    with pytest.raises(asyncio.CancelledError):
        await repeat("it", look, 3.0)
    assert pauses == [3.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 0.0, 0.5]


async def test_a_start_does_not_wait_for_what_hangs() -> None:
    """It waits so long and no longer, names what has not come, and goes on looking for it."""
    kept = Upkeep()
    came = asyncio.Event()
    watched: list[object] = []

    async def hangs() -> float:
        await came.wait()
        return 7.0

    async def fails() -> float:
        raise OSError(errno.ECONNREFUSED, "refused")

    async def watch(found: object) -> None:
        watched.append(found)

    kept.begin("credential slow", hangs, watch)
    kept.begin("credential broken", fails, watch)
    assert await kept.begun(0.02) == ("credential slow",)
    came.set()
    assert await kept.begun(2) == ()
    await asyncio.sleep(0)
    assert watched == [0.001, 7.0]  # after a failure, when to look again
    await kept.stop()


async def test_looking_once_says_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    """The exception is logged, and its caller goes on."""

    async def fails() -> float:
        raise KeyError("a bug")

    assert await look_once("a store", fails) == upkeep._AGAIN_FIRST
    assert "a store failed because of a bug in Outrider" in caplog.text


def test_own_errors_are_told_from_those_of_others() -> None:
    """A lack of descriptors on this machine says nothing about a target, even as the cause of another error."""
    wrapped = RuntimeError()
    wrapped.__cause__ = OSError(errno.EMFILE, "")
    assert is_own(wrapped)
    assert is_own(OSError(errno.ENOBUFS, ""))
    assert not is_own(OSError(errno.ECONNREFUSED, ""))
    assert not is_own(None)


def test_orphans_are_taken_away_but_not_at_once() -> None:
    """A process that has been a zombie for longer than anything waits is waited for by nothing."""
    ended = []
    for _ in range(2):
        ended.append(os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", ""], {}))
    for pid in ended:
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) is not None
    orphans = Orphans()
    orphans.take_away(100.0)
    orphans.take_away(114.0)
    for pid in ended:
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    orphans.take_away(115.0)
    for pid in ended:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
