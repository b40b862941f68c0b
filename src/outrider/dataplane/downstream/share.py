"""How many connections may come in: one share for the app's own calls, one for callers from outside.

The two never take from each other, neither connections nor descriptors nor turns (turns.py): a thousand strangers on
the inbound port must not switch the app's way out off. Inside a share, those that have not proven anything yet make
room first: when it is full, the oldest idle connection of a stranger is closed in favour of the newcomer.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from typing import TYPE_CHECKING, Final

from outrider.dataplane.runtime.turns import Turns

if TYPE_CHECKING:
    from outrider.dataplane.downstream.connection import Downstream
    from outrider.dataplane.engine.routing import Service

# Strangers looked at for one newcomer, and refused connections that are told why, at a time: both cost time or a
# descriptor, and a flood would like us to spend them.
_MOST_LOOKED_AT: Final = 16
_MOST_TOLD: Final = 64


class Share:
    """The connections of one side. `app` is where the calls of this side go, if there is only one such place.

    `strangers` are those on which no good call has ended yet, the one that waits longest first. `opening` counts
    accepted sockets that are no connections yet, `told` refused connections that are still open; `refused` and
    `displaced` are counters.
    """

    __slots__ = ("app", "count", "displaced", "limit", "opening", "refused", "strangers", "told", "turns")

    def __init__(self, limit: int, loop: AbstractEventLoop) -> None:
        self.limit = limit
        self.turns = Turns(loop)
        self.app: Service | None = None
        self.count = 0
        self.opening = 0
        self.strangers: dict[Downstream, None] = {}
        self.told = 0
        self.refused = 0
        self.displaced = 0

    def admit(self, connection: Downstream) -> bool:
        """Whether there is room for one more connection; if so, it counts from now on."""
        if self.count >= self.limit and not self.make_room():
            self.refused += 1
            return False
        self.count += 1
        self.strangers[connection] = None
        return True

    def has_room_to_tell(self) -> bool:
        """Whether one more refused connection may stay until it has been told why; if so, it counts."""
        if self.told >= _MOST_TOLD:
            return False
        self.told += 1
        return True

    def make_room(self) -> bool:
        """Close the oldest idle connection of a stranger. False if none is idle, as far as this looks."""
        strangers = self.strangers
        for _ in range(min(len(strangers), _MOST_LOOKED_AT)):
            oldest = next(iter(strangers))
            if oldest.idle:
                self.displaced += 1
                oldest.make_way()
                return True
            del strangers[oldest]
            strangers[oldest] = None  # looked at again after all others
        return False

    def known(self, connection: Downstream) -> None:
        """A good call has ended on this connection: it is no stranger any more."""
        self.strangers.pop(connection, None)

    def leave(self, connection: Downstream) -> None:
        """An admitted connection is gone."""
        self.count -= 1
        self.strangers.pop(connection, None)

    def to_app(self) -> int:
        """Open connections to where all calls of this side go."""
        return sum(one.pool.open for one in self.app.default.cluster.endpoints) if self.app is not None else 0
