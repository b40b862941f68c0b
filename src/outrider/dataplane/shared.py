"""What all connections of one event loop share."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider.dataplane.runtime.counters import ProxyStats
from outrider.dataplane.runtime.names import Names
from outrider.dataplane.runtime.timers import Timers

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

Report = Callable[["Call", float], None]


@dataclass(slots=True, frozen=True)
class Limits:
    """Bounds on what the app may send. Sizes in bytes, times in seconds."""

    header_bytes: int = 64 * 1024
    headers: int = 100
    replay_bytes: int = 64 * 1024
    downstream_connections: int = 1024
    downstream_requests: int = 1_000_000
    downstream_idle_timeout: float = 3600.0
    header_timeout: float = 10.0
    body_idle_timeout: float = 30.0
    tunnel_idle_timeout: float = 600.0


class Shared:
    """Limits, timers, counters, addresses of names, and where calls are reported.

    `noted` are the request headers that any part of the data plane reads, lower case. `report(call, seconds)` is called
    for every call that was retried, refused or failed; with `report_all`, for every call. `draining`: connections end
    with their next answer. `stopped`: what is still under way is cut off.
    """

    __slots__ = ("draining", "limits", "loop", "names", "noted", "report", "report_all", "stats", "stopped", "timers")

    def __init__(
        self, loop: AbstractEventLoop, limits: Limits, noted: frozenset[bytes], report: Report, report_all: bool
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.noted = noted
        self.report = report
        self.report_all = report_all
        self.timers = Timers(loop)
        self.names = Names()
        self.stats = ProxyStats()
        self.draining = False
        self.stopped = False
