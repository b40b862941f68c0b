"""`/metrics`: a Prometheus collector over the data plane's slots, read when it is scraped."""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from collections.abc import Iterator

from prometheus_client import PlatformCollector, ProcessCollector
from prometheus_client.core import Metric

from outrider import __version__
from outrider.controlplane.runtime import Runtime
from outrider.controlplane.telemetry.families import (
    Family,
    HistogramFamily,
    PartsCollector,
    PartsRegistry,
    Room,
    Row,
    counter,
    gauge,
)
from outrider.controlplane.telemetry.pages import DROPPED_LINES
from outrider.dataplane.policies.deciders.breaker import CLOSED, HALF_OPEN, OPEN
from outrider.dataplane.runtime.counters import HANDSHAKE_FAILURES, LIMITS
from outrider.dataplane.upstream.cluster import STANDINGS, Cluster

_MAX_SERIES = 5000


class OutriderCollector(PartsCollector):
    """All of Outrider's own metrics. At most 5,000 series; what goes beyond is dropped and counted."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def parts(self) -> Iterator[Metric]:
        """The families in parts. What they are made of may change in between, with calls and with a reload."""
        room = Room(_MAX_SERIES)
        for family in self._families():
            yield from family.parts(room)
        dropped = counter("outrider_metric_series_dropped", "Series left out of this page", [], [((), room.dropped)])
        yield from dropped.parts(Room(1))

    def _families(self) -> Iterator[Family]:
        yield from self._of_this_process()
        yield from self._of_calls()
        yield from self._of_attempts()
        yield from self._of_targets()
        yield from self._of_the_guard()

    def _of_this_process(self) -> Iterator[Family]:
        runtime = self._runtime
        stats = runtime.proxy.stats
        build = ((__version__, platform.python_version()), 1)
        yield gauge("outrider_build_info", "The running version", ["version", "python"], [build])
        yield gauge("outrider_config_info", "The running configuration", ["hash"], [((runtime.config_hash,), 1)])
        tasks = [((), len(asyncio.all_tasks(runtime.proxy.loop)))]
        yield gauge("outrider_asyncio_tasks", "Tasks of the event loop", [], tasks)
        yield gauge("outrider_event_loop_lag_seconds", "How late the event loop is", [], [((), runtime.lag.seconds)])
        name = "outrider_loop_stall_seconds"
        text = "How long the event loop stood still, from 10 ms"
        yield HistogramFamily(name, text, [], [((), runtime.stalls.seconds)])
        connections = [((), len(runtime.proxy.connections))]
        yield gauge("outrider_downstream_connections", "Connections from the app", [], connections)
        sides = (("outbound", runtime.proxy.outbound), ("inbound", runtime.proxy.inbound))
        yield counter(
            "outrider_downstream_connections_refused",
            "Connections over limits.downstream_connections, which are answered 503 or closed",
            ["side"],
            [((side,), share.refused) for side, share in sides],
        )
        yield counter(
            "outrider_downstream_connections_displaced",
            "Idle connections that nothing was proven on, closed to make room for new ones",
            ["side"],
            [((side,), share.displaced) for side, share in sides],
        )
        yield counter("outrider_downstream_accepts", "Connections accepted from the app", [], [((), stats.accepted)])
        pauses = [((), stats.accept_pauses)]
        yield counter("outrider_accept_pauses", "Times accepting stopped for want of descriptors", [], pauses)
        reached = [((limit,), stats.reached.get(limit, 0)) for limit in LIMITS]
        yield counter("outrider_limit_reached", "Times a limit was met, by its key under `limits`", ["limit"], reached)
        yield counter(
            "outrider_internal_errors", "Calls that a bug in Outrider failed", [], [((), stats.policy_errors)]
        )
        yield counter(*DROPPED_LINES, [], [((), runtime.access.dropped)])
        ages = [((name,), age) for name, age in runtime.secrets.ages().items()]
        expiries = [((owner, which), when) for owner, which, when in runtime.compiled.certificates.expiries()]
        name = "outrider_certificate_expiry_timestamp_seconds"
        yield gauge(name, "When a certificate expires", ["owner", "certificate"], expiries)
        failed = [((reason,), stats.handshakes_failed.get(reason, 0)) for reason in HANDSHAKE_FAILURES]
        name = "outrider_inbound_handshakes_failed"
        yield counter(name, "TLS handshakes of callers that failed, by reason", ["reason"], failed)
        old = [((name,), one.old_uses) for name, one in runtime.compiled.credentials.items()]
        yield counter("outrider_credential_old_uses", "Calls that only the key before got through", ["credential"], old)
        yield gauge("outrider_credential_age_seconds", "Since a credential took its value", ["credential"], ages)

    def _of_calls(self) -> Iterator[Family]:
        runtime = self._runtime
        routes = runtime.all_routes()
        requests = (
            ((route.stats.service, route.stats.route, method.decode(), str(status), outcome), count)
            for route in routes
            for (method, status, outcome), count in list(route.stats.requests.items())
        )
        labels = ["service", "route", "method", "code", "outcome"]
        yield counter("outrider_requests", "Finished calls", labels, requests)
        yield HistogramFamily(
            "outrider_request_duration_seconds",
            "Calls, from first byte in to last byte out",
            ["service", "route"],
            (((route.stats.service, route.stats.route), route.stats.duration) for route in routes),
        )
        overhead = [((), runtime.proxy.stats.overhead)]
        yield HistogramFamily("outrider_overhead_seconds", "What Outrider itself adds to a call", [], overhead)
        in_flight = runtime.proxy.in_flight_by_service()
        rows = [((cluster.name,), in_flight.get(cluster.name, 0)) for cluster in runtime.compiled.clusters]
        yield gauge("outrider_in_flight_requests", "Calls under way", ["service"], rows)

    def _of_attempts(self) -> Iterator[Family]:
        clusters = self._runtime.compiled.clusters
        attempts = (row for cluster in clusters for row in _attempts(cluster))
        yield counter("outrider_attempts", "Attempts by result", ["service", "result"], attempts)
        for name, text, attribute, label in (
            ("outrider_retries", "Retries by reason", "retries", "reason"),
            ("outrider_retries_suppressed", "Retries not made, by reason", "suppressed", "reason"),
            ("outrider_hedges", "Races of attempts, by who won: the hedge, or the first (lost)", "hedges", "result"),
            ("outrider_upstream_connects", "Connections made or failed", "connects", "result"),
            ("outrider_tls_handshakes", "TLS handshakes with targets, full or resumed", "handshakes", "kind"),
            ("outrider_tunnelled_bytes", "Bytes through tunnels that have ended", "tunnelled", "direction"),
        ):
            yield counter(name, text, ["service", label], _counted(clusters, attribute))

    def _of_the_guard(self) -> Iterator[Family]:
        runtime = self._runtime
        guarded = runtime.compiled.guarded
        if guarded is None:
            return
        guard = guarded.guard
        refusals = [((reason,), count) for reason, count in guard.refused.items()]
        yield counter("outrider_guard_refusals", "Inbound calls refused, by reason", ["reason"], refusals)
        admitted = [(("proven",), guard.proven), (("public",), guard.public)]
        yield counter("outrider_guard_calls", "Inbound calls by what is known of the caller", ["caller"], admitted)
        uses = [((key, who), count) for key, callers in guard.key_uses.items() for who, count in callers.items()]
        name = "outrider_guard_key_uses"
        yield counter(
            name, "Calls by the key that proved their caller, where there are several", ["key", "caller"], uses
        )
        if runtime.compiled.idempotency is not None:
            counts = [((what,), count) for what, count in runtime.compiled.idempotency.policy.counts.items()]
            yield counter("outrider_idempotent_calls", "Calls with a key, by what became of them", ["result"], counts)
        contexts = runtime.compiled.contexts
        yield gauge("outrider_contexts", "Inbound calls whose context is kept", [], [((), contexts.size)])
        left_out = [((), contexts.left_out)]
        yield counter("outrider_contexts_left_out", "Calls whose context was not kept, for want of room", [], left_out)

    def _of_targets(self) -> Iterator[Family]:
        runtime = self._runtime
        states = (
            ((breaker.name, state), int(breaker.state == state))
            for breaker in runtime.compiled.breakers
            for state in (CLOSED, OPEN, HALF_OPEN)
        )
        yield gauge("outrider_circuit_state", "1 for the state a circuit is in", ["service", "state"], states)
        moves = [((name, old, new), count) for (name, old, new), count in runtime.transitions.items()]
        yield counter("outrider_circuit_transitions", "Changes of state", ["service", "from", "to"], moves)
        clusters = runtime.compiled.clusters
        tunnels = (((cluster.name,), cluster.stats.tunnels) for cluster in clusters)
        yield gauge("outrider_tunnels", "Connections that have left HTTP, as WebSocket does", ["service"], tunnels)
        endpoints = (row for cluster in clusters for row in _endpoints(cluster))
        yield gauge("outrider_endpoints", "Endpoints by state", ["service", "state"], endpoints)
        events = list(runtime.ejections.items())
        yield counter("outrider_endpoint_ejections", "Endpoints set aside, and back", ["service", "event"], events)
        limits = runtime.compiled.limits_in_force
        rows = [((label,), limit.limit) for label, limit in limits]
        yield gauge("outrider_concurrency_limit", "Calls allowed at a time", ["service"], rows)
        rows = [((label,), limit.waiting) for label, limit in limits]
        yield gauge("outrider_queued_requests", "Calls that wait for others to end", ["service"], rows)
        shares = [((label,), throttle.refused_share()) for label, throttle in runtime.compiled.throttles]
        yield gauge("outrider_throttled_share", "Share of calls refused on this side", ["service"], shares)
        connections = (row for cluster in clusters for row in _connections(cluster))
        yield gauge("outrider_upstream_connections", "Connections to targets", ["service", "state"], connections)


def _attempts(cluster: Cluster) -> list[Row]:
    """Attempts of a service by result: the class of a status, or the slug of a failure."""
    counts: Counter[str] = Counter()
    for label, count in cluster.stats.attempts.items():
        counts[f"{label // 100}xx" if isinstance(label, int) else label] += count
    return [((cluster.name, result), count) for result, count in counts.items()]


def _counted(clusters: list[Cluster], attribute: str) -> Iterator[Row]:
    """What services have counted in one of their statistics."""
    for cluster in clusters:
        for key, count in list(getattr(cluster.stats, attribute).items()):
            yield (cluster.name, key), count


def _endpoints(cluster: Cluster) -> list[Row]:
    standing = Counter(endpoint.standing for endpoint in cluster.endpoints)
    return [((cluster.name, state), standing[state]) for state in STANDINGS]


def _connections(cluster: Cluster) -> list[Row]:
    idle = sum(len(endpoint.pool.idle) for endpoint in cluster.endpoints)
    open_ = sum(endpoint.pool.open for endpoint in cluster.endpoints)
    return [((cluster.name, "idle"), idle), ((cluster.name, "active"), open_ - idle)]


def registry(runtime: Runtime) -> PartsRegistry:
    """Everything that /metrics shows: ours, and the process's."""
    collected = PartsRegistry()
    collected.register(OutriderCollector(runtime))
    ProcessCollector(registry=collected)
    PlatformCollector(registry=collected)
    return collected
