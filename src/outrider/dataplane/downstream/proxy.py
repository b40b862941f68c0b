"""What all connections of one event loop share: the route table, limits, timers, counters, and who is told."""

from __future__ import annotations

import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from outrider.dataplane.downstream.share import Share
from outrider.dataplane.engine.routing import Route, RouteTable
from outrider.dataplane.http1.request_checks import HeadChecks
from outrider.dataplane.policies.context import is_id
from outrider.dataplane.policies.deciders.retry import Retry
from outrider.dataplane.runtime.counters import ClusterStats, RouteStats
from outrider.dataplane.runtime.ids import ENTROPY
from outrider.dataplane.runtime.timers import NEVER
from outrider.dataplane.shared import Limits, Report, Shared
from outrider.dataplane.upstream.cluster import Cluster

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.downstream.browsers import Browsers
    from outrider.dataplane.downstream.connection import Downstream

Correlate = tuple[bytes, Callable[[], bytes]]
_CORRELATE: Final[Correlate] = (b"x-correlation-id", ENTROPY.uuid7)

# Names that some part of the data plane reads, whatever is configured.
NOTED = frozenset(
    (
        b"authorization",
        b"connection",
        b"content-length",
        b"dapr-app-id",
        b"expect",
        b"host",
        b"idempotency-key",
        b"origin",
        b"sec-fetch-site",
        b"max-forwards",
        b"te",
        b"traceparent",
        b"transfer-encoding",
        b"upgrade",
        b"via",
        b"x-outrider-attempt",
        b"x-outrider-critical",
        b"x-outrider-retry",
        b"x-outrider-service",
        b"x-outrider-timeout",
    )
)


# What is not a connection of a call: log, listeners, connections of the control ports, files that are read again.
OTHER_DESCRIPTORS: Final = 112


class Proxy(Shared):
    """The shared state of the data plane."""

    def __init__(  # noqa: PLR0913 # settings, all but the first few by keyword
        self,
        loop: AbstractEventLoop,
        table: RouteTable,
        limits: Limits,
        *,
        noted: frozenset[bytes] = NOTED,
        correlate: Correlate = _CORRELATE,
        browsers: Browsers | None = None,
        report: Report = lambda call, seconds: None,
        report_all: bool = False,
    ) -> None:
        """`noted` are the request headers that any policy in the table reads, lower case. `correlate` is the header of
        the correlation id, lower case, and what makes a new one. `browsers` refuses the requests of pages, where they
        are refused. `report` hears of every call that was retried, refused or failed; with `report_all`, of every
        call."""
        super().__init__(loop, limits, noted | NOTED, report, report_all)
        self.table = table
        self._correlation_header, self._new_id = correlate
        self.browsers = browsers
        self.head_checks = HeadChecks(limits.header_bytes, limits.headers, self.noted, self.stats.reached)
        self.connections: set[Downstream] = set()
        self.outbound = Share(limits.downstream_connections, loop)  # of the app, dedicated ports included
        self.inbound = Share(limits.downstream_connections, loop)  # of callers from outside
        self.descriptors = sys.maxsize  # that this process may have
        nowhere = Cluster("", (), "least-requests", ClusterStats())
        # The route of requests that reach none: refused before any policy is asked.
        self.no_route = Route(
            name="",
            cluster=nowhere,
            stats=RouteStats("_unknown", ""),
            policies=(),
            stamps=(),
            retry=Retry(max_retries=0),
            breaker=None,
            fallback=None,
            attempt_timeout=NEVER,
            connect_timeout=NEVER,
            body_idle=limits.body_idle_timeout,
        )

    def correlation_id(self, call: Call) -> bytes:
        """The correlation id of a request that reaches no route, and so no policy: as it was sent, or a new one."""
        for lower, _, value in call.fields:
            if lower == self._correlation_header and is_id(value):
                return value
        return self._new_id()

    def room(self, share: Share) -> int:
        """How many more connections of this side can be accepted before descriptors might not suffice for those to
        targets. Half of all descriptors are the app's own, however many callers there are."""
        outbound, inbound = self.outbound, self.inbound
        to_targets = sum(e.pool.open for s in self.table.services.values() for e in s.default.cluster.endpoints)
        from_outside = inbound.count + inbound.opening + inbound.told + inbound.to_app()
        usable = self.descriptors - max(OTHER_DESCRIPTORS, self.descriptors // 8)
        room = usable - to_targets - outbound.count - outbound.opening - outbound.told - from_outside
        return room if share is outbound else min(room, usable // 2 - from_outside)

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return sum(connection.active is not None for connection in self.connections)

    def in_flight_by_service(self) -> dict[str, int]:
        """Calls under way, by service. Counted when asked, so that no call pays for it."""
        counts: dict[str, int] = {}
        for connection in self.connections:
            if connection.active is not None:
                name = connection.active.route.service
                counts[name] = counts.get(name, 0) + 1
        return counts
