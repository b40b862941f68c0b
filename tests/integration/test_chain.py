"""Three Outriders in a row, as where services call services: what a fault at the end costs, and who tries again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from tests.integration.harness import (
    Action,
    Exchange,
    Sidecar,
    Target,
    close_unanswered,
    eventually,
    exchange,
    get,
    plain,
    request,
    reset_unanswered,
    sidecar,
)
from tests.integration.load import steadily

PATH = "/b/c/leaf/x"


@asynccontextmanager
async def chain(folder: Path, leaf: str, more: str = "") -> AsyncIterator[list[Sidecar]]:
    """Sidecars whose targets are one another, the first one first. Each takes one segment off the path."""
    async with AsyncExitStack() as stack:
        url, row = leaf, []
        for name in ("leaf", "c", "b"):
            own = folder / name
            own.mkdir()
            text = f"services:\n  {name}:\n    url: '{url}'\n    {more}\n"
            row.append(await stack.enter_async_context(sidecar(own, text)))
            url = f"http://127.0.0.1:{row[-1].port}"
        yield row[::-1]


def retries(proxy: Sidecar) -> int:
    """How many retries a sidecar has made, whatever the reason."""
    return sum(sum(cluster.stats.retries.values()) for cluster in proxy.app.runtime.compiled.clusters)


def suppressed(proxy: Sidecar) -> Counter[str]:
    """Why a sidecar has made none."""
    return Counter(proxy.app.runtime.compiled.clusters[0].stats.suppressed)


def failing(share: float, seed: int) -> Action:
    """A target that fails this share of attempts."""
    draw = random.Random(seed).random

    async def act(one: Exchange) -> None:
        await plain(500 if draw() < share else 200)(one)

    return act


async def test_a_call_through_the_chain(tmp_path: Path) -> None:
    """All three pass a call on, and its ids with it."""
    async with Target(plain(200, b"leaf")) as leaf, chain(tmp_path, leaf.url) as row:
        answer = await exchange(row[0].port, request("POST", PATH, b"charge", "X-Correlation-Id: c-1"))
    assert (answer.status, answer.body) == (200, b"leaf")
    (seen,) = leaf.seen
    assert (seen.path, seen.body, seen.get("x-correlation-id")) == ("/x", b"charge", "c-1")
    assert seen.get("x-outrider-attempt") == "1"


@pytest.mark.parametrize("broken", [plain(503), reset_unanswered], ids=["503", "reset"])
async def test_a_leaf_that_fails_is_not_overrun(tmp_path: Path, broken: Action) -> None:
    """When the end of the chain fails altogether it gets a fifth more calls than there are at most, not 64 times as
    many."""
    count = 240
    async with Target(broken) as leaf, chain(tmp_path, leaf.url) as row:
        tally = await steadily(row[0].port, 200, count, lambda number: get(PATH))
        load = len(leaf.seen)
    assert tally.good == 0
    assert tally.broken == 0
    assert load <= 1.2 * count, load


async def test_the_budget_holds_at_the_last_hop_alone(tmp_path: Path) -> None:
    """Without circuit breakers retries add a fifth and three a second, once for the whole chain."""
    count = 240
    async with Target(plain(500)) as leaf, chain(tmp_path, leaf.url, "circuit_breaker: false") as row:
        began = monotonic()
        tally = await steadily(row[0].port, 200, count, lambda number: get(PATH))
        seconds = monotonic() - began
        load = len(leaf.seen)
        assert retries(row[0]) == retries(row[1]) == 0
        assert suppressed(row[0])["tried_below"] == suppressed(row[1])["tried_below"] == count
    assert tally.statuses() == {500: count}
    assert count < load <= 1.2 * count + 3 * (int(seconds) + 2), load


async def test_a_leaf_that_cannot_be_reached(tmp_path: Path) -> None:
    """Also what the last hop answers by itself, because nobody listens behind it, is not tried again in front."""
    async with Target(plain()) as leaf:
        await leaf.stop()
        async with chain(tmp_path, leaf.url, "circuit_breaker: false") as row:
            tally = await steadily(row[0].port, 100, 100, lambda number: get(PATH))
            assert (retries(row[0]), retries(row[1])) == (0, 0)
    assert tally.statuses() == {502: 100}


async def test_a_leaf_that_fails_now_and_then_is_hardly_noticed(tmp_path: Path) -> None:
    """With three attempts in ten failing at the end of the chain, 99 of 100 GETs are answered well where the budget
    allows for it."""
    count = 300
    more = "retry: { max_retries: 5, budget: 100% }\n    circuit_breaker: { consecutive_failures: 0 }"
    async with Target(failing(0.3, 1)) as leaf, chain(tmp_path, leaf.url, more) as row:
        tally = await steadily(row[0].port, 150, count, lambda number: get(PATH))
    assert tally.good >= 0.99 * count, tally.statuses()
    assert len(leaf.seen) < 1.6 * count


async def test_by_default_a_few_failures_at_the_leaf_are_not_noticed(tmp_path: Path) -> None:
    """With one attempt in ten failing, which the default budget covers, 99 of 100 GETs are answered well."""
    count = 300
    async with Target(failing(0.1, 1)) as leaf, chain(tmp_path, leaf.url) as row:
        tally = await steadily(row[0].port, 200, count, lambda number: get(PATH))
    assert tally.good >= 0.99 * count, tally.statuses()
    assert len(leaf.seen) < 1.25 * count


# ---------------------------------------------------------------- who says no to whom


async def test_exhausted_calls_say_so(tmp_path: Path) -> None:
    """The app, and every hop before it, hears that trying again would only add load."""
    more = "circuit_breaker: false\n    retry: { backoff: 1ms..2ms }"
    async with Target(plain(503, b"busy", "X-Mine: 1")) as leaf, chain(tmp_path, leaf.url, more) as row:
        for proxy, path in zip(row, (PATH, "/c/leaf/x", "/leaf/x"), strict=True):
            before = len(leaf.seen)
            answer = await exchange(proxy.port, get(path))
            assert (answer.status, answer.body, answer.get("x-mine")) == (503, b"busy", "1")
            assert answer.get("x-outrider-retry") == "off"
            assert len(leaf.seen) - before <= 4


async def test_a_retry_cut_short_by_the_circuit_says_so(tmp_path: Path) -> None:
    """A call that opens the circuit by its own failures, or comes back to find it open, is not to be tried again by
    whoever sent it."""
    more = "circuit_breaker: { consecutive_failures: 2, open_for: 5s..5s }\n    retry: { backoff: 1ms..5ms }"
    async with Target(plain(500, b"failed")) as target:
        async with sidecar(tmp_path, f"services:\n  user:\n    url: '{target.url}'\n    {more}") as proxy:
            answer = await exchange(proxy.port, get("/user/x"))
            assert proxy.breaker_state() == "open"
    assert len(target.seen) == 2
    assert (answer.status, answer.body) == (500, b"failed")
    assert answer.get("x-outrider-retry") == "off"


@pytest.mark.parametrize("status", [404, 429, 200])
async def test_other_answers_do_not_say_so(tmp_path: Path, status: int) -> None:
    """Only what was given up is marked."""
    async with Target(plain(status)) as leaf, chain(tmp_path, leaf.url) as row:
        answer = await exchange(row[0].port, get(PATH))
    assert (answer.status, answer.get("x-outrider-retry")) == (status, None)
    assert len(leaf.seen) == 1


async def test_a_post_that_failed_is_the_apps_to_decide(tmp_path: Path) -> None:
    """What was not repeated because it may have had an effect is not marked as tried enough, and sent once."""
    async with Target(plain(500)) as leaf, chain(tmp_path, leaf.url) as row:
        answer = await exchange(row[0].port, request("POST", PATH, b"charge"))
    assert (answer.status, answer.get("x-outrider-retry")) == (500, None)
    assert leaf.bodies() == [b"charge"]


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
@pytest.mark.parametrize("broken", [plain(503), reset_unanswered, close_unanswered], ids=["503", "reset", "closed"])
async def test_what_is_itself_a_retry_is_not_retried(tmp_path: Path, method: str, broken: Action) -> None:
    """A call with x-outrider-attempt: 2 is made once, whatever its method, and says so to whoever tried twice."""
    async with Target([broken, plain()]) as target:
        async with sidecar(tmp_path, f"services: {{ user: '{target.url}' }}") as proxy:
            data = request(method, "/user/x", None if method == "GET" else b"charge", "X-Outrider-Attempt: 2")
            answer = await exchange(proxy.port, data)
            assert suppressed(proxy) == {"is_retry": 1}
    assert (answer.status >= 500, len(target.seen)) == (True, 1)
    assert answer.get("x-outrider-retry") == "off"
    assert target.seen[0].get("x-outrider-attempt") == "2"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_retry_that_was_not_sent_is_tried_again(tmp_path: Path, method: str) -> None:
    """Nothing has been added to anybody's load, so it may go on."""
    async with Target(plain()) as one, Target(plain()) as two:
        await one.stop()
        text = f"services: {{ user: {{ url: ['{one.url}', '{two.url}'], balance: round-robin }} }}"
        async with sidecar(tmp_path, text) as proxy:
            data = request(method, "/user/x", None if method == "GET" else b"charge", "X-Outrider-Attempt: 2")
            answer = await exchange(proxy.port, data)
    assert (answer.status, len(two.seen)) == (200, 1)


@pytest.mark.parametrize("attempt", ["1", "0", ""])
async def test_a_first_attempt_is_retried(tmp_path: Path, attempt: str) -> None:
    """Only what says that it is a repetition is taken for one."""
    async with Target([plain(503), plain()]) as target:
        async with sidecar(tmp_path, f"services: {{ user: '{target.url}' }}") as proxy:
            answer = await exchange(proxy.port, get("/user/x", f"X-Outrider-Attempt: {attempt}"))
    assert (answer.status, len(target.seen)) == (200, 2)


async def test_it_recovers_with_the_leaf(tmp_path: Path) -> None:
    """When the leaf works again, calls pass through all three soon: each circuit in turn has to find out, in at most
    250 ms."""
    async with Target(plain(500)) as leaf, chain(tmp_path, leaf.url) as row:
        await steadily(row[0].port, 150, 100, lambda number: get(PATH))
        leaf.script(plain())
        began = monotonic()
        good = 0

        async def again() -> None:
            nonlocal good
            good = good + 1 if (await exchange(row[0].port, get(PATH))).status == 200 else 0

        while good < 10:
            await again()
            assert monotonic() - began < 3.0
        await eventually(lambda: all(_closed(proxy) for proxy in row), "every circuit closed")


def _closed(proxy: Sidecar) -> bool:
    return all(breaker.state == "closed" for breaker in proxy.app.runtime.compiled.breakers)
