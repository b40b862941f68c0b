"""Counters on the path of a call: plain slots, read by the telemetry port when it is scraped.

A labelled counter of the metrics library costs 1.3 µs per increment; these cost a tenth of that.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

# Seconds. Finer than OpenTelemetry's advice at the bottom: calls inside a cluster take a millisecond.
BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def bucket_of(seconds: float) -> int:
    """The index of the bucket that a duration belongs to; `len(BUCKETS)` for a longer one.

    Bisection written out: comparing with constants boxes no number in compiled code. A test compares it with BUCKETS.
    """
    if seconds <= 0.05:
        if seconds <= 0.0025:
            return 0 if seconds <= 0.0005 else 1 if seconds <= 0.001 else 2
        if seconds <= 0.01:
            return 3 if seconds <= 0.005 else 4
        return 5 if seconds <= 0.025 else 6
    if seconds <= 1.0:
        if seconds <= 0.25:
            return 7 if seconds <= 0.1 else 8
        return 9 if seconds <= 0.5 else 10
    if seconds <= 5.0:
        return 11 if seconds <= 2.5 else 12
    return 13 if seconds <= 10.0 else 14


_KNOWN_METHODS: Final = frozenset(
    (b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT", b"TRACE")
)


# What is counted when it is met: the keys under `limits` in the configuration. `replay_bytes` shows as a retry that
# was not made, and the limits of answers as failed attempts.
LIMITS: Final = (
    "header_bytes",
    "headers",
    "body_bytes",
    "downstream_connections",
    "downstream_requests",
    "downstream_idle_timeout",
    "header_timeout",
    "body_idle_timeout",
    "tunnel_idle_timeout",
    "response_header_bytes",
)


# Why the TLS handshake of a caller failed: the two sides did not agree, it took too long, the caller left, or it was
# given up for others.
HANDSHAKE_FAILURES: Final = ("refused", "timeout", "broken_off", "displaced")


class Histogram:
    """Counts per bucket (not cumulative; the last is +Inf) and the sum, in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bucket_of(seconds)] += 1
        self.sum += seconds


class RouteStats:
    """What happened to the calls of one route."""

    __slots__ = ("duration", "requests", "route", "service")

    def __init__(self, service: str, route: str) -> None:
        self.service = service
        self.route = route
        self.requests: dict[tuple[bytes, int, str], int] = defaultdict(int)
        self.duration = Histogram()

    def first(self, method: bytes, status: int, label: str) -> None:
        """Count a call whose kind has not been seen before. Unknown methods share a label, so that callers cannot
        grow the metric."""
        self.requests[method if method in _KNOWN_METHODS else b"_OTHER", status, label] += 1


class ClusterStats:
    """What happened to the attempts of one service. `attempts` by status, or by the slug of the failure; `tunnelled`
    in bytes, by direction."""

    __slots__ = (
        "attempts",
        "connects",
        "handshakes",
        "hedges",
        "retries",
        "suppressed",
        "transitions",
        "tunnelled",
        "tunnels",
        "unhealthy",
    )

    def __init__(self) -> None:
        self.attempts: dict[str | int, int] = defaultdict(int)
        self.hedges: dict[str, int] = defaultdict(int)
        self.retries: dict[str, int] = defaultdict(int)
        self.suppressed: dict[str, int] = defaultdict(int)
        self.connects: dict[str, int] = defaultdict(int)
        self.transitions: dict[tuple[str, str], int] = defaultdict(int)
        self.handshakes: dict[str, int] = defaultdict(int)
        self.tunnels = 0  # open now
        self.unhealthy = 0  # endpoints that active checks have found so
        self.tunnelled: dict[str, int] = defaultdict(int)


class ProxyStats:
    """What belongs to no service. `reached` counts, by the key under `limits`, how often a limit was met;
    `handshakes_failed` the TLS handshakes of callers, by reason."""

    __slots__ = ("accept_pauses", "accepted", "handshakes_failed", "overhead", "policy_errors", "reached")

    def __init__(self) -> None:
        self.overhead = Histogram()
        self.accepted = 0
        self.accept_pauses = 0
        self.handshakes_failed: dict[str, int] = defaultdict(int)
        self.policy_errors = 0
        self.reached: dict[str, int] = defaultdict(int)
