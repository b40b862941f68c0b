"""Turns: much work is done in slices, in order, and never more than a little per turn of the loop."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, cast

import pytest

from outrider.dataplane.runtime.turns import Turns


class Loop:
    """An event loop reduced to `call_soon`."""

    def __init__(self) -> None:
        self.ready: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.ready.append(call)

    def turn(self) -> None:
        """Make the calls that are ready now."""
        ready, self.ready = self.ready, []
        for call in ready:
            call()


def test_work_is_done_in_order_and_asks_again_for_the_next_turn() -> None:
    """All who wait are served before one is served again."""
    loop = Loop()
    turns = Turns(cast(Any, loop))
    log: list[str] = []

    def worker(name: str, slices: int) -> Callable[[], None]:
        def work() -> None:
            nonlocal slices
            slices -= 1
            log.append(name)
            if slices:
                turns.ask(work)

        return work

    turns.ask(worker("a", 3))
    turns.ask(worker("b", 2))
    for _ in range(5):
        loop.turn()
    assert log == ["a", "b", "a", "b", "a"]
    assert not loop.ready
    assert not turns.crowded


def test_one_turn_of_the_loop_is_short_however_many_wait() -> None:
    """A hundred slices of a millisecond take many turns, not a tenth of a second of one."""
    loop = Loop()
    turns = Turns(cast(Any, loop))
    done: list[float] = []
    for _ in range(100):
        turns.ask(lambda: done.append(sleep(0.001) or monotonic()))
    assert len(loop.ready) == 1
    loop.turn()
    assert 1 <= len(done) <= 3
    while loop.ready:
        loop.turn()
    assert len(done) == 100


def test_a_bug_in_one_slice_costs_the_others_nothing() -> None:
    """Those behind it are served all the same."""
    loop = Loop()
    turns = Turns(cast(Any, loop))
    done: list[str] = []
    turns.ask(lambda: done.append(str(1 // 0)))
    turns.ask(lambda: done.append("b"))
    with pytest.raises(ZeroDivisionError):
        loop.turn()
    loop.turn()
    assert done == ["b"]
