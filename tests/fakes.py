"""Fakes for pure tests: a clock that is moved by hand, and calls and attempts without sockets."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from outrider.dataplane.attempt import Attempt
from outrider.dataplane.body import RequestBody
from outrider.dataplane.call import Call
from outrider.dataplane.engine.one_attempt import head_for
from outrider.dataplane.engine.routing import Route
from outrider.dataplane.policies.deciders.retry import Retry
from outrider.dataplane.runtime.counters import ClusterStats, RouteStats
from outrider.dataplane.runtime.timers import NEVER
from outrider.dataplane.upstream.cluster import Cluster, Endpoint
from outrider.dataplane.upstream.ejection import Ejection
from outrider.model.failure import Failure
from outrider.model.messages import Response


class Downstream:
    """The app's connection, as calls and attempts know it: counts how often it was woken."""

    def __init__(self) -> None:
        self.woken = 0
        self.address = b"192.0.2.7"

    def peer_address(self) -> bytes:
        return self.address

    def resume_call(self) -> None:
        self.woken += 1


class SlowLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is moved by hand."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run until everything that is due has been done."""

        async def turns() -> None:
            for _ in range(8):
                await asyncio.sleep(0)

        self.run_until_complete(turns())

    def finish(self) -> None:
        """Give up what is still under way, and close."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.settle()
        self.close()


class Clock:
    """Monotonic seconds that pass only when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def make_cluster(
    name: str = "user", endpoints: int = 1, balance: str = "least-requests", ejection: Ejection | None = None
) -> Cluster:
    stats = ClusterStats()
    made = [
        Endpoint("127.0.0.1", 3001 + index, authority=f"127.0.0.1:{3001 + index}", stats=stats)
        for index in range(endpoints)
    ]
    return Cluster(name, made, balance, stats, ejection)


def make_route(cluster: Cluster | None = None, **parts: Any) -> Route:
    cluster = cluster or make_cluster()
    values: dict[str, Any] = {
        "name": "*",
        "cluster": cluster,
        "stats": RouteStats(cluster.name, "*"),
        "policies": (),
        "stamps": (),
        "retry": Retry(),
        "breaker": None,
        "fallback": None,
        "attempt_timeout": 5.0,
        "connect_timeout": 1.0,
    }
    return Route(**{**values, **parts})


def make_call(
    method: bytes = b"GET",
    headers: dict[bytes, bytes] | None = None,
    *,
    route: Route | None = None,
    now: float = 1000.0,
    body: RequestBody | None = None,
    timeout: float = 10.0,
) -> Call:
    """A call as the policies see it. `headers` are noted under their lower-case names."""
    call = Call(cast(Any, Downstream()), b"/", now)
    call.method = method
    call.path = b"/"
    for name, value in (headers or {}).items():
        call.fields.append((name.lower(), name, value))
        call.noted[name.lower()] = value
    call.route = route or make_route()
    call.deadline = now + timeout if timeout else NEVER
    call.body = body
    return call


def sent_head(call: Call, owned: frozenset[bytes], lines: list[bytes], endpoint: Endpoint | None = None) -> bytes:
    """The head that the target of a call gets, on a route that owns these names, with these lines of the policies."""
    route = cast(Route, call.route)
    route.owned = owned
    return head_for(call, route, endpoint or route.cluster.endpoints[0], lines)


def pick(cluster: Cluster, call: Call, now: float) -> Endpoint | None:
    """The endpoint for the next attempt of a call on its own route."""
    return cluster.pick(call, call.route.rules, now)


def make_attempt(
    call: Call | None = None,
    result: Response | Failure | None = None,
    *,
    number: int = 1,
    latency: float = 0.01,
    now: float | None = None,
) -> Attempt:
    """An attempt that has ended with `result`, `latency` seconds after `now`."""
    call = call or make_call()
    attempt = Attempt(call, call.route, number, call.started if now is None else now)
    attempt.answered = attempt.started + latency
    attempt.admitted = True
    if result is not None:
        attempt.result = result
    return attempt


def make_response(status: int, retry_after: bytes | None = None) -> Response:
    response = Response()
    response.status = status
    response.retry_after = retry_after
    response.complete = True
    return response
