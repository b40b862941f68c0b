"""The composition root: the only module that sees both planes. Starts everything, waits, drains, stops."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import resource
import signal
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

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
        runtime.be_named(self.ports[CALLS], self.ports.get(INBOUND))
        self.listener.serve(bound[CALLS])
        for service in runtime.compiled.dedicated:
            self.listener.serve(bound[port_key(service.name)], service)
        if runtime.compiled.app is not None:
            certificates = runtime.compiled.certificates
            door = self.listener.serve(bound[INBOUND], runtime.compiled.app, certificates.server)
            certificates.on_new_server = door.secure
        self.accepting_since = monotonic()
        await self._prepare()
        # A thread of its own, gone afterwards: a process with one thread takes no locks.
        with ThreadPoolExecutor(1) as importer:
            loop = asyncio.get_running_loop()
            servers = await loop.run_in_executor(importer, importlib.import_module, "outrider.controlplane.servers")
        for key, app in ((TELEMETRY, servers.telemetry_app(runtime)), (ADMIN, servers.admin_app(runtime))):
            where = bound[key] if inherited is None else f"{inherited.control}.{key.partition('.')[0]}"
            self._runners.append(await servers.serve(app, where))
        self._keep_up(
            runtime.lag.watch(),
            runtime.memory.watch(lambda: len(runtime.proxy.connections)),
            runtime.secrets.watch(),
            runtime.compiled.certificates.watch(),
        )
        runtime.ready = True

    async def _prepare(self) -> None:
        """Get what calls need and what is not written in the configuration, all at the same time. What does not come in
        time comes later; until then calls that need it are refused."""
        await asyncio.gather(
            self._find_endpoints(), self._fetch_secrets(), self._read_key_sets(), self._open_memory_of_keys()
        )

    def _keep_up(self, *work: Coroutine[Any, Any, None]) -> None:
        """Go on with this until the end."""
        for one in work:
            task = asyncio.create_task(one)
            task.add_done_callback(_upkeep_ended)
            self._upkeep.append(task)

    async def _find_endpoints(self) -> None:
        """Look up the endpoints that come and go, and ask those that are to be asked whether they are well."""
        compiled = self.runtime.compiled
        if compiled.discovered:
            discovery = importlib.import_module("outrider.controlplane.discovery")
            dns = self.runtime.resolved.config.dns
            resolver = discovery.Resolver(dns.servers, dns.timeout)
            found = [discovery.Discovery(one, resolver) for one in compiled.discovered]
            await asyncio.gather(*(one.first() for one in found))
            self._keep_up(*(one.watch() for one in found))
        if compiled.checked:
            health = importlib.import_module("outrider.controlplane.health")
            self._keep_up(*(health.HealthChecks(cluster, settings).watch() for cluster, settings in compiled.checked))

    async def _fetch_secrets(self) -> None:
        """Those that come from commands and issuers."""
        secrets = self.runtime.secrets
        pauses = await secrets.first()
        self._keep_up(*(one.watch(pause) for one, pause in zip(secrets.fetched, pauses, strict=True)))

    async def _read_key_sets(self) -> None:
        """Those of the issuers of callers' tokens."""
        guarded = self.runtime.compiled.guarded
        if guarded is None or not guarded.key_sets:
            return
        jwks = importlib.import_module("outrider.controlplane.jwks")
        key_sets = [jwks.KeySet(source, alg, proof) for source, alg, proof in guarded.key_sets]
        pauses = await asyncio.gather(*(one.look() for one in key_sets))
        self._keep_up(*(one.watch(pause) for one, pause in zip(key_sets, pauses, strict=True)))

    async def _open_memory_of_keys(self) -> None:
        """The store of `inbound.idempotency`."""
        remembered = self.runtime.compiled.idempotency
        if remembered is not None:
            await remembered.store.open()
            self._keep_up(remembered.store.watch())

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
