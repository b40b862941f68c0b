"""The memory of keyed calls: whichever store keeps it, nobody gets a key that somebody else may have used."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outrider.controlplane.idempotency.sqlite import SqliteStore
from outrider.dataplane.policies.idempotency import ANSWER_NOT_KEPT, Entry, StoreError
from tests.servers import RedisServer, redis_server

T = TypeVar("T")
Store = Any  # Guard, of a SqliteStore or RedisStore
KEY = b"k" * 24


class Guard:
    """A store, and the tokens of the calls that have been begun in it."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.tokens: dict[bytes, str] = {}

    async def begin(self, key: bytes, fingerprint: bytes, instead_of: str = "", caller: str = "") -> Any:
        new = Entry(fingerprint, token=self.store.token(), caller=caller)
        known = await self.store.begin(key, new, instead_of)
        if known is None:
            self.tokens[key] = new.token
        return known

    async def finish(self, key: bytes, entry: Entry) -> None:
        await self.store.finish(key, entry if entry.token else replace(entry, token=self.tokens[key]))

    async def forget(self, key: bytes) -> None:
        await self.store.forget(key, self.tokens[key])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def sqlite_store(*arguments: Any, **more: Any) -> Store:
    return Guard(SqliteStore(*arguments, **more))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def redis_store(server: RedisServer, ttl: float = 60.0, service: str = "payment") -> Store:
    from outrider.controlplane.idempotency.redis import RedisStore

    return Guard(RedisStore(server.url, service, ttl, 1.0))


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """One of each, empty."""
    if request.param == "sqlite":
        return sqlite_store(str(tmp_path / "keys.db"), 60.0, 100)
    server = request.getfixturevalue("redis")
    server.ask("FLUSHALL")
    return redis_store(server)


# ---------------------------------------------------------------- one guard

ANSWER = Entry(b"f", True, False, 201, ((b"X-Receipt", b"r\xe91"), (b"X-Receipt", b"r2")), b"paid\n\n\x00\xff")


async def test_an_answer_comes_back_as_it_was(store: Store) -> None:
    """Status, fields with any bytes and in their order, and a body with any bytes."""
    assert await store.begin(KEY, b"f") is None
    await store.finish(KEY, ANSWER)
    known = await store.begin(KEY, b"f")
    kept = (known.fingerprint, known.done, known.lost, known.status, known.headers, known.body)
    assert kept == (b"f", True, False, 201, ANSWER.headers, ANSWER.body)
    await store.close()


async def test_of_many_at_once_one_begins(store: Store) -> None:
    """However many come in the same moment."""
    begun = await asyncio.gather(*(store.begin(KEY, b"f") for _ in range(50)))
    assert sum(known is None for known in begun) == 1
    assert not any(known.done or known.lost for known in begun if known is not None)
    await store.close()


async def test_a_lost_call_is_taken_over_by_one(store: Store) -> None:
    """Whoever knows its token, and nobody who knows an older one."""
    await store.begin(KEY, b"f")
    await store.finish(KEY, Entry(b"f", lost=True))
    lost = await store.begin(KEY, b"f")
    assert lost.lost
    begun = await asyncio.gather(*(store.begin(KEY, b"f", lost.token) for _ in range(20)))
    assert sum(known is None for known in begun) == 1
    await store.finish(KEY, Entry(b"f", lost=True))  # and lost again: what was found out before is out of date
    again = await store.begin(KEY, b"f", lost.token)
    assert again is not None
    assert again.lost
    await store.close()


async def test_what_is_done_is_neither_forgotten_nor_taken_over(store: Store) -> None:
    """An answer stays, whoever comes late."""
    await store.begin(KEY, b"f")
    await store.finish(KEY, Entry(b"f", lost=True))
    lost = await store.begin(KEY, b"f")
    await store.finish(KEY, replace(ANSWER, token=lost.token))
    await store.forget(KEY)
    known = await store.begin(KEY, b"f", lost.token)
    assert known is not None
    assert known.done
    await store.close()


async def test_what_has_expired_is_new(redis: RedisServer, tmp_path: Path) -> None:
    """In either store."""
    for store in (sqlite_store(str(tmp_path / "k.db"), 0.05, 10), redis_store(redis, 0.05, "short-lived")):
        await store.begin(KEY, b"f")
        await store.finish(KEY, ANSWER)
        await asyncio.sleep(0.06)
        assert await store.begin(KEY, b"other") is None
        await store.close()


async def test_a_short_ttl_does_not_end_what_is_under_way(redis: RedisServer, tmp_path: Path) -> None:
    """It is about answers; a call may take longer than it."""
    for store in (sqlite_store(str(tmp_path / "k.db"), 0.02, 10), redis_store(redis, 0.02, "under-way")):
        await store.begin(KEY, b"f")
        await asyncio.sleep(0.04)
        assert await store.begin(KEY, b"f") is not None
        await store.close()


async def test_tokens_are_compared_whole(redis: RedisServer) -> None:
    """The second call that a guard begins is not the twentieth."""
    store = redis_store(redis, service="tokens")
    store.store._begun = 1
    await store.begin(KEY, b"f")
    await store.finish(KEY, Entry(b"f", lost=True))
    lost = await store.begin(KEY, b"f")
    store.store._begun = 19
    assert await store.begin(KEY, b"f", lost.token) is None
    assert await store.begin(KEY, b"f", lost.token) is not None
    await store._forget_script(keys=[f"outrider:idempotency:tokens:{KEY.hex()}"], args=[lost.token])
    assert await store.begin(KEY, b"f") is not None
    await store.close()


async def test_what_is_said_twice_harms_nobody(redis: RedisServer) -> None:
    """A script that Redis has run, and whose answer got lost, is run again: somebody else may have begun meanwhile."""
    one, other = redis_store(redis, service="twice"), redis_store(redis, service="twice")
    await other.open()
    name = f"outrider:idempotency:twice:{KEY.hex()}"
    await one.begin(KEY, b"f")
    token = one.tokens[KEY]
    await one.forget(KEY)
    assert await other.begin(KEY, b"f") is None
    await one._forget_script(keys=[name], args=[token])
    await one.finish(KEY, replace(ANSWER, token=token))
    known = await one.begin(KEY, b"f")
    assert known is not None
    assert not known.done
    for store in (one, other):
        await store.close()


def test_nobody_else_can_read_the_file(tmp_path: Path) -> None:
    """It holds answers, and so do the files that SQLite puts beside it; also if they were there before."""
    file = tmp_path / "k.db"
    (tmp_path / "k.db-wal").touch(0o644)

    async def use() -> None:
        store = sqlite_store(str(file), 60.0, 10)
        await store.begin(KEY, b"f")
        assert {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == {
            "k.db": 0o600,
            "k.db-wal": 0o600,
            "k.db-shm": 0o600,
            store._liveness.file.name: 0o600,
        }
        await store.close()

    asyncio.run(use())


# ---------------------------------------------------------------- any number of steps


class Guards(RuleBasedStateMachine):
    """Up to three guards that share a memory, and what they must find in it."""

    KEYS: ClassVar[list[bytes]] = [b"a" * 24, b"b" * 24]
    most = 3

    def make(self, number: int) -> Store:
        raise NotImplementedError

    def kill(self, store: Store) -> None:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.guards: list[Store] = []
        self.gone: list[Store] = []
        self.done: dict[bytes, bytes] = {}
        self.holders: dict[bytes, Store] = {}
        self.lost: set[bytes] = set()
        self.lost_by: dict[bytes, str] = {}  # the tokens of lost calls
        self.undead: dict[bytes, tuple[Store, str]] = {}  # by key, with the token that its guard had for it
        self.count = 0

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(_awaited(work))

    def guard(self, number: int) -> Store:
        while len(self.guards) <= number % self.most:
            self.guards.append(self.make(len(self.guards)))
        return self.guards[number % self.most]

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), take_over=st.booleans())
    def begin(self, number: int, key: bytes, take_over: bool) -> None:
        """What is found is what happened; a lost call is only taken over by who asks for that."""
        store = self.guard(number)
        known = self.run(store.begin(key, b"f"))
        if known is not None and known.lost and take_over:
            assert key in self.lost
            known = self.run(store.begin(key, b"f", known.token))
            assert known is None
            self.lost.discard(key)
        if known is None:
            assert key not in self.holders
            assert key not in self.done
            assert key not in self.lost
            self.holders[key] = store
        else:
            assert known.done == (key in self.done)
            assert known.lost == (key in self.lost)
            assert known.body == self.done.get(key, b"")

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), how=st.sampled_from(["answered", "failed", "lost"]))
    def end(self, data: st.DataObject, how: str) -> None:
        """A call that a guard has begun ends."""
        key = data.draw(st.sampled_from(sorted(self.holders)))
        store = self.holders.pop(key)
        self.count += 1
        if how == "answered":
            self.done[key] = b"%d" % self.count
            self.run(store.finish(key, Entry(b"f", True, False, 200, (), self.done[key])))
        elif how == "failed":
            self.run(store.forget(key))
        else:
            self.lost.add(key)
            self.lost_by[key] = store.tokens[key]
            self.run(store.finish(key, Entry(b"f", lost=True)))

    @precondition(lambda self: self.guards)
    @rule(number=st.integers(0, 2))
    def crash(self, number: int) -> None:
        """A guard is killed; what it was at is lost, and another one comes in its place."""
        index = number % len(self.guards)
        store, self.guards[index] = self.guards[index], self.make(index)
        self.gone.append(store)
        self.kill(store)
        for key in [key for key, holder in self.holders.items() if holder is store]:
            del self.holders[key]
            self.lost.add(key)
            self.lost_by[key] = store.tokens[key]
            self.undead[key] = store, store.tokens[key]

    @precondition(lambda self: self.undead)
    @rule(data=st.data(), how=st.sampled_from(["answered", "failed", "lost"]))
    def come_back(self, data: st.DataObject, how: str) -> None:
        """A guard was only taken for dead, and says now how its call ended. It writes over nothing that another call
        has written; but where there is nothing, its answer is kept: its call was executed."""
        key = data.draw(st.sampled_from(sorted(self.undead)))
        store, token = self.undead.pop(key)
        self.count += 1
        body = b"late %d" % self.count
        if how == "answered":
            self.run(store.finish(key, Entry(b"f", True, False, 200, (), body, token=token)))
        elif how == "lost":
            self.run(store.finish(key, Entry(b"f", lost=True, token=token)))
        else:
            self.run(store.store.forget(key, token))
        ours = key in self.lost and self.lost_by[key] == token
        nothing = key not in self.holders and key not in self.done and key not in self.lost
        if how == "failed" and ours:
            self.lost.discard(key)
        elif how == "answered" and (ours or nothing):
            self.lost.discard(key)
            self.done[key] = body
        elif how == "lost" and nothing:
            self.lost.add(key)
            self.lost_by[key] = token

    @invariant()
    def one_state_each(self) -> None:
        """No key is in two states."""
        states = [*self.holders, *self.done, *self.lost]
        assert len(states) == len(set(states))

    def teardown(self) -> None:
        for store in (*self.guards, *self.gone):
            self.run(store.close())
        self.loop.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


class OneFile(Guards):
    """Guards on one file, as the containers of a pod with a common volume are."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    def make(self, number: int) -> Store:
        store = sqlite_store(f"{self.folder.name}/keys.db", 60.0, 100)
        self.run(store.open())
        return store

    def kill(self, store: Store) -> None:
        store._liveness.end()  # as the kernel does when a process ends

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


TestOneFile = OneFile.TestCase
TestOneFile.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_any_order_of_things_in_redis(redis: RedisServer) -> None:
    """Several guards at the same time, as replicas of a service are."""

    class OneRedis(Guards):
        def __init__(self) -> None:
            super().__init__()
            redis.ask("FLUSHALL")

        def make(self, number: int) -> Store:
            store = redis_store(redis)
            self.run(store.open())
            return store

        def kill(self, store: Store) -> None:
            redis.ask("DEL", store._alive)  # as it does by itself when nobody renews it

    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(OneRedis, settings=settings(max_examples=30, stateful_step_count=20, deadline=None))


# ---------------------------------------------------------------- when it cannot be used


async def test_services_do_not_see_each_other(redis: RedisServer) -> None:
    """The same key of two services is two keys."""
    stores = [redis_store(redis, service=name) for name in ("orders", "refunds")]
    for store in stores:
        assert await store.begin(KEY, b"f") is None
    for store in stores:
        await store.close()


async def test_a_redis_that_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While it is away every use fails, which is told once; afterwards it is used again, without a restart."""
    with redis_server(tmp_path) as server:
        store = redis_store(server)
        await store.open()
        assert await store.begin(KEY, b"f") is None
        server.stop()
        for _ in range(3):
            with pytest.raises(StoreError):
                await store.begin(KEY, b"f")
        told = [line for line in caplog.messages if "idempotency keys cannot be used" in line]
        assert len(told) == 1
        assert "redis.url" in told[0]
        server.start()
        assert await store.begin(KEY, b"f") is None
        await store.close()


async def test_a_password_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the log nor in what a call hears."""
    from outrider.controlplane.idempotency.redis import RedisStore

    pytest.importorskip("redis")
    for url in ("redis://user:hunter2@127.0.0.1:9/0", "redis://127.0.0.1:9/0?password=hunter2"):
        store = Guard(RedisStore(url, "payment", 60.0, 0.2))
        with pytest.raises(StoreError) as raised:
            await store.begin(KEY, b"f")
        await store.close()
        assert "hunter2" not in str(raised.value) + caplog.text
        assert "127.0.0.1:9" in str(raised.value)


async def test_a_full_redis_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is begun that could not be written down; one that would drop keys is warned of at the start."""
    with redis_server(tmp_path) as server:
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        server.ask("CONFIG", "SET", "maxmemory", "100mb")
        store = redis_store(server)
        await store.open()
        assert any("noeviction" in line for line in caplog.messages)
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.ask("CONFIG", "SET", "maxmemory", "1kb")
        with pytest.raises(StoreError, match="memory"):
            await store.begin(KEY, b"f")
        await store.close()


@pytest.mark.parametrize("junk", ["", "x", "d g.1\n{}\n", "r g.1\nnot json\n", 'd g.1\n{"fingerprint": "zz"}\nbody'])
async def test_somebody_elses_value(redis: RedisServer, junk: str) -> None:
    """A key of ours with something else in it is named, and is no answer."""
    store = redis_store(redis, service="junk")
    name = f"outrider:idempotency:junk:{KEY.hex()}"
    redis.ask("SET", name, junk)
    with pytest.raises(StoreError, match="delete it"):
        await store.begin(KEY, b"f")
    await store.close()


@pytest.mark.parametrize(
    "damage",
    ["UPDATE keyed_calls SET headers = 'x'", "UPDATE keyed_calls SET headers = '[1]'", "DROP TABLE keyed_calls"],
)
async def test_a_damaged_file(tmp_path: Path, damage: str) -> None:
    """Rows that cannot be read are no answers, and no bug."""
    file = tmp_path / "k.db"
    store = sqlite_store(str(file), 60.0, 10)
    await store.begin(KEY, b"f")
    await store.finish(KEY, ANSWER)
    with sqlite3.connect(file) as database:
        database.execute(damage)
    with pytest.raises(StoreError, match=r"k\.db"):
        await store.begin(KEY, b"f")
    await store.close()


async def test_what_may_have_begun_is_taken_back(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A begin whose answer got lost leaves no key behind that nobody works on."""
    from outrider.controlplane.idempotency import redis as module

    monkeypatch.setattr(module, "_ALIVE_EVERY", 0.01)
    store = redis_store(redis, service="unsure")
    script = store._begin_script

    async def unheard(**given: Any) -> None:
        await script(**given)
        raise TimeoutError

    store.store._begin_script = unheard
    for _ in range(2):  # the second time it finds what the first one has left
        with pytest.raises(StoreError):
            await store.begin(KEY, b"f")
    store.store._begin_script = script
    assert await store.begin(KEY, b"f") is not None
    watching = asyncio.create_task(store.watch())
    async with asyncio.timeout(5):
        while await store.begin(KEY, b"f") is not None:
            await asyncio.sleep(0.01)
    watching.cancel()
    await store.close()


# ---------------------------------------------------------------- room


async def fill(store: Store, caller: str, first: int, number: int, body: bytes = b"") -> None:
    for index in range(first, first + number):
        key = b"%024d" % index
        assert await store.begin(key, b"f", caller=caller) is None
        await store.finish(key, replace(ANSWER, body=body))


async def remembered(store: Store, first: int, number: int) -> int:
    """How many of these keys are known. Asking begins the others, so it is asked once."""
    known = [await store.begin(b"%024d" % index, b"f") for index in range(first, first + number)]
    return sum(entry is not None and entry.done for entry in known)


async def test_the_greediest_caller_gives_way(tmp_path: Path) -> None:
    """A caller with few keys keeps them, whatever another one does."""
    store = sqlite_store(str(tmp_path / "k.db"), 60.0, 50)
    await fill(store, "modest", 0, 5)
    await fill(store, "greedy", 100, 200)
    assert await store.clear_up() <= 50
    assert await remembered(store, 0, 5) == 5
    await store.close()


async def test_answers_are_bounded_in_bytes(tmp_path: Path) -> None:
    """Few large answers have no more room than many small ones; the modest caller's stay."""
    store = sqlite_store(str(tmp_path / "k.db"), 60.0, 10_000, 1_000_000)
    await fill(store, "modest", 0, 5, b"small")
    await fill(store, "greedy", 100, 40, bytes(100_000))
    await store.clear_up()
    assert await remembered(store, 0, 5) == 5
    with sqlite3.connect(tmp_path / "k.db") as database:
        (held,) = database.execute("SELECT sum(size) FROM keyed_calls").fetchone()
    assert held <= 1_000_000
    assert await remembered(store, 100, 40) == 40  # of those without room for their answers, that they were given
    last = await store.begin(b"%024d" % 139, b"f")
    assert (last.status, last.body) == (201, bytes(100_000))
    first = await store.begin(b"%024d" % 100, b"f")
    assert (first.status, first.body) == (201, ANSWER_NOT_KEPT)
    await store.close()


async def test_lost_calls_are_never_forgotten_for_want_of_room(tmp_path: Path) -> None:
    """They may have been executed. A caller that fills three quarters of the store with them gets no new ones; where
    all of it is full, no caller does, and the store says so."""
    store = sqlite_store(str(tmp_path / "k.db"), 60.0, 20)
    for index in range(20):
        caller = "greedy" if index < 15 else "other"
        assert await store.begin(b"%024d" % index, b"f", caller=caller) is None
        await store.finish(b"%024d" % index, Entry(b"f", lost=True))
        if index == 14:
            with pytest.raises(StoreError, match="15 calls of greedy") as raised:
                await store.begin(b"n" * 24, b"f", caller="greedy")
            assert raised.value.reason == "it is full"
            assert not store.trouble  # others are served
    with pytest.raises(StoreError, match="all of its 20 calls"):
        await store.begin(b"n" * 24, b"f", caller="other")
    await store.open()
    assert "it is full" in store.trouble
    first = await store.begin(b"%024d" % 0, b"f")
    assert first is not None
    assert first.lost
    await store.close()


async def test_a_late_answer_of_a_guard_that_was_taken_for_dead_is_kept(redis: RedisServer) -> None:
    """Its call was executed: the next repetition gets that answer, and is not executed once more."""
    dead, heir = redis_store(redis, service="late"), redis_store(redis, service="late")
    assert await dead.begin(KEY, b"f") is None
    redis.ask("DEL", dead._alive)
    lost = await heir.begin(KEY, b"f")
    assert lost.lost
    assert await heir.begin(KEY, b"f", lost.token) is None
    await heir.forget(KEY)
    await dead.finish(KEY, ANSWER)
    known = await heir.begin(KEY, b"f")
    assert (known.done, known.body) == (True, ANSWER.body)
    await dead.close()
    await heir.close()


async def test_a_file_of_an_earlier_version_is_used(tmp_path: Path) -> None:
    """Nothing in it is taken for one of ours, as its keys were made in another way; when its calls have expired, they
    are removed."""
    file = tmp_path / "k.db"
    with sqlite3.connect(file) as database:
        database.execute(
            "CREATE TABLE calls (name BLOB PRIMARY KEY, fingerprint BLOB NOT NULL, state INTEGER NOT NULL, "
            "owner TEXT NOT NULL, status INTEGER NOT NULL DEFAULT 0, headers TEXT NOT NULL DEFAULT '[]', "
            "body BLOB NOT NULL DEFAULT x'', expires REAL NOT NULL) WITHOUT ROWID"
        )
        database.execute("INSERT INTO calls VALUES (?, ?, 1, 'x', 200, '[]', x'00', 1)", (KEY, b"f"))
    store = sqlite_store(str(file), 60.0, 100)
    assert await store.begin(KEY, b"f") is None
    await store.finish(KEY, ANSWER)
    await store.clear_up()
    with sqlite3.connect(file) as database, pytest.raises(sqlite3.OperationalError, match="no such table"):
        database.execute("SELECT * FROM calls")
    assert (await store.begin(KEY, b"f")).body == ANSWER.body
    await store.close()


async def test_a_file_of_a_later_version_is_not_touched(tmp_path: Path) -> None:
    """It is named, and nothing is executed that may be in it."""
    file = tmp_path / "k.db"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    store = sqlite_store(str(file), 60.0, 100)
    with pytest.raises(StoreError, match="later version"):
        await store.begin(KEY, b"f")
    await store.close()


# ---------------------------------------------------------------- times, and files in trouble


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
async def test_steps_of_the_clock_neither_end_nor_prolong_anything(tmp_path: Path, step: float) -> None:
    """What is kept for a minute is kept for a minute, also by the next process on the file."""
    wall, since_boot = [1e9], [100.0]
    given = (str(tmp_path / "k.db"), 60.0, 100, 10_000, lambda: wall[0], lambda: since_boot[0])
    store = sqlite_store(*given)
    assert await store.begin(KEY, b"f") is None
    await store.finish(KEY, ANSWER)
    wall[0] += step
    since_boot[0] += 59
    for _ in range(2):
        known = await store.begin(KEY, b"f")
        assert (known.done, known.age) == (True, 59)
        await store.close()
        store = sqlite_store(*given)
    since_boot[0] += 2
    assert await store.begin(KEY, b"f") is None
    await store.close()


async def test_a_locked_file_makes_no_line(tmp_path: Path) -> None:
    """All who come are refused after the same short time, and not one after the other; then all is well again."""
    store = sqlite_store(str(tmp_path / "k.db"), 60.0, 100)
    await store.open()
    with sqlite3.connect(tmp_path / "k.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        began = monotonic()
        results = await asyncio.gather(
            *(store.begin(b"%024d" % number, b"f") for number in range(40)), return_exceptions=True
        )
        assert monotonic() - began < 2
        assert {(type(result), result.reason) for result in results} == {(StoreError, "it is locked")}
        other.execute("ROLLBACK")
    await asyncio.sleep(0.25)
    assert await store.begin(KEY, b"f") is None
    assert not store.trouble
    await store.close()


async def test_a_file_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call waits for a moment, later ones do not; what is begun too late is taken back."""
    monkeypatch.setattr("outrider.controlplane.idempotency.sqlite._PATIENCE", 0.05)
    store = sqlite_store(str(tmp_path / "k.db"), 60.0, 100)
    await store.open()
    go_on, begin = Event(), store._begin

    def hang(*given: Any) -> Any:
        go_on.wait(10)
        return begin(*given)

    store.store._begin = hang
    with pytest.raises(StoreError, match="does not answer"):
        await store.begin(KEY, b"f")
    with pytest.raises(StoreError, match="its disk does not answer"):
        await store.begin(b"o" * 24, b"f")
    assert store._worker._queue.empty()  # it does not even stand in line
    assert store.trouble
    monkeypatch.setattr("outrider.controlplane.idempotency.sqlite._PATIENCE", 5.0)
    go_on.set()
    async with asyncio.timeout(5):
        while store.trouble or await store.begin(KEY, b"f") is not None:
            await store.open()
    await store.close()


@pytest.mark.parametrize("how", ["overwritten", "emptied", "its log removed", "the sign of life removed"])
async def test_a_file_that_is_damaged_while_it_is_open(tmp_path: Path, how: str) -> None:
    """Nothing is begun that another process would not see; when it has been moved away, a new one is begun."""
    file = tmp_path / "k.db"
    store = sqlite_store(str(file), 60.0, 100)
    assert await store.begin(KEY, b"f") is None
    await store.finish(KEY, ANSWER)
    if how == "overwritten":
        file.write_bytes(b"no database" * 1000)
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "its log removed":
        Path(f"{file}-wal").unlink()
    else:
        store._liveness.file.unlink()
    await store.open()  # as it looks every two seconds
    if store.trouble:
        for one in tmp_path.glob("k.db*"):
            one.rename(tmp_path / f"away-{one.name}")
        await store.open()
    assert not store.trouble
    await store.begin(b"o" * 24, b"f")
    other = sqlite_store(str(file), 60.0, 100)
    known = await other.begin(b"o" * 24, b"f")
    assert known is not None
    assert not known.lost
    await store.close()
    await other.close()


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """Answers that were kept are given, nothing new is begun, and all is well again when there is room."""
    store = sqlite_store(str(tmp_path / "k.db"), 60.0, 1000)
    assert await store.begin(KEY, b"f") is None
    await store.finish(KEY, ANSWER)
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")

    async def fill_it() -> None:
        for index in range(200):
            await store.begin(b"%024d" % index, b"f" * 200)

    with pytest.raises(StoreError) as raised:
        await fill_it()
    assert raised.value.reason == "its disk is full"
    assert store.trouble
    assert (await store.begin(KEY, b"f")).body == ANSWER.body
    assert store.trouble  # which says nothing about the disk
    store._database.execute("PRAGMA max_page_count = 100000")
    await store.open()
    assert not store.trouble
    await store.close()


@pytest.mark.parametrize("all_of_it", [True, False])
async def test_a_file_that_is_removed_under_two_guards(tmp_path: Path, all_of_it: bool) -> None:
    """Both notice it, agree on a new one, and what they are at is in it."""
    one, other = (sqlite_store(str(tmp_path / "k.db"), 60.0, 100) for _ in range(2))
    assert await one.begin(b"1" * 24, b"f") is None
    assert await other.begin(b"2" * 24, b"f") is None
    for file in tmp_path.glob("k.db*") if all_of_it else [tmp_path / "k.db"]:
        file.unlink()
    for _ in range(3):  # as they look every two seconds
        await one.open()
        await other.open()
    assert (one.trouble, other.trouble) == ("", "")
    for store, key in ((one, b"2" * 24), (other, b"1" * 24)):
        known = await store.begin(key, b"f")
        assert known is not None
        assert not known.lost
    await one.finish(b"1" * 24, ANSWER)
    assert (await other.begin(b"1" * 24, b"f")).done
    await one.close()
    await other.close()
