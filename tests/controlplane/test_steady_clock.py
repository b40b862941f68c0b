"""What is kept for a day is kept for a day, whatever is done to the clock of the machine."""

from __future__ import annotations

import sqlite3

import pytest

from outrider.controlplane.idempotency import steady_clock
from outrider.controlplane.idempotency.steady_clock import TABLE, SteadyClock

DAY = 86400.0


class Machine:
    """Its clock, and the seconds since its start."""

    def __init__(self) -> None:
        self.wall = 1000 * DAY
        self.since_boot = 50.0

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.since_boot)


@pytest.fixture
def file() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute(TABLE)
    return database


@pytest.mark.parametrize("step", [-DAY, DAY, 400 * DAY])
def test_steps_of_the_clock_are_not_seen(file: sqlite3.Connection, step: float) -> None:
    """Neither by a process that runs, nor by the next one on the same file."""
    machine = Machine()
    one, next_one = machine.clock(), machine.clock()
    one.agree(file, 0)
    began = one.now()
    machine.wall += step
    machine.since_boot += 10
    next_one.agree(file, 0)
    assert one.now() == next_one.now() == began + 10


def test_after_a_restart_of_the_machine_time_goes_on(file: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the clock of the machine, or from the latest entry if that is later."""
    machine = Machine()
    machine.clock().agree(file, 0)
    monkeypatch.setattr(steady_clock, "boot_id", lambda: "another")
    machine.since_boot, machine.wall = 1.0, machine.wall + 500
    again = machine.clock()
    again.agree(file, machine.wall - 100)
    assert again.now() == machine.wall
    monkeypatch.setattr(steady_clock, "boot_id", lambda: "a third")
    without_battery = machine.clock()
    machine.wall = 0.0
    without_battery.agree(file, 1000 * DAY + 400)
    assert without_battery.now() == 1000 * DAY + 400


def test_where_starts_cannot_be_told_apart_a_process_keeps_its_time(
    file: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes it anew when it begins."""
    monkeypatch.setattr(steady_clock, "boot_id", lambda: "")
    machine = Machine()
    clock = machine.clock()
    clock.agree(file, 0)
    machine.wall += DAY
    clock.agree(file, 0)
    assert clock.now() == machine.wall - DAY
    later = machine.clock()
    later.agree(file, 0)
    assert later.now() == machine.wall


def test_this_machine_has_a_start() -> None:
    """And the same one twice."""
    assert steady_clock.boot_id() == steady_clock.boot_id()
    assert steady_clock.seconds_since_boot() > 0
