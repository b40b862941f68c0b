"""The admin port, for people on this machine: `/api/v1/status` and `/config` to look, `/-/drain` and `/-/quit` to stop,
and what orders.py adds.

A browser on the same machine can be made to send requests here (DNS rebinding), so the Host must be one of ours,
no CORS header is ever sent, and with `admin.token` set every request must carry it. What changes something is a POST
with a header that no page can set across origins.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import signal
from collections.abc import Awaitable, Callable
from time import time
from typing import Any

from aiohttp import web

from outrider import __version__
from outrider.blocking import run_apart
from outrider.config.redaction import shown_values
from outrider.config.schema import Config
from outrider.config.source import Document, KeyPath, dotted
from outrider.controlplane.admin.handler import VisitorOf
from outrider.controlplane.admin.orders import add_orders, shown
from outrider.controlplane.runtime import Runtime
from outrider.dataplane.policies.deciders.breaker import Breaker
from outrider.dataplane.upstream.cluster import Cluster
from outrider.model.addresses import hide_in_urls

_OUR_HOSTS = frozenset(("127.0.0.1", "localhost", "[::1]", "::1"))

# Seconds until the configuration has to be there, which a thread prepares.
_PATIENCE = 10.0
_SERVICES_PER_TURN = 50
# Seconds that answers under way have left at the end.
_MOMENT = 0.5

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def runner(app: web.Application, visitor_of: VisitorOf) -> web.AppRunner:
    """What serves an application on connections whose visitors are attended: their answers take a bounded time."""

    @web.middleware
    async def attend(request: web.Request, handler: Handler) -> web.StreamResponse:
        visitor = visitor_of(request.protocol)
        if visitor is None:
            return await handler(request)
        try:
            async with visitor.attended():
                return await handler(request)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="it took too long\n") from None

    app.middlewares.insert(0, attend)
    return web.AppRunner(app, access_log=None, shutdown_timeout=_MOMENT)


def admin_guard(config: Config) -> Any:
    """Who may ask at all, and who may change something."""
    token = config.admin.token

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.host.rpartition(":")[0] if re.search(r":\d+$", request.host) else request.host
        if token is None and host.lower() not in _OUR_HOSTS:
            raise web.HTTPMisdirectedRequest(
                text=f"{request.host[:100]} is not a name of this admin port: {_OTHER_NAME}\n"
            )
        if token is not None and not hmac.compare_digest(_bearer(request), token.encode()):
            raise web.HTTPUnauthorized(text=_remedy(request), headers={"www-authenticate": "Bearer"})
        if request.method not in ("GET", "HEAD") and not (
            request.content_type == "application/json" or request.headers.get("x-outrider")
        ):
            raise web.HTTPForbidden(
                text=f"a {request.method} here needs Content-Type: application/json or X-Outrider: 1\n"
            )
        return await handler(request)

    return guard


_OTHER_NAME = "call it 127.0.0.1 or localhost, or set admin.token in its configuration, with which any name will do"


def _remedy(request: web.Request) -> str:
    """What a caller without the right token has to do."""
    where = "the value of admin.token in the configuration of this sidecar"
    if not request.headers.getall("authorization", []):
        return (
            f"this admin port asks for a token, and the request has none: send Authorization: Bearer TOKEN with"
            f" {where}; the verbs of outrider take it from the environment variable OUTRIDER_ADMIN_TOKEN\n"
        )
    return (
        f"this is not the token of this admin port: it is {where};"
        " the verbs of outrider take it from the environment variable OUTRIDER_ADMIN_TOKEN\n"
    )


def _bearer(request: web.Request) -> bytes:
    """The token that a request shows, or nothing. The scheme has no case (RFC 9110 section 11.1)."""
    given = request.headers.getall("authorization", [])
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""


def admin_app(runtime: Runtime) -> web.Application:
    """The admin application."""

    async def drain(request: web.Request) -> web.Response:
        runtime.stop(signal.SIGTERM)
        return web.Response(status=202, text="draining\n")

    async def quit_(request: web.Request) -> web.Response:
        runtime.stop(signal.SIGINT)
        return web.Response(status=202, text="stopping\n")

    async def status_(request: web.Request) -> web.Response:
        return web.Response(text=await status(runtime), content_type="application/json")

    async def config(request: web.Request) -> web.Response:
        document, redact = runtime.resolved.document, runtime.resolved.config.observability.redact
        text = await run_apart("configuration", lambda: json.dumps(redacted(document, redact)), _PATIENCE)
        return web.Response(text=text, content_type="application/json")

    app = web.Application(middlewares=[admin_guard(runtime.resolved.config)])
    app.router.add_get("/api/v1/status", status_)
    app.router.add_get("/config", config)
    add_orders(app, runtime)
    app.router.add_post("/-/drain", drain)
    for path in ("/-/quit", "/quitquitquit"):
        app.router.add_post(path, quit_)
    return app


async def status(runtime: Runtime) -> str:
    """Who runs here, since when, and how the services are doing, as JSON. Calls go on between the services."""
    config = runtime.resolved.config
    breakers: dict[str, list[Breaker]] = {}
    for breaker in runtime.compiled.breakers:  # named after their service, or `SERVICE METHOD /path`
        breakers.setdefault(breaker.name.partition(" ")[0], []).append(breaker)
    in_flight = runtime.proxy.in_flight_by_service()
    state = "draining" if runtime.proxy.draining else "ready" if runtime.ready else "starting"
    head = {
        "service": config.service,
        "instance": runtime.resolved.instance,
        "version": __version__,
        "state": state,
        "uptime_seconds": round(time() - runtime.started, 1),
        "config_hash": runtime.config_hash,
        "connections": len(runtime.proxy.connections),
        "in_flight": runtime.proxy.in_flight,
        "event_loop_lag_seconds": round(runtime.lag.seconds, 4),
    }
    services = []
    for number, cluster in enumerate(runtime.compiled.clusters):
        name = cluster.name
        one = _service_status(cluster, breakers.get(name, []), in_flight.get(name, 0))
        services.append(f"{json.dumps(name)}: {json.dumps(one)}")
        if number % _SERVICES_PER_TURN == 0:
            await asyncio.sleep(0)
    return f'{json.dumps(head)[:-1]}, "services": {{{", ".join(services)}}}}}'


def _service_status(cluster: Cluster, breakers: list[Breaker], in_flight: int) -> dict[str, Any]:
    return {
        "in_flight": in_flight,
        "balance": cluster.balance,
        "circuits": {breaker.name: shown(breaker) for breaker in breakers},
        "endpoints": [
            {
                "address": endpoint.name,
                "state": endpoint.standing,
                "latency_ms": round(endpoint.latency * 1000, 2),
                "in_flight": endpoint.in_flight,
                "connections": {"open": endpoint.pool.open, "idle": len(endpoint.pool.idle)},
            }
            for endpoint in cluster.endpoints
        ],
        "attempts": {str(label): count for label, count in cluster.stats.attempts.items()},
        "hedges": dict(cluster.stats.hedges),
        "retries": dict(cluster.stats.retries),
        "retries_suppressed": dict(cluster.stats.suppressed),
    }


def redacted(document: Document, redact: list[str]) -> dict[str, Any]:
    """The configuration as it was read, secrets hidden, and the place every value came from."""
    provenance = {
        hide_in_urls(dotted(path)): str(mark)
        for path, mark in document.marks.items()
        if path and not isinstance(_value(document.values, path), (dict, list))
    }
    return {"config": shown_values(document, redact), "provenance": provenance}


def _value(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values
