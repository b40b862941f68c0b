"""Takes an answer down while it passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider.dataplane.ports import BodyTap
from outrider.model.messages import Response

if TYPE_CHECKING:
    from outrider.dataplane.call import Call


class Recorder(BodyTap):
    """Takes an answer's body down while it passes, up to a limit (bytes); `keep` hears when all of it has passed."""

    __slots__ = ("keep", "limit", "pieces", "size")

    def __init__(self, limit: int, keep: Callable[[Call, Response, Recorder], None]) -> None:
        self.limit = limit
        self.keep = keep
        self.size = 0
        self.pieces: list[bytes] = []

    def add(self, pieces: list[bytes]) -> None:
        """More of the body has come."""
        if self.size <= self.limit:
            self.size += sum(map(len, pieces))
            self.pieces += pieces
            if self.size > self.limit:
                self.pieces = []
