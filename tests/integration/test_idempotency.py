"""Keyed calls run once: through an outbound sidecar that mints the key, and a guard that remembers it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic, time
from typing import Any

import jwt
import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    Answer,
    Client,
    Exchange,
    Seen,
    Sidecar,
    Target,
    chunked,
    eventually,
    exchange,
    get,
    plain,
    raw,
    request,
    reset_unanswered,
    response,
    silent,
    slow,
)
from tests.servers import RedisServer, redis_server

GUARD = """
inbound:
  listen: 127.0.0.1:0
  app: '{app}'
  protect: []
  idempotency: {{ store: '{store}', {more} }}
services: {{ other: 'http://127.0.0.1:9' }}
"""


def guard(app: Target, store: Path, more: str = "ttl: 1h") -> str:
    return GUARD.format(app=app.url, store=store, more=more)


def post(key: str | None, body: bytes = b"charge", path: str = "/payments", *lines: str) -> bytes:
    keyed = (f"Idempotency-Key: {key}",) if key is not None else ()
    return request("POST", path, body, *keyed, *lines)


async def test_a_repetition_is_answered_from_memory(outrider: Outrider, tmp_path: Path) -> None:
    """The same status, fields and body as the first time, marked as a replay; the app hears of it once."""
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        app.script(plain(201, b"paid 1", "X-Receipt: r1", f"Location: {app.url}/payments/1"))
        inbound = proxy.app.ports["inbound.listen"]
        first = await exchange(inbound, post("a"))
        again = await exchange(inbound, post("a"))
        assert (first.status, first.body) == (again.status, again.body) == (201, b"paid 1")
        assert again.get("x-receipt") == "r1"
        assert (first.get("location"), again.get("location")) == ("/payments/1", "/payments/1")
        assert (first.get("idempotent-replayed"), again.get("idempotent-replayed")) == (None, "true")
        assert len(app.seen) == 1


@pytest.mark.parametrize(
    "other",
    [post("b"), post("a", path="/refunds"), post(None), request("PATCH", "/payments", b"charge", "Idempotency-Key: a")],
    ids=["key", "path", "without", "method"],
)
async def test_another_call_is_another_call(outrider: Outrider, tmp_path: Path, other: bytes) -> None:
    """Key, path and method together make a call; without a key nothing is remembered."""
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        for data in (post("a"), other):
            assert (await exchange(inbound, data)).get("idempotent-replayed") is None
        assert len(app.seen) == 2


async def test_another_body_is_a_mistake(outrider: Outrider, tmp_path: Path) -> None:
    """A key that comes with another payload is 422, and nothing is executed."""
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post("a", b"10 EUR"))
        answer = await exchange(inbound, post("a", b"99 EUR"))
        assert answer.status == 422
        assert json.loads(answer.body)["error"] == "KEY_REUSED"
        assert len(app.seen) == 1


async def test_what_is_under_way_is_not_begun_again(outrider: Outrider, tmp_path: Path) -> None:
    """While the first call runs, a second one is 409 with the time to come back; afterwards it gets the answer."""
    async with Target(slow(0.2, plain(200, b"paid"))) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        first = asyncio.create_task(exchange(inbound, post("a")))
        await eventually(lambda: len(app.seen) == 1, "the first is at the app")
        second = await exchange(inbound, post("a"))
        assert (second.status, second.get("retry-after")) == (409, "1")
        assert (await first).body == b"paid"
        assert (await exchange(inbound, post("a"))).body == b"paid"
        assert len(app.seen) == 1


async def test_a_failure_of_the_app_may_be_tried_again(outrider: Outrider, tmp_path: Path) -> None:
    """A 5xx is passed on and forgotten; a 4xx is an answer like any other."""
    script = [plain(503), plain(200, b"paid"), plain(402, b"no money")]
    async with Target(script) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        assert (await exchange(inbound, post("a"))).status == 503
        assert (await exchange(inbound, post("a"))).body == b"paid"
        assert (await exchange(inbound, post("b"))).status == 402
        assert (await exchange(inbound, post("b"))).get("idempotent-replayed") == "true"
        assert len(app.seen) == 3


async def test_a_caller_that_leaves_does_not_stop_it(outrider: Outrider, tmp_path: Path) -> None:
    """The app finishes what has begun, and whoever comes back with the key gets its answer."""
    async with Target(slow(0.15, plain(200, b"paid"))) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        async with Client(inbound) as client:
            await client.send(post("a"))
            await eventually(lambda: len(app.seen) == 1, "it is at the app")
        done = proxy.app.runtime.compiled.idempotency
        assert done is not None

        async def answered() -> Answer:
            while (answer := await exchange(inbound, post("a"))).status == 409:
                await asyncio.sleep(0.02)
            return answer

        answer = await asyncio.wait_for(answered(), 3)
        assert (answer.status, answer.body, answer.get("idempotent-replayed")) == (200, b"paid", "true")
        assert len(app.seen) == 1


async def test_the_deadline_of_a_caller_does_not_stop_it(outrider: Outrider, tmp_path: Path) -> None:
    """A call whose caller gives it 50 ms is answered when the app is done; nothing is executed twice."""
    async with Target(slow(0.15, plain(200, b"paid"))) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        answer = await exchange(
            proxy.app.ports["inbound.listen"], post("a", b"x", "/payments", "X-Request-Timeout-Ms: 50")
        )
        assert answer.body == b"paid"
        assert len(app.seen) == 1


async def test_answers_outlive_the_guard(outrider: Outrider, tmp_path: Path) -> None:
    """After a restart the repetition is still answered from memory."""
    async with Target(plain(200, b"paid")) as app:
        for replayed in (None, "true"):
            async with outrider(guard(app, tmp_path / "k.db")) as proxy:
                answer = await exchange(proxy.app.ports["inbound.listen"], post("a"))
                assert (answer.body, answer.get("idempotent-replayed")) == (b"paid", replayed)
        assert len(app.seen) == 1


@pytest.mark.parametrize(("more", "status", "executed"), [("", 409, 1), ("after_crash: repeat", 200, 2)])
async def test_what_a_crash_left_behind(
    outrider: Outrider, tmp_path: Path, more: str, status: int, executed: int
) -> None:
    """A call that was under way when its guard was killed is not executed again, unless the app knows repetitions."""
    store = tmp_path / "k.db"
    async with Target(plain(200, b"paid")) as app:
        async with outrider(guard(app, store, more)) as proxy:
            await exchange(proxy.app.ports["inbound.listen"], post("a"))
        with sqlite3.connect(store) as database:  # as a process leaves it that is killed in the middle
            database.execute("UPDATE keyed_calls SET state = 0, token = 'gone.1', body = x'', size = 0")
        async with outrider(guard(app, store, more)) as proxy:
            answer = await exchange(proxy.app.ports["inbound.listen"], post("a"))
        assert answer.status == status
        assert len(app.seen) == executed


@pytest.mark.parametrize(("more", "status"), [("on_error: refuse", 503), ("on_error: pass", 200)])
async def test_a_corrupt_store_is_told(
    outrider: Outrider, tmp_path: Path, caplog: pytest.LogCaptureFixture, more: str, status: int
) -> None:
    """Keyed calls are refused, or pass unremembered, as the configuration says; others pass; the log names the file."""
    store = tmp_path / "k.db"
    store.write_bytes(b"this is no database" * 100)
    async with Target(plain()) as app, outrider(guard(app, store, more)) as proxy:
        proxy.expected_errors.append("store of idempotency keys")
        inbound = proxy.app.ports["inbound.listen"]
        assert (await exchange(inbound, post("a"))).status == status
        assert (await exchange(inbound, get("/x"))).status == 200
        assert [str(store) in line for line in caplog.messages if "store of idempotency keys" in line] == [True]
    assert store.read_bytes().startswith(b"this is no database")


async def test_exempt_operations_are_not_stored(outrider: Outrider, tmp_path: Path) -> None:
    """What must not be written down is executed every time, however its path is spelled."""
    more = "exempt: ['POST /Login/']"
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "k.db", more)) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        for path in ("/login", "/LOGIN", "/%6cogin", "/login/"):
            for _ in range(2):
                assert (await exchange(inbound, post("a", b"password", path))).get("idempotent-replayed") is None
        assert len(app.seen) == 8


async def test_entries_expire(outrider: Outrider, tmp_path: Path) -> None:
    """After its time a key is new again."""
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "k.db", "ttl: 50ms")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post("a"))
        began = time()
        while time() < began + 0.08:
            await asyncio.sleep(0.01)
        assert (await exchange(inbound, post("a"))).get("idempotent-replayed") is None
        assert len(app.seen) == 2


# ---------------------------------------------------------------- several guards, one memory


SHARED = """
redis: {{ url: '{redis}' }}
inbound:
  listen: 127.0.0.1:0
  app: '{app}'
  protect: []
  idempotency: {{ store: redis, {more} }}
services: {{ other: 'http://127.0.0.1:9' }}
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def test_replicas_remember_together(outrider: Outrider, redis: RedisServer) -> None:
    """What one guard has begun another one does not begin, and what one has heard the other one answers."""
    async with Target(slow(0.1, plain(201, b"paid", "X-Receipt: r1"))) as app:
        text = SHARED.format(redis=redis.url, app=app.url, more="ttl: 1h")
        async with outrider(text) as one, outrider(text) as other:
            first = asyncio.create_task(exchange(one.app.ports["inbound.listen"], post("a")))
            await eventually(lambda: len(app.seen) == 1, "the first is at the app")
            meanwhile = await exchange(other.app.ports["inbound.listen"], post("a"))
            assert (meanwhile.status, meanwhile.get("retry-after")) == (409, "1")
            assert (await first).body == b"paid"
            remembered = one.app.runtime.compiled.idempotency
            assert remembered is not None
            await remembered.policy.settle()  # it is written down beside the call
            again = await exchange(other.app.ports["inbound.listen"], post("a"))
            assert (again.status, again.body, again.get("x-receipt")) == (201, b"paid", "r1")
            assert again.get("idempotent-replayed") == "true"
            assert (await exchange(other.app.ports["inbound.listen"], post("a", b"more"))).status == 422
        assert len(app.seen) == 1


@pytest.mark.parametrize(("more", "status"), [("on_error: refuse", 503), ("on_error: pass", 200)])
async def test_without_redis(outrider: Outrider, redis: RedisServer, more: str, status: int) -> None:
    """Keyed calls are refused or pass unremembered, others pass; when Redis is back, so is the memory."""
    async with Target(plain()) as app, outrider(SHARED.format(redis=redis.url, app=app.url, more=more)) as proxy:
        proxy.expected_errors.append("store of idempotency keys")
        inbound = proxy.app.ports["inbound.listen"]
        redis.stop()
        assert (await exchange(inbound, post("a"))).status == status
        assert (await exchange(inbound, get("/x"))).status == 200
        redis.start()
        for replayed in (None, "true"):
            assert (await exchange(inbound, post("b"))).get("idempotent-replayed") == replayed


async def test_the_call_of_a_dead_replica_is_lost(outrider: Outrider, redis: RedisServer) -> None:
    """A guard that shows no sign of life is not waited for; one that does is."""
    async with Target([silent, plain(200, b"paid")]) as app:
        text = SHARED.format(redis=redis.url, app=app.url, more="after_crash: repeat")
        async with outrider(text) as one, outrider(text) as other, Client(one.app.ports["inbound.listen"]) as client:
            await client.send(post("a"))
            await eventually(lambda: len(app.seen) == 1, "the first is at the app")
            port = other.app.ports["inbound.listen"]
            assert (await exchange(port, post("a"))).status == 409
            keys = redis.ask("EVAL", "return redis.call('DEL', unpack(redis.call('KEYS', '*alive*')))", "0")
            assert keys == b":2\r\n"
            assert (await exchange(port, post("a"))).body == b"paid"
            app.close_idle()
        assert len(app.seen) == 2


# ---------------------------------------------------------------- lost calls, and an app that keeps account


class Ledger:
    """An app that executes POSTs by their key, and tells what it has answered to a key. It has no idea of repetitions:
    what is sent twice is executed twice. `about` are its answers about keys, if not the true ones."""

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()
        self.answers: dict[str, bytes] = {}
        self.about: list[Action] = []
        self.asked: list[Seen] = []

    async def __call__(self, one: Exchange) -> None:
        body = await one.body()
        seen = one.request
        if seen.method == "GET":
            self.asked.append(seen)
            if self.about:
                await self.about.pop(0)(one)
                return
            key = seen.path.rpartition("/")[2]
            known = self.answers.get(key)
            await one.send(response(404, b"unknown") if known is None else response(201, known, "X-Receipt: r1"))
            return
        key = seen.get("idempotency-key") or ""
        self.executed[key] += 1
        self.answers[key] = body
        await one.send(response(201, body, "X-Receipt: r1"))


ASK = "after_crash: ask, ask: '/executions/{key}'"


def lose(store: Path) -> None:
    """Leave the store as a guard does that is killed in the middle of its calls, some time ago."""
    with sqlite3.connect(store) as database:
        database.execute("UPDATE keyed_calls SET state = 0, token = 'gone.1', body = x'', size = 0, since = since - 60")


@pytest.mark.parametrize("executed", [True, False])
async def test_the_app_is_asked_about_a_lost_call(outrider: Outrider, tmp_path: Path, executed: bool) -> None:
    """What it has executed it answers again, as if nothing had happened; what it has not is executed now."""
    ledger, store = Ledger(), tmp_path / "k.db"
    async with Target(ledger) as app, outrider(guard(app, store, ASK)) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post("a/b?c", b"charge"))
        lose(store)
        if not executed:
            ledger.executed.clear()
            ledger.answers.clear()
        else:
            ledger.answers = {"a%2Fb%3Fc": b"charge"}
        for _ in range(2):
            answer = await exchange(inbound, post("a/b?c", b"charge"))
            assert (answer.status, answer.body, answer.get("x-receipt")) == (201, b"charge", "r1")
        assert answer.get("idempotent-replayed") == "true"
        assert list(ledger.executed.values()) == [1]
        (asked,) = ledger.asked
        assert (asked.path, asked.get("idempotency-key")) == ("/executions/a%2Fb%3Fc", "a/b?c")
        counts = proxy.app.runtime.compiled.idempotency
        assert counts is not None
        assert counts.policy.counts["recovered" if executed else "repeated"] == 1


DONT_KNOW = [
    pytest.param(plain(401), id="who are you"),
    pytest.param(plain(403), id="not you"),
    pytest.param(plain(302, b"", "Location: /elsewhere"), id="elsewhere"),
    pytest.param(plain(503), id="503"),
    pytest.param(plain(409), id="still at it"),
    pytest.param(reset_unanswered, id="reset"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npa", then="close"), id="cut"),
    pytest.param(raw(b"HTTP/1.1 201 Made\r\ncontent-le", then="close"), id="cut in its head"),
    pytest.param(raw(b"HTTP/1.1 404 Not Found\r\ncontent-le", then="close"), id="no, cut in its head"),
    pytest.param(raw(b"HTTP/1.1 201 Made\r\n\r\ncharge", then="close"), id="of no length"),
    pytest.param(plain(200, b"x" * 2000), id="larger than max_answer"),
]


@pytest.mark.parametrize("about", DONT_KNOW)
async def test_an_app_that_cannot_say(outrider: Outrider, tmp_path: Path, about: Action) -> None:
    """Nothing is executed meanwhile; the caller is told when to come back, and then there is an answer."""
    ledger, store = Ledger(), tmp_path / "k.db"
    ledger.about = [about]
    async with Target(ledger) as app, outrider(guard(app, store, f"{ASK}, max_answer: 1KiB")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post("a"))
        lose(store)
        answer = await exchange(inbound, post("a"))
        assert (answer.status, answer.get("retry-after")) == (409, "1")
        assert "not known" in json.loads(answer.body)["detail"]
        assert (await exchange(inbound, post("a"))).body == b"charge"
        assert ledger.executed == {"a": 1}


async def test_a_call_may_still_be_on_its_way(outrider: Outrider, tmp_path: Path) -> None:
    """Right after the connection to the app broke it is not asked: what it has not got yet it may still get."""
    ledger = Ledger()

    async def break_off(one: Exchange) -> None:
        await one.body()
        one.reset()
        app.script(ledger)

    async with Target(break_off) as app, outrider(guard(app, tmp_path / "k.db", ASK)) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        assert (await exchange(inbound, post("a"))).status == 502
        assert (await exchange(inbound, post("a"))).status == 409
        assert not ledger.asked
        began = monotonic()
        while (answer := await exchange(inbound, post("a"))).status == 409:
            assert monotonic() < began + 3
            await asyncio.sleep(0.05)
        assert answer.status == 201
        assert ledger.executed == {"a": 1}


async def test_a_failure_is_not_believed_where_the_app_can_be_asked(outrider: Outrider, tmp_path: Path) -> None:
    """A 503 may come from something in between that has passed the call on."""
    ledger = Ledger()

    async def executed_and_denied(one: Exchange) -> None:
        ledger.executed["a"] += 1
        ledger.answers["a"] = await one.body()
        app.script(ledger)
        await one.send(response(503))

    async with Target(executed_and_denied) as app, outrider(guard(app, tmp_path / "k.db", ASK)) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        assert (await exchange(inbound, post("a"))).status == 503
        await asyncio.sleep(0.55)
        assert (await exchange(inbound, post("a"))).body == b"charge"
        assert ledger.executed == {"a": 1}


async def test_the_guard_itself_repeats_nothing(outrider: Outrider, tmp_path: Path) -> None:
    """A kept connection that turns out to be dead may have delivered the call: the app knows no keys, so it is not sent
    again."""
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post("a"))
        app.script([plain(), reset_unanswered, plain()])
        assert (await exchange(inbound, post("b"))).status == 502
        assert (await exchange(inbound, post("b"))).status == 409
        assert [seen.get("idempotency-key") for seen in app.seen] == ["a", "b"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_the_guard_sends_no_request_twice(outrider: Outrider, tmp_path: Path, method: str) -> None:
    """Not even one of an idempotent method: what a broken kept connection has taken may have been executed, and the
    attempts that are counted are those that the app has seen."""
    async with Target([plain(), reset_unanswered, plain()]) as app:
        async with outrider(guard(app, tmp_path / "k.db")) as proxy:
            inbound = proxy.app.ports["inbound.listen"]
            assert (await exchange(inbound, get("/x"))).status == 200
            assert (await exchange(inbound, request(method, "/x"))).status == 502
            stats = next(one.stats for one in proxy.app.runtime.compiled.clusters if one.name == "_app")
            assert sum(stats.attempts.values()) == len(app.seen) == 2


async def test_the_app_hears_who_asks_and_for_whom(outrider: Outrider, tmp_path: Path) -> None:
    """What one user is answered says nothing to the next one, and nothing comes back that the caller could not read."""
    ledger, store = Ledger(), tmp_path / "k.db"
    ledger.about = [plain(200, b"alice", "Set-Cookie: session=alice"), plain(200, b"bob")]
    async with Target(ledger) as app:
        text = guard(app, store, ASK).replace("127.0.0.1:" + str(app.port), f"localhost:{app.port}")
        async with outrider(text) as proxy:
            inbound = proxy.app.ports["inbound.listen"]
            for user in ("alice", "bob"):
                data = post(f"of-{user}", b"charge", "/payments", f"Authorization: Bearer {user}")
                await exchange(inbound, data)
                lose(store)
                assert (await exchange(inbound, data)).body == user.encode()
    assert [one.get("authorization") for one in ledger.asked] == ["Bearer alice", "Bearer bob"]
    assert [one.get("cookie") for one in ledger.asked] == [None, None]
    assert {one.get("x-outrider-operation") for one in ledger.asked} == {"POST /payments"}
    assert {one.get("accept-encoding") for one in ledger.asked} == {"identity"}


@pytest.mark.parametrize("key", ["..", "../admin", "..%2fadmin", "a/../../admin", "../executions-of-others"])
async def test_a_key_leads_nowhere_else(outrider: Outrider, tmp_path: Path, key: str) -> None:
    """A caller cannot make the guard ask the app for something that the caller may not see."""
    ledger, store = Ledger(), tmp_path / "k.db"
    async with Target(ledger) as app, outrider(guard(app, store, ASK)) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post(key))
        lose(store)
        assert (await exchange(inbound, post(key))).status == 409
    assert not ledger.asked


async def test_a_word_on_importance_makes_no_other_call(outrider: Outrider, tmp_path: Path) -> None:
    """The first try may have been part of something that nobody needed; the repetition is the same call."""
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post("a", b"charge", "/payments", "X-Outrider-Critical: false"))
        assert (await exchange(inbound, post("a"))).get("idempotent-replayed") == "true"
        assert len(app.seen) == 1


async def test_large_bodies_that_are_kept_are_read_to_their_end(outrider: Outrider, tmp_path: Path) -> None:
    """A key is compared by the whole body, so nobody waits for a part of it to be sent first."""
    async with Target(plain(200, b"paid")) as app:
        text = "limits: { replay_bytes: 1MiB }\n" + guard(app, tmp_path / "k.db")
        async with outrider(text) as proxy:
            inbound = proxy.app.ports["inbound.listen"]
            for body, replayed in ((b"x" * 900_000, None), (b"x" * 900_000, "true")):
                answer = await exchange(inbound, post("a", body))
                assert (answer.status, answer.get("idempotent-replayed")) == (200, replayed)
            assert (await exchange(inbound, post("a", b"y" * 900_000))).status == 422


async def test_a_caller_that_leaves_after_a_large_upload_does_not_stop_it(outrider: Outrider, tmp_path: Path) -> None:
    """What is too large to be kept for another try is executed all the same, and answered to who comes back."""
    async with Target(slow(0.15, plain(200, b"paid"))) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        async with Client(inbound) as client:
            await client.send(post("a", b"x" * 200_000))
            await eventually(lambda: app.seen and app.seen[0].complete, "all of it is at the app")
        await eventually(lambda: not app.busy, "it is done")
        answer = await exchange(inbound, post("a", b"x" * 200_000))
        assert (answer.status, answer.body, answer.get("idempotent-replayed")) == (200, b"paid", "true")
        assert len(app.seen) == 1


async def test_a_call_without_a_caller_ends(outrider: Outrider, tmp_path: Path) -> None:
    """One whose caller gave no deadline and has left is not waited for for ever."""
    async with Target(silent) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        async with Client(proxy.app.ports["inbound.listen"]) as client:
            await client.send(post("a"))
            await eventually(lambda: app.seen, "it is at the app")
            (connection,) = (one for one in proxy.app.runtime.proxy.connections if one.active is not None)
            call = connection.active
            assert call is not None
            assert call.deadline == float("inf")
        await eventually(lambda: call.deadline < float("inf"), "its caller is missed")
        assert call.attempt is not None
        assert call.attempt.connection is not None
        assert 290 < call.attempt.connection.due - monotonic() <= 300
        app.close_idle()


async def test_what_is_asked_for_a_keyed_call_goes_on_with_it(outrider: Outrider, tmp_path: Path) -> None:
    """The app's own calls are not cut off at the deadline of a caller whose call runs to its end."""

    async def asking(one: Exchange) -> None:
        await one.body()
        await asyncio.sleep(0.1)
        trace = one.request.get("traceparent")
        answer = await exchange(proxy.port, get("/other/x", f"Traceparent: {trace}"))
        await one.send(response(answer.status, answer.body))

    async with Target(asking) as app, Target(plain(200, b"paid")) as other:
        text = guard(app, tmp_path / "k.db").replace("http://127.0.0.1:9", other.url)
        async with outrider(text) as proxy:
            data = post("a", b"x", "/payments", "X-Request-Timeout-Ms: 50")
            assert (await exchange(proxy.app.ports["inbound.listen"], data)).body == b"paid"


# ---------------------------------------------------------------- who shares a key, and what is the same call

KEY = "the-key-of-this-platform-0123456789"
PROVEN = """
service: {service}
inbound:
  listen: 127.0.0.1:0
  app: '{app}'
  protect: [/internal]
  accept:
    - {{ header: x-api-key, values: [{key}] }}
    - {{ jwt: {{ alg: HS256, key: {key}, audience: "{{service}}" }}, forward: true }}
  idempotency: {{ store: '{store}', {more} }}
services: {{ other: 'http://127.0.0.1:9' }}
"""
INTERNAL = "/internal/payments"


def proven(app: Target, store: Path, *, service: str = "payment", more: str = "ttl: 1h") -> str:
    return PROVEN.format(app=app.url, store=store, service=service, key=KEY, more=more)


def by_key(*lines: str) -> tuple[str, ...]:
    return (f"x-api-key: {KEY}", "x-service-name: booking", *lines)


def token(number: int) -> str:
    claims = {"iss": "booking", "aud": "payment", "iat": int(time()), "exp": int(time()) + 60, "jti": str(number)}
    return f"Authorization: Bearer {jwt.encode(claims, KEY, 'HS256')}"


async def test_services_that_share_a_store_do_not_share_keys(outrider: Outrider, tmp_path: Path) -> None:
    """A refund is executed although a payment at another service had the same key, path and caller."""
    store = tmp_path / "k.db"
    answers = []
    for service in ("payment", "refund", "payment"):
        async with Target(plain(200, service.encode())) as app, outrider(proven(app, store, service=service)) as proxy:
            answer = await exchange(proxy.app.ports["inbound.listen"], post("k", b"x", INTERNAL, *by_key()))
            answers.append((answer.body, len(app.seen)))
    assert answers == [(b"payment", 1), (b"refund", 1), (b"payment", 0)]


async def test_replicas_of_one_caller_share_its_keys(outrider: Outrider, tmp_path: Path) -> None:
    """The instance that repeats a call, or an id it makes for each request, does not make it another call."""
    async with Target(plain(200, b"paid")) as app, outrider(proven(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        for number in range(3):
            data = post("k", b"x", INTERNAL, *by_key(f"x-service-id: booking-{number}"))
            assert (await exchange(inbound, data)).body == b"paid"
        assert len(app.seen) == 1


async def test_a_refreshed_token_of_the_caller_makes_no_other_call(outrider: Outrider, tmp_path: Path) -> None:
    """The proof of the caller is no part of a call, even where the app gets to see it."""
    async with Target(plain(200, b"paid")) as app, outrider(proven(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        for number in range(3):
            assert (await exchange(inbound, post("k", b"x", INTERNAL, token(number)))).body == b"paid"
        assert len(app.seen) == 1
        assert app.seen[0].get("authorization") is not None


async def test_a_token_is_a_proof_also_beside_a_key(outrider: Outrider, tmp_path: Path) -> None:
    """A caller that shows two proofs, of which the first is taken, may refresh the other one."""
    async with Target(plain(200, b"paid")) as app, outrider(proven(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        for number in range(3):
            assert (await exchange(inbound, post("k", b"x", INTERNAL, *by_key(token(number))))).body == b"paid"
        assert len(app.seen) == 1


@pytest.mark.parametrize("field", ["Authorization: Bearer bob", "Cookie: session=bob"])
async def test_other_credentials_of_a_user_get_no_answer(outrider: Outrider, tmp_path: Path, field: str) -> None:
    """A refreshed token of one user cannot be told from another user's: neither a replay nor a second execution."""
    async with Target(plain(200, b"paid by alice")) as app, outrider(proven(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        first = field.replace("bob", "alice")
        for _ in range(2):
            assert (await exchange(inbound, post("k", b"x", INTERNAL, *by_key(first)))).status == 200
        assert (await exchange(inbound, post("k", b"x", INTERNAL, *by_key(field)))).status == 422
        assert len(app.seen) == 1


async def test_users_of_one_caller_have_keys_of_their_own(outrider: Outrider, tmp_path: Path) -> None:
    """Two users that a proven caller names may have the same key."""
    async with Target(plain(200, b"paid")) as app, outrider(proven(app, tmp_path / "k.db")) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        for user in ("alice", "bob", "alice"):
            assert (await exchange(inbound, post("k", b"x", INTERNAL, *by_key(f"x-user-id: {user}")))).status == 200
        assert len(app.seen) == 2


@pytest.mark.parametrize("chunks", [False, True])
async def test_a_large_body_is_compared_to_its_last_byte(outrider: Outrider, tmp_path: Path, chunks: bool) -> None:
    """Another body with the same key is a mistake, and never a replay, however late it differs."""

    def upload(body: bytes) -> bytes:
        if not chunks:
            return post("k", body, INTERNAL, *by_key())
        lines = (*by_key(), "Idempotency-Key: k", "Transfer-Encoding: chunked")
        return request("POST", INTERNAL, None, *lines) + chunked(*filter(None, (body[:1000], body[1000:])))

    same = b"A" * 200_000
    others = (same[:-1] + b"B", same + b"A", same[:-1], b"B" * 200_000, b"B")
    async with Target(plain(200, b"paid")) as app, outrider(proven(app, tmp_path / "k.db")) as proxy:
        async with Client(proxy.app.ports["inbound.listen"]) as client:
            assert (await client.call(upload(same))).body == b"paid"
            for other in others:
                assert (await client.call(upload(other))).status == 422
            answer = await client.call(upload(same))
            assert (answer.status, answer.get("idempotent-replayed")) == (200, "true")
        assert len(app.seen) == 1
        assert app.seen[0].body == same


async def test_a_large_body_that_waits_for_leave_is_compared_too(outrider: Outrider, tmp_path: Path) -> None:
    """A caller that sends its body only after 100 Continue, as curl does, gets that for the repetition, too."""
    async with Target(plain(200, b"paid")) as app, outrider(proven(app, tmp_path / "k.db")) as proxy:
        for last, status in ((b"A", 200), (b"B", 422)):
            data = post("k", b"A" * 199_999 + last, INTERNAL, *by_key("Expect: 100-continue"))
            head, _, body = data.partition(b"\r\n\r\n")
            async with Client(proxy.app.ports["inbound.listen"]) as client:
                await client.send(head + b"\r\n\r\n")
                assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
                await client.send(body)
                assert (await client.answer("POST")).status == status
        assert len(app.seen) == 1


async def test_strangers_use_up_nothing(outrider: Outrider, tmp_path: Path) -> None:
    """However many keys strangers send to public paths, a proven caller's call is not executed again."""
    async with Target(plain(200, b"paid")) as app:
        async with outrider(proven(app, tmp_path / "k.db", more="max_entries: 50")) as proxy:
            async with Client(proxy.app.ports["inbound.listen"]) as client:
                await client.call(post("k", b"x", INTERNAL, *by_key()))
                for number in range(120):
                    assert (await client.call(post(f"s{number}", b"x", "/public"))).get("idempotent-replayed") is None
                again = await client.call(post("k", b"x", INTERNAL, *by_key()))
                assert again.get("idempotent-replayed") == "true"
        assert len(app.seen) == 121


async def test_a_caller_with_many_names_has_one_share(outrider: Outrider, tmp_path: Path) -> None:
    """Who holds the shared key and calls itself differently each time takes nothing from a caller with a token."""
    async with Target(plain(200, b"paid")) as app:
        async with outrider(proven(app, tmp_path / "k.db", more="max_entries: 50")) as proxy:
            async with Client(proxy.app.ports["inbound.listen"]) as client:
                for number in range(10):
                    await client.call(post(f"k{number}", b"x", INTERNAL, token(1)))
                for number in range(100):
                    name = (f"x-api-key: {KEY}", f"x-service-name: name-{number}")
                    assert (await client.call(post(f"s{number}", b"x", INTERNAL, *name))).status == 200
                again = [await client.call(post(f"k{number}", b"x", INTERNAL, token(1))) for number in range(10)]
                assert {answer.get("idempotent-replayed") for answer in again} == {"true"}
        assert len(app.seen) == 110


# ---------------------------------------------------------------- stores in trouble


async def readiness(proxy: Sidecar) -> Answer:
    return await exchange(proxy.telemetry, get("/readyz", "Connection: close", host="127.0.0.1"))


async def test_a_locked_store_refuses_at_once_and_says_why(outrider: Outrider, tmp_path: Path) -> None:
    """Many keyed calls at a locked store do not wait in a line; readiness and answer name the store; all is well again
    when the lock is gone."""
    store = tmp_path / "k.db"
    async with Target(plain(200, b"paid")) as app, outrider(guard(app, store)) as proxy:
        proxy.expected_errors.append("store of idempotency keys")
        inbound = proxy.app.ports["inbound.listen"]
        assert (await exchange(inbound, post("a"))).status == 200
        with closing(sqlite3.connect(store, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = monotonic()
            answers = await asyncio.gather(*(exchange(inbound, post(f"k{number}")) for number in range(12)))
            assert monotonic() - began < 3
            assert {answer.status for answer in answers} == {503}
            assert all(b"STORE_UNAVAILABLE" in answer.body for answer in answers)
            ready = await readiness(proxy)
            assert (ready.status, b"store of idempotency keys" in ready.body) == (503, True)
            other.execute("ROLLBACK")
        await asyncio.sleep(0.25)  # in which nothing tries the lock again
        assert (await exchange(inbound, post("k"))).status == 200
        assert (await readiness(proxy)).status == 200
        assert len(app.seen) == 2


async def test_a_damaged_store_that_is_moved_away_is_replaced(outrider: Outrider, tmp_path: Path) -> None:
    """The remedy that the log names works without a restart."""
    store = tmp_path / "k.db"
    store.write_bytes(b"this is no database" * 100)
    async with Target(plain(200, b"paid")) as app, outrider(guard(app, store)) as proxy:
        proxy.expected_errors.append("store of idempotency keys")
        inbound = proxy.app.ports["inbound.listen"]
        assert (await exchange(inbound, post("a"))).status == 503
        assert (await readiness(proxy)).status == 503
        store.rename(tmp_path / "away")
        for replayed in (None, "true"):
            assert (await exchange(inbound, post("a"))).get("idempotent-replayed") == replayed
        assert (await readiness(proxy)).status == 200


async def test_a_store_that_is_removed_is_noticed(outrider: Outrider, tmp_path: Path) -> None:
    """Keys are kept in a file that is there, not in one that only we still have open."""
    store = tmp_path / "k.db"
    async with Target(plain(200, b"paid")) as app:
        async with outrider(guard(app, store)) as proxy:
            proxy.expected_errors.append("store of idempotency keys")
            inbound = proxy.app.ports["inbound.listen"]
            await exchange(inbound, post("a"))
            for file in tmp_path.glob("k.db*"):
                file.unlink()
            await exchange(inbound, post("b"))
        async with outrider(guard(app, store)) as proxy:
            answer = await exchange(proxy.app.ports["inbound.listen"], post("b"))
            assert answer.get("idempotent-replayed") == "true"


async def test_a_lost_call_is_asked_about_after_the_clock_was_set_back(outrider: Outrider, tmp_path: Path) -> None:
    """A call that seems to lie in the future is not taken for one that is on its way."""
    ledger, store = Ledger(), tmp_path / "k.db"
    ledger.about = [plain(200, b"paid")]
    async with Target(ledger) as app, outrider(guard(app, store, ASK)) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post("k"))
        lose(store)
        with closing(sqlite3.connect(store)) as database, database:
            database.execute("UPDATE keyed_calls SET since = since + 86400")
        assert (await exchange(inbound, post("k"))).body == b"paid"
    assert len(ledger.asked) == 1


@pytest.mark.parametrize("name", ["Jos\u00e9".encode(), "Jos\u00e9".encode("latin-1"), b"\xff\xfe\x80"])
async def test_the_app_is_asked_in_the_bytes_of_the_call(outrider: Outrider, tmp_path: Path, name: bytes) -> None:
    """Key and user reach the app as the call brought them, whatever encoding they are in."""
    ledger, store = Ledger(), tmp_path / "k.db"
    ledger.about = [plain(200, b"paid")]
    async with Target(ledger) as app:
        text = proven(app, store, more=ASK)
        data = post("@", b"x", INTERNAL, *by_key("x-user-name: #")).replace(b"@", b"k" + name).replace(b"#", name)
        async with outrider(text) as proxy:
            inbound = proxy.app.ports["inbound.listen"]
            await exchange(inbound, data)
            lose(store)
            assert (await exchange(inbound, data)).body == b"paid"
    (asked,) = ledger.asked
    (executed,) = (one for one in app.seen if one.method == "POST")
    for field, value in ((b"x-user-name", name), (b"idempotency-key", b"k" + name)):
        for seen in (executed, asked):
            assert [what for one, what in seen.headers if one.lower() == field] == [value]


# ---------------------------------------------------------------- several guards, and several users, on one store


async def test_guards_on_one_file_wait_for_each_other(outrider: Outrider, tmp_path: Path) -> None:
    """What one guard is at is under way for another one, not lost, although neither can see the other's process."""
    store = tmp_path / "k.db"
    async with Target(slow(0.2, plain(200, b"paid"))) as app:
        text = guard(app, store, "after_crash: repeat")
        async with outrider(text) as one, outrider(text) as other:
            first = asyncio.create_task(exchange(one.app.ports["inbound.listen"], post("a")))
            await eventually(lambda: len(app.seen) == 1, "the first is at the app")
            port = other.app.ports["inbound.listen"]
            assert (await exchange(port, post("a"))).status == 409
            assert (await first).body == b"paid"
            counts = one.app.runtime.compiled.idempotency
            assert counts is not None
            await counts.policy.settle()
            assert (await exchange(port, post("a"))).get("idempotent-replayed") == "true"
        assert len(app.seen) == 1


USERS = {
    "the order of fields": (["x-user-id: a", "x-tenant-id: t"], ["x-tenant-id: t", "x-user-id: a"], 1),
    "another user": (["x-user-id: a"], ["x-user-id: b"], 2),
    "another user, and more context than is kept": (
        ["x-user-id: a", f"baggage: b={'x' * 9000}"],
        ["x-user-id: b", f"baggage: b={'x' * 9000}"],
        2,
    ),
    "another baggage": (["x-user-id: a", "baggage: b=1"], ["x-user-id: a"], 1),
    "another instance": (["x-service-id: 1"], ["X_Service_Id: 2"], 1),
}


@pytest.mark.parametrize("who", ["proven", "anonymous"])
@pytest.mark.parametrize("case", USERS)
async def test_whose_key_it_is(outrider: Outrider, tmp_path: Path, who: str, case: str) -> None:
    """A key belongs to a user; also where nothing proves who calls, users are told apart by what they claim."""
    first, second, executed = USERS[case]
    async with Target(plain(200, b"paid")) as app:
        text = proven(app, tmp_path / "k.db") if who == "proven" else guard(app, tmp_path / "k.db")
        proof = by_key() if who == "proven" else ()
        async with outrider(text) as proxy, Client(proxy.app.ports["inbound.listen"]) as client:
            for lines in (first, second, first):
                assert (await client.call(post("k", b"x", INTERNAL, *proof, *lines))).status == 200
        assert len(app.seen) == executed


async def test_services_that_claim_to_be_different_do_not_share_keys(outrider: Outrider, tmp_path: Path) -> None:
    """Where nothing proves who calls."""
    async with Target(plain(200, b"paid")) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        async with Client(proxy.app.ports["inbound.listen"]) as client:
            for name in ("booking", "stock", "booking"):
                await client.call(post("k", b"x", "/payments", f"x-service-name: {name}"))
        assert len(app.seen) == 2


@pytest.mark.parametrize("body", [b"B" * 200_000, b"A" * 199_999])
async def test_an_answer_that_the_app_has_told_goes_to_the_same_body_only(
    outrider: Outrider, tmp_path: Path, body: bytes
) -> None:
    """A lost call is compared like any other, also where its body was too large to be kept."""
    ledger, store = Ledger(), tmp_path / "k.db"
    ledger.about = [plain(200, b"paid")] * 3
    async with Target(ledger) as app, outrider(guard(app, store, ASK)) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        assert (await exchange(inbound, post("k", b"A" * 200_000))).status == 201
        counts = proxy.app.runtime.compiled.idempotency
        assert counts is not None
        await counts.policy.settle()
        lose(store)
        other = b"A" * 100_000 + body[100_000:]
        assert (await exchange(inbound, post("k", other))).status == 422
        assert (await exchange(inbound, post("k", b"A" * 200_000))).body == b"paid"
        assert list(ledger.executed.values()) == [1]


async def test_a_call_whose_time_has_passed_is_not_begun(outrider: Outrider, tmp_path: Path) -> None:
    """A slow upload uses up the caller's time: that is a timeout, not a fault of the store, and nothing is executed."""
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        async with Client(proxy.app.ports["inbound.listen"]) as client:
            data = post("k", b"12", "/payments", "X-Request-Timeout-Ms: 50")
            await client.send(data[:-1])
            await asyncio.sleep(0.1)
            await client.send(data[-1:])
            answer = await client.answer("POST")
        assert (answer.status, json.loads(answer.body)["error"]) == (504, "TIMEOUT")
        assert not app.seen


# ---------------------------------------------------------------- more of stores in trouble


async def test_answers_are_given_again_from_a_locked_store(outrider: Outrider, tmp_path: Path) -> None:
    """Reading needs no lock."""
    store = tmp_path / "k.db"
    async with Target(plain(200, b"paid")) as app, outrider(guard(app, store)) as proxy:
        inbound = proxy.app.ports["inbound.listen"]
        await exchange(inbound, post("a"))
        remembered = proxy.app.runtime.compiled.idempotency
        assert remembered is not None
        await remembered.policy.settle()
        with closing(sqlite3.connect(store, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert (await exchange(inbound, post("a"))).get("idempotent-replayed") == "true"
        assert len(app.seen) == 1


async def test_what_is_under_way_outlives_its_file(outrider: Outrider, tmp_path: Path) -> None:
    """A call that is at the app when the file is removed is not begun again, and its answer is in the new file."""
    store = tmp_path / "k.db"
    async with Target(slow(0.3, plain(200, b"paid"))) as app, outrider(guard(app, store)) as proxy:
        proxy.expected_errors.append("store of idempotency keys")
        inbound = proxy.app.ports["inbound.listen"]
        first = asyncio.create_task(exchange(inbound, post("a")))
        await eventually(lambda: len(app.seen) == 1, "the first is at the app")
        for file in tmp_path.glob("k.db*"):
            file.unlink()
        assert (await exchange(inbound, post("a"))).status == 409
        assert (await first).body == b"paid"
        remembered = proxy.app.runtime.compiled.idempotency
        assert remembered is not None
        await remembered.policy.settle()
        assert (await exchange(inbound, post("a"))).get("idempotent-replayed") == "true"
        assert len(app.seen) == 1


async def test_why_the_store_cannot_be_used_is_in_the_answer(outrider: Outrider, tmp_path: Path) -> None:
    """In words that give away no path."""
    (tmp_path / "file").write_text("")
    async with Target(plain()) as app, outrider(guard(app, tmp_path / "file" / "k.db")) as proxy:
        proxy.expected_errors.append("store of idempotency keys")
        answer = await exchange(proxy.app.ports["inbound.listen"], post("a"))
        problem = json.loads(answer.body)
        assert (answer.status, problem["error"], answer.get("retry-after")) == (503, "STORE_UNAVAILABLE", "1")
        assert "cannot be opened or written" in problem["detail"]
        assert "k.db" not in problem["detail"]
        assert b"k.db" in (await readiness(proxy)).body


async def test_reading_is_paused_while_the_store_is_asked(
    outrider: Outrider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large an upload is, of what comes in the meantime only a little is held."""
    async with Target(plain(200, b"paid")) as app, outrider(guard(app, tmp_path / "k.db")) as proxy:
        remembered = proxy.app.runtime.compiled.idempotency
        assert remembered is not None
        store, asked, go_on = remembered.store, asyncio.Event(), asyncio.Event()
        begin = store.begin

        async def begin_slowly(*given: Any) -> Any:
            asked.set()
            await go_on.wait()
            return await begin(*given)

        monkeypatch.setattr(store, "begin", begin_slowly)
        async with Client(proxy.app.ports["inbound.listen"]) as client:
            sending = asyncio.create_task(client.send(post("a", bytes(8_000_000))))
            await asked.wait()
            (connection,) = (one for one in proxy.app.runtime.proxy.connections if one.active is not None)
            body = connection.active.body if connection.active is not None else None
            assert body is not None
            await eventually(lambda: body.paused, "it is slowed down")
            await asyncio.sleep(0.05)
            assert body.held < 1_000_000
            go_on.set()
            await sending
            assert (await client.answer("POST")).body == b"paid"
        assert len(app.seen[0].body) == 8_000_000
