"""Active health checks: every endpoint is asked again and again whether it is well."""

from __future__ import annotations

import asyncio
import logging
from random import uniform
from time import monotonic

import aiohttp
from yarl import URL

from outrider.config.schema import HealthCheck
from outrider.dataplane.cluster import Cluster, Endpoint

log = logging.getLogger("outrider")

# Bytes of an answer that are read; more than a health endpoint has to say.
_MOST = 64 * 1024
# Checks spread by this share of their interval, so that many sidecars do not ask in step.
_SPREAD = 0.1


class HealthChecks:
    """The checks of one cluster, until cancelled. Endpoints may come and go meanwhile."""

    def __init__(self, cluster: Cluster, settings: HealthCheck) -> None:
        self._cluster = cluster
        self._settings = settings
        self._runs: dict[Endpoint, int] = {}  # above zero: successes in a row, below: failures

    async def watch(self) -> None:
        """Check all endpoints, wait, and begin anew."""
        every = self._settings.every
        # A connection per check: one that is kept says nothing about whether new ones are possible.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:
            while True:
                endpoints = self._cluster.endpoints
                checks = (self._check(session, endpoint) for endpoint in endpoints)
                for outcome in await asyncio.gather(*checks, return_exceptions=True):
                    if isinstance(outcome, Exception):
                        log.error("a health check of %s failed by itself", self._cluster.name, exc_info=outcome)
                self._runs = {one: run for one, run in self._runs.items() if one in self._cluster.endpoints}
                await asyncio.sleep(uniform(every * (1 - _SPREAD), every * (1 + _SPREAD)))

    async def _check(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        complaint = await ask(session, endpoint, self._settings.path)
        if endpoint.retired:
            return
        run = self._runs.get(endpoint, 0)
        run = max(run, 0) + 1 if complaint is None else min(run, 0) - 1
        self._runs[endpoint] = run
        if endpoint.healthy and run <= -self._settings.unhealthy_after:
            self._cluster.found_healthy(endpoint, False, monotonic())
            log.warning("%s of %s is unhealthy: %s", endpoint.name, self._cluster.name, complaint)
        elif not endpoint.healthy and run >= self._settings.healthy_after:
            self._cluster.found_healthy(endpoint, True, monotonic())
            log.info("%s of %s is healthy again", endpoint.name, self._cluster.name)


async def ask(session: aiohttp.ClientSession, endpoint: Endpoint, path: str) -> str | None:
    """Ask one endpoint; what is wrong with it, or None."""
    tls = endpoint.tls
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    scheme = "https" if tls is not None else "http"
    url = URL(f"{scheme}://{host}:{endpoint.port}{endpoint.base_path.decode()}{path}", encoded=True)
    try:
        async with session.get(
            url,
            headers={"host": endpoint.authority.decode(), "user-agent": "outrider-health"},
            allow_redirects=False,
            ssl=tls.context if tls is not None else True,
            server_hostname=tls.server_name if tls is not None else None,
        ) as response:
            if not 200 <= response.status < 300:
                what = " (redirects are not followed)" if 300 <= response.status < 400 else ""
                return f"{path} answered {response.status}{what}"
            size = 0
            async for piece in response.content.iter_any():
                size += len(piece)
                if size > _MOST:
                    return f"{path} answered more than {_MOST} bytes"
    except TimeoutError:
        return f"{path} was not answered in time"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"{path}: {error or type(error).__name__}"
    return None
