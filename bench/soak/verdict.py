"""What must hold after a soak: nothing lost, nothing mixed up, nothing kept, and all counters agree."""

from __future__ import annotations

from collections.abc import Iterator

from bench.soak.load import Record
from bench.soak.watch import Metrics, Watch

# All of these are 0 once every client has left.
GAUGES = ("outrider_downstream_connections", "outrider_in_flight_requests", "outrider_tunnels")


def memory(watch: Watch, warm: int, growth_mb: float) -> Iterator[str]:
    """Memory is flat per connection: compared are the end and the moment after `warm` connections."""
    early = next((one for one in watch.samples if one.connections >= warm), None)
    if early is None or early is watch.samples[-1]:
        yield "too few samples to say anything about memory: more connections, please"
        return
    late = watch.samples[-1]
    growth = late.memory - early.memory
    print(
        f"{watch.name}: {early.memory:.1f} MB after {early.connections} connections, "
        f"{late.memory:.1f} MB after {late.connections} ({growth:+.1f} MB)"
    )
    if growth > growth_mb:
        yield f"{watch.name}: memory grew by {growth:.1f} MB, more than {growth_mb:g}"


def nothing_kept(watch: Watch, metrics: Metrics, files_before: int, files_after: int) -> Iterator[str]:
    """Gauges are back to 0, and so are open files, but for kept connections to targets."""
    for name in GAUGES:
        if metrics.sum(name):
            yield f"{watch.name}: {name} is {metrics.sum(name):g} with no client left"
    kept = metrics.sum("outrider_upstream_connections")
    if files_after > files_before + kept + 4:
        yield f"{watch.name}: {files_after} files are open, {files_before} were before, {kept:g} connections are kept"
    if metrics.sum("outrider_internal_errors_total"):
        yield f"{watch.name}: {metrics.sum('outrider_internal_errors_total'):g} internal errors"


def counters(caller: Metrics, receiver: Metrics, app: dict[str, int], record: Record, through: int) -> Iterator[str]:
    """What the generator sent, what the sidecars counted, and what the app got, are the same numbers.

    `through` are the calls the generator made at the caller's sidecar. Where a client left in the middle, it cannot
    know whether its call was carried: so many may differ, and no more.
    """
    slack = record.uncertain
    requests = caller.sum("outrider_requests_total")
    print(f"caller's sidecar: {requests:.0f} requests counted, {through} sent, {slack} of all calls uncertain")
    if not through - slack <= requests <= through:
        yield f"the caller's sidecar counted {requests:.0f} requests of {through}, {slack} are uncertain"
    arrived = receiver.sum("outrider_attempts_total")
    got = sum(app.values())
    print(f"receiver's sidecar: {arrived:.0f} attempts counted, the app got {got} requests")
    if abs(arrived - got) > slack:
        yield f"the receiver's sidecar counted {arrived:.0f} attempts, the app got {got} requests"
    if got > arrived:
        yield f"the app got {got} requests, {got - arrived:.0f} more than were counted"
