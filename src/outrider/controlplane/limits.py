"""Rates and concurrency, for services and for the app: what is declared holds for the sidecar as a whole, so each of
several workers gets its share."""

from __future__ import annotations

import math

from outrider.config.schema import InboundRate, Queue
from outrider.config.schema import RateLimit as RateConfig
from outrider.dataplane.policies.concurrency.adaptive import AdaptiveLimit
from outrider.dataplane.policies.concurrency.limit import ConcurrencyLimit
from outrider.dataplane.policies.rate_limit import BY_CALLER, RateLimit

_UNITS = {1.0: "s", 60.0: "m", 3600.0: "h"}


def rate_limit(limit: RateConfig | InboundRate | None, workers: int, noted: set[bytes]) -> RateLimit | None:
    """At most so many calls in a time; what it reads is added to `noted`."""
    if limit is None:
        return None
    assert limit.rate is not None  # resolve has seen to that
    count, period = limit.rate
    key = None
    if limit.key == "caller":
        key = BY_CALLER
    elif limit.key is not None:
        key = limit.key.removeprefix("header:").lower().encode()
        noted.add(key)
    burst = math.ceil((limit.burst or max(1, int(count))) / workers)
    return RateLimit(count / workers, period, burst, key, f"{count:g}/{_UNITS.get(period, 'd')}")


def concurrency(limit: int | str | None, queue: Queue | None, workers: int) -> ConcurrencyLimit | None:
    """At most so many calls at a time, a number or `adaptive`, and a queue for those beyond."""
    if not limit:
        return None
    size, wait = (math.ceil(queue.size / workers), queue.wait) if queue is not None else (0, 0.0)
    if isinstance(limit, str):
        adaptive = AdaptiveLimit()
        return ConcurrencyLimit(adaptive.limit, size, wait, adaptive)
    return ConcurrencyLimit(math.ceil(limit / workers), size, wait)
