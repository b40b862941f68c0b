"""The telemetry port: /metrics, /healthz, /readyz, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from outrider.controlplane.runtime import Runtime


def telemetry_app(runtime: Runtime) -> web.Application:
    """`/healthz` answers while the event loop lives; `/readyz` while calls are welcome. Neither ever depends on
    targets: a sidecar that is restarted because a target is down helps nobody. Until a credential has been fetched for
    the first time, `/readyz` names it: a new release with a wrong client secret must not replace one that works."""
    page: list[Callable[[], web.Response]] = []

    async def metrics(request: web.Request) -> web.Response:
        if not page:
            page.append(_metrics_page(runtime))
        return page[0]()

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        if runtime.proxy.draining:
            return web.Response(status=503, text="draining\n")
        if not runtime.ready:
            return web.Response(status=503, text="starting\n")
        if missing := runtime.missing_credentials():
            return web.Response(status=503, text=f"no value yet for the credentials: {', '.join(missing)}\n")
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    for path in ("/healthz", "/-/healthy"):
        app.router.add_get(path, healthz)
    for path in ("/readyz", "/-/ready", "/ready"):
        app.router.add_get(path, readyz)
    return app


def _metrics_page(runtime: Runtime) -> Callable[[], web.Response]:
    """What renders /metrics. The metrics library is imported with the first scrape, not at start-up."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    from outrider.controlplane.telemetry.metrics import registry

    collected = registry(runtime)
    return lambda: web.Response(body=generate_latest(collected), headers={"content-type": CONTENT_TYPE_LATEST})
