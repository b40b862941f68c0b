"""What runs: the parts that metrics, health and admin look at, and the upkeep of the process."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import logging
import resource
import signal
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from outrider.config.redaction import shown_values
from outrider.config.resolve import Resolved
from outrider.controlplane.compile import Compiled, compile_config
from outrider.controlplane.secrets import Secrets
from outrider.controlplane.telemetry.logs import AccessLog, Logs
from outrider.controlplane.telemetry.stalls import Stalls
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.downstream.proxy import Proxy

if TYPE_CHECKING:
    from outrider.controlplane.faults import FaultLab
    from outrider.dataplane.engine.routing import Route

log = logging.getLogger("outrider")


class LoopLag:
    """How late the event loop runs things, in seconds: the largest of the last look."""

    _INTERVAL = 0.5

    def __init__(self) -> None:
        self.seconds = 0.0

    async def watch(self) -> None:
        """Measure again and again, until cancelled."""
        await repeat("the lag of the event loop", self._measure)

    async def _measure(self) -> float:
        due = monotonic() + self._INTERVAL
        await asyncio.sleep(self._INTERVAL)
        self.seconds = max(0.0, monotonic() - due)
        return 0.0


class Memory:
    """Gives memory back after a crowd has gone. The allocator keeps what it got for buffers of a thousand slow readers;
    that is fast, and a sidecar's memory limit is for the whole pod."""

    _INTERVAL = 2.0
    _WORTH_IT = 4 << 20  # bytes above the least seen

    def __init__(self, resident: Callable[[], int], trim: Callable[[int], object] | None) -> None:
        """`resident` counts the bytes that this process holds; `trim(0)` gives back what is free, where that can be
        done."""
        self._resident = resident
        self._trim = trim
        self._least = resident()
        self._in_use = 0  # what was still held after a trim that was hardly worth it, and at how many connections
        self._in_use_by = 0
        self._connections = 0
        self._accepted = 0
        self._crowd = 0
        self._again = False

    async def watch(self, connections: Callable[[], int], accepted: Callable[[], int]) -> None:
        """Look again and again, until cancelled."""

        async def again() -> float:
            self.look(connections(), accepted())
            return self._INTERVAL

        if self._trim is not None:
            await repeat("memory", again, self._INTERVAL)

    def look(self, connections: int, accepted: int) -> bool:
        """Trim if much more is held than was once enough, and most of the crowd has gone. `connections` is how many
        there are, `accepted` how many there have been: a crowd may come and go between two looks. What a trim found in
        use is left alone, until half of the connections that may use it have gone."""
        held = self._resident()
        self._least = min(self._least, held)
        self._crowd = max(self._crowd, self._connections + accepted - self._accepted)
        self._connections, self._accepted = connections, accepted
        gone = connections * 2 <= self._crowd and connections < self._crowd
        if connections * 2 <= self._in_use_by and connections < self._in_use_by:
            self._in_use = 0
        enough = max(self._least, self._in_use)
        if self._trim is None or not (gone or self._again) or held - enough < self._WORTH_IT:
            return False
        self._trim(0)
        left = self._resident()
        self._again = held - left >= self._WORTH_IT // 4  # until it is in vain: some of the crowd may still be leaving
        if not self._again:
            self._in_use, self._in_use_by = left, connections
        self._crowd = connections
        return True


def malloc_trim() -> Callable[[int], object] | None:
    """What makes the allocator give back what is free; None where there is no glibc: others do it by themselves."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def resident() -> int:
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Runtime:
    """One running sidecar: its configuration, its data plane, and what is known about both."""

    def __init__(self, resolved: Resolved, loop: asyncio.AbstractEventLoop, logs: Logs | None = None) -> None:
        self.resolved = resolved
        self.started = time()
        self.transitions: Counter[tuple[str, str, str]] = Counter()
        self.ejections: Counter[tuple[str, str]] = Counter()
        self.compiled: Compiled = compile_config(
            resolved, hooks=(self._on_transition,), on_ejection=(self._on_ejection,)
        )
        config = resolved.config
        options = config.observability.log
        self.access = AccessLog(
            config.service, options.access, query=options.query, repeats=options.most_alike, logs=logs
        )
        self.proxy = Proxy(
            loop,
            self.compiled.table,
            self.compiled.limits,
            noted=self.compiled.noted,
            correlate=self.compiled.correlate,
            browsers=self.compiled.browsers,
            report=self.access,
            report_all=self.access.wants_all,
        )
        self.proxy.timers.keep_watch()
        self.secrets = Secrets(resolved, self.compiled.credentials, self.compiled.guarded)
        self.lag = LoopLag()
        self.stalls = Stalls(loop)
        self.memory = Memory(resident, malloc_trim())
        self.stop: Callable[[signal.Signals], None] = lambda number: None  # as if the process had got this signal
        self.standing_faults: list[tuple[dict[str, Any], float]] = []  # orders from before, and when they end
        self._fault_lab: FaultLab | None = None
        self.ready = False
        # Of what is shown, not of secrets: everybody may read the hash, and could try out passwords against it.
        text = json.dumps(shown_values(resolved.document), sort_keys=True, default=str)
        self.config_hash = hashlib.sha256(text.encode()).hexdigest()[:12]

    def be_named(self, calls: int, inbound: int | None) -> None:
        """Give this sidecar its names in `Via`, the same for all its workers: one for each service that it calls, since
        an app that passes `Via` on may well be called by the one and call the other, and one for the guard, through
        which calls may come that have gone out from here."""
        config = self.resolved.config
        here = f"{config.service} {self.resolved.instance} {socket.gethostname()}"
        names: dict[tuple[int | None, str], bytes] = {}
        for route in self.compiled.routes:
            way = (inbound if route.inbound else calls, route.service)
            if way not in names:
                where = f"{here} {way[0]} {way[1]}"
                digest = hashlib.blake2b(where.encode(errors="replace"), digest_size=4)
                names[way] = f"outrider-{digest.hexdigest()}".encode()
            route.be_named(names[way])

    @property
    def fault_lab(self) -> FaultLab:
        """Where faults are made on purpose; imported when it is asked for."""
        if self._fault_lab is None:
            from outrider.controlplane.faults import FaultLab

            self._fault_lab = FaultLab({cluster.name: cluster for cluster in self.compiled.clusters})
        return self._fault_lab

    async def begin_standing_faults(self) -> None:
        """Go on with what was begun before this worker was. Raises FaultError."""
        for fault, until in self.standing_faults:
            left = until - monotonic()
            if left > 0:
                await self.fault_lab.begin({**fault, "for": f"{left:.3f}s"})

    async def end_faults(self) -> None:
        """End all of them, with the sidecar."""
        if self._fault_lab is not None:
            await self._fault_lab.close()

    def all_routes(self) -> list[Route]:
        """Every route, and the one for requests that reach none."""
        return [*self.compiled.routes, self.proxy.no_route]

    def missing_credentials(self) -> list[str]:
        """Names of credentials that have never been fetched, and that a service needs that is not `critical: false`."""
        needed = {id(one) for route in self.compiled.routes if route.critical is not False for one in route.credentials}
        return [one.name for one in self.secrets.fetched if not one.credential.ready and id(one.credential) in needed]

    def broken_store(self) -> str:
        """Why keyed calls are refused at the moment, because their store cannot be used; nothing if they are not."""
        remembered = self.compiled.idempotency
        return remembered.store.trouble if remembered is not None and remembered.policy.strict else ""

    def _on_ejection(self, service: str, endpoint: str, out: bool, why: str) -> None:
        self.ejections[service, "ejected" if out else "returned"] += 1
        fields = {"service": service, "endpoint": endpoint, "why": why}
        log.warning("%s of %s %s", endpoint, service, "is set aside" if out else "is back", extra={"fields": fields})

    def _on_transition(self, name: str, old: str, new: str) -> None:
        self.transitions[name, old, new] += 1
        log.warning("circuit %s: %s", name, new, extra={"fields": {"circuit": name, "from": old, "to": new}})
