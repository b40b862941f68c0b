"""The two ports beside those for calls, telemetry and admin: which connections they have, and for how long. What is
said on a connection is for its handler: telemetry/http.py or admin/handler.py.

Strangers may connect to them and say nothing. So we accept ourselves: each port has a small number of connections, of
which a silent one makes room for a new one, and none may stay silent for long. A probe of the kubelet gets its answer
beside thousands of strangers, and the descriptors that calls need are not used up here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from outrider.controlplane.intercom import ADMIN, TELEMETRY
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.runtime.kernel import silent_for

log = logging.getLogger("outrider")

# Connections that a port has at a time. They come out of the descriptors that are kept from calls.
_MOST = {TELEMETRY: 32, ADMIN: 16}
# Seconds in which a visitor must have sent a whole request, from its connection or from its last answer on.
_SILENCE = 10.0
# Seconds that one answer may take: a rotation of keys asks issuers, which have ten.
_WORK = 30.0
_SWEEP_EVERY = 1.0
_ACCEPTS_PER_TURN = 16  # then those that have come get their turn
# Seconds until the next try when accepting was not possible.
_PAUSE = 0.1
# Seconds within which a visitor is not made to leave: what it has to say is on its way.
_CHANCE = 0.02
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


# Seconds that answers under way have left when a port is closed.
_MOMENT = 0.5


@dataclass(slots=True, eq=False)
class Visitor:
    """One connection. `since` is when it came or was answered last; `spoken` whether it has sent anything yet; without
    a `transport` its handler is not ready for it."""

    since: float
    spoken: bool
    transport: asyncio.Transport | None = None
    busy: bool = False

    @property
    def gone(self) -> bool:
        return self.transport is not None and self.transport.is_closing()

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """While an answer is made, which takes a bounded time: raises TimeoutError after that."""
        self.busy = self.spoken = True
        try:
            async with asyncio.timeout(_WORK):
                yield
        finally:
            self.busy = False
            self.since = monotonic()


class Handler(Protocol):
    """What is said on the connections of a port."""

    async def serve(self, accepted: socket.socket, visitor: Visitor) -> None:
        """Serve a connection, or begin to; gives the visitor its transport. Raises OSError if it is gone already."""

    async def close(self) -> None:
        """Give answers under way a moment, and end every connection that `serve` has left open."""


@dataclass(slots=True)
class ControlServer:
    """Serves a listening socket, connections that are passed to it, or both. `name` is the key of the port in the
    configuration."""

    name: str
    handler: Handler
    visitors: set[Visitor] = field(default_factory=set)
    _bound: socket.socket | None = None
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _sweeping: asyncio.Task[None] | None = None
    _resuming: asyncio.TimerHandle | None = None

    def listen(self, bound: socket.socket) -> None:
        """Accept on a socket that is bound and listens."""
        self._bound = bound
        bound.setblocking(False)
        asyncio.get_running_loop().add_reader(bound, self._accept)
        self._sweeping = asyncio.create_task(repeat(f"connections of {self.name}", self._sweep, _SWEEP_EVERY))

    async def close(self) -> None:
        """Stop accepting, give what is under way a moment, and close everything."""
        if self._resuming is not None:
            self._resuming.cancel()
        if self._bound is not None:
            asyncio.get_running_loop().remove_reader(self._bound)
            self._bound.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for visitor in self.visitors:
            if not visitor.busy and visitor.transport is not None:
                visitor.transport.close()
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=_MOMENT)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.handler.close()

    def take(self, accepted: socket.socket) -> None:
        """Serve a connection."""
        accepted.setblocking(False)
        visitor = Visitor(monotonic(), _has_spoken(accepted))
        self.visitors.add(visitor)
        task = asyncio.create_task(self._serve(accepted, visitor))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, accepted: socket.socket, visitor: Visitor) -> None:
        try:
            await self.handler.serve(accepted, visitor)
        except Exception as error:
            if not isinstance(error, OSError):  # an OSError: it was gone before it began
                log.exception("a bug in Outrider broke a connection of %s; please report it", self.name)
            if visitor.transport is None:
                accepted.close()
            else:
                visitor.transport.abort()
            self.visitors.discard(visitor)

    def _accept(self) -> None:
        """Take what waits, some at a time."""
        assert self._bound is not None
        for _ in range(_ACCEPTS_PER_TURN):
            full = self._is_full()
            idlest = self._idlest() if full else None
            if full and idlest is None and not all(visitor.busy for visitor in self.visitors):
                self._pause(_CHANCE)  # some have only just come
                return
            try:
                accepted, _ = self._bound.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(_PAUSE)
                    return
                continue  # the other side has given up already
            if full and (idlest is None or _had_its_chance(accepted)):
                accepted.close()
                continue
            if idlest is not None:
                self._end(idlest)
            self.take(accepted)

    def _pause(self, seconds: float) -> None:
        """Leave connections in the kernel's queue for a moment."""
        assert self._bound is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._bound)
        self._resuming = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        assert self._bound is not None
        self._resuming = None
        asyncio.get_running_loop().add_reader(self._bound, self._accept)

    def _is_full(self) -> bool:
        """Whether there are as many visitors as there may be, once those are forgotten that have left."""
        most = _MOST[self.name]
        if len(self.visitors) >= most:
            self.visitors -= {visitor for visitor in self.visitors if visitor.gone}
        return len(self.visitors) >= most

    def _idlest(self) -> Visitor | None:
        """The visitor that has been silent longest, those first that have never said anything. None if all are being
        answered, or have only just come."""
        before = monotonic() - _CHANCE
        idle = [one for one in self.visitors if not one.busy and one.transport is not None and one.since < before]
        return min(idle, key=lambda one: (one.spoken, one.since), default=None)

    def _end(self, visitor: Visitor) -> None:
        self.visitors.discard(visitor)
        if visitor.transport is not None:
            visitor.transport.abort()

    async def _sweep(self) -> float:
        """End those that have been silent for too long."""
        now = monotonic()
        for visitor in list(self.visitors):
            if visitor.gone or (not visitor.busy and now - visitor.since > _SILENCE):
                self._end(visitor)
        return _SWEEP_EVERY


def _had_its_chance(accepted: socket.socket) -> bool:
    """Whether it has said nothing although it has waited in the kernel's queue for longer than a visitor is given here:
    a queue of thousands of such is worked off at once, and not one chance after the other."""
    return not _has_spoken(accepted) and silent_for(accepted) >= _CHANCE


def _has_spoken(accepted: socket.socket) -> bool:
    """Whether anything of a request is here already, as is usual for those that have one."""
    with suppress(OSError):
        return bool(accepted.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False
