"""Calls in numbers: at a steady rate whatever becomes of them, or one after the other on a few connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from tests.integration.harness import Answer, BrokenError, Client, exchange

Make = Callable[[int], bytes]


@dataclass
class Tally:
    """What became of calls. `broken` are those without a whole answer; `slowest` is in seconds."""

    answers: list[Answer] = field(default_factory=list)
    broken: int = 0
    slowest: float = 0.0

    @property
    def count(self) -> int:
        """All calls that have ended."""
        return len(self.answers) + self.broken

    @property
    def good(self) -> int:
        """Calls that were answered below 400."""
        return sum(answer.status < 400 for answer in self.answers)

    @property
    def failed(self) -> int:
        """Calls that were not."""
        return self.count - self.good

    def statuses(self) -> dict[int, int]:
        """How many answers had which status."""
        counts: dict[int, int] = {}
        for answer in self.answers:
            counts[answer.status] = counts.get(answer.status, 0) + 1
        return counts


async def steadily(port: int, rate: float, count: int, make: Make) -> Tally:
    """`count` calls, `rate` of them a second, each on a connection of its own and none waiting for another."""
    tally = Tally()

    async def one(number: int) -> None:
        began = monotonic()
        try:
            tally.answers.append(await exchange(port, make(number)))
        except (BrokenError, ConnectionError):
            tally.broken += 1
        tally.slowest = max(tally.slowest, monotonic() - began)

    began = monotonic()
    calls = []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - monotonic()))
        calls.append(asyncio.create_task(one(number)))
    await asyncio.gather(*calls)
    return tally


async def in_turn(port: int, workers: int, count: int, make: Make) -> Tally:
    """`count` calls by so many apps, each of which makes one call after the other."""
    tally = Tally()
    numbers = iter(range(count))
    await asyncio.gather(*(_app(port, numbers.__next__, make, tally) for _ in range(workers)))
    return tally


@asynccontextmanager
async def under_load(port: int, workers: int, make: Make, pause: float = 0.002) -> AsyncIterator[Tally]:
    """So many apps, each of which makes one call after the other until the block ends; the tally is complete then."""
    tally = Tally()
    over = False
    taken = 0

    def number() -> int:
        nonlocal taken
        if over:
            raise StopIteration
        taken += 1
        return taken - 1

    apps = [asyncio.create_task(_app(port, number, make, tally, pause)) for _ in range(workers)]
    try:
        yield tally
    finally:
        over = True
        await asyncio.gather(*apps)


async def _app(port: int, number: Callable[[], int], make: Make, tally: Tally, pause: float = 0.0) -> None:
    """One app; it connects anew when its connection breaks."""
    going = True
    while going:
        async with Client(port) as client:
            try:
                while True:
                    try:
                        data = make(number())
                    except StopIteration:
                        going = False
                        break
                    began = monotonic()
                    answer = await client.call(data)
                    tally.slowest = max(tally.slowest, monotonic() - began)
                    tally.answers.append(answer)
                    if answer.get("connection") == "close":
                        break
                    if pause:
                        await asyncio.sleep(pause)
            except (BrokenError, ConnectionError):
                tally.broken += 1
