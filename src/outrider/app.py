"""The composition root: the only module that sees both planes. Starts everything, waits, drains, stops."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import uvloop

from outrider import __version__
from outrider.config.resolve import Resolved
from outrider.controlplane.runtime import Runtime
from outrider.controlplane.telemetry.logs import Logs
from outrider.dataplane.listener import Door, Listener
from outrider.dataplane.routing import Service
from outrider.errors import EXIT_FAILED, EXIT_OK, StartError

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger("outrider")


class App:
    """One sidecar in one process. `start` binds everything or nothing; `stop` is idempotent."""

    def __init__(self, resolved: Resolved, logs: Logs | None = None) -> None:
        """Must be made inside a running event loop."""
        self.runtime = Runtime(resolved, asyncio.get_running_loop(), logs)
        self.listener = Listener(self.runtime.proxy)
        self.ports: dict[str, int] = {}
        self.accepting_since = 0.0
        self._reserved: list[socket.socket] = []
        self._runners: list[web.AppRunner] = []
        self._upkeep: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open every port. Raises StartError, with everything closed again, if one is not to be had.

        Every port is bound before the first call is accepted. The library that serves telemetry and admin takes
        longer to import than everything else together, so it is imported beside the first calls.
        """
        config = self.runtime.resolved.config
        try:
            telemetry = await self._reserve("telemetry.listen", config.telemetry.listen)
            admin = await self._reserve("admin.listen", config.admin.listen)
            await self._listen("listen", config.listen)
            if config.inbound is not None:
                certificates = self.runtime.compiled.certificates
                app, context = self.runtime.compiled.app, certificates.server
                door = await self._listen("inbound.listen", config.inbound.listen, app, context)
                certificates.on_new_server = door.secure
            for service, port in self.runtime.compiled.ports:
                await self._listen(f"services.{service.name}.port", ("127.0.0.1", port), service)
        except StartError:
            await self.stop()
            raise
        self.accepting_since = monotonic()
        # A thread of its own, gone afterwards: a process with one thread takes no locks.
        with ThreadPoolExecutor(1) as importer:
            loop = asyncio.get_running_loop()
            servers = await loop.run_in_executor(importer, importlib.import_module, "outrider.controlplane.servers")
        self._runners.append(await servers.serve(servers.telemetry_app(self.runtime), telemetry))
        self._runners.append(await servers.serve(servers.admin_app(self.runtime), admin))
        self._upkeep = [
            asyncio.create_task(self.runtime.lag.watch()),
            asyncio.create_task(self.runtime.secrets.watch()),
            asyncio.create_task(self.runtime.compiled.certificates.watch()),
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
        for reserved in self._reserved:
            reserved.close()

    async def _listen(
        self,
        key: str,
        address: tuple[str, int],
        service: Service | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Door:
        host, port = address

        async def open_() -> Door:
            return self.listener.open(host, port, service, tls)

        door = await _bound(key, address, open_)
        self.ports[key] = door.port
        return door

    async def _reserve(self, key: str, address: tuple[str, int]) -> socket.socket:
        """Bind a port whose server is yet to come; who connects meanwhile waits."""

        async def bind() -> socket.socket:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            reserved = socket.create_server(address, family=family, backlog=128, reuse_port=False)
            reserved.setblocking(False)
            self.ports[key] = int(reserved.getsockname()[1])
            return reserved

        reserved = await _bound(key, address, bind)
        self._reserved.append(reserved)
        return reserved


T = TypeVar("T")

# What is not a connection of a call: log, listeners, control ports, files that are read again.
_OTHER_DESCRIPTORS = 64

# A finished call leaves no reference cycles behind, so the collector finds next to nothing: look less often.
_GC_THRESHOLD = (20_000, 20, 20)


async def _bound(key: str, address: tuple[str, int], open_: Callable[[], Awaitable[T]]) -> T:
    """Open a port, or say in one line why not."""
    try:
        return await open_()
    except OSError as error:
        raise _start_error(key, address, error) from None


def allow_descriptors(wanted: int) -> int:
    """Raise this process's limit of open files as far as `wanted` connections of the app need it and the system
    allows; returns how many there is room for. Each may need one to a target, and some are for everything else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + _OTHER_DESCRIPTORS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = max(1, (soft - _OTHER_DESCRIPTORS) // 2)
    if room < wanted:
        log.warning(
            "limits.downstream_connections is %d, but the limit of open files (ulimit -n %d) has room for %d",
            wanted,
            soft,
            room,
        )
    return room


def run(resolved: Resolved) -> int:
    """Run a sidecar until it is told to stop. Returns the exit code; raises StartError."""
    logs = Logs(resolved.config.observability.log.level)
    room = allow_descriptors(resolved.config.limits.downstream_connections)
    try:
        return uvloop.run(_run(resolved, logs, room))
    finally:
        logs.close()


async def _run(resolved: Resolved, logs: Logs, room: int) -> int:
    began = monotonic()
    loop = asyncio.get_running_loop()
    stop: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, log.warning, "SIGHUP: reloading is not supported yet; nothing was changed")
    app = App(resolved, logs)
    app.runtime.stop = stop.put_nowait
    app.runtime.proxy.room = room
    await app.start()
    gc.collect()
    gc.freeze()  # what lives as long as the process need not be looked at again
    gc.set_threshold(*_GC_THRESHOLD)
    gc.enable()
    details: dict[str, object] = {"version": __version__, "service": resolved.config.service, "ports": app.ports}
    details["accepting_after_ms"] = round((app.accepting_since - began) * 1000)
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
