"""`/metrics`: a Prometheus collector over the data plane's slots, read when it is scraped."""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from outrider import __version__
from outrider.controlplane.runtime import Runtime
from outrider.dataplane.policies.deciders.breaker import CLOSED, HALF_OPEN, OPEN
from outrider.dataplane.runtime.counters import BUCKETS, HANDSHAKE_FAILURES, LIMITS, Histogram
from outrider.dataplane.upstream.cluster import STANDINGS

_MAX_SERIES = 5000


class OutriderCollector(Collector):
    """All of Outrider's own metrics. At most 5,000 series; what goes beyond is dropped and counted."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterable[Metric]:
        room = _MAX_SERIES
        dropped = 0
        for metric in self._metrics():
            if len(metric.samples) > room:
                dropped += len(metric.samples) - room
                metric.samples = metric.samples[:room]
            room -= len(metric.samples)
            yield metric
        yield _counter("outrider_metric_series_dropped", "Series left out of this page", [], [((), dropped)])

    def _metrics(self) -> Iterator[Metric]:
        yield from self._of_this_process()
        yield from self._of_calls()
        yield from self._of_attempts()
        yield from self._of_targets()
        yield from self._of_the_guard()

    def _of_this_process(self) -> Iterator[Metric]:
        runtime = self._runtime
        stats = runtime.proxy.stats
        build = ((__version__, platform.python_version()), 1)
        yield _gauge("outrider_build_info", "The running version", ["version", "python"], [build])
        yield _gauge("outrider_config_info", "The running configuration", ["hash"], [((runtime.config_hash,), 1)])
        tasks = [((), len(asyncio.all_tasks(runtime.proxy.loop)))]
        yield _gauge("outrider_asyncio_tasks", "Tasks of the event loop", [], tasks)
        yield _gauge("outrider_event_loop_lag_seconds", "How late the event loop is", [], [((), runtime.lag.seconds)])
        name = "outrider_loop_stall_seconds"
        stalls = HistogramMetricFamily(name, "How long the event loop stood still, from 10 ms")
        stalls.add_metric([], *_buckets(runtime.stalls.seconds))
        yield stalls
        connections = [((), len(runtime.proxy.connections))]
        yield _gauge("outrider_downstream_connections", "Connections from the app", [], connections)
        sides = (("outbound", runtime.proxy.outbound), ("inbound", runtime.proxy.inbound))
        yield _counter(
            "outrider_downstream_connections_refused",
            "Connections over limits.downstream_connections, which are answered 503 or closed",
            ["side"],
            [((side,), share.refused) for side, share in sides],
        )
        yield _counter(
            "outrider_downstream_connections_displaced",
            "Idle connections that nothing was proven on, closed to make room for new ones",
            ["side"],
            [((side,), share.displaced) for side, share in sides],
        )
        yield _counter("outrider_downstream_accepts", "Connections accepted from the app", [], [((), stats.accepted)])
        pauses = [((), stats.accept_pauses)]
        yield _counter("outrider_accept_pauses", "Times accepting stopped for want of descriptors", [], pauses)
        reached = [((limit,), stats.reached.get(limit, 0)) for limit in LIMITS]
        yield _counter("outrider_limit_reached", "Times a limit was met, by its key under `limits`", ["limit"], reached)
        yield _counter(
            "outrider_internal_errors", "Calls that a bug in Outrider failed", [], [((), stats.policy_errors)]
        )
        dropped = [((), runtime.access.dropped)]
        yield _counter("outrider_log_lines_dropped", "Log lines that nobody took in time", [], dropped)
        ages = [((name,), age) for name, age in runtime.secrets.ages().items()]
        expiries = [((owner, which), when) for owner, which, when in runtime.compiled.certificates.expiries()]
        name = "outrider_certificate_expiry_timestamp_seconds"
        yield _gauge(name, "When a certificate expires", ["owner", "certificate"], expiries)
        failed = [((reason,), stats.handshakes_failed.get(reason, 0)) for reason in HANDSHAKE_FAILURES]
        name = "outrider_inbound_handshakes_failed"
        yield _counter(name, "TLS handshakes of callers that failed, by reason", ["reason"], failed)
        old = [((name,), one.old_uses) for name, one in runtime.compiled.credentials.items()]
        yield _counter(
            "outrider_credential_old_uses", "Calls that only the key before got through", ["credential"], old
        )
        yield _gauge("outrider_credential_age_seconds", "Since a credential took its value", ["credential"], ages)

    def _of_calls(self) -> Iterator[Metric]:
        runtime = self._runtime
        requests = CounterMetricFamily(
            "outrider_requests", "Finished calls", labels=["service", "route", "method", "code", "outcome"]
        )
        for route in runtime.all_routes():
            stats = route.stats
            for (method, status, outcome), count in list(stats.requests.items()):
                requests.add_metric([stats.service, stats.route, method.decode(), str(status), outcome], count)
        yield requests
        durations = HistogramMetricFamily(
            "outrider_request_duration_seconds",
            "Calls, from first byte in to last byte out",
            labels=["service", "route"],
        )
        for route in runtime.all_routes():
            durations.add_metric([route.stats.service, route.stats.route], *_buckets(route.stats.duration))
        yield durations
        overhead = HistogramMetricFamily("outrider_overhead_seconds", "What Outrider itself adds to a call")
        overhead.add_metric([], *_buckets(runtime.proxy.stats.overhead))
        yield overhead
        in_flight = runtime.proxy.in_flight_by_service()
        rows = [((cluster.name,), in_flight.get(cluster.name, 0)) for cluster in runtime.compiled.clusters]
        yield _gauge("outrider_in_flight_requests", "Calls under way", ["service"], rows)

    def _of_attempts(self) -> Iterator[Metric]:
        clusters = self._runtime.compiled.clusters
        attempts: dict[tuple[str, str], int] = {}
        for cluster in clusters:
            for label, count in cluster.stats.attempts.items():
                result = f"{label // 100}xx" if isinstance(label, int) else label
                attempts[cluster.name, result] = attempts.get((cluster.name, result), 0) + count
        yield _counter("outrider_attempts", "Attempts by result", ["service", "result"], list(attempts.items()))
        for name, text, attribute, label in (
            ("outrider_retries", "Retries by reason", "retries", "reason"),
            ("outrider_retries_suppressed", "Retries not made, by reason", "suppressed", "reason"),
            ("outrider_hedges", "Races of attempts, by who won: the hedge, or the first (lost)", "hedges", "result"),
            ("outrider_upstream_connects", "Connections made or failed", "connects", "result"),
            ("outrider_tls_handshakes", "TLS handshakes with targets, full or resumed", "handshakes", "kind"),
            ("outrider_tunnelled_bytes", "Bytes through tunnels that have ended", "tunnelled", "direction"),
        ):
            rows = [((c.name, key), count) for c in clusters for key, count in getattr(c.stats, attribute).items()]
            yield _counter(name, text, ["service", label], rows)

    def _of_the_guard(self) -> Iterator[Metric]:
        runtime = self._runtime
        guarded = runtime.compiled.guarded
        if guarded is None:
            return
        guard = guarded.guard
        refusals = [((reason,), count) for reason, count in guard.refused.items()]
        yield _counter("outrider_guard_refusals", "Inbound calls refused, by reason", ["reason"], refusals)
        admitted = [(("proven",), guard.proven), (("public",), guard.public)]
        yield _counter("outrider_guard_calls", "Inbound calls by what is known of the caller", ["caller"], admitted)
        uses = [((key, who), count) for key, callers in guard.key_uses.items() for who, count in callers.items()]
        name = "outrider_guard_key_uses"
        yield _counter(
            name, "Calls by the key that proved their caller, where there are several", ["key", "caller"], uses
        )
        if runtime.compiled.idempotency is not None:
            counts = [((what,), count) for what, count in runtime.compiled.idempotency.policy.counts.items()]
            yield _counter("outrider_idempotent_calls", "Calls with a key, by what became of them", ["result"], counts)
        contexts = runtime.compiled.contexts
        yield _gauge("outrider_contexts", "Inbound calls whose context is kept", [], [((), contexts.size)])
        left_out = [((), contexts.left_out)]
        yield _counter("outrider_contexts_left_out", "Calls whose context was not kept, for want of room", [], left_out)

    def _of_targets(self) -> Iterator[Metric]:
        runtime = self._runtime
        states = [
            ((breaker.name, state), int(breaker.state == state))
            for breaker in runtime.compiled.breakers
            for state in (CLOSED, OPEN, HALF_OPEN)
        ]
        yield _gauge("outrider_circuit_state", "1 for the state a circuit is in", ["service", "state"], states)
        moves = [((name, old, new), count) for (name, old, new), count in runtime.transitions.items()]
        yield _counter("outrider_circuit_transitions", "Changes of state", ["service", "from", "to"], moves)
        clusters = runtime.compiled.clusters
        tunnels = [((cluster.name,), cluster.stats.tunnels) for cluster in clusters]
        yield _gauge("outrider_tunnels", "Connections that have left HTTP, as WebSocket does", ["service"], tunnels)
        standing = Counter((cluster.name, one.standing) for cluster in clusters for one in cluster.endpoints)
        endpoints = [((c.name, state), standing[c.name, state]) for c in clusters for state in STANDINGS]
        yield _gauge("outrider_endpoints", "Endpoints by state", ["service", "state"], endpoints)
        events = list(runtime.ejections.items())
        yield _counter("outrider_endpoint_ejections", "Endpoints set aside, and back", ["service", "event"], events)
        limits = runtime.compiled.limits_in_force
        rows = [((label,), limit.limit) for label, limit in limits]
        yield _gauge("outrider_concurrency_limit", "Calls allowed at a time", ["service"], rows)
        rows = [((label,), limit.waiting) for label, limit in limits]
        yield _gauge("outrider_queued_requests", "Calls that wait for others to end", ["service"], rows)
        shares = [((label,), throttle.refused_share()) for label, throttle in runtime.compiled.throttles]
        yield _gauge("outrider_throttled_share", "Share of calls refused on this side", ["service"], shares)
        connections = []
        for cluster in clusters:
            idle = sum(len(endpoint.pool.idle) for endpoint in cluster.endpoints)
            open_ = sum(endpoint.pool.open for endpoint in cluster.endpoints)
            connections += [((cluster.name, "idle"), idle), ((cluster.name, "active"), open_ - idle)]
        yield _gauge("outrider_upstream_connections", "Connections to targets", ["service", "state"], connections)


def registry(runtime: Runtime) -> CollectorRegistry:
    """Everything that /metrics shows: ours, and the process's."""
    collected = CollectorRegistry()
    collected.register(OutriderCollector(runtime))
    ProcessCollector(registry=collected)
    PlatformCollector(registry=collected)
    return collected


_Rows = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, labels: list[str], rows: _Rows) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(list(values), number)
    return family


def _counter(name: str, text: str, labels: list[str], rows: _Rows) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(list(values), number)
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets and sum, as the exposition wants them."""
    total = 0
    rows = []
    for edge, count in zip((*map(str, BUCKETS), "+Inf"), histogram.counts, strict=True):
        total += count
        rows.append((edge, float(total)))
    return rows, histogram.sum
