"""A service's endpoints and how they are doing, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import randrange
from typing import Final

from outrider.dataplane.pool import Pool
from outrider.dataplane.stats import ClusterStats
from outrider.dataplane.tls import ClientTls


class Endpoint:
    """One address that can serve a cluster.

    `authority` goes into `Host`; `base_path` (no trailing slash) stands before every path; `idle_timeout`
    and `body_idle` (how long a body may stand still) are in seconds; `max_head_bytes` and `max_fields` bound what
    a response head may be. `secure` is for https, whose `tls` is
    set before the first call, and again when certificates change; None is plain HTTP.
    """

    __slots__ = (
        "authority",
        "base_path",
        "body_idle",
        "host",
        "host_line",
        "idle_timeout",
        "in_flight",
        "max_fields",
        "max_head_bytes",
        "name",
        "origin",
        "pool",
        "port",
        "stats",
        "tls",
    )

    def __init__(
        self,
        host: str,
        port: int,
        *,
        authority: str,
        stats: ClusterStats,
        base_path: str = "",
        idle_timeout: float = 4.0,
        max_head_bytes: int = 65536,
        max_fields: int = 100,
        body_idle: float = 30.0,
        secure: bool = False,
    ) -> None:
        self.host = host
        self.port = port
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.authority = authority.encode()
        self.host_line = b" HTTP/1.1\r\nhost: %b\r\n" % self.authority
        self.origin = (b"https://" if secure else b"http://") + self.authority
        self.tls: ClientTls | None = None
        self.base_path = base_path.encode()
        self.stats = stats
        self.idle_timeout = idle_timeout
        self.max_head_bytes = max_head_bytes
        self.max_fields = max_fields
        self.body_idle = body_idle
        self.in_flight = 0
        self.pool = Pool()


class Cluster:
    """A logical service: its endpoints, and how one is chosen for an attempt."""

    __slots__ = ("_choose", "balance", "endpoints", "name", "stats")

    def __init__(self, name: str, endpoints: Sequence[Endpoint], balance: str, stats: ClusterStats) -> None:
        self.name = name
        self.endpoints = tuple(endpoints)
        self.balance = balance
        self.stats = stats
        self._choose = BALANCERS[balance]()

    def pick(self, tried: Sequence[Endpoint] = ()) -> Endpoint | None:
        """An endpoint for the next attempt: one not yet tried in this call while there is one."""
        endpoints: Sequence[Endpoint] = self.endpoints
        if tried and len(endpoints) > 1:
            endpoints = [endpoint for endpoint in endpoints if endpoint not in tried] or endpoints
        if len(endpoints) == 1:
            return endpoints[0]
        return self._choose(endpoints) if endpoints else None

    def untried(self, tried: Sequence[Endpoint]) -> bool:
        """Whether an endpoint is left that this call has not tried."""
        return any(endpoint not in tried for endpoint in self.endpoints)


Chooser = Callable[[Sequence[Endpoint]], Endpoint]


def _least_requests() -> Chooser:
    """Fewest attempts in flight; the scan starts anywhere, so that ties do not all go to the first."""

    def choose(endpoints: Sequence[Endpoint]) -> Endpoint:
        count = len(endpoints)
        start = randrange(count)
        best = endpoints[start]
        for offset in range(1, count):
            other = endpoints[(start + offset) % count]
            if other.in_flight < best.in_flight:
                best = other
        return best

    return choose


def _round_robin() -> Chooser:
    turn = 0

    def choose(endpoints: Sequence[Endpoint]) -> Endpoint:
        nonlocal turn
        turn += 1
        return endpoints[turn % len(endpoints)]

    return choose


BALANCERS: Final[dict[str, Callable[[], Chooser]]] = {"least-requests": _least_requests, "round-robin": _round_robin}
