"""What must hold after a soak: nothing lost, nothing mixed up, nothing kept, and all counters agree."""

from __future__ import annotations

from collections.abc import Iterator

from bench.soak.load import Record
from bench.soak.watch import GAUGES, Metrics, Watch


def memory(watch: Watch, growth_mb: float) -> Iterator[str]:
    """Memory is flat per connection: compared are the medians of the first and the last rest."""
    early, late = watch.rests[0], watch.rests[-1]
    growth = late.memory - early.memory
    most = max(one.memory for one in watch.samples)
    print(
        f"{watch.name}: {early.memory:.1f} MB at rest after {early.connections} connections, "
        f"{late.memory:.1f} MB after {late.connections} ({growth:+.1f} MB), {most:.1f} MB at most"
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
