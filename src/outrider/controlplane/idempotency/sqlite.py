"""Where one guard remembers keys: an SQLite file, written by one thread beside the event loop.

In WAL mode with `synchronous=NORMAL` a killed process loses nothing; a machine that loses power may lose the last
moments (https://sqlite.org/wal.html). Several workers may share the file. An entry that is under way belongs to the
process that began it; when that process is gone, the entry is `lost`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, time
from typing import TypeVar

from outrider.controlplane.idempotency.fields import as_text, from_text
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.policies.idempotency import Entry, StoreError
from outrider.dataplane.timers import TO_THE_END

log = logging.getLogger("outrider")
T = TypeVar("T")

_BUSY = 0.5  # seconds to wait for another process's lock
# Seconds that one piece of work may take before others that come meanwhile are refused instead of queued.
_STUCK = 0.25
# Seconds after a lock in which nothing waits for the next one.
_REFUSE_FOR = 0.2
_LOCKED = "it is locked, or its disk does not answer"
_PURGE_EVERY = 60.0
# Seconds between looks at a store that cannot be used.
_LOOK_AGAIN = 2.0
_RUNNING, _DONE, _LOST = 0, 1, 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  name BLOB PRIMARY KEY, fingerprint BLOB NOT NULL, state INTEGER NOT NULL, owner TEXT NOT NULL,
  status INTEGER NOT NULL DEFAULT 0, headers TEXT NOT NULL DEFAULT '[]', body BLOB NOT NULL DEFAULT x'',
  expires REAL NOT NULL, since REAL NOT NULL DEFAULT 0,
  caller TEXT NOT NULL DEFAULT '', digest BLOB NOT NULL DEFAULT x''
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS calls_by_expiry ON calls (expires);
"""
# Columns that files of earlier versions do not have.
_LATER_COLUMNS = {
    "since": "REAL NOT NULL DEFAULT 0",
    "caller": "TEXT NOT NULL DEFAULT ''",
    "digest": "BLOB NOT NULL DEFAULT x''",
}
# Entries, and about how many bytes they are.
_COUNT = "SELECT count(*), coalesce(sum(length(body) + length(headers) + 200), 0) FROM calls"
# The two callers with the most, by one measure or the other.
_GREEDIEST = """
SELECT caller, count(*) AS entries, sum(length(body) + length(headers) + 200) AS bytes FROM calls
WHERE state = ? GROUP BY caller ORDER BY CASE ? WHEN 'entries' THEN entries ELSE bytes END DESC LIMIT 2
"""


class SqliteStore:
    """Keys in one SQLite file, which several processes may share.

    `ttl` in seconds; at most `most` entries with `most_bytes` of answers. What has no room any more is an answer of the
    caller with the most of them, the one that expires first. Calls under way and lost ones are never forgotten: where
    they alone fill the store, new keys are refused.
    """

    def __init__(
        self,
        path: str,
        ttl: float,
        most: int,
        most_bytes: int = 256 * 1024 * 1024,
        clock: Callable[[], float] = time,
    ) -> None:
        self._path = Path(path)
        self._ttl = ttl
        self._most = most
        self._most_bytes = most_bytes
        self._room = 0  # entries that can be begun before the file has to be counted again
        self._clock = clock
        self._owner = f"{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idempotency")
        self._database: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # device and inode of what is open
        self._refusing_until = 0.0
        self._working_since = 0.0  # when the thread began what it is at; 0: it is idle
        self._complained = ""

    @property
    def trouble(self) -> str:
        """Why the store cannot be used; nothing if it can."""
        return self._complained

    async def open(self) -> None:
        """Open the file, or say why that is not possible: then every use of it fails until it is."""
        try:
            await self._do(self._connected)
        except StoreError:
            pass  # it has been logged, and calls hear of it

    async def begin(self, key: bytes, fingerprint: bytes, instead_of: str = "", caller: str = "") -> Entry | None:
        since = self._working_since
        if since and monotonic() - since > _STUCK:
            raise self._failed(sqlite3.OperationalError(_LOCKED))
        return await self._do(lambda: self._begin(key, fingerprint, instead_of, caller))

    async def finish(self, key: bytes, entry: Entry) -> None:
        await self._do(lambda: self._finish(key, entry))

    async def forget(self, key: bytes) -> None:
        await self._do(
            lambda: self._run(
                "DELETE FROM calls WHERE name = ? AND state = ? AND owner = ?", (key, _RUNNING, self._owner)
            )
        )

    async def purge(self) -> int:
        """Remove what has expired, and what is too much; how many entries are left."""
        return await self._do(self._purge)

    async def watch(self) -> None:
        """Purge again and again, until cancelled."""
        await repeat("the store of idempotency keys", self._purge_again, _LOOK_AGAIN)

    async def _purge_again(self) -> float:
        try:
            await self.purge()
        except StoreError:
            return _LOOK_AGAIN  # it has been logged
        return _PURGE_EVERY

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    # ---------------------------------------------------------------- in the thread

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, work)
        except (sqlite3.Error, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise self._failed(error) from None
        self._complained = ""
        return result

    def _timed(self, work: Callable[[], T]) -> T:
        """Work, unless the file was locked a moment ago: what is in line must not wait for the lock one by one."""
        began = monotonic()
        if began < self._refusing_until:
            raise sqlite3.OperationalError(_LOCKED)
        self._working_since = began
        try:
            return work()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                self._refusing_until = monotonic() + _REFUSE_FOR
            raise
        except sqlite3.DatabaseError:
            self._disconnect()  # what is damaged may have been replaced by the next time
            raise
        finally:
            self._working_since = 0.0

    def _failed(self, error: Exception) -> StoreError:
        why = f"{self._path}: {error}"
        if why != self._complained:
            self._complained = why
            remedy = "move it away to begin a new one" if isinstance(error, sqlite3.DatabaseError) else "see the path"
            if isinstance(error, sqlite3.OperationalError):
                remedy = "is its folder there and writable, the disk not full, and nobody else locking it?"
            log.error("the store of idempotency keys cannot be used: %s; %s", why, remedy)
        return StoreError(why)

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _connected(self) -> sqlite3.Connection:
        """The open file; a new one if it has been removed or replaced."""
        if self._database is not None and _identity(self._path) != self._file:
            log.error("the store of idempotency keys was removed or replaced; beginning a new one: %s", self._path)
            self._disconnect()
        if self._database is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._for_us_alone()
            database = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            try:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                database.executescript(_SCHEMA)
                columns = {row[1] for row in database.execute("PRAGMA table_info(calls)")}
                for column, declaration in _LATER_COLUMNS.items():
                    if column not in columns:
                        database.execute(f"ALTER TABLE calls ADD COLUMN {column} {declaration}")
            except Exception:
                database.close()
                raise
            self._database = database
            self._file = _identity(self._path)
            self._room = 0
        return self._database

    def _for_us_alone(self) -> None:
        """It holds answers. What SQLite puts beside a file gets the rights of that."""
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        for beside in ("", "-wal", "-shm"):
            file = Path(f"{self._path}{beside}")
            if file.exists():
                file.chmod(0o600)

    def _run(self, sql: str, values: tuple[object, ...]) -> None:
        self._connected().execute(sql, values)

    def _begin(self, key: bytes, fingerprint: bytes, instead_of: str, caller: str) -> Entry | None:
        database = self._connected()
        if self._room <= 0:
            self._purge()
        now = self._clock()
        database.execute("BEGIN IMMEDIATE")
        try:
            known = self._found(key, now)
            if known is None or (known.lost and known.token == instead_of):
                if self._room <= 0 and known is None:
                    raise sqlite3.OperationalError(
                        f"it is full: max_entries ({self._most}) calls are under way or lost"
                    )
                database.execute(
                    "INSERT OR REPLACE INTO calls (name, fingerprint, state, owner, expires, since, caller) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (key, fingerprint, _RUNNING, self._owner, now + max(self._ttl, TO_THE_END), now, caller),
                )
                self._room -= 1
                known = None
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
        return known

    def _found(self, key: bytes, now: float) -> Entry | None:
        """What the table has of a key, as the policy knows it."""
        row = (
            self._connected()
            .execute(
                "SELECT fingerprint, state, owner, status, headers, body, since, digest FROM calls "
                "WHERE name = ? AND expires > ?",
                (key, now),
            )
            .fetchone()
        )
        if row is None:
            return None
        fingerprint, state, owner, status, lines, body, since, digest = row
        headers = from_text(json.loads(lines))
        lost = state == _LOST or (state == _RUNNING and not self._alive(owner))
        token = f"{owner} {since}"
        done = state == _DONE
        return Entry(bytes(fingerprint), done, lost, status, headers, bytes(body), since, token, bytes(digest))

    def _finish(self, key: bytes, entry: Entry) -> None:
        """Write the end of a call over its beginning: ours, or the lost one whose token the entry has."""
        headers = json.dumps(as_text(entry.headers))
        now = self._clock()
        state = _LOST if entry.lost else _DONE
        owner, _, since = entry.token.partition(" ")
        self._run(
            "UPDATE calls SET state = ?, status = ?, headers = ?, body = ?, expires = ?, since = ?, digest = ? "
            "WHERE name = ? AND state != ? AND owner = ? AND (? = '' OR since = ?)",
            (
                *(state, entry.status, headers, entry.body, now + self._ttl, now, entry.digest),
                *(key, _DONE, owner or self._owner, since, float(since or 0)),
            ),
        )

    def _purge(self) -> int:
        """Forget what has expired. If that leaves too little room, forget answers to the caller with the most of them;
        each round brings the greediest caller down to the next one. Returns how many entries are left."""
        database = self._connected()
        database.execute("DELETE FROM calls WHERE expires <= ?", (self._clock(),))
        count, size = database.execute(_COUNT).fetchone()
        spare = max(1, self._most // 20)  # so that not every call has to make room
        while count > self._most - spare or size > self._most_bytes:
            by = "entries" if count > self._most - spare else "bytes"
            greedy = database.execute(_GREEDIEST, (_DONE, by)).fetchall()
            if not greedy:
                break
            caller, entries, held = greedy[0]
            if by == "entries":
                next_one = greedy[1][1] if len(greedy) > 1 else 0
                removed = min(count - (self._most - spare), max(1, entries - next_one))
            else:
                next_one = greedy[1][2] if len(greedy) > 1 else 0
                excess = min(size - self._most_bytes, max(1, held - next_one))
                removed = max(1, entries * excess // max(1, held))
            database.execute(
                "DELETE FROM calls WHERE name IN "
                "(SELECT name FROM calls WHERE state = ? AND caller = ? ORDER BY expires LIMIT ?)",
                (_DONE, caller, removed),
            )
            count, size = database.execute(_COUNT).fetchone()
        # Counted again after some time, whatever happens: other processes write here, too, and answers have sizes.
        self._room = min(max(0, self._most - count), spare)
        return int(count)

    def _alive(self, owner: str) -> bool:
        """Whether the process that began an entry still runs: the same number alone may be another one by now."""
        if owner == self._owner:
            return True
        pid, started, _ = owner.split("-", 2)
        return pid != str(os.getpid()) and started == _started(int(pid)) != "?"


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _started(pid: int) -> str:
    """When a process was started, in clock ticks since boot; `?` if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "?"
