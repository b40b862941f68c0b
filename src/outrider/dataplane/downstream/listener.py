"""Accept, drain."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, cast

from outrider.dataplane.downstream.connection import Downstream

if TYPE_CHECKING:
    from outrider.dataplane.downstream.proxy import Proxy
    from outrider.dataplane.downstream.share import Share
    from outrider.dataplane.engine.routing import Service

log = logging.getLogger("outrider")

_ACCEPTS_PER_TURN = 8  # which take a millisecond; then calls under way get their turn
# Seconds between looks whether there are descriptors again.
_PAUSE = 0.1
# Seconds a TLS handshake of a caller may take, and how many may be under way on one socket: each has a task and the
# buffers of TLS. When there are more, the oldest is given up, so that silent callers do not keep others out.
_HANDSHAKE = 5.0
_MOST_HANDSHAKES = 128
# Seconds for the other side to say that it closes, too. The loop would wait 30.
_TLS_GOODBYE = 2.0
# Seconds without any connection after which a draining sidecar believes that its app has gone.
_QUIET = 1.0
_LOOK = 0.05
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Door:
    """One listening socket. `tls`, if set, is what connections are secured with; replacing it affects those to come.

    The event loop's own servers close what they cannot accept for want of descriptors, which fails calls that would
    only have had to wait. So we accept ourselves: when descriptors run out, connections wait in the kernel's queue.
    """

    def __init__(
        self,
        proxy: Proxy,
        bound: socket.socket,
        dedicated: Service | None,
        tls: ssl.SSLContext | None,
        share: Share,
    ) -> None:
        self._proxy = proxy
        self._bound = bound
        self._dedicated = dedicated
        self._share = share
        self.tls = tls
        self._opening: dict[asyncio.Task[object], None] = {}  # the oldest first
        self._resuming: asyncio.TimerHandle | None = None
        self._complained = False
        bound.setblocking(False)
        proxy.loop.add_reader(bound, self._accept)

    @property
    def port(self) -> int:
        return int(self._bound.getsockname()[1])

    def secure(self, tls: ssl.SSLContext) -> None:
        """Connections from now on are secured with this."""
        self.tls = tls

    def close(self) -> None:
        """Stop accepting."""
        if self._bound.fileno() >= 0:
            self._proxy.loop.remove_reader(self._bound)
            self._bound.close()
        if self._resuming is not None:
            self._resuming.cancel()
        for opening in self._opening:
            opening.cancel()

    def _accept(self) -> None:
        """Take what waits, some at a time."""
        proxy = self._proxy
        room = proxy.room(self._share)
        if room <= 0 and self._share is proxy.inbound and self._share.make_room():
            room = 1  # the app's own connections wait instead: it is not to lose any
        if room <= 0:
            self._pause("the others are for connections to targets")
            return
        for _ in range(min(room, _ACCEPTS_PER_TURN)):
            try:
                accepted, _ = self._bound.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(str(error.strerror))
                    return
                continue  # the other side has given up already
            accepted.setblocking(False)
            self._bound_handshakes()
            opening = proxy.loop.create_task(self._open(accepted))
            self._opening[opening] = None
            self._share.opening += 1
            opening.add_done_callback(self._opened)

    def _opened(self, opening: asyncio.Task[object]) -> None:
        self._opening.pop(opening, None)
        self._share.opening -= 1

    def _bound_handshakes(self) -> None:
        """Give up the oldest handshake if there are too many."""
        if self.tls is not None and len(self._opening) >= _MOST_HANDSHAKES:
            oldest = next(iter(self._opening))
            del self._opening[oldest]
            self._proxy.stats.handshakes_failed["displaced"] += 1
            oldest.cancel()

    async def _open(self, accepted: socket.socket) -> None:
        protocol = cast(asyncio.Protocol, Downstream(self._proxy, self._dedicated, self._share))
        tls = self.tls
        handshake, goodbye = (_HANDSHAKE, _TLS_GOODBYE) if tls is not None else (None, None)
        try:
            await self._proxy.loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=tls, ssl_handshake_timeout=handshake, ssl_shutdown_timeout=goodbye
            )
        except ssl.SSLError as error:
            self._proxy.stats.handshakes_failed["refused"] += 1
            log.info("a TLS handshake failed: %s", error.reason or error)
        except OSError as error:
            if tls is not None:  # the loop gives up with ECONNABORTED, of its own, when the time is over
                late = isinstance(error, ConnectionAbortedError)
                self._proxy.stats.handshakes_failed["timeout" if late else "broken_off"] += 1
            accepted.close()  # gone before it began

    def _pause(self, why: str) -> None:
        """Leave connections where they are for a moment."""
        self._proxy.stats.accept_pauses += 1
        self._proxy.loop.remove_reader(self._bound)
        self._resuming = self._proxy.loop.call_later(_PAUSE, self._resume)
        if not self._complained:
            self._complained = True
            log.warning("no descriptors left, connections wait: %s; raise the limit of open files (ulimit -n)", why)

    def _resume(self) -> None:
        self._resuming = None
        self._proxy.loop.add_reader(self._bound, self._accept)


class Listener:
    """The sockets on which calls come in, each either for all services or for one."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.doors: list[Door] = []
        self.leave_when_idle = False  # may be set while draining

    def serve(
        self,
        bound: socket.socket,
        dedicated: Service | None = None,
        tls: ssl.SSLContext | None = None,
        *,
        inbound: bool = False,
    ) -> Door:
        """Accept on a listening socket, for all services or for one. `inbound`: from others than the app."""
        share = self._proxy.inbound if inbound else self._proxy.outbound
        if inbound:
            share.app = dedicated
        door = Door(self._proxy, bound, dedicated, tls, share)
        self.doors.append(door)
        return door

    async def drain(self, limit: float) -> bool:
        """Let live work end, for up to `limit` seconds. True if nothing was cut off.

        The listeners stay open: the app beside us is shutting down too, and may still need us for its last
        answers. So by default we stay until its connections are gone and stay gone for a moment;
        `leave_when_idle` only waits for the calls in flight. Callers of the guard are elsewhere, and may keep an idle
        connection for ever: theirs is closed when it has been idle for that moment.
        """
        proxy = self._proxy
        proxy.draining = True
        end = monotonic() + limit
        quiet_since = monotonic()
        idle: dict[Downstream, tuple[int, float]] = {}
        while monotonic() < end:
            now = monotonic()
            idle = self._let_callers_go(idle, now)
            if self.leave_when_idle and not proxy.in_flight:
                return True
            if proxy.in_flight or proxy.connections:
                quiet_since = now
            elif now - quiet_since >= _QUIET:
                return True
            await asyncio.sleep(_LOOK)
        return not proxy.in_flight

    def _let_callers_go(
        self, idle: dict[Downstream, tuple[int, float]], now: float
    ) -> dict[Downstream, tuple[int, float]]:
        """Close connections of callers that have been idle long enough. `idle` and the result are those that are, with
        the number of their requests, and since when."""
        found: dict[Downstream, tuple[int, float]] = {}
        for connection in [one for one in self._proxy.connections if one.inbound and one.waits_after >= 0]:
            served, since = idle.get(connection, (-1, now))
            if served != connection.waits_after:
                since = now
            if now - since >= _QUIET:
                connection.close_idle()
            else:
                found[connection] = connection.waits_after, since
        return found

    def close(self) -> None:
        """Stop accepting, and cut what is left; what is idle ends in an orderly way."""
        self._proxy.stopped = True
        for door in self.doors:
            door.close()
        for connection in list(self._proxy.connections):
            if connection.waits_after >= 0:
                connection.leave()
            else:
                connection.abort()
        self._proxy.timers.close()
        self._proxy.names.close()
