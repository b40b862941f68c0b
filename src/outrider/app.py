"""The composition root: the only module that sees both planes. Starts everything, waits, drains, stops."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import uvloop

from outrider import __version__
from outrider.config.resolve import Resolved
from outrider.controlplane.runtime import Runtime
from outrider.controlplane.telemetry.logs import Logs
from outrider.dataplane.listener import Listener
from outrider.errors import EXIT_FAILED, EXIT_OK
from outrider.ports import ADMIN, CALLS, INBOUND, TELEMETRY, bind_all, port_key

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger("outrider")


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a worker has from its supervisor: its number, the sockets calls come in on, the path before the names of
    its control sockets, and a pipe that ends with the supervisor."""

    number: int
    sockets: dict[str, socket.socket]
    control: Path
    alive: int


class App:
    """One sidecar in one process. `start` binds everything or nothing; `stop` is idempotent."""

    def __init__(self, resolved: Resolved, logs: Logs | None = None, inherited: Inherited | None = None) -> None:
        """Must be made inside a running event loop."""
        self.runtime = Runtime(resolved, asyncio.get_running_loop(), logs)
        self.listener = Listener(self.runtime.proxy)
        self.ports: dict[str, int] = {}
        self.accepting_since = 0.0
        self._inherited = inherited
        self._runners: list[web.AppRunner] = []
        self._upkeep: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open every port. Raises StartError, with everything closed again, if one is not to be had.

        Every port is bound before the first call is accepted. The library that serves telemetry and admin takes
        longer to import than everything else together, so it is imported beside the first calls.
        """
        runtime, inherited = self.runtime, self._inherited
        bound = inherited.sockets if inherited is not None else bind_all(runtime.resolved)
        self.ports = {key: int(one.getsockname()[1]) for key, one in bound.items()}
        self.listener.serve(bound[CALLS])
        for service in runtime.compiled.dedicated:
            self.listener.serve(bound[port_key(service.name)], service)
        if runtime.compiled.app is not None:
            certificates = runtime.compiled.certificates
            door = self.listener.serve(bound[INBOUND], runtime.compiled.app, certificates.server)
            certificates.on_new_server = door.secure
        self.accepting_since = monotonic()
        await self._discover()
        # A thread of its own, gone afterwards: a process with one thread takes no locks.
        with ThreadPoolExecutor(1) as importer:
            loop = asyncio.get_running_loop()
            servers = await loop.run_in_executor(importer, importlib.import_module, "outrider.controlplane.servers")
        for key, app in ((TELEMETRY, servers.telemetry_app(runtime)), (ADMIN, servers.admin_app(runtime))):
            where = bound[key] if inherited is None else f"{inherited.control}.{key.partition('.')[0]}"
            self._runners.append(await servers.serve(app, where))
        self._upkeep += [
            asyncio.create_task(runtime.lag.watch()),
            asyncio.create_task(runtime.memory.watch(lambda: len(runtime.proxy.connections))),
            asyncio.create_task(runtime.secrets.watch()),
            asyncio.create_task(runtime.compiled.certificates.watch()),
        ]
        for task in self._upkeep:
            task.add_done_callback(_upkeep_ended)
        runtime.ready = True

    async def _discover(self) -> None:
        """Open what keeps something, find the endpoints that are not written in the configuration, and ask them whether
        they are well. What is not found in time comes later; until then calls to it are refused."""
        runtime = self.runtime
        if runtime.compiled.discovered:
            discovery = importlib.import_module("outrider.controlplane.discovery")
            dns = runtime.resolved.config.dns
            resolver = discovery.Resolver(dns.servers, dns.timeout)
            found = [discovery.Discovery(one, resolver) for one in runtime.compiled.discovered]
            await asyncio.gather(*(one.first() for one in found))
            self._upkeep += [asyncio.create_task(one.watch()) for one in found]
        pauses = await runtime.secrets.first()
        for one, pause in zip(runtime.secrets.fetched, pauses, strict=True):
            self._upkeep.append(asyncio.create_task(one.watch(pause)))
        if runtime.compiled.guarded is not None and runtime.compiled.guarded.key_sets:
            jwks = importlib.import_module("outrider.controlplane.jwks")
            for source, alg, proof in runtime.compiled.guarded.key_sets:
                key_set = jwks.KeySet(source, alg, proof)
                self._upkeep.append(asyncio.create_task(key_set.watch(await key_set.look())))
        if runtime.compiled.idempotency is not None:
            store = runtime.compiled.idempotency.store
            await store.open()
            self._upkeep.append(asyncio.create_task(store.watch()))
        if runtime.compiled.checked:
            health = importlib.import_module("outrider.controlplane.health")
            checks = [health.HealthChecks(cluster, settings) for cluster, settings in runtime.compiled.checked]
            self._upkeep += [asyncio.create_task(one.watch()) for one in checks]

    async def stop(self) -> None:
        """Close every port and connection."""
        for task in self._upkeep:
            task.cancel()
        self.listener.close()
        for cluster in self.runtime.compiled.clusters:
            for endpoint in cluster.endpoints:
                endpoint.pool.close()
        if self.runtime.compiled.idempotency is not None:
            await self.runtime.compiled.idempotency.close()
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()


def _upkeep_ended(task: asyncio.Task[None]) -> None:
    """What looks after things runs until it is cancelled; anything else is a bug, and must not pass unseen."""
    if not task.cancelled() and task.exception() is not None:
        log.error("a bug in Outrider ended one of its tasks; please report it", exc_info=task.exception())


# A finished call leaves no reference cycles behind, so the collector finds next to nothing: look less often.
_GC_THRESHOLD = (20_000, 20, 20)


def allow_descriptors(connections: int) -> int:
    """Raise this process's limit of open files as far as so many connections of the app, each with one to a target,
    need it and the system allows; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + 64
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < connections * 8 // 7 + 64:
        log.warning("the limit of open files (ulimit -n %d) is too low for limits.downstream_connections", soft)
    return soft


def run(resolved: Resolved) -> int:
    """Run a sidecar until it is told to stop. Returns the exit code; raises StartError."""
    return _run_one(resolved, None)


def run_worker(resolved: Resolved, inherited: Inherited) -> int:
    """Run one of several workers; it also stops when its supervisor is gone."""
    return _run_one(resolved, inherited)


def _run_one(resolved: Resolved, inherited: Inherited | None) -> int:
    logs = Logs(resolved.config.observability.log.level, worker=inherited.number if inherited is not None else None)
    descriptors = allow_descriptors(resolved.config.limits.downstream_connections)
    try:
        return uvloop.run(_run(resolved, logs, descriptors, inherited))
    finally:
        logs.close()


async def _run(resolved: Resolved, logs: Logs, descriptors: int, inherited: Inherited | None) -> int:
    began = monotonic()
    loop = asyncio.get_running_loop()
    stop: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, log.warning, "SIGHUP: reloading is not supported yet; nothing was changed")
    app = App(resolved, logs, inherited)
    app.runtime.stop = stop.put_nowait
    app.runtime.proxy.descriptors = descriptors
    if inherited is not None:
        loop.add_reader(inherited.alive, _orphaned, loop, inherited.alive, stop)
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


def _orphaned(loop: asyncio.AbstractEventLoop, alive: int, stop: asyncio.Queue[signal.Signals]) -> None:
    """The supervisor is gone: nobody would start us again, and a new one wants our ports."""
    loop.remove_reader(alive)
    stop.put_nowait(signal.SIGINT)
    stop.put_nowait(signal.SIGINT)


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
