"""The event loop must not stand still; if it does, it is said where."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import pytest

from outrider.controlplane.telemetry import stalls
from outrider.controlplane.telemetry.stalls import Stalls

LONG = 0.3


def sleeps() -> None:
    time.sleep(LONG)


def computes() -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        sum(range(100))


async def watched(culprit: Callable[[], None] | None) -> Stalls:
    """What is seen of a loop in which this runs."""
    watch = Stalls(asyncio.get_running_loop())
    watch.start()
    await asyncio.sleep(0.06)
    if culprit is not None:
        culprit()
    await asyncio.sleep(0.12)
    watch.stop()
    return watch


@pytest.mark.parametrize(("culprit", "doing"), [(sleeps, "waiting"), (computes, "busy")])
async def test_the_function_that_stalls_is_named(
    culprit: Callable[[], None], doing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With how long it took, who called it, and whether it computed or waited; and it is counted."""
    with caplog.at_level(logging.WARNING, "outrider"):
        watch = await watched(culprit)
    (line,) = [record for record in caplog.records if "stood still" in record.message]
    fields = line.__dict__["fields"]
    assert f".{culprit.__name__}:" in fields["function"]
    assert "watched" in fields["called_by"]
    assert doing in line.message
    assert LONG - 0.1 < fields["seconds"] < LONG + 1
    assert sum(watch.seconds.counts) >= 1
    assert watch.seconds.sum > LONG - 0.1


async def test_a_loop_that_moves_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said about it."""
    await watched(None)
    assert not [record for record in caplog.records if "still" in record.message]


async def test_a_stall_without_end_is_told_while_it_lasts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would hear of it otherwise: the loop itself cannot tell."""
    monkeypatch.setattr(stalls, "_ENDLESS", 0.15)
    with caplog.at_level(logging.WARNING, "outrider"):
        await watched(sleeps)
    lines = [record.message for record in caplog.records if "has been standing still" in record.message]
    assert len(lines) == 1
    assert "sleeps" in lines[0]
