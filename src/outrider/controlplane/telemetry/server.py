"""The telemetry port: /metrics, /healthz, /readyz, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from outrider.controlplane.runtime import Runtime
from outrider.controlplane.telemetry.pages import Page, Pages, render

if TYPE_CHECKING:
    from outrider.controlplane.telemetry.families import PartsRegistry


def telemetry_app(runtime: Runtime) -> web.Application:
    """`/healthz` answers while the event loop lives; `/readyz` while calls are welcome. Neither ever depends on
    targets: a sidecar that is restarted because a target is down helps nobody. Until a credential has been fetched for
    the first time, `/readyz` names it: a new release with a wrong client secret must not replace one that works."""
    collected: list[PartsRegistry] = []

    async def make(form: str) -> Page:
        if not collected:  # the metrics library is imported with the first scrape, not at start-up
            from outrider.controlplane.telemetry.metrics import registry

            collected.append(registry(runtime))
        return await render(collected[0].parts(), form)

    pages = Pages(make)

    async def metrics(request: web.Request) -> web.Response:
        page = await pages.get(request.headers.get("accept", ""))
        assert page is not None
        return web.Response(body=page[0], headers={"content-type": page[1]})

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        if runtime.proxy.draining:
            return web.Response(status=503, text="draining\n")
        if not runtime.ready:
            return web.Response(status=503, text="starting\n")
        if missing := runtime.missing_credentials():
            return web.Response(status=503, text=f"no value yet for the credentials: {', '.join(missing)}\n")
        if trouble := runtime.broken_store():
            return web.Response(status=503, text=f"the store of idempotency keys cannot be used: {trouble}\n")
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    for path in ("/healthz", "/-/healthy"):
        app.router.add_get(path, healthz)
    for path in ("/readyz", "/-/ready", "/ready"):
        app.router.add_get(path, readyz)
    return app
