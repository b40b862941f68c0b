"""The two ports that aiohttp serves, telemetry and admin. Imported late: see `outrider.app.App.start`.

Strangers may connect to them and say nothing. So we accept ourselves: each port has a small number of connections, of
which a silent one makes room for a new one, and none may stay silent for long. A probe of the kubelet gets its answer
beside thousands of strangers, and the descriptors that calls need are not used up here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from aiohttp import web

from outrider.controlplane.admin.server import admin_app
from outrider.controlplane.intercom import ADMIN, TELEMETRY
from outrider.controlplane.telemetry.server import telemetry_app
from outrider.controlplane.upkeep import repeat

__all__ = ["ControlServer", "admin_app", "serve", "telemetry_app"]

log = logging.getLogger("outrider")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

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


@dataclass(slots=True, eq=False)
class Visitor:
    """One connection. `since` is when it came or was answered last; `spoken` whether it has sent anything yet."""

    since: float
    spoken: bool
    transport: asyncio.Transport | None = None
    busy: bool = False

    @property
    def gone(self) -> bool:
        return self.transport is not None and self.transport.is_closing()


@dataclass(slots=True)
class ControlServer:
    """An application on a listening socket, on connections that are passed to it, or both."""

    name: str
    runner: web.AppRunner
    most: int
    visitors: dict[object, Visitor] = field(default_factory=dict)
    _bound: socket.socket | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _resuming: asyncio.TimerHandle | None = None

    def listen(self, bound: socket.socket) -> None:
        """Accept on a socket that is bound and listens."""
        self._bound = bound
        bound.setblocking(False)
        asyncio.get_running_loop().add_reader(bound, self._accept)
        self._run(repeat(f"connections of {self.name}", self._sweep, _SWEEP_EVERY))

    async def close(self) -> None:
        """Stop accepting, give what is under way a moment, and close everything."""
        if self._resuming is not None:
            self._resuming.cancel()
        if self._bound is not None:
            asyncio.get_running_loop().remove_reader(self._bound)
            self._bound.close()
        for task in self._tasks:
            task.cancel()
        await self.runner.cleanup()

    def take(self, accepted: socket.socket) -> None:
        """Serve a connection."""
        accepted.setblocking(False)
        visitor = Visitor(monotonic(), _has_spoken(accepted))
        protocol = self._server()
        self.visitors[protocol] = visitor
        self._run(self._open(protocol, visitor, accepted))

    def _server(self) -> Any:
        """The protocol of one more connection."""
        server = self.runner.server
        assert server is not None
        return server()

    async def _open(self, protocol: Any, visitor: Visitor, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted)
        except OSError:
            self.visitors.pop(protocol, None)
            accepted.close()  # gone before it began
        else:
            visitor.transport = transport

    def _accept(self) -> None:
        """Take what waits, some at a time."""
        assert self._bound is not None
        for _ in range(_ACCEPTS_PER_TURN):
            full = self._is_full()
            idlest = self._idlest() if full else None
            if full and idlest is None and not all(visitor.busy for visitor in self.visitors.values()):
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
            if full and idlest is None:
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
        if len(self.visitors) >= self.most:
            for protocol in [one for one, visitor in self.visitors.items() if visitor.gone]:
                del self.visitors[protocol]
        return len(self.visitors) >= self.most

    def _idlest(self) -> object | None:
        """The visitor that has been silent longest, those first that have never said anything. None if all are being
        answered, or have only just come."""
        before = monotonic() - _CHANCE
        idle = [
            (v.spoken, v.since, protocol)
            for protocol, v in self.visitors.items()
            if not v.busy and v.transport is not None and v.since < before
        ]
        return min(idle, key=lambda one: one[:2])[2] if idle else None

    def _end(self, protocol: object) -> None:
        transport = self.visitors.pop(protocol).transport
        if transport is not None:
            transport.abort()

    async def _sweep(self) -> float:
        """End those that have been silent for too long."""
        now = monotonic()
        for protocol, visitor in list(self.visitors.items()):
            if visitor.gone or (not visitor.busy and now - visitor.since > _SILENCE):
                self._end(protocol)
        return _SWEEP_EVERY

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @web.middleware
    async def attend(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note that a visitor is being answered, and bound the time that takes."""
        visitor = self.visitors.get(request.protocol)
        if visitor is None:
            return await handler(request)
        visitor.busy = visitor.spoken = True
        try:
            async with asyncio.timeout(_WORK):
                return await handler(request)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="it took too long\n") from None
        finally:
            visitor.busy = False
            visitor.since = monotonic()


def _has_spoken(accepted: socket.socket) -> bool:
    """Whether anything of a request is here already, as is usual for those that have one."""
    with suppress(OSError):
        return bool(accepted.recv(1, socket.MSG_PEEK))
    return False


async def serve(app: web.Application, key: str) -> ControlServer:
    """Make an application ready to serve the port with this key of the configuration."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    server = ControlServer(key, runner, _MOST[key])
    app.middlewares.insert(0, server.attend)
    await runner.setup()
    return server
