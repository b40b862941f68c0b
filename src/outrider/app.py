"""The composition root: the only module that sees both planes. Starts everything, waits, drains, stops."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

import uvloop
from aiohttp import web

from outrider import __version__
from outrider.config.resolve import Resolved
from outrider.controlplane.admin.server import admin_app
from outrider.controlplane.runtime import Runtime
from outrider.controlplane.telemetry.logs import Logs
from outrider.controlplane.telemetry.server import telemetry_app
from outrider.dataplane.listener import Listener
from outrider.dataplane.routing import Service
from outrider.errors import EXIT_FAILED, EXIT_OK, StartError

log = logging.getLogger("outrider")


class App:
    """One sidecar in one process. `start` binds everything or nothing; `stop` is idempotent."""

    def __init__(self, resolved: Resolved, logs: Logs | None = None) -> None:
        """Must be made inside a running event loop. Raises ConfigError."""
        self.runtime = Runtime(resolved, asyncio.get_running_loop(), logs)
        self.listener = Listener(self.runtime.proxy)
        self.ports: dict[str, int] = {}
        self._runners: list[web.AppRunner] = []
        self._upkeep: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open every port. Raises StartError, with everything closed again, if one is not to be had."""
        config = self.runtime.resolved.config
        try:
            await self._listen("listen", config.listen)
            for service, port in self.runtime.compiled.ports:
                await self._listen(f"services.{service.name}.port", ("127.0.0.1", port), service)
            await self._serve("telemetry.listen", telemetry_app(self.runtime), config.telemetry.listen)
            await self._serve("admin.listen", admin_app(self.runtime), config.admin.listen)
        except StartError:
            await self.stop()
            raise
        self._upkeep = [
            asyncio.create_task(self.runtime.lag.watch()),
            asyncio.create_task(self.runtime.secrets.watch()),
        ]
        self.runtime.ready = True

    async def stop(self) -> None:
        """Close every port and connection."""
        for task in self._upkeep:
            task.cancel()
        self.listener.close()
        for cluster in self.runtime.compiled.clusters:
            for endpoint in cluster.endpoints:
                endpoint.pool.close()
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    async def _listen(self, key: str, address: tuple[str, int], service: Service | None = None) -> None:
        host, port = address
        self.ports[key] = await _bound(key, address, lambda: self.listener.open(host, port, service))

    async def _serve(self, key: str, app: web.Application, address: tuple[str, int]) -> None:
        host, port = address
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, host, port, reuse_address=True)
        await _bound(key, address, site.start)
        self.ports[key] = int(runner.addresses[0][1])


T = TypeVar("T")


async def _bound(key: str, address: tuple[str, int], open_: Callable[[], Awaitable[T]]) -> T:
    """Open a port, or say in one line why not."""
    try:
        return await open_()
    except OSError as error:
        raise _start_error(key, address, error) from None


def run(resolved: Resolved) -> int:
    """Run a sidecar until it is told to stop. Returns the exit code; raises ConfigError or StartError."""
    logs = Logs(resolved.config.observability.log.level)
    try:
        return uvloop.run(_run(resolved, logs))
    finally:
        logs.close()


async def _run(resolved: Resolved, logs: Logs) -> int:
    began = monotonic()
    loop = asyncio.get_running_loop()
    stop: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, log.warning, "SIGHUP: reloading is not supported yet; nothing was changed")
    app = App(resolved, logs)
    await app.start()
    gc.collect()
    gc.freeze()  # what lives as long as the process need not be looked at again
    details: dict[str, object] = {"version": __version__, "service": resolved.config.service, "ports": app.ports}
    details["started_in_ms"] = round((monotonic() - began) * 1000)
    log.info("ready", extra={"fields": details})
    try:
        return await _until_stopped(app, stop)
    finally:
        await app.stop()


async def _until_stopped(app: App, stop: asyncio.Queue[signal.Signals]) -> int:
    """Wait for the first signal, drain, and leave early on a second one."""
    number = await stop.get()
    limit = app.runtime.resolved.config.shutdown.drain
    log.info("draining", extra={"fields": {"signal": number.name, "limit_seconds": limit}})
    draining = asyncio.create_task(app.listener.drain(limit, leave_when_idle=number is signal.SIGINT))
    again = asyncio.create_task(stop.get())
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not draining.done():
        draining.cancel()
        log.warning("stopped by a second signal", extra={"fields": {"cut_off": app.runtime.proxy.in_flight}})
        return EXIT_FAILED
    clean = draining.result()
    log.info("stopped" if clean else "stopped at the drain limit", extra={"fields": {"clean": clean}})
    return EXIT_OK if clean else EXIT_FAILED


def die(message: str, code: int) -> int:
    """One clear line on standard error, and the exit code."""
    sys.stderr.write(f"outrider: {message}\n")
    return code


_SAYINGS = {
    errno.EADDRINUSE: "is already in use by another process",
    errno.EACCES: "may not be opened by this user",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
}


def _start_error(key: str, address: tuple[str, int], error: OSError) -> StartError:
    saying = _SAYINGS.get(error.errno or 0) or (
        "is not a known host" if isinstance(error, socket.gaierror) else str(error.strerror or error)
    )
    return StartError(f"{key}: {address[0]}:{address[1]} {saying}")
