"""A second attempt beside one that is late: when it is made, who wins, and that nothing of it remains."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    Client,
    Exchange,
    Sidecar,
    Target,
    eventually,
    exchange,
    get,
    in_steps,
    plain,
    request,
    reset_unanswered,
    response,
    silent,
    slow,
)
from tests.integration.load import in_turn


def config(targets: list[Target], hedge: str = "after: 30ms", more: str = "") -> str:
    urls = ", ".join(f"'{target.url}'" for target in targets)
    return f"""
services:
  user:
    url: [{urls}]
    balance: round-robin
    hedge: {{ {hedge} }}
    {more}
"""


def hedges(proxy: Sidecar) -> dict[str, int]:
    return dict(proxy.app.runtime.compiled.clusters[0].stats.hedges)


async def hedged(proxy: Sidecar, data: bytes) -> float:
    """One call that must be answered well; how long that took."""
    began = monotonic()
    answer = await exchange(proxy.port, data)
    assert (answer.status, answer.body) == (200, b"good")
    return monotonic() - began


async def test_the_second_answers_when_the_first_hangs(outrider: Outrider) -> None:
    """A GET whose first endpoint is silent is answered by another one, shortly after it was late."""
    async with Target(silent) as first, Target(plain(200, b"good")) as second:
        async with outrider(config([first, second])) as proxy:
            seconds = await hedged(proxy, get("/user/x"))
            assert 0.025 < seconds < 0.5
            assert hedges(proxy) == {"won": 1}
            assert proxy.app.runtime.compiled.clusters[0].stats.retries == {"hedge": 1}
    assert [seen.get("x-outrider-attempt") for seen in (*first.seen, *second.seen)] == ["1", "2"]
    assert first.seen[0].get("x-correlation-id") == second.seen[0].get("x-correlation-id")


async def test_the_first_may_still_win(outrider: Outrider) -> None:
    """Whoever is first to answer well is heard, also if that is the one that was late."""
    async with Target(slow(0.08, plain(200, b"good"))) as first, Target(silent) as second:
        async with outrider(config([first, second])) as proxy:
            await hedged(proxy, get("/user/x"))
            assert hedges(proxy) == {"lost": 1}
            await eventually(lambda: second.closed == 1, "the loser's connection closed")


async def test_an_answer_in_time_is_not_hedged(outrider: Outrider) -> None:
    """Calls that are answered before they are late are made once."""
    async with Target(plain(200, b"good")) as first, Target(plain(200, b"good")) as second:
        async with outrider(config([first, second], "after: 1s")) as proxy:
            for _ in range(50):
                await hedged(proxy, get("/user/x"))
            assert hedges(proxy) == {}
    assert len(first.seen) + len(second.seen) == 50


@pytest.mark.parametrize("second", [plain(500), reset_unanswered], ids=["500", "reset"])
async def test_a_failure_is_not_a_victory(outrider: Outrider, second: Action) -> None:
    """While somebody is still running, one that failed does not end the race."""
    async with Target(slow(0.15, plain(200, b"good"))) as one, Target(second) as two:
        async with outrider(config([one, two], more="retry: false")) as proxy:
            assert await hedged(proxy, get("/user/x")) > 0.1
    assert (len(one.seen), len(two.seen)) == (1, 1)


async def test_when_all_fail_the_call_is_retried(outrider: Outrider) -> None:
    """A race that everybody loses is one failed attempt, after which the call goes on."""
    script = [slow(0.06, plain(500)), plain(200, b"good")]
    async with Target(script) as one, Target([slow(0.01, plain(503)), plain(200, b"good")]) as two:
        async with outrider(config([one, two])) as proxy:
            answer = await exchange(proxy.port, get("/user/x"))
            assert (answer.status, answer.body, answer.get("x-outrider-attempts")) == (200, b"good", "3")
            assert proxy.outcomes() == {"retried": 1}
    assert len(one.seen) + len(two.seen) == 3


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_what_may_not_be_repeated_is_not_hedged(outrider: Outrider, method: str) -> None:
    """A POST is made once, however late its answer is."""
    async with Target(slow(0.15, plain(200, b"good"))) as first, Target(plain()) as second:
        async with outrider(config([first, second])) as proxy:
            assert await hedged(proxy, request(method, "/user/x", b"charge")) > 0.14
            assert hedges(proxy) == {}
    assert (len(first.seen), len(second.seen)) == (1, 0)


async def test_a_key_makes_a_post_fit_for_hedging(outrider: Outrider) -> None:
    """With an Idempotency-Key the target recognises the second one, so it is made."""
    async with Target(silent) as first, Target(plain(200, b"good")) as second:
        async with outrider(config([first, second])) as proxy:
            await hedged(proxy, request("POST", "/user/x", b"charge", "Idempotency-Key: k"))
    assert first.bodies() == second.bodies() == [b"charge"]


@pytest.mark.parametrize("line", ["X-Outrider-Retry: off", "X-Outrider-Attempt: 2"])
async def test_nobody_is_asked_twice_against_the_callers_will(outrider: Outrider, line: str) -> None:
    """Whoever says no to retries, or is on one already, is not hedged either."""
    async with Target(slow(0.1, plain(200, b"good"))) as first, Target(plain()) as second:
        async with outrider(config([first, second])) as proxy:
            await hedged(proxy, get("/user/x", line))
    assert second.seen == []


async def test_the_loser_leaves_nothing_behind(outrider: Outrider) -> None:
    """The connections of losers are closed at the target, and neither circuit nor endpoint is blamed."""
    async with Target(silent) as first, Target(plain(200, b"good")) as second:
        more = "retry: { budget: 100% }"
        async with outrider(config([first, second], more=more)) as proxy:
            for _ in range(12):
                await hedged(proxy, get("/user/x"))
            await eventually(lambda: first.closed == len(first.seen), "every loser's connection closed")
            assert len(first.seen) == 6
            assert proxy.leftovers() == []
            assert proxy.breaker_state() == "closed"
            assert not proxy.app.runtime.ejections
            one, two = proxy.app.runtime.compiled.clusters[0].endpoints
            assert (one.run, one.pool.open, two.pool.open) == (0, 0, 1)
            assert proxy.app.runtime.compiled.breakers[0].failures == 0


async def test_a_loser_whose_answer_has_begun(outrider: Outrider) -> None:
    """An answer that is under way when another one has won is never mixed into it."""

    async def both(one: Exchange) -> None:
        await one.body()
        await asyncio.sleep(0.05)
        await one.send(response(200, b"x" * 100_000))

    async with Target(both) as first, Target(both) as second:
        async with outrider(config([first, second], "after: 10ms", "retry: { budget: 100% }")) as proxy:
            async with Client(proxy.port) as client:
                for _ in range(10):
                    answer = await client.call(get("/user/x"))
                    assert (answer.status, answer.body) == (200, b"x" * 100_000)


async def test_a_streamed_answer_is_hedged_by_its_head(outrider: Outrider) -> None:
    """What counts is when an answer begins; a body that takes long is not late."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
    async with Target(in_steps(head + b"ab", b"cd", b"ef", pause=0.05)) as first, Target(plain()) as second:
        async with outrider(config([first, second])) as proxy:
            answer = await exchange(proxy.port, get("/user/x"))
            assert (answer.status, answer.body) == (200, b"abcdef")
    assert second.seen == []


async def test_a_budget_bounds_hedges(outrider: Outrider) -> None:
    """When everything is slow, hedging adds a quarter to the load at most."""
    async with Target(slow(0.08)) as first, Target(slow(0.08)) as second:
        async with outrider(config([first, second], "after: 20ms")) as proxy:
            tally = await in_turn(proxy.port, 30, 400, lambda number: get(f"/user/{number}"))
            assert hedges(proxy)["lost"] + hedges(proxy).get("won", 0) >= 40
    assert tally.statuses() == {200: 400}
    assert len(first.seen) + len(second.seen) <= 1.25 * 400


async def test_no_budget_no_hedge(outrider: Outrider) -> None:
    """Hedges come out of the budget of retries: 3 a second where that is all there is."""
    async with Target(slow(0.06)) as first, Target(slow(0.06)) as second:
        async with outrider(config([first, second], "after: 10ms", "retry: { budget: 0% }")) as proxy:
            began = monotonic()
            assert (await in_turn(proxy.port, 20, 100, lambda number: get("/user/x"))).good == 100
            seconds = monotonic() - began
    assert 100 < len(first.seen) + len(second.seen) <= 100 + 3 * (int(seconds) + 2)


async def test_a_percentile_without_data_does_not_hedge(outrider: Outrider) -> None:
    """Until enough answers are known nothing is late; then what takes far longer than they did is."""
    turns = [*[plain()] * 20, slow(0.15), *[plain()] * 109, silent, plain()]

    class One:
        """Whoever is asked takes the next turn."""

        number = -1

    async def next_turn(one: Exchange) -> None:
        One.number += 1
        await turns[min(One.number, len(turns) - 1)](one)

    async with Target(next_turn) as first, Target(next_turn) as second:
        async with outrider(config([first, second], "after: p95")) as proxy:
            async with Client(proxy.port) as client:
                for _ in range(60):
                    assert (await client.call(get("/user/x"))).status == 200
                assert len(first.seen) + len(second.seen) == 60
                assert hedges(proxy) == {}
                while One.number < len(turns) - 2:
                    began = monotonic()
                    assert (await client.call(get("/user/x"))).status == 200
            assert monotonic() - began < 1
            assert hedges(proxy)


async def test_the_body_of_a_put_arrives_whole_twice(outrider: Outrider) -> None:
    """Both attempts send the whole body."""
    body = bytes(range(256)) * 80
    async with Target(silent) as first, Target(plain(200, b"good")) as second:
        async with outrider(config([first, second])) as proxy:
            await hedged(proxy, request("PUT", "/user/x", body))
    assert first.bodies() == second.bodies() == [body]
    assert first.seen[0].complete
    assert second.seen[0].complete


async def test_an_app_that_hangs_up_cancels_both(outrider: Outrider) -> None:
    """When the app goes in the middle of a race, nobody runs on."""
    async with Target(silent) as first, Target(silent) as second:
        async with outrider(config([first, second])) as proxy:
            async with Client(proxy.port) as client:
                await client.send(get("/user/x"))
                await eventually(lambda: first.busy and second.busy, "both under way")
            await eventually(lambda: (first.closed, second.closed) == (1, 1), "both closed")
            await eventually(lambda: not proxy.leftovers(), "nothing held")
            assert proxy.outcomes() == {"cancelled": 1}
            assert proxy.breaker_state() == "closed"


async def test_a_race_ends_with_the_attempts_time(outrider: Outrider) -> None:
    """When nobody answers, the app hears so when the time is over, and once."""
    more = "attempt_timeout: 100ms\n    retry: false"
    async with Target(silent) as first, Target(silent) as second:
        async with outrider(config([first, second], more=more)) as proxy:
            began = monotonic()
            answer = await exchange(proxy.port, get("/user/x"))
            assert (answer.status, monotonic() - began < 1) == (504, True)
            await eventually(lambda: (first.closed, second.closed) == (1, 1), "both closed")
    assert (len(first.seen), len(second.seen)) == (1, 1)


async def test_a_hedge_that_hears_of_the_first_does_not_win(outrider: Outrider) -> None:
    """The guard at the other end says of the second try of a keyed call that it is under way: its answer will come."""

    async def once(one: Exchange) -> None:
        if len(target.seen) > 1:
            await one.send(response(409, b"", "Retry-After: 1"))
            return
        await asyncio.sleep(0.15)
        await one.send(response(201, b"paid"))

    async with Target(once) as target:
        text = f"""
services:
  user:
    url: '{target.url}'
    retry: {{ methods: [POST], idempotency_key: generate }}
    hedge: {{ after: 30ms }}
"""
        async with outrider(text) as proxy:
            answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
            assert (answer.status, answer.body) == (201, b"paid")
            assert len(target.seen) == 2
