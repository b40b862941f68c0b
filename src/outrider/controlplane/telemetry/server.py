"""The telemetry port: /metrics, /healthz, /readyz, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.controlplane.late import Late
from outrider.controlplane.runtime import Runtime
from outrider.controlplane.telemetry import pages
from outrider.controlplane.telemetry.http import Asked, Page, PlainHandler, Reply

if TYPE_CHECKING:
    from outrider.controlplane.telemetry.families import PartsRegistry

HEALTHY = ("/healthz", "/-/healthy")
READY = ("/readyz", "/-/ready", "/ready")


def telemetry(runtime: Runtime) -> PlainHandler:
    """`/healthz` answers while the event loop lives; `/readyz` while calls are welcome. Neither ever depends on
    targets: a sidecar that is restarted because a target is down helps nobody. Until a credential has been fetched for
    the first time, `/readyz` names it: a new release with a wrong client secret must not replace one that works."""

    def collected() -> PartsRegistry:
        from outrider.controlplane.telemetry.metrics import registry

        return registry(runtime)

    collectors = Late(collected)  # the metrics library is imported with the first scrape, not at start-up

    async def make(form: str) -> pages.Page:
        return await pages.render((await collectors.get()).parts(), form)

    async def healthz(asked: Asked) -> Reply:
        return Reply(200, b"ok\n")

    async def readyz(asked: Asked) -> Reply:
        missing = _missing(runtime)
        return Reply(503, f"{missing}\n".encode()) if missing else Reply(200, b"ok\n")

    return PlainHandler(by_path(metrics_page(pages.Pages(make)), healthz, readyz))


def by_path(metrics: Page, healthy: Page, ready: Page) -> dict[str, Page]:
    """The pages of a telemetry port."""
    return {"/metrics": metrics, **dict.fromkeys(HEALTHY, healthy), **dict.fromkeys(READY, ready)}


def metrics_page(kept: pages.Pages) -> Page:
    """The page of metrics in the format that a scraper wants; 503 if there is none."""

    async def metrics(asked: Asked) -> Reply:
        page = await kept.get(asked.accept)
        return Reply(503, b"no worker answers\n") if page is None else Reply(200, *page)

    return metrics


def _missing(runtime: Runtime) -> str:
    """Why no calls are welcome, or nothing."""
    if runtime.proxy.draining:
        return "draining"
    if not runtime.ready:
        return "starting"
    if missing := runtime.missing_credentials():
        return f"no value yet for the credentials: {', '.join(missing)}"
    if trouble := runtime.broken_store():
        return f"the store of idempotency keys cannot be used: {trouble}"
    return ""
