"""A prepared answer for when a service fails that the app can live without."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.model.failure import Failure, Origin
from outrider.model.messages import Response
from outrider.model.outcome import FAILURE, classify
from outrider.model.reply import Reply


class Fallback:
    """Answers in place of a failure. The app's own mistakes are still told to the app."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> None:
        self._status = status
        self._headers = list(headers)
        self._body = body

    def covers(self, result: Response | Failure) -> bool:
        """Whether this end of a call is one to be covered up: a fault of target, network or proxy."""
        if isinstance(result, Failure):
            return result.kind.origin is not Origin.CALLER
        return classify(result.status) is FAILURE

    def reply(self, result: Response | Failure) -> Reply:
        """The prepared answer; `x-outrider-degraded` tells the app that it is one, and what it covers up."""
        cause = result.kind.slug if isinstance(result, Failure) else str(result.status)
        marked = [*self._headers, (b"x-outrider-degraded", f"static; cause={cause}".encode())]
        return Reply(self._status, marked, self._body)
