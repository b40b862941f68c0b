"""Where the guards on one machine remember keys: an SQLite file, written by one thread beside the event loop.

In WAL mode with `synchronous=NORMAL` a killed process loses nothing; a machine that loses power may lose the last
moments (https://sqlite.org/wal.html). Several processes may share the file. An entry that is under way belongs to the
guard that began it; when that has ended, the entry is `lost`. Each call has a token, and no call writes over the entry
of another one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

from outrider.controlplane.idempotency.liveness import Liveness
from outrider.controlplane.idempotency.steady_clock import SteadyClock, seconds_since_boot
from outrider.controlplane.idempotency.table import AT_A_TIME, FullError, KeyedCalls, Room, ShareError
from outrider.controlplane.idempotency.worker import Worker
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.policies.idempotency import Entry, StoreError

log = logging.getLogger("outrider")
T = TypeVar("T")

_BUSY: Final = 0.5  # seconds to wait for another process's lock
# Seconds that a new call waits for the store, those spent in line included.
_PATIENCE: Final = 1.0
# Seconds after a lock in which nothing waits for the next one.
_REFUSE_FOR: Final = 0.2
# Seconds between looks at the file, and between clearing up.
_LOOK_EVERY: Final = 2.0
_CLEAR_UP_EVERY: Final = 60.0
# Seconds that a stop waits for the thread.
_LAST_WORK: Final = 2.0


class LockedError(sqlite3.OperationalError):
    """Another process was found to hold the lock, or this one has not got to it in time."""


class StuckError(sqlite3.OperationalError):
    """The thread does not come back from the file."""


class SqliteStore:
    """Keys in one SQLite file, which several processes may share.

    `ttl` in seconds; at most `most` entries, with `most_bytes` of answers. Where there is no room for another entry,
    one of the caller with the most is forgotten, the one that expires first. Where there is none for another answer, of
    such an entry only remains that it was answered. Calls under way and lost ones are never forgotten: new keys of a
    caller that fills three quarters of the store with them are refused.
    """

    def __init__(
        self,
        path: str,
        ttl: float,
        most: int,
        most_bytes: int = 256 * 1024 * 1024,
        wall: Callable[[], float] = time.time,
        since_boot: Callable[[], float] = seconds_since_boot,
    ) -> None:
        self._path = Path(path)
        self._room = Room(ttl, most, most_bytes)
        self._clock = SteadyClock(wall, since_boot)
        self._liveness = Liveness(self._path)
        self._begun = 0
        self._worker = Worker("idempotency")
        self._trouble = ""
        self._clear_up_at = 0.0
        # Of the thread:
        self._database: sqlite3.Connection | None = None
        self._table: KeyedCalls | None = None
        self._files = _Files(self._path, self._liveness.file)
        self._under_way: dict[bytes, Entry] = {}  # what we have begun and not ended
        self._refusing_until = 0.0

    @property
    def trouble(self) -> str:
        """Why the store cannot be used; empty if it can."""
        return self._trouble

    def token(self) -> str:
        """A new one, for a call to begin."""
        self._begun += 1
        return f"{self._liveness.name}.{self._begun}"

    async def open(self) -> None:
        """Open the file, or say why that is not possible: then every use of it fails until it is."""
        try:
            await self._do(self._look)
        except StoreError:
            pass  # it has been logged, and calls are told

    async def begin(self, key: bytes, new: Entry, instead_of: str = "") -> Entry | None:
        """See `Store`. Raises StoreError after a second at the latest."""
        if self._worker.busy_for > _PATIENCE:
            raise self._failed(StuckError("its disk does not answer"))
        gives_up = monotonic() + _PATIENCE
        working = self._worker.do(lambda: self._timed(lambda: self._begin(key, new, instead_of), gives_up))
        done, _ = await asyncio.wait((working,), timeout=_PATIENCE)
        if not done:
            working.add_done_callback(lambda late: self._take_back(key, new.token, late))
            raise self._failed(LockedError("it is locked, or its disk does not answer"))
        known = self._result(working)
        if known is None:
            self._is_well()
        return known

    def _take_back(self, key: bytes, token: str, late: asyncio.Future[Entry | None]) -> None:
        """Forget a call that has been begun after it was not waited for any longer."""
        if not late.cancelled() and late.exception() is None and late.result() is None:
            taken_back = self._worker.do(lambda: self._timed(lambda: self._forget(key, token)))
            taken_back.add_done_callback(lambda one: one.exception())

    async def finish(self, key: bytes, entry: Entry) -> None:
        """See `Store`."""
        await self._do(lambda: self._finish(key, entry))

    async def forget(self, key: bytes, token: str) -> None:
        """See `Store`."""
        await self._do(lambda: self._forget(key, token))

    async def clear_up(self) -> int:
        """Remove what has expired, and the files of guards that have ended. Returns how many entries are left."""
        while await self._do(self._remove_expired) == AT_A_TIME:
            pass
        return await self._do(self._tidy)

    async def watch(self) -> None:
        """Look at the file and clear up, again and again, until cancelled."""
        await repeat("the store of idempotency keys", self._watch, _LOOK_EVERY)

    async def _watch(self) -> float:
        try:
            await self._do(self._look)
            if monotonic() >= self._clear_up_at:
                await self.clear_up()
                self._clear_up_at = monotonic() + _CLEAR_UP_EVERY
        except StoreError:
            pass  # it has been logged
        return _LOOK_EVERY

    async def close(self) -> None:
        """Close the file. What is still under way is lost from here."""
        leaving = self._worker.do(self._leave)
        leaving.add_done_callback(lambda one: one.exception())  # what cannot be closed need not be
        await asyncio.wait((leaving,), timeout=_LAST_WORK)
        self._worker.end()

    async def _do(self, work: Callable[[], T]) -> T:
        """The result of work that writes. Raises StoreError."""
        working = self._worker.do(lambda: self._timed(work))
        await asyncio.wait((working,))
        result = self._result(working)
        self._is_well()
        return result

    def _result(self, working: asyncio.Future[T]) -> T:
        try:
            return working.result()
        except (sqlite3.Error, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise self._failed(error) from None

    def _is_well(self) -> None:
        """It has been written to."""
        if self._trouble:
            self._trouble = ""
            log.info("the store of idempotency keys can be used again: %s", self._path)

    def _failed(self, error: Exception) -> StoreError:
        """The failure as a call gets it; it is logged if it is not the same as before."""
        reason, remedy = _explained(error)
        why = f"{self._path}: {error}"
        if isinstance(error, ShareError):
            log.warning("a new key is refused: %s; %s", why, remedy)
        elif why != self._trouble:
            self._trouble = why
            log.error("the store of idempotency keys cannot be used: %s; %s", why, remedy)
        return StoreError(why, reason)

    # ---------------------------------------------------------------- in the thread

    def _timed(self, work: Callable[[], T], gives_up: float = float("inf")) -> T:
        """Work, unless the file was locked a moment ago, or the time for it is over: what is in line must not wait for
        the lock one by one."""
        began = monotonic()
        if began < self._refusing_until or began > gives_up:
            raise LockedError("it is locked")
        try:
            return work()
        except sqlite3.Error as error:
            if _is_locked(error):
                self._refusing_until = monotonic() + _REFUSE_FOR
            elif not isinstance(error, FullError):
                self._disconnect()  # by the next time it may have been mended or replaced
            raise

    def _leave(self) -> None:
        self._disconnect()
        self._liveness.leave()

    def _disconnect(self) -> None:
        database, self._database, self._table = self._database, None, None
        if database is not None:
            database.close()

    def _connected(self, thoroughly: bool = False) -> KeyedCalls:
        """The table in the open file; in a new one if that has been removed or replaced. What belongs to the file is
        only looked at `thoroughly`."""
        if self._table is not None and self._files.changed(thoroughly):
            log.error("the store of idempotency keys was removed, replaced or cut: %s; opening it anew", self._path)
            self._disconnect()
        if self._table is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._liveness.show()
            self._for_us_alone()
            database = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            table = KeyedCalls(database, self._room, self._clock, self._liveness)
            try:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                with _Transaction(database):
                    table.prepare()
                    for key, entry in self._under_way.items():
                        if table.find(key) is None:  # it is another file than before
                            table.add(key, entry)
                self._files.note()
            except BaseException:
                database.close()
                raise
            self._database, self._table = database, table
        return self._table

    def _writing(self) -> _Transaction:
        """To be entered after `_connected`."""
        assert self._database is not None
        return _Transaction(self._database)

    def _for_us_alone(self) -> None:
        """It holds answers. What SQLite puts beside a file gets the rights of that."""
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        for beside in ("", "-wal", "-shm"):
            file = Path(f"{self._path}{beside}")
            if file.exists():
                file.chmod(0o600)

    def _look(self) -> None:
        """See whether the file is there, can be written to, and has room. Raises FullError."""
        table = self._connected(thoroughly=True)
        with self._writing():
            table.see_room()

    def _begin(self, key: bytes, new: Entry, instead_of: str) -> Entry | None:
        table = self._connected()
        known = table.find(key)
        if known is not None and not (known.lost and known.token == instead_of):
            return known  # without a lock, so that answers can be given while another process has one
        with self._writing():
            known = table.find(key)
            if known is None:
                table.begin(key, new)
            elif known.lost and known.token == instead_of:
                table.take_over(key, new)
            else:
                return known
        self._under_way[key] = new
        return None

    def _finish(self, key: bytes, entry: Entry) -> None:
        table = self._connected()
        with self._writing():
            table.finish(key, entry)
        self._ended(key, entry.token)

    def _forget(self, key: bytes, token: str) -> None:
        table = self._connected()
        with self._writing():
            table.forget(key, token)
        self._ended(key, token)

    def _ended(self, key: bytes, token: str) -> None:
        ours = self._under_way.get(key)
        if ours is not None and ours.token == token:
            del self._under_way[key]

    def _remove_expired(self) -> int:
        table = self._connected()
        with self._writing():
            return table.remove_expired()

    def _tidy(self) -> int:
        table = self._connected()
        self._liveness.clear_up()
        with self._writing():
            table.remove_earlier_table()
        return table.size()


class _Transaction:
    """Takes the lock for writing; commits at the end, or rolls back after an exception."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:  # neither committed nor rolled back by SQLite itself
                self._database.execute("ROLLBACK")


def _is_locked(error: Exception) -> bool:
    return isinstance(error, LockedError) or _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _code(error: Exception) -> int:
    """The primary result code of SQLite (https://sqlite.org/rescode.html); -1 for other errors."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code & 0xFF if code >= 0 else code


def _explained(error: Exception) -> tuple[str, str]:
    """What a caller is told, and what can be done about it."""
    if isinstance(error, FullError):
        return "it is full", "see why calls are lost, or raise idempotency.max_entries"
    if isinstance(error, StuckError):
        return "it does not answer", "see its disk"
    if _is_locked(error):
        return "it is locked", "see which other process holds its lock"
    if _code(error) == sqlite3.SQLITE_FULL:
        return "its disk is full", "make room on its disk"
    if _code(error) == sqlite3.SQLITE_IOERR:
        remedy = "see its disk; if it was removed, remove its -wal and -shm, too, and end what still has them open"
        return "it cannot be read or written", remedy
    if isinstance(error, (sqlite3.OperationalError, OSError)):
        remedy = "is its folder there and writable, and the disk not full? (idempotency.store)"
        return "it cannot be opened or written", remedy
    return "it is damaged", "move it away, and a new one is begun"


class _Files:
    """Which files are open: the one that was named, and those that belong to it."""

    def __init__(self, named: Path, *others: Path) -> None:
        self._all = (named, Path(f"{named}-wal"), Path(f"{named}-shm"), *others)
        self._noted: list[tuple[int, int] | None] = []
        self._size = 0

    def note(self) -> None:
        """Those that are there now are open."""
        self._noted = [_identity(status) for status in map(_status, self._all)]
        self._size = 0

    def changed(self, thoroughly: bool) -> bool:
        """Whether the named one, or any of them, is another file than the open one. The named one never shrinks."""
        named, *others = map(_status, self._all if thoroughly else self._all[:1])
        if named is None or named.st_size < self._size:
            return True
        self._size = named.st_size
        found = [_identity(status) for status in (named, *others)]
        return found != self._noted[: len(found)]


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _identity(status: os.stat_result | None) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    return (status.st_dev, status.st_ino) if status is not None else None
