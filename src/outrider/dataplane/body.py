"""The request body: kept for another try up to a limit, passed on as it arrives, slowed down when nobody takes it.

The app's connection feeds it, the connection of the current attempt (the sink) drains it. Pieces stay in memory
while they may be needed for another try; once the limit is passed they are let go, and the call says why it
cannot be retried. In the manner of Linkerd's ReplayBody.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from outrider.dataplane.http1.heads import LAST_CHUNK
from outrider.dataplane.ports import Connection

if TYPE_CHECKING:
    from outrider.dataplane.ports import AppConnection

# Bytes held for a sink that does not exist yet before the app is asked to wait.
HIGH_WATER: Final = 64 * 1024

_MANY: Final = 64  # pieces


class Discard(Connection):
    """A sink that takes everything and keeps nothing: for a body of which only the digest is wanted."""

    __slots__ = ()

    def __init__(self) -> None:
        self.write_paused = False

    def write(self, data: bytes) -> None:
        """Let it go."""


class RequestBody:
    """One request body. `limit` (bytes) bounds what is kept for replay, `max_size` what may come at all; `size` is what
    has arrived so far."""

    __slots__ = (
        "announced",
        "chunked",
        "complete",
        "digest",
        "kept",
        "limit",
        "max_size",
        "paused",
        "pending",
        "replayable",
        "sent",
        "sink",
        "size",
        "source",
        "whole_or_too_large",
    )

    def __init__(self, source: AppConnection, limit: int, chunked: bool, max_size: int = sys.maxsize) -> None:
        self.source = source
        self.limit = limit
        self.max_size = max_size
        self.chunked = chunked
        self.kept: list[bytes] = []
        self.pending: list[bytes] = []
        self.size = 0
        self.replayable = True
        self.complete = False
        self.announced = False  # the attempt under way has been told that the upload has ended
        self.sent = False  # the last byte has been handed to the present sink
        self.sink: Connection | None = None
        self.paused = False
        self.whole_or_too_large: Callable[[], None] | None = None  # called then, if it is set
        self.digest: blake2b | None = None  # of all that has been fed, where that is asked for

    def feed(self, piece: bytes) -> None:
        """A piece arrived from the app. It goes out with the next `flush`."""
        self.size += len(piece)
        if self.digest is not None:
            self.digest.update(piece)
        self.pending.append(piece)
        if self.replayable:
            if self.size <= self.limit:
                self.kept.append(piece)
            else:
                self._outgrown()
        if len(self.kept) > _MANY or len(self.pending) > _MANY:  # a piece of one byte takes forty
            self.kept = [b"".join(self.kept)]
            self.pending = [b"".join(self.pending)]

    def begin_digest(self, prefix: int) -> bytes:
        """Digest the whole body as it comes. Only before any of it has been sent, and once it is complete or too large
        to be kept. Returns a digest of its first `prefix` bytes, or of all if there are fewer."""
        there = b"".join(self.kept if self.replayable else self.pending)
        self.digest = blake2b(there, digest_size=16)
        return blake2b(there[:prefix], digest_size=16).digest()

    def finish(self) -> None:
        """The last piece has been fed."""
        self.complete = True
        if self.whole_or_too_large is not None:
            self.whole_or_too_large()

    def flush(self) -> None:
        """Hand what arrived to the sink, if there is one; otherwise hold it, and slow the app down."""
        sink = self.sink
        if sink is None:
            if not self.complete and self.held > HIGH_WATER and self.whole_or_too_large is None:
                self._pause()
            return
        if self.pending:
            sink.write(self._framed(self.pending))
            self.pending = []
        if self.complete:
            if self.chunked:
                sink.write(LAST_CHUNK)
            self.sink = None
            self.sent = True
        elif sink.write_paused:
            self._pause()

    def forget(self) -> None:
        """Let go of all pieces: it will not be sent any more."""
        self.kept = []
        self.pending = []
        self.replayable = False

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return sum(map(len, self.kept if self.replayable else self.pending))

    def whole(self) -> bytes | None:
        """The complete body in wire form, for one write together with the head; None if it is not all here."""
        if not self.complete or not self.replayable:
            return None
        self.pending = []
        self.sent = True
        body = self._framed(self.kept)
        return body + LAST_CHUNK if self.chunked else body

    def attach(self, sink: Connection) -> None:
        """Start, or start again, with this sink: everything kept is sent first. Only while `replayable`,
        or for the very first sink."""
        if self.replayable:
            self.pending = list(self.kept)
        self.sink = sink
        self.sent = False
        self.flush()
        if self._is_drained_by(sink) and not sink.write_paused:
            self.writable()

    def _is_drained_by(self, sink: Connection) -> bool:
        """Whether this sink still takes more. Asked again after a flush, which may have ended it."""
        return self.sink is sink

    def detach(self, sink: Connection) -> None:
        """This sink takes no more. What it took is lost to others unless it was kept."""
        if self.sink is sink:
            self.sink = None

    def writable(self) -> None:
        """The sink can take more."""
        if self.paused:
            self.paused = False
            self.source.resume_body()

    def _pause(self) -> None:
        if not self.paused:
            self.paused = True
            self.source.pause_body()

    def _outgrown(self) -> None:
        """Too large to keep. What has not been sent yet stays pending, for the sink to come."""
        self.replayable = False
        if self.whole_or_too_large is not None:
            self.whole_or_too_large()
        if self.sink is None:
            self.pending = [*self.kept, self.pending[-1]] if self.kept else self.pending
        self.kept = []

    def _framed(self, pieces: list[bytes]) -> bytes:
        data = b"".join(pieces)
        if self.chunked and data:
            return b"%x\r\n%b\r\n" % (len(data), data)
        return data
