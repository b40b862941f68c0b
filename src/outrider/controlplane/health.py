"""Active health checks: every endpoint is asked again and again whether it is well."""

from __future__ import annotations

import asyncio
import logging
from random import uniform
from time import monotonic

import aiohttp
from yarl import URL

from outrider.config.schema import HealthCheck
from outrider.controlplane.connecting import connector
from outrider.controlplane.fetch import TooLargeError, read_bounded, reason
from outrider.controlplane.upkeep import is_own, repeat
from outrider.dataplane.runtime.names import Names
from outrider.dataplane.upstream.cluster import Cluster, Endpoint
from outrider.model.addresses import hide_in_urls

log = logging.getLogger("outrider")

# Bytes of an answer that are read; more than a health endpoint has to say.
_MOST = 64 * 1024
# Seconds by which a time limit may be late (above five seconds, aiohttp rounds them up) unless we stood still.
_OUR_LATENESS = 1.25
# Checks spread by this share of their interval, so that many sidecars do not ask in step.
_SPREAD = 0.1


class HealthChecks:
    """The checks of one cluster, until cancelled. Endpoints may come and go meanwhile."""

    def __init__(self, cluster: Cluster, settings: HealthCheck, names: Names | None = None) -> None:
        """`names` are those that calls use, so that checks ask where calls go."""
        self._names = names
        self._cluster = cluster
        self._settings = settings
        self._runs: dict[Endpoint, int] = {}  # above zero: successes in a row, below: failures

    async def watch(self) -> None:
        """Check all endpoints, wait, and begin anew."""
        every = self._settings.every
        # A connection per check: one that is kept says nothing about whether new ones are possible.
        async with aiohttp.ClientSession(
            connector=connector(self._names, force_close=True, limit=0),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:

            async def check_all() -> float:
                checks = [self._check(session, endpoint) for endpoint in self._cluster.endpoints]
                failed = [one for one in await asyncio.gather(*checks, return_exceptions=True) if one is not None]
                self._runs = {one: run for one, run in self._runs.items() if one in self._cluster.endpoints}
                if failed:
                    raise failed[0]
                return uniform(every * (1 - _SPREAD), every * (1 + _SPREAD))

            await repeat(f"health checks of {self._cluster.name}", check_all)

    async def _check(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        began = monotonic()
        try:
            complaint = await ask(session, endpoint, self._settings.path)
            if complaint is not None and monotonic() - began > self._settings.timeout + _OUR_LATENESS:
                # It was we who stood still: the answer may have been there in time.
                complaint = await ask(session, endpoint, self._settings.path)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if is_own(error):
                raise  # it says nothing about the endpoint
            complaint = f"{hide_in_urls(self._settings.path)}: {reason(error)}"
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
    """Ask one endpoint; returns what is wrong with its answer, or None. Without one, raises what aiohttp raises."""
    shown = hide_in_urls(path)
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
                return f"{shown} answered {response.status}{what}"
            await read_bounded(response, _MOST)
    except TooLargeError as error:
        return f"{shown} {error}"
    except TimeoutError:
        return f"{shown} was not answered in time"
    return None
