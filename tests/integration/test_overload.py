"""More calls than there is room for: who waits, who is refused, and what reaches the target."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Answer,
    Client,
    Exchange,
    Sidecar,
    Target,
    eventually,
    exchange,
    get,
    plain,
    request,
    response,
    silent,
    slow,
)
from tests.integration.load import in_turn, steadily


def config(target: Target, more: str) -> str:
    return f"services:\n  user:\n    url: '{target.url}'\n    {more}\n"


def limit(proxy: Sidecar, route: int = 0) -> object:
    """The concurrency limit of a route."""
    policies = proxy.app.runtime.compiled.routes[route].policies
    return next(policy for policy in policies if hasattr(policy, "waiting"))


class Gate:
    """A target that answers when it is told to, one call at a time."""

    def __init__(self) -> None:
        self.permits = asyncio.Semaphore(0)

    async def __call__(self, one: Exchange) -> None:
        await one.body()
        await self.permits.acquire()
        await one.send(response())

    def open(self, calls: int = 1000) -> None:
        for _ in range(calls):
            self.permits.release()


def refused(answer: Answer) -> bool:
    return answer.status == 503 and b'"error": "OVERLOADED"' in answer.body


# ---------------------------------------------------------------- the queue


async def test_calls_wait_and_then_pass(outrider: Outrider) -> None:
    """What exceeds the limit waits its turn and is answered well, while the target never sees more than allowed."""
    async with Target(slow(0.01)) as target:
        text = config(target, "max_in_flight: 4\n    queue: { size: 60, wait: 5s }")
        async with outrider(text) as proxy:
            calls = (exchange(proxy.port, request("POST", "/user/x", b"%d" % number)) for number in range(60))
            answers = await asyncio.gather(*calls)
            assert [answer.status for answer in answers] == [200] * 60
            assert limit(proxy).in_flight == 0
    assert target.most_busy == 4
    assert sorted(target.bodies()) == sorted(b"%d" % number for number in range(60))


async def test_without_a_queue_they_are_refused_at_once(outrider: Outrider) -> None:
    """A limit alone lets nobody wait."""
    gate = Gate()
    async with Target(gate) as target, outrider(config(target, "max_in_flight: 2")) as proxy:
        calls = [asyncio.create_task(exchange(proxy.port, get("/user/x"))) for _ in range(2)]
        await eventually(lambda: target.busy == 2, "a full house")
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x"))
        assert (refused(answer), answer.get("retry-after"), monotonic() - began < 0.5) == (True, "1", True)
        gate.open()
        assert [(await call).status for call in calls] == [200, 200]


async def test_nobody_waits_longer_than_allowed(outrider: Outrider) -> None:
    """A call whose turn does not come is refused when `wait` is over, and those beyond `size` at once."""
    gate = Gate()
    async with Target(gate) as target:
        text = config(target, "max_in_flight: 1\n    queue: { size: 3, wait: 150ms }")
        async with outrider(text) as proxy:
            first = asyncio.create_task(exchange(proxy.port, get("/user/x")))
            await eventually(lambda: target.busy == 1, "a full house")
            times: list[float] = []

            async def wait() -> Answer:
                began = monotonic()
                answer = await exchange(proxy.port, get("/user/x"))
                times.append(monotonic() - began)
                return answer

            answers = await asyncio.gather(*(wait() for _ in range(5)))
            assert all(refused(answer) for answer in answers)
            assert proxy.outcomes() == {"overloaded": 5}
            times.sort()
            assert max(times[:2]) < 0.1
            assert times[2] > 0.14
            assert times[-1] < 0.4
            gate.open()
            assert (await first).status == 200
    assert len(target.seen) == 1


async def test_a_deadline_shortens_the_wait(outrider: Outrider) -> None:
    """Nobody waits until there is no time left for the work."""
    gate = Gate()
    async with Target(gate) as target:
        text = config(target, "max_in_flight: 1\n    queue: { wait: 10s }")
        async with outrider(text) as proxy:
            first = asyncio.create_task(exchange(proxy.port, get("/user/x")))
            await eventually(lambda: target.busy == 1, "a full house")
            began = monotonic()
            answer = await exchange(proxy.port, get("/user/x", "X-Outrider-Timeout: 300ms"))
            assert refused(answer)
            assert 0.1 < monotonic() - began < 0.29
            gate.open()
            assert (await first).status == 200


async def test_first_come_first_served(outrider: Outrider) -> None:
    """Those who have waited longest go first."""
    gate = Gate()
    async with Target(gate) as target:
        async with outrider(config(target, "max_in_flight: 1\n    queue: { wait: 5s }")) as proxy:
            calls = []
            for number in range(8):
                calls.append(asyncio.create_task(exchange(proxy.port, get(f"/user/{number}"))))
                waiting = max(0, number)
                await eventually(lambda: limit(proxy).waiting == waiting and target.busy == 1, "it waits")
            gate.open()
            await asyncio.gather(*calls)
    assert [seen.path for seen in target.seen] == [f"/{number}" for number in range(8)]


async def test_an_app_that_hangs_up_frees_its_place(outrider: Outrider) -> None:
    """A call whose app goes while it waits is never sent, and the next one in line takes its place."""
    gate = Gate()
    async with Target(gate) as target:
        text = config(target, "max_in_flight: 1\n    queue: { size: 1, wait: 5s }")
        async with outrider(text) as proxy:
            first = asyncio.create_task(exchange(proxy.port, get("/user/first")))
            await eventually(lambda: target.busy == 1, "a full house")
            async with Client(proxy.port) as client:
                await client.send(request("POST", "/user/gone", b"charge"))
                await eventually(lambda: limit(proxy).waiting == 1, "it waits")
                assert refused(await exchange(proxy.port, get("/user/full")))
            await eventually(lambda: limit(proxy).waiting == 0, "its place is free")
            last = asyncio.create_task(exchange(proxy.port, get("/user/last")))
            await eventually(lambda: limit(proxy).waiting == 1, "another one waits")
            gate.open()
            assert ((await first).status, (await last).status) == (200, 200)
            assert proxy.outcomes() == {"ok": 2, "cancelled": 1, "overloaded": 1}
    assert [seen.path for seen in target.seen] == ["/first", "/last"]


async def test_an_app_that_hangs_up_at_the_target_frees_a_permit(outrider: Outrider) -> None:
    """A call under way whose app goes makes room for one that waits."""
    async with Target([silent, plain()]) as target:
        async with outrider(config(target, "max_in_flight: 1\n    queue: { wait: 5s }")) as proxy:
            async with Client(proxy.port) as client:
                await client.send(get("/user/x"))
                await eventually(lambda: target.busy == 1, "a full house")
                waiting = asyncio.create_task(exchange(proxy.port, get("/user/x")))
                await eventually(lambda: limit(proxy).waiting == 1, "another one waits")
            assert (await waiting).status == 200


# ---------------------------------------------------------------- what is not critical

ROUTES = """max_in_flight: 5
    queue: { size: 20, wait: 400ms }
    routes:
      - { match: 'GET /news/**', critical: false }
      - { match: 'POST /pay', critical: true }
"""


@pytest.mark.parametrize("path", ["/user/news/", "/user/other/"], ids=["by its route", "by its caller's word"])
async def test_what_is_not_critical_is_shed_first(outrider: Outrider, path: str) -> None:
    """The last fifth of the room is kept from calls that are declared `critical: false`, and of those that wait, the
    others go first. The target is told."""
    said = ["X-Outrider-Critical: false"] if path == "/user/other/" else []
    gate = Gate()
    async with Target(gate) as target, outrider(config(target, ROUTES)) as proxy:
        news = [asyncio.create_task(exchange(proxy.port, get(f"{path}{number}", *said))) for number in range(6)]
        await eventually(lambda: target.busy == 4 and limit(proxy).waiting == 2, "four of five places")
        pay = [asyncio.create_task(exchange(proxy.port, request("POST", "/user/pay", b"x"))) for _ in range(3)]
        await eventually(lambda: target.busy == 5 and limit(proxy).waiting == 4, "the fifth place")
        gate.open(3)
        await eventually(lambda: len(target.seen) >= 7, "those that waited")
        assert [seen.path for seen in target.seen].count("/pay") == 3
        told = {(seen.path == "/pay", seen.get("x-outrider-critical")) for seen in target.seen}
        assert told == {(True, None), (False, "false")}
        gate.open()
        assert {(await call).status for call in pay} == {200}
        assert {(await call).status for call in news} == {200}


async def test_under_overload_critical_calls_pass(outrider: Outrider) -> None:
    """At twice what fits, all that is lost is what was declared dispensable."""
    async with Target(slow(0.05)) as target, outrider(config(target, ROUTES)) as proxy:
        pay, news = await asyncio.gather(
            steadily(proxy.port, 40, 60, lambda _: request("POST", "/user/pay", b"x")),
            steadily(proxy.port, 160, 240, lambda number: get(f"/user/news/{number}")),
        )
    assert pay.statuses() == {200: 60}
    assert news.statuses().get(503, 0) > 50, news.statuses()
    assert news.good > 10
    assert target.most_busy <= 5


# ---------------------------------------------------------------- limits that find themselves


class Slots:
    """A target that works on `slots` calls at a time, each for so many seconds, and lets the others queue."""

    def __init__(self, slots: int, seconds: float) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._seconds = seconds

    async def __call__(self, one: Exchange) -> None:
        await one.body()
        async with self._slots:
            await asyncio.sleep(self._seconds)
        await one.send(response())


async def test_an_adaptive_limit_keeps_a_target_at_its_capacity(outrider: Outrider) -> None:
    """At three times what a target can do its work goes on as before, and nobody waits long for an answer."""
    async with Target(Slots(4, 0.05)) as target:
        text = config(target, "max_in_flight: adaptive\n    retry: false")
        async with outrider(text) as proxy:
            began = monotonic()
            assert (await in_turn(proxy.port, 4, 60, lambda number: get("/user/x"))).good == 60
            capacity = 60 / (monotonic() - began)  # 80 a second, if nothing else runs here
            began = monotonic()
            tally = await steadily(proxy.port, 3 * capacity, int(6 * capacity), lambda number: get("/user/x"))
            seconds = monotonic() - began
            held = limit(proxy).limit
    assert set(tally.statuses()) <= {200, 503}
    assert tally.good / seconds > 0.75 * capacity
    assert 4 <= held <= 24
    assert target.most_busy <= 40
    assert tally.slowest < 1


async def test_an_adaptive_limit_leaves_a_fast_target_alone(outrider: Outrider) -> None:
    """Where answers come as fast as ever, nobody is refused."""
    async with Target(slow(0.005)) as target:
        async with outrider(config(target, "max_in_flight: adaptive")) as proxy:
            tally = await in_turn(proxy.port, 15, 600, lambda number: get("/user/x"))
    assert tally.statuses() == {200: 600}


class Taking:
    """A target that takes `rate` calls a second and refuses the others."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.taken = 0
        self._began = 0.0

    async def __call__(self, one: Exchange) -> None:
        now = monotonic()
        self._began = self._began or now
        if self.taken < (now - self._began) * self.rate + 1:
            self.taken += 1
            await plain()(one)
        else:
            await plain(503)(one)


@pytest.mark.parametrize("retry", ["retry: false", "retry: {}"], ids=["no retries", "retries"])
async def test_a_throttle_sends_about_twice_what_is_taken(outrider: Outrider, retry: str) -> None:
    """A target that refuses most calls gets about twice as many as it takes, the others are refused here, and it
    stays fully used."""
    taking = Taking(60)
    async with Target(taking) as target:
        text = config(target, f"throttle: {{}}\n    circuit_breaker: false\n    {retry}")
        async with outrider(text) as proxy:
            tally = await steadily(proxy.port, 300, 600, lambda number: get("/user/x"))
            assert proxy.outcomes()["overloaded"] > 200
    retries = 1.35 if "{}" in retry else 1.0
    # The ten calls that are never enough to conclude anything from fade slowly: that is the constant.
    assert len(target.seen) <= (2.2 * taking.taken + 90) * retries, (len(target.seen), taking.taken)
    assert taking.taken > 80
    assert tally.good >= 0.95 * taking.taken


async def test_a_throttle_lets_everything_through_to_a_good_target(outrider: Outrider) -> None:
    """A few failures, and answers about requests, are no reason to refuse anything."""
    script = [plain(404), plain(500), plain(), plain(), plain()] * 100
    async with Target(script) as target:
        async with outrider(config(target, "throttle: {}\n    circuit_breaker: false\n    retry: false")) as proxy:
            await in_turn(proxy.port, 5, 300, lambda number: get("/user/x"))
    assert len(target.seen) == 300


async def test_a_throttle_forgets(outrider: Outrider) -> None:
    """When the window has passed calls go through again."""
    async with Target(plain(503)) as target:
        text = config(target, "throttle: { window: 400ms }\n    circuit_breaker: false\n    retry: false")
        async with outrider(text) as proxy, Client(proxy.port) as client:
            for _ in range(100):
                await client.call(get("/user/x"))
            assert len(target.seen) < 60
            target.script(plain())
            await asyncio.sleep(0.5)
            for _ in range(20):
                assert (await client.call(get("/user/x"))).status == 200
