"""The table of keyed calls in an SQLite file: what is known of each, and how much room each caller takes.

All of it runs in the thread of the store. What writes must be called in a transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from outrider.controlplane.idempotency.fields import as_text, from_text
from outrider.controlplane.idempotency.liveness import Liveness
from outrider.controlplane.idempotency.steady_clock import TABLE as CLOCK_TABLE
from outrider.controlplane.idempotency.steady_clock import SteadyClock
from outrider.dataplane.policies.idempotency import ANSWER_NOT_KEPT, Entry
from outrider.dataplane.runtime.timers import TO_THE_END

# Entries that are removed at a time, so that calls need not wait long.
AT_A_TIME: Final = 500
_RUNNING, _DONE, _LOST = 0, 1, 2
# Versions of the file count from 2; 0 is a new one, or one of an earlier version, which had another table.
_VERSION: Final = 2
# `size` is the bytes of the answer. `held` and `total` count entries, bytes, and entries that are not done, which are
# never forgotten.
_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS keyed_calls (
      name BLOB PRIMARY KEY NOT NULL, fingerprint BLOB NOT NULL, state INTEGER NOT NULL, token TEXT NOT NULL,
      caller TEXT NOT NULL, status INTEGER NOT NULL DEFAULT 0, headers TEXT NOT NULL DEFAULT '[]',
      body BLOB NOT NULL DEFAULT x'', size INTEGER NOT NULL DEFAULT 0, digest BLOB NOT NULL DEFAULT x'',
      since REAL NOT NULL, expires REAL NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS keyed_calls_by_expiry ON keyed_calls (expires)",
    "CREATE INDEX IF NOT EXISTS keyed_calls_by_caller ON keyed_calls (caller, expires)",
    "CREATE TABLE IF NOT EXISTS held (caller TEXT PRIMARY KEY NOT NULL, entries INTEGER, bytes INTEGER, open INTEGER) "
    "WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS total (entries INTEGER, bytes INTEGER, open INTEGER)",
    "INSERT INTO total SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM total)",
    """CREATE TRIGGER IF NOT EXISTS count_new AFTER INSERT ON keyed_calls BEGIN
      INSERT INTO held VALUES (new.caller, 1, new.size, new.state != 1) ON CONFLICT (caller) DO UPDATE SET
        entries = entries + 1, bytes = bytes + new.size, open = open + (new.state != 1);
      UPDATE total SET entries = entries + 1, bytes = bytes + new.size, open = open + (new.state != 1);
    END""",
    """CREATE TRIGGER IF NOT EXISTS count_removed AFTER DELETE ON keyed_calls BEGIN
      UPDATE held SET entries = entries - 1, bytes = bytes - old.size, open = open - (old.state != 1)
        WHERE caller = old.caller;
      DELETE FROM held WHERE caller = old.caller AND entries <= 0;
      UPDATE total SET entries = entries - 1, bytes = bytes - old.size, open = open - (old.state != 1);
    END""",
    """CREATE TRIGGER IF NOT EXISTS count_changed AFTER UPDATE OF state, size ON keyed_calls
      WHEN old.state != new.state OR old.size != new.size BEGIN
      UPDATE held SET bytes = bytes + new.size - old.size, open = open + (new.state != 1) - (old.state != 1)
        WHERE caller = new.caller;
      UPDATE total SET bytes = bytes + new.size - old.size, open = open + (new.state != 1) - (old.state != 1);
    END""",
    CLOCK_TABLE,
    f"PRAGMA user_version = {_VERSION}",
)
_FIND: Final = (
    "SELECT fingerprint, state, token, caller, status, headers, body, digest, since FROM keyed_calls "
    "WHERE name = ? AND expires > ?"
)
_INSERT: Final = (
    "INSERT INTO keyed_calls "
    "(name, fingerprint, state, token, caller, status, headers, body, size, digest, since, expires) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# The callers with the most that can be forgotten, and how much that is: entries, or bytes.
_GREEDIEST_BY_ENTRIES: Final = (
    "SELECT caller, entries - open AS much, entries - open FROM held WHERE much > 0 ORDER BY much DESC LIMIT 256"
)
_GREEDIEST_BY_BYTES: Final = (
    "SELECT caller, bytes AS much, entries - open FROM held WHERE much > 0 ORDER BY much DESC LIMIT 256"
)


class FullError(sqlite3.OperationalError):
    """There is no room for another key."""


class ShareError(FullError):
    """There is no room for another key of one caller."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many entries a file may have, and how many bytes of answers. `ttl` is in seconds."""

    ttl: float
    entries: int
    answer_bytes: int


class KeyedCalls:
    """The table in one open file. Raises sqlite3.Error, and OSError where it looks whether guards run."""

    def __init__(self, database: sqlite3.Connection, room: Room, clock: SteadyClock, liveness: Liveness) -> None:
        self._database = database
        self._room = room
        self._clock = clock
        self._liveness = liveness

    def prepare(self) -> None:
        """Make the table if it is not there, and take the time of the file."""
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise sqlite3.DatabaseError(f"it was written by a later version of Outrider (file version {version})")
        if version < _VERSION:
            for statement in _SCHEMA:
                self._database.execute(statement)
        (latest,) = self._database.execute("SELECT coalesce(max(since), 0) FROM keyed_calls").fetchone()
        self._clock.agree(self._database, latest)

    def find(self, key: bytes) -> Entry | None:
        """What is known of a key, as the policy takes it. Raises ValueError for an entry that cannot be read."""
        now = self._clock.now()
        row = self._database.execute(_FIND, (key, now)).fetchone()
        if row is None:
            return None
        fingerprint, state, token, caller, status, lines, body, digest, since = row
        return Entry(
            _bytes(fingerprint),
            done=state == _DONE,
            lost=state == _LOST or (state == _RUNNING and not self._liveness.runs(_text(token).partition(".")[0])),
            status=int(status),
            headers=from_text(json.loads(_text(lines))),
            body=_bytes(body),
            age=now - float(since),
            token=_text(token),
            digest=_bytes(digest),
            caller=_text(caller),
        )

    def begin(self, key: bytes, new: Entry) -> None:
        """Add a call. Raises FullError."""
        self._make_room(new.caller)
        self.add(key, new)

    def add(self, key: bytes, new: Entry) -> None:
        """Add a call, even if there is no room."""
        self._insert(key, new, _RUNNING, max(self._room.ttl, TO_THE_END))

    def take_over(self, key: bytes, new: Entry) -> None:
        """Begin a lost call anew."""
        now = self._clock.now()
        self._database.execute(
            "UPDATE keyed_calls SET state = ?, token = ?, digest = ?, since = ?, expires = ? WHERE name = ?",
            (_RUNNING, new.token, new.digest, now, now + max(self._room.ttl, TO_THE_END), key),
        )

    def finish(self, key: bytes, entry: Entry) -> None:
        """Write the end of a call over its beginning. If there is nothing of it any more, because the file was removed
        or a later call has come to nothing, it is written all the same: it was executed."""
        headers = json.dumps(as_text(entry.headers))
        state = _LOST if entry.lost else _DONE
        now = self._clock.now()
        written = self._database.execute(
            "UPDATE keyed_calls SET state = ?, status = ?, headers = ?, body = ?, size = ?, digest = ?, since = ?, "
            "expires = ? WHERE name = ? AND state != ? AND token = ?",
            (
                *(state, entry.status, headers, entry.body, _size(entry, headers), entry.digest, now),
                *(now + self._room.ttl, key, _DONE, entry.token),
            ),
        )
        if not written.rowcount and self.find(key) is None:
            self._insert(key, entry, state, self._room.ttl)
        self._shrink()

    def forget(self, key: bytes, token: str) -> None:
        """Remove a call that is under way."""
        self._database.execute(
            "DELETE FROM keyed_calls WHERE name = ? AND state = ? AND token = ?", (key, _RUNNING, token)
        )

    def remove_expired(self) -> int:
        """Remove some of what has expired. Returns how many; AT_A_TIME if there may be more."""
        return self._database.execute(
            "DELETE FROM keyed_calls WHERE rowid IN (SELECT rowid FROM keyed_calls WHERE expires <= ? LIMIT ?)",
            (self._clock.now(), AT_A_TIME),
        ).rowcount

    def remove_earlier_table(self) -> None:
        """Remove what an earlier version has left, whose keys are not recognised any more: see decision 19."""
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'calls'"
        if self._database.execute(query).fetchone() == (1,):
            self._database.execute("DELETE FROM calls WHERE expires <= ?", (self._clock.now(),))
            if self._database.execute("SELECT count(*) FROM calls").fetchone() == (0,):
                self._database.execute("DROP TABLE calls")

    def size(self) -> int:
        """How many entries there are."""
        entries, _, _ = self._total()
        return entries

    def see_room(self) -> None:
        """Raises FullError if there is room for no caller."""
        _, _, under_way = self._total()
        if under_way >= self._room.entries:
            raise self._full()

    def _insert(self, key: bytes, entry: Entry, state: int, ttl: float) -> None:
        headers = json.dumps(as_text(entry.headers))
        now = self._clock.now()
        self._database.execute("DELETE FROM keyed_calls WHERE name = ? AND expires <= ?", (key, now))
        self._database.execute(
            _INSERT,
            (
                *(key, entry.fingerprint, state, entry.token, entry.caller, entry.status, headers, entry.body),
                *(_size(entry, headers), entry.digest, now, now + ttl),
            ),
        )

    # ---------------------------------------------------------------- room

    def _total(self) -> tuple[int, int, int]:
        """Entries, bytes of answers, and entries that are not done."""
        entries, size, under_way = self._database.execute("SELECT entries, bytes, open FROM total").fetchone()
        return int(entries), int(size), int(under_way)

    def _make_room(self, caller: str) -> None:
        """Room for one more entry of this caller. Raises FullError."""
        most = self._room.entries
        row = self._database.execute("SELECT open FROM held WHERE caller = ?", (caller,)).fetchone()
        if row is not None and row[0] >= max(1, most * 3 // 4):
            raise ShareError(f"it is full: {row[0]} calls of {caller or 'the callers'} are under way or lost")
        if self._total()[0] >= most:
            self.remove_expired()
        while (entries := self._total()[0]) >= most:
            # A little more than one, so that not every call has to make room.
            if not self._take_from_greediest(_GREEDIEST_BY_ENTRIES, entries - most + 1 + most // 64, self._drop):
                raise self._full()

    def _full(self) -> FullError:
        return FullError(f"it is full: all of its {self._room.entries} calls are under way or lost (max_entries)")

    def _shrink(self) -> None:
        """Bring the answers down to their bytes."""
        most = self._room.answer_bytes
        while (size := self._total()[1]) > most:
            if not self._take_from_greediest(_GREEDIEST_BY_BYTES, size - most + most // 64, self._strip):
                return

    def _take_from_greediest(self, query: str, excess: int, take: Callable[[str, int], None]) -> bool:
        """Take about as much as there is too much from the callers with the most: from all that have at least half of
        what the first has, in equal parts. Returns False if there is none."""
        callers = self._database.execute(query).fetchall()
        if not callers:
            return False
        greedy = [one for one in callers if one[1] * 2 >= callers[0][1]]
        share = -(-excess // len(greedy))
        for caller, much, entries in greedy:
            take(caller, max(1, -(-entries * min(share, much) // much)))
            excess -= share
            if excess <= 0:
                break
        return True

    def _drop(self, caller: str, number: int) -> None:
        """Forget answered calls of a caller, those that expire first."""
        self._database.execute(
            "DELETE FROM keyed_calls WHERE rowid IN "
            "(SELECT rowid FROM keyed_calls WHERE caller = ? AND state = ? ORDER BY expires LIMIT ?)",
            (caller, _DONE, number),
        )

    def _strip(self, caller: str, number: int) -> None:
        """Keep of answers to a caller only that they were given."""
        self._database.execute(
            "UPDATE keyed_calls SET headers = '[]', body = ?, size = 0 WHERE rowid IN "
            "(SELECT rowid FROM keyed_calls WHERE caller = ? AND state = ? AND size > 0 ORDER BY expires LIMIT ?)",
            (ANSWER_NOT_KEPT, caller, _DONE, number),
        )


def _size(entry: Entry, headers: str) -> int:
    """Bytes of an answer, as far as it can be taken off."""
    return len(headers) + len(entry.body) if entry.done and entry.body != ANSWER_NOT_KEPT else 0


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("an entry is damaged")
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("an entry is damaged")
    return value
