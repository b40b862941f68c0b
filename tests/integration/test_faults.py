"""The fault lab: a service fails on purpose, as its callers see it, and only for as long as that was asked for."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import aiohttp
import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import BrokenError, Client, Sidecar, Target, eventually, exchange, get, plain, request

CONFIG = """admin: { listen: '127.0.0.1:0', allow_faults: true }
services: { user: { url: '%s', retry: false, circuit_breaker: false, %s } }"""
BIG = b"x" * 20_000


async def order(proxy: Sidecar, method: str = "POST", path: str = "/api/v1/faults", **body: Any) -> tuple[int, Any]:
    """Status and JSON of an order to the admin port."""
    url = f"http://127.0.0.1:{proxy.admin}{path}"
    async with aiohttp.ClientSession() as session:
        async with session.request(method, url, json=body, headers={"x-outrider": "1"}) as answer:
            return answer.status, await answer.json()


async def fail(proxy: Sidecar, kind: str, **more: Any) -> None:
    """Begin a fault of the service `user`."""
    status, answer = await order(proxy, service="user", kind=kind, **more)
    assert status == 201, answer


async def test_latency_is_added(outrider: Outrider) -> None:
    """An answer comes as much later as was asked for, and is the target's."""
    async with Target(plain()) as target, outrider(CONFIG % (target.url, "")) as proxy:
        await fail(proxy, "latency", delay="150ms")
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x"))
        assert (answer.status, answer.body) == (200, b"ok")
        assert 0.15 <= monotonic() - began < 1.0


@pytest.mark.parametrize(("kind", "status"), [("reset", 502), ("garbage", 502), ("hang", 504)])
async def test_a_broken_target_is_told_apart(outrider: Outrider, kind: str, status: int) -> None:
    """Reset, garbage and silence come out as they do when a real target does that."""
    config = CONFIG % ("%s", "attempt_timeout: 200ms")
    async with Target(plain()) as target, outrider(config % target.url) as proxy:
        await fail(proxy, kind)
        assert (await exchange(proxy.port, get("/user/x"))).status == status
        if kind != "hang":
            assert not target.seen


async def test_a_status_is_answered_in_place_of_the_target(outrider: Outrider) -> None:
    """The target does not hear of the request; a POST with a body is answered, too."""
    async with Target(plain()) as target, outrider(CONFIG % (target.url, "")) as proxy:
        await fail(proxy, "status", status=429)
        for data in (get("/user/x"), request("POST", "/user/x", BIG)):
            answer = await exchange(proxy.port, data)
            assert answer.status == 429
            assert b"outrider fault" in answer.body
        assert not target.seen


async def test_an_answer_is_truncated(outrider: Outrider) -> None:
    """The head and a part of the body come, then the connection breaks, visibly."""
    async with Target(plain(body=BIG)) as target, outrider(CONFIG % (target.url, "")) as proxy:
        await fail(proxy, "truncate")
        with pytest.raises(BrokenError):
            await exchange(proxy.port, get("/user/x"))


async def test_bandwidth_is_limited(outrider: Outrider) -> None:
    """20 kB at 100 kB a second take a fifth of a second, and arrive whole."""
    async with Target(plain(body=BIG)) as target, outrider(CONFIG % (target.url, "")) as proxy:
        await fail(proxy, "bandwidth", rate="100kB")
        began = monotonic()
        assert (await exchange(proxy.port, get("/user/x"))).body == BIG
        assert 0.1 < monotonic() - began < 2.0


async def test_a_share_of_requests_is_hit(outrider: Outrider) -> None:
    """With a probability of a half, about half of the calls fail, also on one connection of the app."""
    async with Target(plain()) as target, outrider(CONFIG % (target.url, "")) as proxy, Client(proxy.port) as client:
        await fail(proxy, "status", probability="50%")
        failed = [(await client.call(get("/user/x"))).status == 503 for _ in range(200)]
        assert 60 < sum(failed) < 140
        _, listed = await order(proxy, "GET")
        (fault,) = listed["faults"]
        assert fault["met"] == sum(failed)


async def test_a_fault_ends_by_itself(outrider: Outrider) -> None:
    """After its time calls go straight to the target again, and nothing of the detour is left."""
    async with Target(plain()) as target, outrider(CONFIG % (target.url, "")) as proxy:
        await fail(proxy, "status", **{"for": "200ms"})
        assert (await exchange(proxy.port, get("/user/x"))).status == 503
        endpoint = proxy.app.runtime.compiled.clusters[0].endpoints[0]
        await eventually(lambda: endpoint.detour is None, "the detour is over")
        assert (await exchange(proxy.port, get("/user/x"))).status == 200
        assert await order(proxy, "GET") == (200, {"faults": []})


async def test_faults_are_ended_by_order(outrider: Outrider) -> None:
    """A call that hangs is over when the fault is; the next one is answered."""
    async with Target(plain()) as target, outrider(CONFIG % (target.url, "")) as proxy:
        await fail(proxy, "hang")
        hanging = asyncio.create_task(exchange(proxy.port, get("/user/x")))
        await eventually(lambda: proxy.app.runtime.proxy.in_flight == 1, "the call is under way")
        assert await order(proxy, "DELETE", "/api/v1/faults?service=user") == (200, {"ended": 1})
        assert (await hanging).status == 502
        assert (await exchange(proxy.port, get("/user/x"))).status == 200


async def test_faults_must_be_allowed(outrider: Outrider) -> None:
    """Without `admin.allow_faults` nothing can be made to fail, and the refusal names the key."""
    text = "services: { user: { url: '%s' } }"
    async with Target(plain()) as target, outrider(text % target.url) as proxy:
        status, answer = await order(proxy, service="user", kind="reset")
        assert status == 403
        assert "admin.allow_faults" in answer["error"]
        assert (await exchange(proxy.port, get("/user/x"))).status == 200


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"service": "nobody", "kind": "reset"}, 'no service "nobody"'),
        ({"service": "user", "kind": "melt"}, "kind"),
        ({"service": "user", "kind": "latency", "delay": "3"}, "delay"),
        ({"service": "user", "kind": "reset", "probability": "2"}, "probability"),
        ({"service": "user", "kind": "reset", "for": "3h"}, "one hour"),
        ({"service": "user", "kind": "reset", "colour": "red"}, "colour"),
    ],
)
async def test_a_bad_order_is_refused_with_its_reason(outrider: Outrider, body: dict[str, str], word: str) -> None:
    """What cannot be carried out is told by name, and nothing begins."""
    async with Target(plain()) as target, outrider(CONFIG % (target.url, "")) as proxy:
        status, answer = await order(proxy, **body)
        assert status == 400
        assert word in answer["error"]
        assert await order(proxy, "GET") == (200, {"faults": []})
