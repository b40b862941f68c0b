"""The composition root: the only module that sees both planes. Starts everything, waits, drains, stops."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any

import uvloop

from outrider import __version__
from outrider.config.resolve import Resolved
from outrider.config.schema import Config
from outrider.controlplane.admin.handler import AdminHandler, VisitorOf
from outrider.controlplane.circuits import order as order_circuit
from outrider.controlplane.intercom import ADMIN, ALIVE, BEAT, HOLD, READY, RELOAD, TELEMETRY, Inherited
from outrider.controlplane.late import Late
from outrider.controlplane.orphans import Orphans
from outrider.controlplane.runtime import Runtime
from outrider.controlplane.servers import ControlServer
from outrider.controlplane.telemetry.logs import Logs
from outrider.controlplane.telemetry.server import telemetry
from outrider.controlplane.upkeep import Upkeep, repeat
from outrider.dataplane.downstream.listener import Listener
from outrider.dataplane.downstream.proxy import OTHER_DESCRIPTORS
from outrider.errors import EXIT_FAILED, EXIT_OK, StartError
from outrider.ports import CALLS, INBOUND, bind_all, port_key

if TYPE_CHECKING:
    from aiohttp import web

    from outrider.controlplane.health import HealthChecks

log = logging.getLogger("outrider")

# Seconds that a start waits for outside parties: name servers, issuers, stores.
_PATIENCE = 5.0


class Order(Enum):
    """How a sidecar is to end."""

    DRAIN = "drain"
    """Finish what is in flight, and wait for the app to leave."""
    QUIT = "quit"
    """Finish what is in flight."""
    STOP = "stop"
    """Now: a second signal has come."""
    ABANDONED = "abandoned"
    """Now: the supervisor is gone. It would not start us again, and a new one wants our ports."""


class App:
    """One sidecar in one process. `start` binds everything or nothing; `stop` is idempotent."""

    def __init__(self, resolved: Resolved, logs: Logs | None = None, inherited: Inherited | None = None) -> None:
        """Must be made inside a running event loop."""
        self.runtime = Runtime(resolved, asyncio.get_running_loop(), logs)
        if inherited is not None:
            self.runtime.standing_faults = inherited.standing.faults
            for name, action in inherited.standing.circuits.items():
                self.order_circuit(name, action)
        self.listener = Listener(self.runtime.proxy)
        self.ports: dict[str, int] = {}
        self.accepting_since = 0.0
        self._inherited = inherited
        self.upkeep = Upkeep()
        self._servers: dict[str, ControlServer] = {}

    async def start(self) -> None:
        """Open every port. Raises StartError, with everything closed again, if one is not to be had.

        Every port is bound before the first call is accepted.
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
            door = self.listener.serve(bound[INBOUND], runtime.compiled.app, certificates.server, inbound=True)
            certificates.on_new_server = door.secure
        self.accepting_since = monotonic()
        runtime.stalls.start()
        self.upkeep.go_on(
            runtime.lag.watch(),
            runtime.memory.watch(lambda: len(runtime.proxy.connections), lambda: runtime.proxy.stats.accepted),
            runtime.secrets.watch(),
            runtime.compiled.certificates.watch(),
        )
        self._find_endpoints()
        self._fetch_secrets()
        self._read_key_sets()
        self._open_memory_of_keys()
        await self._serve_control_ports(bound)
        late = await self.upkeep.begun(_PATIENCE)
        if late:
            log.warning("ready without what has not come in time: %s", ", ".join(late))
        runtime.ready = True

    async def _serve_control_ports(self, bound: dict[str, socket.socket]) -> None:
        """Telemetry and admin answer before outside parties do: a start that waits for them is to be seen."""
        runtime = self.runtime
        await runtime.begin_standing_faults()

        def load(visitor_of: VisitorOf) -> web.AppRunner:
            from outrider.controlplane.admin.server import admin_app, runner

            return runner(admin_app(runtime), visitor_of)

        for key, handler in ((TELEMETRY, telemetry(runtime)), (ADMIN, AdminHandler(load))):
            self._servers[key] = ControlServer(key, handler)
        if self._inherited is None:
            for key, server in self._servers.items():
                server.listen(bound[key])
        else:
            asyncio.get_running_loop().add_reader(self._inherited.visits.worker, self._take_visits)

    def _take_visits(self) -> None:
        """Serve the connections that the front of several workers has passed on."""
        assert self._inherited is not None
        for key, accepted in self._inherited.visits.arrivals():
            self._servers[key].take(accepted)

    def order_circuit(self, name: str, action: str) -> None:
        """Carry out an order that was given to another worker, or before this one was started."""
        order_circuit(self.runtime.compiled.breakers, name, action)

    # What calls need and what is not written in the configuration is looked for from here on, all at the same time.
    # What does not come in time comes later; until then calls that need it are refused.

    def _find_endpoints(self) -> None:
        """Look up the endpoints that come and go, and ask those that are to be asked whether they are well."""
        compiled = self.runtime.compiled
        if compiled.discovered:
            discovery = importlib.import_module("outrider.controlplane.discovery")
            dns = self.runtime.resolved.config.dns
            resolver = importlib.import_module("outrider.controlplane.dns").Resolver(dns.servers, dns.timeout)
            for discovered in compiled.discovered:
                found = discovery.Discovery(discovered, resolver)
                self.upkeep.begin(f"endpoints of {discovered.cluster.name}", found.first, _then(found.watch))
        if compiled.checked:
            self.upkeep.go_on(self._check_health())

    async def _check_health(self) -> None:
        """Ask endpoints, as soon as what asks them is imported, which takes long."""

        def load() -> type[HealthChecks]:
            from outrider.controlplane.health import HealthChecks

            return HealthChecks

        checks = await Late(load).get()
        names = self.runtime.proxy.names
        checked = self.runtime.compiled.checked
        await asyncio.gather(*(checks(cluster, settings, names).watch() for cluster, settings in checked))

    def _fetch_secrets(self) -> None:
        """Those that come from commands and issuers."""
        for one in self.runtime.secrets.fetched:
            self.upkeep.begin(f"credential {one.name}", one.first, one.watch)

    def _read_key_sets(self) -> None:
        """Those of the issuers of callers' tokens."""
        guarded = self.runtime.compiled.guarded
        if guarded is None or not guarded.key_sets:
            return
        jwks = importlib.import_module("outrider.controlplane.jwks")
        for source, alg, proof in guarded.key_sets:
            key_set = jwks.KeySet(source, alg, proof)
            self.upkeep.begin("the key set of callers' tokens", key_set.look, key_set.watch)

    def _open_memory_of_keys(self) -> None:
        """The store of `inbound.idempotency`."""
        remembered = self.runtime.compiled.idempotency
        if remembered is not None:
            store = remembered.store
            self.upkeep.begin("the store of idempotency keys", store.open, _then(store.watch))

    async def stop(self) -> None:
        """Close every port and connection."""
        self.runtime.stalls.stop()
        self.listener.close()
        await self.upkeep.stop()
        await self.runtime.secrets.close()
        for cluster in self.runtime.compiled.clusters:
            for endpoint in cluster.endpoints:
                endpoint.pool.close()
        if self.runtime.compiled.idempotency is not None:
            await self.runtime.compiled.idempotency.close()
        if self._inherited is not None:
            asyncio.get_running_loop().remove_reader(self._inherited.visits.worker)
        for server in self._servers.values():
            await server.close()
        self._servers.clear()
        await self.runtime.end_faults()


def _then(watch: Callable[[], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """A watch that does not need what the first look has found."""
    return lambda found: watch()


# A finished call leaves no reference cycles behind, so the collector finds next to nothing: look less often.
_GC_THRESHOLD = (20_000, 20, 20)


# Calls at a time that a sidecar must at least be able to carry.
_FEWEST_CONNECTIONS = 16


def most_connections(config: Config) -> int:
    """How many connections may come in at a time: callers from outside have a share of their own."""
    return config.limits.downstream_connections * (1 if config.inbound is None else 2)


def allow_descriptors(connections: int) -> int:
    """Raise this process's limit of open files as far as so many connections of the app, each with one to a target,
    need it and the system allows; returns the limit. Raises StartError if that leaves next to nothing for calls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + OTHER_DESCRIPTORS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    least = OTHER_DESCRIPTORS + 2 * _FEWEST_CONNECTIONS
    if soft < least:
        message = f"the limit of open files (ulimit -n {soft}) is too low: at least {least} are needed"
        raise StartError(f"{message}, and {needed} for limits.downstream_connections")
    if soft < connections * 8 // 7 + OTHER_DESCRIPTORS:
        log.warning("the limit of open files (ulimit -n %d) is too low for limits.downstream_connections", soft)
    return soft


def run(resolved: Resolved) -> int:
    """Run a sidecar until it is told to stop. Returns the exit code; raises StartError."""
    return _run_one(resolved, None)


def run_worker(resolved: Resolved, inherited: Inherited) -> int:
    """Run one of several workers; it also stops when its supervisor is gone."""
    return _run_one(resolved, inherited)


def _run_one(resolved: Resolved, inherited: Inherited | None) -> int:
    options = resolved.config.observability.log
    worker = inherited.number if inherited is not None else None
    logs = Logs(options.level, worker=worker, repeats=options.most_alike)
    descriptors = allow_descriptors(most_connections(resolved.config))
    try:
        return uvloop.run(_run(resolved, logs, descriptors, inherited))
    finally:
        logs.close()


async def _run(resolved: Resolved, logs: Logs, descriptors: int, inherited: Inherited | None) -> int:
    began = monotonic()
    orders: asyncio.Queue[Order] = asyncio.Queue()
    _hear_orders(orders, inherited)
    app = App(resolved, logs, inherited)
    app.runtime.stop = lambda number: orders.put_nowait(Order.QUIT if number is signal.SIGINT else Order.DRAIN)
    app.runtime.proxy.descriptors = descriptors
    if inherited is not None:
        _keep_in_touch(app, orders, inherited)
    if os.getpid() == 1:
        app.upkeep.go_on(repeat("orphans", Orphans().look))
    starting = asyncio.create_task(app.start())
    first = asyncio.create_task(orders.get())
    try:
        await asyncio.wait((starting, first), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _ready(app, began, inherited)
        else:  # told to stop before everything stood: calls may have come already
            starting.cancel()
            await asyncio.wait((starting,))
        return await _until_stopped(app, await first, orders)
    finally:
        first.cancel()
        await app.stop()


def _ready(app: App, began: float, inherited: Inherited | None) -> None:
    gc.collect()
    gc.freeze()  # what lives as long as the process need not be looked at again
    gc.set_threshold(*_GC_THRESHOLD)
    gc.enable()
    service = app.runtime.resolved.config.service
    details: dict[str, object] = {"version": __version__, "service": service, "ports": app.ports}
    details["accepting_after_ms"] = round((app.accepting_since - began) * 1000)
    log.info("ready", extra={"fields": details})
    if inherited is not None:
        inherited.line.say(READY)


def _hear_orders(orders: asyncio.Queue[Order], inherited: Inherited | None) -> None:
    """Turn signals into orders: the first lets work end, a second one does not. Those to one of several workers are for
    its supervisor, which has got them, too, where they were sent to the whole group."""
    loop = asyncio.get_running_loop()
    signals = 0

    def stop(number: signal.Signals) -> None:
        nonlocal signals
        signals += 1
        if inherited is not None:
            if signals == 1:
                log.info("a worker takes its orders from its supervisor; signals to it are ignored")
        elif signals > 1:
            orders.put_nowait(Order.STOP)
        else:
            orders.put_nowait(Order.QUIT if number is signal.SIGINT else Order.DRAIN)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, (lambda: None) if inherited is not None else _reload)


def _reload() -> None:
    log.warning("SIGHUP: reloading is not supported yet; nothing was changed")


def _keep_in_touch(app: App, orders: asyncio.Queue[Order], inherited: Inherited) -> None:
    """Do as the supervisor says, and show it that we live."""
    loop = asyncio.get_running_loop()
    line = inherited.line

    def hear() -> None:
        lines = line.heard()
        if lines is None:
            loop.remove_reader(line)
            orders.put_nowait(Order.ABANDONED)
            return
        for words in lines:
            word, _, rest = words.partition(" ")
            if word == RELOAD:
                _reload()
            elif word == HOLD:
                app.order_circuit(*json.loads(rest))
            else:
                orders.put_nowait(Order(word))

    async def beat() -> float:
        line.say(ALIVE)
        return BEAT

    loop.add_reader(line, hear)
    app.upkeep.go_on(repeat("signs of life", beat))


async def _until_stopped(app: App, order: Order, orders: asyncio.Queue[Order]) -> int:
    """Drain after the first order, sooner if a later one says so, and leave at once if it says that."""
    limit = app.runtime.resolved.config.shutdown.drain
    draining: asyncio.Task[bool] | None = None
    while order in (Order.DRAIN, Order.QUIT):
        if draining is None:
            log.info("draining", extra={"fields": {"order": order.value, "limit_seconds": limit}})
            draining = asyncio.create_task(app.listener.drain(limit))
        if order is Order.QUIT:
            app.listener.leave_when_idle = True
        again = asyncio.create_task(orders.get())
        await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
        if draining.done():
            again.cancel()
            clean = draining.result()
            log.info("stopped" if clean else "stopped at the drain limit", extra={"fields": {"clean": clean}})
            return EXIT_OK if clean else EXIT_FAILED
        order = await again
    cut_off = app.runtime.proxy.in_flight
    if draining is not None:
        draining.cancel()
    why = "stopped by a second signal" if order is Order.STOP else "stopped, as the supervisor is gone"
    log.warning(why, extra={"fields": {"cut_off": cut_off}})
    return EXIT_FAILED
