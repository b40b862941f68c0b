"""At most so many calls in flight (the bulkhead of Nygard, "Release It!"): a slow target must not eat us up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.model.failure import Failure, Kind
from outrider.model.outcome import Outcome

if TYPE_CHECKING:
    from outrider.dataplane.call import Call


class ConcurrencyLimit:
    """Up to `limit` calls at once; the next one is told to come back in a second."""

    __slots__ = ("in_flight", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0

    def admit(self, call: Call) -> Failure | None:
        if self.in_flight >= self.limit:
            return Failure(
                Kind.OVERLOADED,
                f"{call.route.cluster.name} already has max_in_flight={self.limit} calls in flight",
                retry_after=1.0,
            )
        self.in_flight += 1
        call.permits = (self, *call.permits)
        return None

    def observe(self, call: Call, outcome: Outcome) -> None:
        self.in_flight -= 1
