"""Context without code: three services whose apps pass on nothing but `traceparent`, each behind a guard of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import pytest

from tests.integration.harness import (
    Action,
    BrokenError,
    Client,
    Exchange,
    Sidecar,
    Target,
    eventually,
    exchange,
    get,
    plain,
    response,
    sidecar,
    silent,
)

KEY = "0123456789abcdef0123456789abcdef"
CONFIG = """
service: {name}
inbound:
  listen: 127.0.0.1:0
  app: '{app}'
  accept: [ {{ header: x-api-key, values: [{key}] }} ]
credentials: {{ key: {{ header: x-api-key, value: {key} }} }}
services:
  next: {{ url: 'http://127.0.0.1:{following}', auth: key, timeout: 5s, retry: false, circuit_breaker: false }}
"""
CALLER = (f"X-Api-Key: {KEY}", "X-Service-Name: web")
USER = ("X-User-Id: 42", "X-User-Role: admin", "Baggage: tenant=blue")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass
class Chain:
    """Three sidecars and their apps, in the order of the call; `left` are the apps whose caller has left."""

    apps: list[Target] = field(default_factory=list)
    proxies: list[Sidecar] = field(default_factory=list)

    @property
    def entrance(self) -> int:
        """Where calls come in."""
        return self.proxies[0].app.ports["inbound.listen"]


def asking(chain: Chain, number: int, header: str) -> Action:
    """An app that asks the next service, and passes on one header of its own request."""

    async def act(one: Exchange) -> None:
        value = one.request.get(header)
        assert value is not None
        port = chain.proxies[number].port
        async with Client(port) as client:
            await client.send(get("/next/x", f"{header}: {value}"))
            asked = asyncio.ensure_future(client.answer())
            left = asyncio.ensure_future(one.until_closed())
            await asyncio.wait((asked, left), return_when=asyncio.FIRST_COMPLETED)
            left.cancel()
            if not asked.done():
                # A plain app notices nothing and goes on waiting: it is the sidecar that has to end this.
                await asyncio.wait((asked,), timeout=3)
            try:
                answer = asked.result()
            except (BrokenError, ConnectionError):
                return
            await one.send(response(answer.status, answer.body))

    return act


@asynccontextmanager
async def chain(folder: Path, last: Action, header: str = "traceparent") -> AsyncIterator[Chain]:
    """The last app acts as told, the two before it ask the next one."""
    made = Chain()
    async with AsyncExitStack() as stack:
        following = 9
        for number in (2, 1, 0):
            app = await stack.enter_async_context(Target(last if number == 2 else asking(made, number, header)))
            where = folder / str(number)
            where.mkdir()
            text = CONFIG.format(name=f"service-{number}", app=app.url, key=KEY, following=following)
            proxy = await stack.enter_async_context(sidecar(where, text))
            following = proxy.app.ports["inbound.listen"]
            made.apps.insert(0, app)
            made.proxies.insert(0, proxy)
        # Each app knows its own sidecar by its place in the list, which is right from here on.
        yield made


@pytest.mark.parametrize("header", ["traceparent", "x-correlation-id"])
async def test_the_user_arrives_at_the_third(tmp_path: Path, header: str) -> None:
    """User, baggage and trace are there, and every hop knows who the one before it is."""
    async with chain(tmp_path, plain(200, b"from the third"), header) as made:
        answer = await exchange(made.entrance, get("/x", *CALLER, *USER, f"Traceparent: {TRACE}"))
        assert (answer.status, answer.body) == (200, b"from the third")
        (third,) = made.apps[2].seen
        assert third.get("x-user-id") == "42"
        assert third.get("x-user-role") == "admin"
        assert third.get("baggage") == "tenant=blue"
        assert third.get("x-service-name") == third.get("x-outrider-caller") == "service-1"
        if header == "traceparent":
            assert third.get("traceparent") == TRACE


async def test_what_nobody_needs_is_known_for_that_everywhere(tmp_path: Path) -> None:
    """A caller's word that its call is not critical goes with it to the third, whose app hears of it, too."""
    async with chain(tmp_path, plain()) as made:
        await exchange(made.entrance, get("/x", *CALLER, f"Traceparent: {TRACE}", "X-Outrider-Critical: false"))
        await exchange(made.entrance, get("/x", *CALLER, f"Traceparent: {TRACE}"))
        for app in made.apps:
            assert [seen.get("x-outrider-critical") for seen in app.seen] == ["false", None]


async def test_the_deadline_shrinks_on_the_way(tmp_path: Path) -> None:
    """Each hop is told what is left of the first caller's time, never more."""
    async with chain(tmp_path, plain()) as made:
        await exchange(made.entrance, get("/x", *CALLER, "X-Request-Timeout-Ms: 800"))
        left = [int(app.seen[0].get("x-request-timeout-ms") or 0) for app in made.apps]
        assert 800 >= left[0] >= left[1] >= left[2] > 500


async def test_a_budget_is_not_exceeded_anywhere(tmp_path: Path) -> None:
    """With a second to spend and an app at the end that never answers, every hop is done within 50 ms more."""
    async with chain(tmp_path, silent) as made:
        began = monotonic()
        call = asyncio.create_task(exchange(made.entrance, get("/x", *CALLER, "X-Request-Timeout-Ms: 1000")))
        answer = await call
        assert answer.status == 504
        assert 0.95 < monotonic() - began < 1.05
        await eventually(lambda: not any(proxy.app.runtime.proxy.in_flight for proxy in made.proxies), "all hops done")
        assert monotonic() - began < 1.06


async def test_expired_work_is_refused_before_the_app_hears_of_it(tmp_path: Path) -> None:
    """A call that comes in with no time left is 504, and the app is not asked."""
    async with chain(tmp_path, plain()) as made:
        answer = await exchange(made.entrance, get("/x", *CALLER, "Grpc-Timeout: 0m"))
        assert answer.status == 504
        assert not made.apps[0].seen


async def test_when_the_first_caller_leaves_the_third_stops(tmp_path: Path) -> None:
    """Nobody waits for the answer any more, so nobody works on it, although the apps in between notice nothing."""
    ended = asyncio.Event()

    async def work(one: Exchange) -> None:
        await one.until_closed()
        ended.set()

    async with chain(tmp_path, work) as made:
        async with Client(made.entrance) as client:
            await client.send(get("/x", *CALLER, f"Traceparent: {TRACE}"))
            await eventually(lambda: made.apps[2].seen, "the third works")
        await asyncio.wait_for(ended.wait(), 1)
        await eventually(lambda: not any(proxy.app.runtime.proxy.in_flight for proxy in made.proxies), "all hops done")


async def test_unknown_ids_restore_nothing(tmp_path: Path) -> None:
    """A trace id that no call under way has, or that two have with different users, gives nobody's identity away."""
    gate = asyncio.Event()

    async def wait(one: Exchange) -> None:
        await gate.wait()
        await one.send(response())

    async with chain(tmp_path, plain()) as made:
        made.apps[0].script(wait)
        first = [get("/x", *CALLER, "X-User-Id: 42", f"Traceparent: {TRACE}")]
        second = get("/x", *CALLER, "X-User-Id: 66", f"Traceparent: {TRACE}")
        calls = [asyncio.create_task(exchange(made.entrance, data)) for data in (*first, second)]
        await eventually(lambda: len(made.apps[0].seen) == 2, "both are at the first app")
        other = TRACE.replace("4bf9", "aaaa")
        for trace in (TRACE, other):
            await exchange(made.proxies[0].port, get("/next/x", f"Traceparent: {trace}"))
        gate.set()
        await asyncio.gather(*calls)
        assert [seen.get("x-user-id") for seen in made.apps[1].seen] == [None, None]


async def test_the_apps_own_word_counts(tmp_path: Path) -> None:
    """What the app sets itself is not replaced by what came in."""
    async with chain(tmp_path, plain()) as made:

        async def as_another(one: Exchange) -> None:
            trace = f"traceparent: {one.request.get('traceparent')}"
            answer = await exchange(made.proxies[0].port, get("/next/x", trace, "X-User-Id: service-account"))
            await one.send(response(answer.status))

        made.apps[0].script(as_another)
        await exchange(made.entrance, get("/x", *CALLER, *USER))
        assert made.apps[1].seen[0].get("x-user-id") == "service-account"
        assert made.apps[1].seen[0].get("x-user-role") == "admin"
