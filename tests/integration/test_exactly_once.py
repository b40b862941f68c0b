"""Every POST is executed once and every caller answered, whatever breaks between sidecars, between guard and app, or
is killed. The app's own ledger is the witness.

`OUTRIDER_POSTS` sets how many POSTs there are (default: few enough for a suite; 10,000 take about a minute each).
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.integration import harness
from tests.integration.conftest import Outrider
from tests.integration.harness import Action, Answer, Exchange, Sidecar, Target, exchange, request, response, sidecar
from tests.integration.processes import Process, running
from tests.servers import free_port

POSTS = int(os.environ.get("OUTRIDER_POSTS", "0"))
pytestmark = pytest.mark.time_limit(60 + POSTS * 0.06)

GUARD = """
inbound:
  listen: 127.0.0.1:{port}
  app: 'http://127.0.0.1:{app}'
  protect: []
  idempotency: {{ store: '{store}', {more} }}
services: {{ other: 'http://127.0.0.1:9' }}
"""

CALLER = """
services:
  payment:
    url: 'http://127.0.0.1:{port}'
    timeout: 60s
    attempt_timeout: {attempt}
    circuit_breaker: {breaker}
    retry: {{ max_retries: 30, idempotency_key: generate, backoff: 20ms..1s, budget: 100% }}
"""


@pytest.fixture(autouse=True)
def patient_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller waits for as long as its call may take."""
    monkeypatch.setattr(harness, "PATIENCE", 60.0)


class Ledger:
    """An app that books every POST it gets, and can say which key it has booked. `busy` is how long one takes."""

    def __init__(self, busy: float = 0.0) -> None:
        self.booked: Counter[bytes] = Counter()
        self._answers: dict[str, bytes] = {}
        self._at_work: set[str] = set()
        self._busy = busy

    async def __call__(self, one: Exchange) -> None:
        seen = one.request
        if seen.method == "GET":
            key = seen.path.rpartition("/")[2]
            if key in self._at_work:
                await one.send(response(409))
            elif key in self._answers:
                await one.send(response(201, self._answers[key]))
            else:
                await one.send(response(404))
            return
        key = seen.get("idempotency-key") or ""
        self._at_work.add(key)
        body = await one.body()
        await asyncio.sleep(self._busy)
        self.booked[body] += 1
        self._answers[key] = body
        self._at_work.discard(key)
        await one.send(response(201, body))


class BadNetwork:
    """Stands between two sidecars and breaks a share of the exchanges: before the request has arrived, after it, in the
    middle of the answer, by silence, or with a 503 of its own."""

    def __init__(self, port: int, share: float, seed: int) -> None:
        self._to = port
        self._share = share
        self._random = random.Random(seed)
        self.broken: Counter[str] = Counter()
        self._passages: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
        for passage in self._passages:
            passage.cancel()
        await asyncio.gather(*self._passages, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passage = asyncio.current_task()
        assert passage is not None
        self._passages.add(passage)
        passage.add_done_callback(self._passages.discard)
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        try:
            while data := await _whole(reader):
                fault = ""
                if self._random.random() < self._share:
                    fault = self._random.choice(["unsent", "unheard", "cut", "silent", "503"])
                    self.broken[fault] += 1
                if fault == "unsent":
                    return
                if fault == "503":
                    writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
                    continue
                to_writer.write(data)
                if fault == "unheard":
                    await asyncio.sleep(0.002)
                    return
                answer = await _whole(to_reader)
                if fault == "silent":
                    await asyncio.sleep(0.4)
                    return
                writer.write(answer if fault != "cut" else answer[: len(answer) // 2])
                await writer.drain()
                if fault == "cut":
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            to_writer.transport.abort()


async def _whole(reader: asyncio.StreamReader) -> bytes:
    """The next message with its body; nothing at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        return head + await reader.readexactly(int(length[1]) if length is not None else 0)
    except asyncio.IncompleteReadError:
        return b""


async def ordered(caller: Sidecar, data: bytes) -> Answer:
    """The answer to a POST, which is sent again when it is said that it never left, as an app may do."""
    while True:
        answer = await exchange(caller.port, data)
        if b"urn:outrider:connect-failed" not in answer.body:
            return answer
        await asyncio.sleep(0.1)


async def order(caller: Sidecar, posts: int, at_once: int = 50, first: int = 0) -> list[tuple[int, Answer]]:
    """So many POSTs, numbered from the first, and their answers."""
    numbers = iter(range(first, first + posts))

    async def some() -> list[tuple[int, Answer]]:
        return [
            (number, await ordered(caller, request("POST", "/payment/x", b"order %d" % number))) for number in numbers
        ]

    return [one for many in await asyncio.gather(*(some() for _ in range(at_once))) for one in many]


def check(ledger: Ledger, results: list[tuple[int, Answer]], posts: int) -> None:
    """All answered, with the right answer, and booked once."""
    assert len(results) == posts
    wrong = [(number, answer.status, answer.body) for number, answer in results if answer.status != 201]
    assert not wrong, wrong[:5]
    assert set(ledger.booked.values()) == {1}
    assert len(ledger.booked) == posts
    for number, answer in results:
        assert answer.body == b"order %d" % number


async def test_through_a_bad_network_between_the_sidecars(outrider: Outrider, tmp_path: Path) -> None:
    """A fifth of the tries meet a reset before or after the request, a cut answer, silence or a 503 on the way."""
    posts, ledger = POSTS or 1000, Ledger()
    async with Target(ledger) as app:
        text = GUARD.format(port=0, app=app.port, store=tmp_path / "k.db", more="ttl: 1h")
        async with outrider(text) as receiver:
            network = BadNetwork(receiver.app.ports["inbound.listen"], 0.2, seed=7)
            async with (
                network.serving() as port,
                outrider(CALLER.format(port=port, attempt="300ms", breaker="false")) as caller,
            ):
                results = await order(caller, posts)
    check(ledger, results, posts)
    assert min(network.broken.values()) > posts // 100


async def test_through_a_bad_network_between_guard_and_app(outrider: Outrider, tmp_path: Path) -> None:
    """The same behind the guard: the app is asked what it has executed."""
    posts, ledger = POSTS or 300, Ledger()
    async with Target(ledger) as app:
        network = BadNetwork(app.port, 0.1, seed=8)
        async with network.serving() as behind:
            text = GUARD.format(port=0, app=behind, store=tmp_path / "k.db", more=ASK)
            async with outrider(text) as receiver:
                text = CALLER.format(port=receiver.app.ports["inbound.listen"], attempt="3s", breaker="false")
                async with outrider(text) as caller:
                    results = await order(caller, posts)
    check(ledger, results, posts)
    assert min(network.broken.values()) > 0


ASK = "after_crash: ask, ask: '/bookings/{key}'"


@asynccontextmanager
async def killed_again_and_again(folder: Path, text: str, times: int, pause: float) -> AsyncIterator[Counter[str]]:
    """A guard as a process of its own, killed so many times while it works, and started again each time. Counts."""
    counts: Counter[str] = Counter()
    up = asyncio.Event()
    done = asyncio.Event()

    async def run(guard: Process) -> None:
        up.set()
        await asyncio.sleep(pause)
        guard.signal(signal.SIGKILL)
        await guard.exit()
        counts["kills"] += 1

    async def again_and_again() -> None:
        for _ in range(times):
            async with running(folder, text) as guard:
                await run(guard)
        async with running(folder, text):
            up.set()
            await done.wait()

    task = asyncio.create_task(again_and_again())
    await up.wait()
    yield counts
    done.set()
    await task


@pytest.mark.parametrize("more", [ASK, "after_crash: refuse"], ids=["asked", "refused"])
async def test_kill_the_guard(outrider: Outrider, tmp_path: Path, more: str) -> None:
    """The guard is killed in the middle of its work. Where the app can be asked, everybody gets its answer; where it
    cannot, nothing is executed twice, and those who had a call at the app in that moment hear that it is not known."""
    kills, posts = (20, POSTS) if POSTS else (2, 400)
    port, ledger = free_port(), Ledger(busy=0.02)
    folder = tmp_path / "guard"
    folder.mkdir()
    async with Target(ledger) as app:
        text = GUARD.format(port=port, app=app.port, store=tmp_path / "k.db", more=more)
        async with (
            killed_again_and_again(folder, text, kills, 0.3) as counts,
            outrider(CALLER.format(port=port, attempt="5s", breaker="{ wait: 30s }")) as caller,
        ):
            results: list[tuple[int, Answer]] = []
            while len(results) < posts or counts["kills"] < kills:
                results += await order(caller, 100, 20, len(results))
    assert counts["kills"] == kills
    if more == ASK:
        check(ledger, results, len(results))
        return
    unknown = [answer for _, answer in results if answer.status == 409]
    assert {answer.status for _, answer in results} <= {201, 409}
    assert 0 < len(unknown) <= 20 * kills
    assert set(ledger.booked.values()) == {1}
    assert len(results) - len(unknown) <= len(ledger.booked) <= len(results)


SHARING = """
service: {service}
inbound:
  listen: 127.0.0.1:0
  app: 'http://127.0.0.1:{app}'
  protect: [/]
  accept: [ {{ jwt: {{ alg: HS256, key: {key}, audience: "{{service}}" }}, forward: true }} ]
  idempotency: {{ store: '{store}', after_crash: ask, ask: '/bookings/{{key}}' }}
services: {{ other: 'http://127.0.0.1:9' }}
"""

CHANGING = """
limits: {{ replay_bytes: 1MiB }}
credentials:
  token: {{ jwt: {{ alg: HS256, key: {key}, ttl: 1s }} }}
defaults:
  timeout: 60s
  attempt_timeout: 400ms
  circuit_breaker: false
  headers: {{ set: {{ x-service-id: "{{request_id}}" }} }}
  retry: {{ max_retries: 30, methods: [POST], backoff: 20ms..1s, budget: 100% }}
services:
  payment: {{ url: 'http://127.0.0.1:{payment}', auth: token }}
  refund: {{ url: 'http://127.0.0.1:{refund}', auth: token }}
"""
SECRET = "the-key-of-this-platform-0123456789"


async def test_whatever_changes_between_tries(outrider: Outrider, tmp_path: Path) -> None:
    """Two services on one store get the same keys, with large bodies that the guard does not keep. The token of the
    caller is a new one every second, and its instance another one with each request; each order is sent twice through a
    bad network. Each service books it once, and answers both times alike."""
    posts = POSTS or 120
    ledgers = {"payment": Ledger(), "refund": Ledger()}
    tokens: set[str] = set()
    instances: set[str] = set()

    def body_of(service: str, number: int) -> bytes:
        return (b"%s %d " % (service.encode(), number)).ljust(100_000, b"x")

    async with AsyncExitStack() as stack:
        ports, networks = {}, []
        for seed, (service, ledger) in enumerate(ledgers.items()):
            app = await stack.enter_async_context(Target(_seen_by(ledger, tokens, instances)))
            text = SHARING.format(service=service, app=app.port, store=tmp_path / "k.db", key=SECRET)
            folder = tmp_path / service
            folder.mkdir()
            guard = await stack.enter_async_context(sidecar(folder, text))
            networks.append(BadNetwork(guard.app.ports["inbound.listen"], 0.2, seed))
            ports[service] = await stack.enter_async_context(networks[-1].serving())
        caller = await stack.enter_async_context(outrider(CHANGING.format(key=SECRET, **ports)))
        numbers = iter([(number, service) for number in range(posts) for service in ledgers])
        replayed: Counter[str | None] = Counter()

        async def some() -> None:
            for number, service in numbers:
                data = request("POST", f"/{service}/x", body_of(service, number), f"Idempotency-Key: k-{number}")
                for _ in range(2):
                    answer = await exchange(caller.port, data)
                    assert (answer.status, answer.body) == (201, body_of(service, number))
                replayed[answer.get("idempotent-replayed")] += 1

        await asyncio.gather(*(some() for _ in range(10)))
    for service, ledger in ledgers.items():
        assert set(ledger.booked.values()) == {1}
        assert set(ledger.booked) == {body_of(service, number) for number in range(posts)}
    assert replayed == {"true": 2 * posts}
    assert len(instances) > posts
    assert all(sum(network.broken.values()) > posts // 10 for network in networks)
    assert len(tokens) > 1


def _seen_by(ledger: Ledger, tokens: set[str], instances: set[str]) -> Action:
    """The ledger, and what it sees of those who call."""

    async def act(one: Exchange) -> None:
        tokens.add(one.request.get("authorization") or "")
        instances.add(one.request.get("x-service-id") or "")
        await ledger(one)

    return act
