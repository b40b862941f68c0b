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
from time import time
from typing import TypeVar

from outrider.controlplane.idempotency.fields import as_text, from_text
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.policies.idempotency import Entry, StoreError
from outrider.dataplane.timers import TO_THE_END

log = logging.getLogger("outrider")
T = TypeVar("T")

_BUSY = 2.0  # seconds to wait for another process's lock
_PURGE_EVERY = 60.0
_RUNNING, _DONE, _LOST = 0, 1, 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  name BLOB PRIMARY KEY, fingerprint BLOB NOT NULL, state INTEGER NOT NULL, owner TEXT NOT NULL,
  status INTEGER NOT NULL DEFAULT 0, headers TEXT NOT NULL DEFAULT '[]', body BLOB NOT NULL DEFAULT x'',
  expires REAL NOT NULL, since REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS calls_by_expiry ON calls (expires);
"""


class SqliteStore:
    """`ttl` in seconds; at most `most` entries, the ones that expire first going first."""

    def __init__(self, path: str, ttl: float, most: int, clock: Callable[[], float] = time) -> None:
        self._path = Path(path)
        self._ttl = ttl
        self._most = most
        self._clock = clock
        self._owner = f"{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idempotency")
        self._database: sqlite3.Connection | None = None
        self._complained = ""

    async def open(self) -> None:
        """Open the file, or say why that is not possible: then every use of it fails until it is."""
        try:
            await self._do(self._connected)
        except StoreError:
            pass  # it has been logged, and calls hear of it

    async def begin(self, key: bytes, fingerprint: bytes, instead_of: str = "") -> Entry | None:
        return await self._do(lambda: self._begin(key, fingerprint, instead_of))

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
        await repeat("the store of idempotency keys", self._purge_again, _PURGE_EVERY)

    async def _purge_again(self) -> float:
        try:
            await self.purge()
        except StoreError:
            pass  # it has been logged
        return _PURGE_EVERY

    async def close(self) -> None:
        """Close the file."""
        database, self._database = self._database, None
        if database is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, database.close)
        self._thread.shutdown(wait=False)

    # ---------------------------------------------------------------- in the thread

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise self._failed(error) from None
        self._complained = ""
        return result

    def _failed(self, error: Exception) -> StoreError:
        why = f"{self._path}: {error}"
        if why != self._complained:
            self._complained = why
            remedy = "move it away to begin a new one" if isinstance(error, sqlite3.DatabaseError) else "see the path"
            if isinstance(error, sqlite3.OperationalError):
                remedy = "is its folder there and writable, the disk not full, and nobody else locking it?"
            log.error("the store of idempotency keys cannot be used: %s; %s", why, remedy)
        return StoreError(why)

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._for_us_alone()
            database = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            try:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                database.executescript(_SCHEMA)
                if "since" not in {row[1] for row in database.execute("PRAGMA table_info(calls)")}:  # an older file
                    database.execute("ALTER TABLE calls ADD COLUMN since REAL NOT NULL DEFAULT 0")
            except Exception:
                database.close()
                raise
            self._database = database
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

    def _begin(self, key: bytes, fingerprint: bytes, instead_of: str) -> Entry | None:
        database = self._connected()
        now = self._clock()
        database.execute("BEGIN IMMEDIATE")
        try:
            known = self._found(key, now)
            if known is None or (known.lost and known.token == instead_of):
                database.execute(
                    "INSERT OR REPLACE INTO calls (name, fingerprint, state, owner, expires, since) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (key, fingerprint, _RUNNING, self._owner, now + max(self._ttl, TO_THE_END), now),
                )
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
                "SELECT fingerprint, state, owner, status, headers, body, since FROM calls "
                "WHERE name = ? AND expires > ?",
                (key, now),
            )
            .fetchone()
        )
        if row is None:
            return None
        fingerprint, state, owner, status, lines, body, since = row
        headers = from_text(json.loads(lines))
        lost = state == _LOST or (state == _RUNNING and not self._alive(owner))
        token = f"{owner} {since}"
        return Entry(bytes(fingerprint), state == _DONE, lost, status, headers, bytes(body), since, token)

    def _finish(self, key: bytes, entry: Entry) -> None:
        """Write the end of a call over its beginning: ours, or the lost one whose token the entry has."""
        headers = json.dumps(as_text(entry.headers))
        now = self._clock()
        state = _LOST if entry.lost else _DONE
        owner, _, since = entry.token.partition(" ")
        self._run(
            "UPDATE calls SET state = ?, status = ?, headers = ?, body = ?, expires = ?, since = ? "
            "WHERE name = ? AND state != ? AND owner = ? AND (? = '' OR since = ?)",
            (
                *(state, entry.status, headers, entry.body, now + self._ttl, now),
                *(key, _DONE, owner or self._owner, since, float(since or 0)),
            ),
        )

    def _purge(self) -> int:
        database = self._connected()
        database.execute("DELETE FROM calls WHERE expires <= ?", (self._clock(),))
        (count,) = database.execute("SELECT count(*) FROM calls").fetchone()
        if count > self._most:
            database.execute(
                "DELETE FROM calls WHERE name IN (SELECT name FROM calls WHERE state = ? ORDER BY expires LIMIT ?)",
                (_DONE, count - self._most),
            )
            (count,) = database.execute("SELECT count(*) FROM calls").fetchone()
        return int(count)

    def _alive(self, owner: str) -> bool:
        """Whether the process that began an entry still runs: the same number alone may be another one by now."""
        if owner == self._owner:
            return True
        pid, started, _ = owner.split("-", 2)
        return pid != str(os.getpid()) and started == _started(int(pid)) != "?"


def _started(pid: int) -> str:
    """When a process was started, in clock ticks since boot; `?` if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "?"
