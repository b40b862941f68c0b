"""What stands in for a service that fails and that the app can live without: a chain, tried in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from outrider.dataplane.policies.last_good import LastGood
from outrider.model.failure import Failure, Origin
from outrider.model.messages import Response
from outrider.model.outcome import FAILURE
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.call import Call


class Prepared:
    """An answer that the configuration holds ready."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> None:
        self._status = status
        self._headers = list(headers)
        self._body = body

    def reply(self, call: Call, result: Response | Failure) -> Reply:
        """The prepared answer; `x-outrider-degraded` tells the app that it is one, and what it covers up."""
        marked = [*self._headers, (b"x-outrider-degraded", f"static; cause={cause(result)}".encode())]
        return Reply(self._status, marked, self._body)


class FallbackReplies:
    """What stands in for a failure without another service being asked: `steps` answer from here, in order. The app's
    own mistakes are still told to the app."""

    __slots__ = ("_steps", "last_good")

    def __init__(self, steps: Sequence[Prepared | LastGood]) -> None:
        self._steps = tuple(steps)
        self.last_good = next((step for step in steps if isinstance(step, LastGood)), None)

    def covers(self, result: Response | Failure) -> bool:
        """Whether this end of a call is one to be covered up: a fault of target, network or proxy."""
        if isinstance(result, Failure):
            return result.kind.origin is not Origin.CALLER
        return result.outcome is FAILURE

    def reply(self, call: Call, result: Response | Failure) -> Reply | None:
        """The first answer that the chain has; None if it has none."""
        for step in self._steps:
            reply = step.reply(call, result)
            if reply is not None:
                return reply
        return None


def cause(result: Response | Failure) -> str:
    """What is being covered up, in a word."""
    return result.kind.slug if isinstance(result, Failure) else str(result.status)
