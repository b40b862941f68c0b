"""A clock for a file that several processes use one after the other: what is kept for a day is kept for a day, whatever
is done to the clock of the machine meanwhile.

It goes on from one start of the machine: all processes since then take the same time for the beginning, and count from
there. After a restart of the machine it begins at the machine's time, or where it has been before if that is later.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

TABLE: Final = "CREATE TABLE IF NOT EXISTS clock (boot TEXT NOT NULL, offset REAL NOT NULL)"


def seconds_since_boot() -> float:
    """Also those for which the machine slept, where it tells them."""
    number = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(number)


def boot_id() -> str:
    """Tells one start of the machine from another; empty where that is not known. A container may have a time of its
    own (time_namespaces(7))."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        return ""


class SteadyClock:
    """Unix seconds that never jump. `wall` is asked only at the beginning; `since_boot` counts."""

    def __init__(
        self, wall: Callable[[], float] = time.time, since_boot: Callable[[], float] = seconds_since_boot
    ) -> None:
        self._wall = wall
        self._since_boot = since_boot
        self._boot = boot_id()
        self._offset: float | None = None  # of `since_boot`

    def agree(self, database: sqlite3.Connection, latest: float) -> None:
        """Take the time that the file goes by, or set it. It has not been later than `latest` in the file. Call it in a
        transaction; raises sqlite3.Error."""
        row = database.execute("SELECT boot, offset FROM clock").fetchone()
        if row is not None and row[0] == self._boot != "":
            self._offset = float(row[1])
            return
        if self._offset is None:
            self._offset = max(self._wall(), latest) - self._since_boot()
        database.execute("DELETE FROM clock")
        database.execute("INSERT INTO clock VALUES (?, ?)", (self._boot, self._offset))

    def now(self) -> float:
        """The time in seconds; only after `agree`."""
        assert self._offset is not None
        return self._offset + self._since_boot()
