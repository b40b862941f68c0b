"""Several endpoints of one service: who gets which call, and what becomes of one that is worse than the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    Client,
    Exchange,
    Seen,
    Sidecar,
    Target,
    eventually,
    exchange,
    get,
    plain,
    request,
    reset_unanswered,
    response,
    slow,
)
from tests.integration.load import in_turn, under_load


def config(targets: list[Target], more: str = "", weights: tuple[float, ...] = ()) -> str:
    urls = "".join(
        f"\n      - {{ url: '{target.url}', weight: {weight} }}"
        for target, weight in zip(targets, weights or [1] * len(targets), strict=True)
    )
    return f"services:\n  user:\n    url:{urls}\n    " + more


def endpoints(proxy: Sidecar) -> list:
    """The endpoints of the service, in the order of the configuration."""
    return list(proxy.app.runtime.compiled.clusters[0].endpoints)


def get_and_post(number: int) -> bytes:
    """Half of the calls are POSTs, each with a body of its own."""
    if number % 2:
        return request("POST", "/user/x", b"charge %d" % number)
    return get(f"/user/{number}")


def executed(targets: list[Target]) -> Counter[bytes]:
    """How often each POST has reached a target as a whole."""
    return Counter(seen.body for target in targets for seen in target.seen if seen.method == "POST" and seen.complete)


def by_method(seen: list[Seen]) -> Counter[str]:
    return Counter(one.method for one in seen)


async def three(stack: AsyncExitStack, action: Action | None = None) -> list[Target]:
    return [await stack.enter_async_context(Target(action or plain())) for _ in range(3)]


# ---------------------------------------------------------------- one of several is bad


@pytest.mark.parametrize("bad", ["refuses", "resets", "500"])
async def test_one_bad_endpoint_of_three_is_hardly_noticed(outrider: Outrider, bad: str) -> None:
    """While one of three endpoints fails every GET is answered well, next to no POST is lost and none is executed
    twice."""
    async with AsyncExitStack() as stack:
        targets = await three(stack, slow(0.002))
        async with outrider(config(targets)) as proxy:
            async with under_load(proxy.port, 6, get_and_post) as tally:
                await eventually(lambda: tally.count > 150, "calls while all is well")
                assert all(len(target.seen) > 20 for target in targets)
                if bad == "refuses":
                    await targets[0].stop()
                else:
                    targets[0].script(reset_unanswered if bad == "resets" else plain(500))
                so_far = tally.count
                await eventually(lambda: tally.count > so_far + 400, "calls while one is bad")
            assert proxy.breaker_state() == "closed"
    failed = [answer for answer in tally.answers if answer.status != 200]
    assert tally.broken == 0
    # At most those that were under way there when it broke.
    assert len(failed) <= 6, tally.statuses()
    assert max(executed(targets).values()) == 1
    gets = sum(seen.method == "GET" for target in targets for seen in target.seen)
    assert gets >= tally.count // 2


@pytest.mark.parametrize("bad", [reset_unanswered, plain(500)], ids=["resets", "500"])
async def test_every_get_is_answered_well_by_one_app(outrider: Outrider, bad: Action) -> None:
    """GETs never fail because one endpoint of three does."""
    async with AsyncExitStack() as stack:
        targets = await three(stack)
        targets[1].script(bad)
        async with outrider(config(targets)) as proxy:
            tally = await in_turn(proxy.port, 4, 300, lambda number: get(f"/user/{number}"))
    assert tally.statuses() == {200: 300}
    assert targets[1].seen


async def test_a_suspect_gets_no_post(outrider: Outrider) -> None:
    """After a single failure calls that cannot be repeated go elsewhere, and those that can find out."""
    async with AsyncExitStack() as stack:
        targets = await three(stack)
        targets[2].script(plain(500))
        more = "balance: round-robin\n    ejection: { consecutive_failures: 1000 }"
        async with outrider(config(targets, more)) as proxy, Client(proxy.port) as client:
            for _ in range(4):
                assert (await client.call(get("/user/x"))).status == 200
            assert len(targets[2].seen) == 1
            for number in range(120):
                assert (await client.call(get_and_post(number))).status == 200
                await asyncio.sleep(0.002)
    assert by_method(targets[2].seen)["POST"] == 0
    assert by_method(targets[2].seen)["GET"] > 1


async def test_it_comes_back_after_it_has_healed(outrider: Outrider) -> None:
    """An endpoint that is set aside gets single probes, by calls that may be repeated, and its share again when one
    of them works."""
    failing = slow(0.05, plain(500))
    async with AsyncExitStack() as stack:
        targets = await three(stack, slow(0.002))
        targets[0].script(failing)
        more = "ejection: { base: 100ms, max: 100ms }\n    retry: { budget: 100% }"
        async with outrider(config(targets, more)) as proxy:
            async with under_load(proxy.port, 8, lambda number: get(f"/user/{number}")) as tally:
                await eventually(lambda: endpoints(proxy)[0].out, "set aside")
                await eventually(lambda: not targets[0].busy, "nobody left there")
                targets[0].most_busy, probed = 0, len(targets[0].seen)
                await eventually(lambda: len(targets[0].seen) >= probed + 2, "two probes")
                assert targets[0].most_busy == 1
                targets[0].script(slow(0.002))
                await eventually(lambda: not endpoints(proxy)[0].out, "back")
                back = len(targets[0].seen)
                await eventually(lambda: len(targets[0].seen) > back + 5, "calls again")
            assert proxy.app.runtime.ejections["user", "ejected"] >= 1
            assert proxy.app.runtime.ejections["user", "returned"] == 1
    assert tally.failed == 0


async def test_an_earlier_call_that_ends_makes_no_room_for_a_second_probe(outrider: Outrider) -> None:
    """While a probe is under way at a suspect, the end of a call that was there before does not let another one go."""
    before, probe = asyncio.Event(), asyncio.Event()

    def held(gate: asyncio.Event, status: int) -> Action:
        async def act(one: Exchange) -> None:
            await one.body()
            await gate.wait()
            await one.send(response(status))

        return act

    async with Target(plain()) as good, Target([held(before, 500), plain(500), held(probe, 200), plain()]) as bad:
        more = "balance: round-robin\n    retry: { budget: 100% }"
        async with outrider(config([good, bad], more)) as proxy, Client(proxy.port) as client:
            early = asyncio.create_task(_until(proxy.port, bad, 1))
            await eventually(lambda: len(bad.seen) == 1, "a call that stays there")
            while len(bad.seen) < 2:
                assert (await client.call(get("/user/x"))).status == 200
            await asyncio.sleep(0.06)
            probing = asyncio.create_task(_until(proxy.port, bad, 3))
            await eventually(lambda: len(bad.seen) == 3, "a probe")
            before.set()
            assert await early == 200
            await asyncio.sleep(0.12)
            for _ in range(6):
                assert (await client.call(get("/user/x"))).status == 200
            assert (len(bad.seen), bad.busy) == (3, 1)
            probe.set()
            assert await probing == 200


async def _until(port: int, target: Target, seen: int) -> int:
    """GETs until one of them has been the `seen`-th at the target; its status."""
    while True:
        answer = await exchange(port, get("/user/x"))
        if len(target.seen) >= seen:
            return answer.status


async def test_the_last_one_is_never_set_aside(outrider: Outrider) -> None:
    """When all endpoints fail the calls still go to one of them, and they are back as soon as it works again."""
    async with AsyncExitStack() as stack:
        targets = await three(stack, plain(500, b"from a target"))
        more = "circuit_breaker: false\n    retry: false\n    ejection: { base: 50ms, max: 50ms }"
        async with outrider(config(targets, more)) as proxy, Client(proxy.port) as client:
            for _ in range(100):
                answer = await client.call(get("/user/x"))
                assert (answer.status, answer.body) == (500, b"from a target")
                assert sum(endpoint.out for endpoint in endpoints(proxy)) < 3
            assert sum(endpoint.out for endpoint in endpoints(proxy)) == 2
            for target in targets:
                target.script(plain())

            async with asyncio.timeout(4):
                while any(endpoint.out or endpoint.run for endpoint in endpoints(proxy)):
                    assert (await client.call(get("/user/x"))).status == 200
                    await asyncio.sleep(0.005)


async def test_a_failing_endpoint_does_not_open_the_circuit(outrider: Outrider) -> None:
    """Five failures in a row at one endpoint are that endpoint's while others stand."""
    async with AsyncExitStack() as stack:
        targets = await three(stack, slow(0.001))
        targets[0].script(plain(500))
        async with outrider(config(targets, "balance: round-robin\n    retry: false")) as proxy:
            tally = await in_turn(proxy.port, 4, 400, get_and_post)
            assert proxy.breaker_state() == "closed"
            assert not proxy.app.runtime.transitions
    assert tally.failed < 20


async def test_a_crowd_that_fails_at_one_endpoint_does_not_open_the_circuit(outrider: Outrider) -> None:
    """However many calls are at the failing endpoint at once, their failures do not count against the service."""
    async with Target(slow(0.03, plain(500))) as bad, Target(slow(0.08)) as good:
        more = "balance: round-robin\n    retry: { budget: 100% }"
        async with outrider(config([bad, good], more)) as proxy:
            answers = await asyncio.gather(*(exchange(proxy.port, get("/user/x")) for _ in range(60)))
            assert not proxy.app.runtime.transitions
    assert Counter(answer.status for answer in answers) == {200: 60}


async def test_a_connection_refused_costs_no_budget(outrider: Outrider) -> None:
    """Going on to another endpoint when one refuses connections adds no load to anything, so it is always done."""
    async with AsyncExitStack() as stack:
        targets = await three(stack)
        await targets[0].stop()
        await targets[1].stop()
        more = "retry: { budget: 0% }\n    ejection: false\n    balance: round-robin\n    circuit_breaker: false"
        async with outrider(config(targets, more)) as proxy:
            tally = await in_turn(proxy.port, 1, 12, get_and_post)
    # A call that meets both of them in turn needs the second retry from the three of this second.
    assert tally.good >= 7, tally.statuses()
    assert max(executed(targets).values()) == 1


# ---------------------------------------------------------------- the choice


async def test_a_header_keeps_a_user_at_one_endpoint(outrider: Outrider) -> None:
    """The same value goes to the same endpoint, and when one goes only its own users move, and come back."""
    async with AsyncExitStack() as stack:
        targets = await three(stack)
        more = "balance: 'hash:header:X-User'\n    ejection: { base: 50ms, max: 50ms }"
        async with outrider(config(targets, more)) as proxy, Client(proxy.port) as client:

            async def place_of(user: int) -> int:
                before = [len(target.seen) for target in targets]
                assert (await client.call(get("/user/x", f"X-User: {user}"))).status == 200
                # The last one is who answered; a retry has been at another one before.
                moved = [n for n, target in enumerate(targets) if len(target.seen) > before[n]]
                return next(n for n in moved if answering[n])

            answering = [True, True, True]
            home = {user: await place_of(user) for user in range(60)}
            assert min(Counter(home.values()).values()) > 5
            for _ in range(4):
                assert {user: await place_of(user) for user in range(60)} == home

            answering[0] = False
            targets[0].script(plain(500))
            away = {user: await place_of(user) for user in range(60)}
            assert all(away[user] == place for user, place in home.items() if place != 0)
            assert all(place != 0 for place in away.values())

            targets[0].script(plain())
            answering[0] = True
            await asyncio.sleep(0.1)

            async def back() -> bool:
                return {user: await place_of(user) for user in range(60)} == home

            async with asyncio.timeout(3):
                while not await back():
                    await asyncio.sleep(0.05)


async def test_without_the_header_calls_are_spread(outrider: Outrider) -> None:
    """A call that says nothing about its user goes to the least busy."""
    async with AsyncExitStack() as stack:
        targets = await three(stack)
        async with outrider(config(targets, "balance: 'hash:header:X-User'")) as proxy:
            await in_turn(proxy.port, 1, 90, lambda _: get("/user/x"))
    assert min(len(target.seen) for target in targets) > 10


async def test_weights_in_turn(outrider: Outrider) -> None:
    """With round-robin each endpoint gets exactly its share, evenly spread."""
    async with AsyncExitStack() as stack:
        targets = await three(stack)
        async with outrider(config(targets, "balance: round-robin", (1, 2, 5))) as proxy:
            await in_turn(proxy.port, 1, 80, lambda _: get("/user/x"))
    assert [len(target.seen) for target in targets] == [10, 20, 50]


@pytest.mark.parametrize("balance", ["least-latency", "least-requests"])
async def test_weights_under_load(outrider: Outrider, balance: str) -> None:
    """Of equally fast endpoints one with four times the weight gets about four times the calls."""
    async with AsyncExitStack() as stack:
        targets = await three(stack, slow(0.01))
        async with outrider(config(targets, f"balance: {balance}", (1, 1, 4))) as proxy:
            await in_turn(proxy.port, 24, 600, lambda _: get("/user/x"))
    one, two, four = (len(target.seen) for target in targets)
    assert 2.2 < four / (one + two) * 2 < 6.5, (one, two, four)


async def test_a_slow_endpoint_gets_little(outrider: Outrider) -> None:
    """Calls go where answers come soon."""
    async with AsyncExitStack() as stack:
        targets = await three(stack, slow(0.005))
        targets[1].script(slow(0.1))
        async with outrider(config(targets)) as proxy:
            tally = await in_turn(proxy.port, 12, 500, get_and_post)
    assert tally.failed == 0
    assert 1 <= len(targets[1].seen) <= 40, [len(target.seen) for target in targets]


async def test_an_endpoint_far_slower_than_the_others_is_set_aside(outrider: Outrider) -> None:
    """Even where the balance does not look at latency, an endpoint twenty times as slow gets only probes."""
    async with AsyncExitStack() as stack:
        targets = await three(stack, slow(0.002))
        targets[1].script(slow(0.1))
        more = "balance: round-robin\n    ejection: { slow_call: 50ms, base: 5s, max: 5s }"
        async with outrider(config(targets, more)) as proxy:
            tally = await in_turn(proxy.port, 6, 300, get_and_post)
            assert [endpoint.out for endpoint in endpoints(proxy)] == [False, True, False]
    assert tally.failed == 0
    # Those that were there together before it showed, and no more.
    assert len(targets[1].seen) <= 20
