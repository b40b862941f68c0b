"""Drive: coroutines run from event to event, are cancelled where they wait, and always end exactly once."""

from __future__ import annotations

import asyncio
import logging
import weakref

import pytest

from outrider.dataplane.runtime.driver import Drive
from outrider.dataplane.runtime.parked import suspended


class Driven:
    """A drive that counts how many coroutines have ended."""

    def __init__(self) -> None:
        self.ends = 0
        self.drive = Drive(self._ended)
        self.log: list[str] = []

    def _ended(self) -> None:
        self.ends += 1


async def turns(count: int = 3) -> None:
    """Let the loop make a few turns."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def driven() -> Driven:
    return Driven()


def test_a_coroutine_that_never_waits_ends_at_once(driven: Driven) -> None:
    """What has all it needs is done when `start` returns."""

    async def work() -> None:
        driven.log.append("done")

    driven.drive.start(work())
    assert (driven.log, driven.ends) == (["done"], 1)


def test_resume_goes_on_there_and_then(driven: Driven) -> None:
    """`resume` runs the coroutine before it returns, without a turn of the loop."""

    async def work() -> None:
        driven.log.append("waiting")
        await suspended()
        driven.log.append("going on")
        await suspended()
        driven.log.append("done")

    driven.drive.start(work())
    assert (driven.log, driven.ends) == (["waiting"], 0)
    driven.drive.resume()
    assert (driven.log[-1], driven.ends) == ("going on", 0)
    driven.drive.resume()
    assert (driven.log[-1], driven.ends) == ("done", 1)


def test_resume_without_a_coroutine_does_nothing(driven: Driven) -> None:
    """News that comes after the end, or before the start, is not for anybody."""
    driven.drive.resume()

    async def work() -> None:
        pass

    driven.drive.start(work())
    driven.drive.resume()
    assert driven.ends == 1


def test_one_coroutine_after_another(driven: Driven) -> None:
    """A drive can be used again; `ended` is heard once per coroutine."""

    async def work() -> None:
        await suspended()

    for ends in (1, 2, 3):
        driven.drive.start(work())
        driven.drive.resume()
        assert driven.ends == ends


async def test_a_future_resumes_with_its_result(driven: Driven) -> None:
    """Anything slower is an ordinary future, awaited as such."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        driven.log.append(await future)

    driven.drive.start(work())
    await turns()
    assert driven.log == []
    future.set_result("result")
    await turns()
    assert (driven.log, driven.ends) == (["result"], 1)


async def test_the_exception_of_a_future_reaches_the_coroutine(driven: Driven) -> None:
    """A future that fails raises where it was awaited."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        with pytest.raises(ZeroDivisionError):
            await future
        driven.log.append("caught")

    driven.drive.start(work())
    future.set_exception(ZeroDivisionError())
    await turns()
    assert (driven.log, driven.ends) == (["caught"], 1)


async def test_futures_and_suspensions_mix(driven: Driven) -> None:
    """A coroutine may wait for events and for futures in any order, finished futures included."""
    loop = asyncio.get_running_loop()
    done, pending = loop.create_future(), loop.create_future()
    done.set_result(None)

    async def work() -> None:
        await done
        await suspended()
        await pending
        await suspended()
        driven.log.append("done")

    driven.drive.start(work())
    driven.drive.resume()
    pending.set_result(None)
    await turns()
    assert driven.ends == 0
    driven.drive.resume()
    assert (driven.log, driven.ends) == (["done"], 1)


async def test_tasks_and_gather_can_be_awaited(driven: Driven) -> None:
    """A task is a future too."""

    async def slow(value: int) -> int:
        await asyncio.sleep(0)
        return value

    async def work() -> None:
        both = await asyncio.gather(asyncio.create_task(slow(1)), asyncio.create_task(slow(2)))
        driven.log.append(str(both))

    driven.drive.start(work())
    await turns(6)
    assert (driven.log, driven.ends) == (["[1, 2]"], 1)


async def test_sleep_zero_gives_way_for_one_turn(driven: Driven) -> None:
    """`asyncio.sleep(0)`, which a back-off of nothing comes to, goes on by itself."""

    async def work() -> None:
        await asyncio.sleep(0)
        driven.log.append("done")

    driven.drive.start(work())
    await turns(6)
    try:
        assert (driven.log, driven.ends) == (["done"], 1)
    finally:
        driven.drive.cancel()


async def test_a_turn_given_away_is_not_heard_by_the_next_coroutine(driven: Driven) -> None:
    """A coroutine cancelled while giving way leaves nothing behind that would resume the one after it."""

    async def first() -> None:
        await asyncio.sleep(0)

    async def second() -> None:
        await suspended()
        driven.log.append("went on")

    driven.drive.start(first())
    driven.drive.cancel()
    await turns()
    assert driven.ends == 1
    driven.drive.start(second())
    await turns()
    try:
        assert driven.log == []
    finally:
        driven.drive.cancel()


def test_cancel_while_suspended(driven: Driven) -> None:
    """A coroutine that waits for an event is cancelled right where it waits."""

    async def work() -> None:
        try:
            await suspended()
        except asyncio.CancelledError:
            driven.log.append("cancelled")
            raise

    driven.drive.start(work())
    driven.drive.cancel()
    assert (driven.log, driven.ends) == (["cancelled"], 1)


async def test_cancel_while_waiting_on_a_future(driven: Driven) -> None:
    """The future is cancelled, and the coroutine hears of it once."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await future
        finally:
            driven.log.append("unwound")

    driven.drive.start(work())
    driven.drive.cancel()
    await turns()
    assert future.cancelled()
    assert (driven.log, driven.ends) == (["unwound"], 1)


@pytest.mark.parametrize("fails", [False, True])
async def test_cancel_after_the_future_is_done_but_before_it_is_heard(driven: Driven, fails: bool) -> None:
    """A cancellation that crosses with the result still cancels, and resumes only once."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await future
            driven.log.append("went on")
        except asyncio.CancelledError:
            driven.log.append("cancelled")
            raise

    driven.drive.start(work())
    if fails:
        future.set_exception(ZeroDivisionError())
        future.exception()
    else:
        future.set_result(None)
    driven.drive.cancel()
    assert driven.log == []
    await turns()
    assert (driven.log, driven.ends) == (["cancelled"], 1)


async def test_cancel_twice_cancels_once(driven: Driven) -> None:
    """Two reasons to stop are one stop."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await future
        except asyncio.CancelledError:
            driven.log.append("cancelled")
            raise

    driven.drive.start(work())
    driven.drive.cancel()
    driven.drive.cancel()
    await turns()
    assert (driven.log, driven.ends) == (["cancelled"], 1)


def test_cancel_after_the_end_does_not_touch_the_next_one(driven: Driven) -> None:
    """A late cancellation is not kept for the coroutine that comes next."""

    async def work() -> None:
        await suspended()
        driven.log.append("done")

    driven.drive.cancel()
    driven.drive.start(work())
    driven.drive.resume()
    driven.drive.cancel()
    driven.drive.start(work())
    driven.drive.resume()
    assert (driven.log, driven.ends) == (["done", "done"], 2)


def test_a_cancelled_coroutine_may_still_finish_its_answer(driven: Driven) -> None:
    """Cancellation can be answered: what goes on after it is still driven to its end."""

    async def work() -> None:
        try:
            await suspended()
        except asyncio.CancelledError:
            driven.log.append("cancelled")
        await suspended()
        driven.log.append("done")

    driven.drive.start(work())
    driven.drive.cancel()
    assert driven.ends == 0
    driven.drive.resume()
    assert (driven.log, driven.ends) == (["cancelled", "done"], 1)


def test_an_exception_is_logged_and_ends_the_coroutine(driven: Driven, caplog: pytest.LogCaptureFixture) -> None:
    """A bug is told in the log, and the drive is free for the next coroutine."""

    async def broken() -> None:
        raise ZeroDivisionError

    async def work() -> None:
        driven.log.append("done")

    with caplog.at_level(logging.ERROR, "outrider"):
        driven.drive.start(broken())
    assert driven.ends == 1
    assert caplog.records[0].exc_info
    driven.drive.start(work())
    assert (driven.log, driven.ends) == (["done"], 2)


def test_the_next_may_be_started_from_within_ended() -> None:
    """Pipelined calls follow each other without a turn of the loop."""
    done: list[int] = []

    async def work(number: int) -> None:
        done.append(number)

    def ended() -> None:
        if len(done) < 3:
            drive.start(work(len(done)))

    drive = Drive(ended)
    drive.start(work(0))
    assert done == [0, 1, 2]


def test_a_drive_that_tells_no_object_any_more_holds_none() -> None:
    """After `tell(None)` the object that has the drive is freed without the collector."""
    driven = Driven()
    ghost = weakref.ref(driven)
    driven.drive.tell(None)
    del driven
    assert ghost() is None
