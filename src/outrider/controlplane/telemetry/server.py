"""The telemetry port: /metrics, /healthz, /readyz, and nothing else."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from outrider.controlplane.runtime import Runtime
from outrider.controlplane.telemetry.metrics import registry


def telemetry_app(runtime: Runtime) -> web.Application:
    """`/healthz` answers while the event loop lives; `/readyz` while calls are welcome. Neither ever depends on
    targets: a sidecar that is restarted because a target is down helps nobody."""
    collected = registry(runtime)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(collected), headers={"content-type": CONTENT_TYPE_LATEST})

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        if runtime.proxy.draining:
            return web.Response(status=503, text="draining\n")
        if not runtime.ready:
            return web.Response(status=503, text="starting\n")
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    for path in ("/healthz", "/-/healthy"):
        app.router.add_get(path, healthz)
    for path in ("/readyz", "/-/ready", "/ready"):
        app.router.add_get(path, readyz)
    return app
