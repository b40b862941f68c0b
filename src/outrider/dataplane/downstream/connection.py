"""One connection from the app: asyncio.Protocol + request parser -> Call, and the answer back.

Parser callbacks only record; `data_received` acts once, after `feed_data` has returned. One coroutine at a time
carries the calls of a connection, so pipelined requests are answered in order; while one is carried, later ones
wait unread.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import struct
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from outrider.dataplane.body import RequestBody
from outrider.dataplane.call import Call
from outrider.dataplane.downstream.relocation import MOST_HINTS, readdress
from outrider.dataplane.engine.carry import carry
from outrider.dataplane.engine.forwarding import answer_here
from outrider.dataplane.engine.routing import Route
from outrider.dataplane.http1.heads import (
    BLANK,
    CLOSE,
    KEEP,
    OWS,
    date_line,
    interim_head,
    last_chunk,
    names_in_via,
    reply_bytes,
    status_line,
    without,
)
from outrider.dataplane.http1.request_checks import has_dot_segments, wanted_upgrade
from outrider.dataplane.http1.request_parser import CHUNKED, UNKNOWN, RequestParser, names_other_protocol
from outrider.dataplane.ports import AppConnection, TargetConnection
from outrider.dataplane.runtime.discarding import DISCARDING
from outrider.dataplane.runtime.driver import Drive
from outrider.dataplane.runtime.kernel import unacknowledged
from outrider.dataplane.runtime.timers import NEVER, TO_THE_END
from outrider.dataplane.tunnel import Tunnel
from outrider.dataplane.upstream.tls import peer_names
from outrider.model.failure import Failure, Kind, body_too_large
from outrider.model.messages import Response
from outrider.model.reply import Reply, rescue

if TYPE_CHECKING:
    from outrider.dataplane.downstream.browsers import Browsers
    from outrider.dataplane.downstream.proxy import Proxy
    from outrider.dataplane.downstream.share import Share
    from outrider.dataplane.engine.routing import Service
    from outrider.dataplane.shared import Limits
    from outrider.dataplane.upstream.cluster import Endpoint

log = logging.getLogger("outrider")

_NO_PARSER: Final = RequestParser(None)
_NO_BODY: Final = frozenset((204, 304))
# Seconds of silence after which the connection of a refused upload is cut, so that the app can read the answer; and the
# most that such an upload may go on.
_LINGER: Final = 2.0
_LONGEST_LINGER: Final = 30.0
# Bytes of a read that are always parsed at once. What goes beyond is parsed slice by slice: of one slice so many bytes
# and so many requests at most, and slices for so many seconds before it is the turn of others.
_SMALL: Final = 1024
_SLICE: Final = 8 * 1024
_MOST_REQUESTS: Final = 32
_SLICE_TIME: Final = 0.001
# Seconds after which an app that waits for 100 Continue gets it from us, if the target has not said anything.
_CONTINUE_AFTER: Final = 0.5
_ATTEMPTS: Final = [b"x-outrider-attempts: %d\r\nserver-timing: outrider;dur=" % n for n in range(12)]
_TENTHS: Final = [b"%d.%d" % divmod(n, 10) for n in range(1000)]
# Seconds between looks whether an app whose bytes we do not read is still there.
_LOOK_AFTER: Final = 1.0
# Seconds that the answer to an app that has ended its side may take before the app is asked whether it is still there,
# and until the first look what became of the question.
_PROBE_AFTER: Final = 0.05
_PROBED_AFTER: Final = 0.005
# Bytes that wait in a TLS connection, each way, before the sender has to.
_HELD_OVER_TLS: Final = 64 * 1024
_OVER_LIMIT: Final = Failure(Kind.OVERLOADED, "limits.downstream_connections is reached", retry_after=1.0)


class Downstream(AppConnection):
    """A connection from the app, or of a caller from outside. `dedicated` is the service of the port it came in on, if
    that has one; `share` what it counts to.

    An asyncio.Protocol in all but name: a base class that is not compiled would cost what compiling gains.
    """

    __slots__ = (
        "_active",
        "_asks_host",
        "_browsers",
        "_carrying",
        "_chunked_answer",
        "_close_after",
        "_deaf",
        "_dedicated",
        "_descriptor",
        "_drive",
        "_early",
        "_ended",
        "_feed_size",
        "_head_bytes",
        "_head_since",
        "_idle",
        "_in_head",
        "_incoming",
        "_linger_buffered",
        "_linger_until",
        "_lingering",
        "_look_pause",
        "_lost",
        "_moved",
        "_moved_at",
        "_oversize",
        "_parsed",
        "_parser",
        "_parsing",
        "_peer_address",
        "_pieces",
        "_probed",
        "_queue",
        "_reading_paused",
        "_served",
        "_share",
        "_skip_head",
        "_source",
        "_starting",
        "_still_sending",
        "_stranger",
        "_stray_bytes",
        "_told",
        "_transport",
        "_tunnel",
        "_turn_asked",
        "_unparsed",
        "_unsent",
        "_until_switch",
        "_upgrading",
        "_whole",
        "proxy",
    )

    def __init__(self, proxy: Proxy, dedicated: Service | None, share: Share) -> None:  # noqa: PLR0915 # one per slot
        self.proxy = self.shared = proxy
        self._share = share
        self._stranger = True  # no good call has ended on it yet
        self._told = False  # it was refused, and is open only to be told so
        self._dedicated = dedicated
        self._browsers = proxy.browsers if share is proxy.outbound else None
        self._asks_host = True
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = _NO_PARSER  # until the connection is made: it will hold us, we hold it
        self._incoming: Call | None = None  # the call whose head or body is being read
        self._in_head = False
        self._starting = False
        self._head_bytes = 0  # of feeds after the one in which the head began
        self._feed_size = 0
        self._unparsed = b""  # a large read, parsed up to this place:
        self._parsed = 0
        self._parsing = False  # it is being parsed just now
        self._turn_asked = False
        self._pieces: list[bytes] = []  # of the body, out of the present feed
        self._whole = True  # nothing has come since the end of a message
        self._idle = proxy.limits.downstream_idle_timeout
        self._served = 0  # requests so far
        self._stray_bytes = 0  # since the last byte of body
        self._oversize = False
        self._head_since = 0.0
        self._skip_head = False
        self._upgrading = False
        self._until_switch = 0  # bytes of body before the protocol may change
        self._queue: deque[Call] = deque()
        self._active: Call | None = None
        self._carrying = False
        self._drive = Drive()
        self.peer_names: tuple[str, ...] = ()  # of the verified certificate of an inbound caller
        self._peer_address: bytes | None = None  # None until somebody asks
        self.resume_call = self._drive.resume  # there is news for the call under way
        self._source: TargetConnection | None = None
        self._tunnel: Tunnel | None = None
        self._early: list[bytes] = []  # what came behind a request to switch protocols
        self._reading_paused = False
        self._chunked_answer = False
        self._close_after = False
        self._deaf = False  # nothing more is read as a request
        self._lingering = False
        self._linger_until = NEVER
        self._still_sending = False  # something has come since the last look, and was dropped
        self._linger_buffered = -1  # bytes the app had not taken at the last look
        self._lost = False
        self._ended = False  # the app sends nothing more; it may still wait for answers
        self._probed = False  # whether it does has been found out
        self._look_pause = 0.0  # seconds until the next look whether it does
        self._moved = False  # part of an answer has been written since the last look
        self._descriptor = -1
        self._unsent = 0  # bytes that an app had not taken at the last look, and since when they are no fewer:
        self._moved_at = 0.0
        self.write_paused = False
        self.due = NEVER
        self.wake = NEVER

    # ---------------------------------------------------------------- calls, in order

    def _carry_next(self, in_turn: bool = False) -> None:
        """Carry what waits in the queue, one call after the other, until one has to wait or others have to get their
        turn. `in_turn`: it is this connection's turn; otherwise those that wait for theirs have precedence."""
        queue = self._queue
        self._carrying = True
        carried = 0
        end = 0.0
        while queue and self._active is None and not self.write_paused:
            if carried:
                now = monotonic()
                if carried == 1:
                    end = now + _SLICE_TIME if in_turn or not self._share.turns.crowded else now
                if now >= end:
                    self._ask_turn()
                    break
            carried += 1
            call = self._active = queue.popleft()
            if self._reading_paused:
                self._regulate()
            verdict = call.aborted or call.reply
            if verdict is None:
                self._drive.start(carry(call, cast(Route, call.route)))
            else:
                self._refuse(call, verdict)
                self._call_ended()
        self._carrying = False

    @property
    def active(self) -> Call | None:
        """The call under way."""
        return self._active

    def peer_address(self) -> bytes:
        """The IP address of the other side; empty if it has none (a Unix socket)."""
        if self._peer_address is None:
            peer = self._transport.get_extra_info("peername")
            address = str(peer[0]) if isinstance(peer, tuple) else ""
            self._peer_address = address.removeprefix("::ffff:").partition("%")[0].encode()
        return self._peer_address

    @property
    def inbound(self) -> bool:
        """Whether it comes from outside, to the guard."""
        return self._dedicated is not None and self._dedicated.default.inbound

    @property
    def waits_after(self) -> int:
        """How many requests it has served, if it waits for the next one; -1 if there is anything under way."""
        busy = self._active is not None or self._queue or self._in_head or self._starting or self._tunnel is not None
        if busy or self._deaf or not (self._whole or self._incoming is None):
            return -1
        return self._served

    def close_idle(self) -> None:
        """End a connection that waits for the next request, in an orderly way."""
        self._close_politely()

    def _call_ended(self) -> None:
        call = self._active
        assert call is not None
        self._active = None
        if self._lost:
            self._let_go()
            return
        call.forget_request()
        if self._stranger and call.aborted is None and (call.caller or not call.route.inbound):
            self._stranger = False
            self._share.known(self)
        if call.status == 0:
            self.abort()  # it ended without an answer, which only a bug can do
        elif self._close_after:
            self._close_politely()
        elif self._ended:
            self._end_if_done()
        elif self.write_paused:
            self._watch_the_reader(monotonic())
        elif self._whole and not self._queue and not self._reading_paused:
            self._rest()
        if self._queue and not self._carrying:
            self._carry_next()

    def _rest(self) -> None:
        """The last answer has been given: from now on the connection is idle."""
        self.due = due = monotonic() + self._idle
        if due < self.wake:
            self.proxy.timers.arm(self, due)

    def _end_if_done(self) -> None:
        """The app sends nothing more: close when everything that it has asked is answered, and cannot be any more."""
        if self._unparsed or self._lost:
            return
        if self._awaits_body():
            self._gone()
        elif self._active is None and not self._queue:
            self._close_politely()

    def _let_go(self) -> None:
        """The connection is gone, and no call goes on: leave nothing that would keep this object in memory."""
        if self in self.proxy.connections:
            self.proxy.connections.discard(self)
            self._share.leave(self)
        self._drive.tell(None)  # it holds us, we hold it

    @property
    def idle(self) -> bool:
        """Whether no call would be lost with the connection."""
        return self._active is None and not self._queue

    def make_way(self) -> None:
        """Close an idle connection at once, because another one needs the room."""
        self._gone()
        self._let_go()

    def _refuse(self, call: Call, failure: Failure | Reply) -> None:
        """Answer a request that never became a call: malformed, too large, for nobody we know, or not to go further."""
        call.correlation_id = self.proxy.correlation_id(call)
        answer_here(call, cast(Route, call.route), failure)
        seconds = monotonic() - call.started
        call.route.stats.first(call.method, call.status, call.label)
        call.route.stats.duration.observe(seconds)
        self.proxy.report(call, seconds)

    # ---------------------------------------------------------------- the answer

    def send_whole(self, call: Call, response: Response) -> None:
        """Head and body of a complete answer, in one write."""
        parts = self._head(call, response)
        if self._chunked_answer:
            body = b"".join(response.pieces)
            if body:
                parts.append(b"%x\r\n%b\r\n" % (len(body), body))
            parts.append(last_chunk(response))
        else:
            parts += response.pieces
        response.pieces = []
        self._transport.write(b"".join(parts))

    def send_head(self, call: Call, response: Response) -> None:
        """Head and first part of an answer whose rest will follow."""
        self._transport.write(b"".join(self._head(call, response)))
        pieces, response.pieces = response.pieces, []
        if pieces:
            self.write_body(pieces)

    def write_body(self, pieces: list[bytes]) -> None:
        """The next part of the answer's body."""
        self._moved = True
        if self._chunked_answer:
            size = sum(map(len, pieces))
            self._transport.writelines([b"%x\r\n" % size, *pieces, b"\r\n"])
        elif len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)

    def send_end(self, response: Response) -> None:
        """The answer is complete."""
        if response.pieces:
            self.write_body(response.pieces)
            response.pieces = []
        if self._chunked_answer:
            self._transport.write(last_chunk(response))

    def send_reply(self, call: Call, reply: Reply) -> None:
        """A reply made here. If the request body has not come in yet, the connection ends with it."""
        self._close_after = self._ends(call)
        overhead = call.overhead(monotonic() - call.started)
        extra = b"%b%b\r\n" % (_ATTEMPTS[min(call.attempts, 11)], _milliseconds(overhead))
        ending = _ending(call, self._close_after)
        if reply.of_target:
            reply = _readdressed_reply(call, reply)
        self._transport.write(reply_bytes(reply, extra, head_only=call.method == b"HEAD", ending=ending))

    def write_interim(self, response: Response) -> None:
        """An informational answer, if the app can take it: never to HTTP/1.0, 100 only when it asked, and none to an
        app that is not reading."""
        call = self._active
        if call is None or call.committed or not call.minor or self.write_paused:
            return
        if response.status == 100:
            if not call.expect_continue or call.continued:
                return
            call.continued = True
        if response.addressed:
            readdress(response.lines, call, _endpoint_of(call), start=0, links=MOST_HINTS)
        self._transport.write(interim_head(response))

    def abort(self) -> None:
        """Break the answer off so that nobody can take it for complete: reset instead of an orderly close."""
        self._close_after = True
        self._deaf = True
        self._queue.clear()  # nobody would hear the answers
        self._unparsed = b""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def set_source(self, source: TargetConnection | None) -> None:
        self._source = source

    def unsent_bytes(self) -> int:
        """Bytes that the app has not taken: those that the kernel has not taken from us, and those in the kernel that
        the other side has not acknowledged. What a slow reader reads makes them fewer within a moment."""
        return self._transport.get_write_buffer_size() + max(0, unacknowledged(self._descriptor))

    # ---------------------------------------------------------------- one end of a tunnel

    def switch(self, call: Call, response: Response, tunnel: Tunnel) -> None:
        """Tell the app that the target has switched protocols, and leave HTTP."""
        parts = [status_line(response), *without(response.lines, frozenset((b"content-length",)))]
        if response.addressed:
            readdress(parts, call, _endpoint_of(call), start=1)
        if response.upgrade:
            parts += (b"connection: upgrade\r\nupgrade: ", response.upgrade, b"\r\n")
        parts += (b"\r\n", *response.pieces)
        self._transport.write(b"".join(parts))
        self._close_after = self._deaf = True
        self._tunnel = tunnel
        self.due = NEVER
        early, self._early = self._early, []
        for data in early:
            tunnel.from_app(data)
        if self._reading_paused:
            self.resume_reading()

    def write(self, data: bytes) -> None:
        """Bytes out of the tunnel."""
        self._transport.write(data)

    def pause_reading(self) -> None:
        """The target cannot take more."""
        if not self._lost and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
            if self._tunnel is not None:
                self.proxy.timers.arm(self, monotonic() + _LOOK_AFTER)

    def resume_reading(self) -> None:
        """The target can take more."""
        if not self._lost and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def end_writing(self) -> None:
        """Pass the target's end of stream on; where that is not possible, close when all is sent."""
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def leave(self) -> None:
        """The tunnel is over."""
        self._transport.close()

    def _behind_a_switch(self, data: bytes) -> None:
        """Bytes that are no longer HTTP, or will not be if the target agrees. They are never read as a request: if
        it does not agree, the connection ends with its answer."""
        if self._tunnel is not None:
            self._tunnel.from_app(data)
        elif self._incoming is not None and self._incoming.upgrade and not self._close_after:
            self._keep_early(data)
        else:
            self._still_sending = True

    def _keep_early(self, data: bytes) -> None:
        """Keep what has come before the target has agreed, and read no more. What is not read says nothing of an app
        that leaves either, so that has to be looked for."""
        self._early.append(data)
        self.pause_reading()
        self._watch_the_clock()

    def _head(self, call: Call, response: Response) -> list[bytes]:
        """Status line, the target's fields, framing, and what Outrider tells the app."""
        attempt = call.attempt
        assert attempt is not None
        self._close_after = close = self._ends(call)
        parts = [status_line(response)]
        parts += response.lines
        if response.addressed:
            readdress(parts, call, _endpoint_of(call), start=1)
        if not response.dated:
            parts.append(date_line())
        self._chunked_answer = False
        if response.length is None:
            if not call.minor and response.status not in _NO_BODY and call.method != b"HEAD":
                self._close_after = close = True  # HTTP/1.0 knows no other end of such a body
            if call.minor and call.method != b"HEAD" and response.status not in _NO_BODY:
                self._chunked_answer = True
                parts.append(b"transfer-encoding: chunked\r\n")
                if response.trailer_names:
                    parts.append(b"trailer: %b\r\n" % b", ".join(sorted(response.trailer_names)))
        elif response.status == 204:
            parts[1:] = without(parts[1:], frozenset((b"content-length",)))
        parts += (
            _ATTEMPTS[min(call.attempts, 11)],
            _milliseconds(call.overhead(attempt.answered - call.started)),
            attempt.route.timing_name,
            _milliseconds(attempt.answered - attempt.started),
            b"\r\n",
        )
        if call.attempts > 1:
            parts.append(_retried_line(call, response))
        parts.append(_ending(call, close))
        return parts

    def _ends(self, call: Call) -> bool:
        """Whether the connection must end with this call's answer."""
        return (
            self.proxy.draining
            or ((self._deaf or self._ended) and not self._queue and not self._unparsed)
            or not call.keep_alive
            or (call.body is not None and not call.body.complete)
            or (self._served >= self.proxy.limits.downstream_requests and self._at_its_limit())
        )

    def _at_its_limit(self) -> bool:
        self.proxy.stats.reached["downstream_requests"] += 1
        return True

    def _close_politely(self) -> None:
        """Close after the answer has been sent. Closing at once would reset the connection if anything is still
        unread, and take the answer with it (RFC 9112 §9.6): so end our side, and wait a moment for the app's."""
        if self._lost or self._transport.is_closing():
            return
        self._deaf = self._lingering = True
        self._queue.clear()
        self._unparsed = b""
        self._regulate()
        now = monotonic()
        self._linger_until = now + _LONGEST_LINGER
        self.proxy.timers.arm(self, now + _LINGER)
        if self._transport.can_write_eof() and not self._ended:
            self._transport.write_eof()
        else:  # TLS says that nothing more comes by closing; an app that has ended its side has nothing unread here
            self._transport.close()

    def _linger_on(self, now: float) -> None:
        """Wait on while the app takes its answer, and for a while if it still sends: many read when all is sent."""
        buffered = self.unsent_bytes()
        if buffered not in (0, self._linger_buffered):
            self._linger_buffered = buffered
            self.proxy.timers.arm(self, now + self.proxy.limits.body_idle_timeout)
        elif self._still_sending and now < self._linger_until:
            self._still_sending = False
            self.proxy.timers.arm(self, now + _LINGER)
        else:
            self._transport.abort()

    # ---------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        self._descriptor = sock.fileno() if sock is not None else -1
        self._parser = RequestParser(self, self.head_begins_again)
        self._drive.tell(self._call_ended)
        secured = transport.get_extra_info("ssl_object")
        if secured is not None:
            self.peer_names = peer_names(secured)
            # By default TLS holds half a MiB of an answer that is not read before anything waits, and of requests a
            # quarter; without TLS it is as much as here.
            transport.set_write_buffer_limits(_HELD_OVER_TLS)
            transport.set_read_buffer_limits(_HELD_OVER_TLS)
        proxy, share = self.proxy, self._share
        proxy.stats.accepted += 1
        if share.admit(self):
            proxy.connections.add(self)
            proxy.timers.arm(self, monotonic() + min(proxy.limits.header_timeout, self._idle))
            return
        proxy.stats.reached["downstream_connections"] += 1
        self._told = share.has_room_to_tell()
        if self._told:
            transport.write(reply_bytes(rescue(_OVER_LIMIT), b"", head_only=False, ending=CLOSE))
            self._close_politely()
        else:
            self._deaf = True
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._behind_a_switch(data)
        elif len(data) <= _SMALL and not self._unparsed:
            self._parse(data)
            self._act()
        else:
            self._unparsed = self._unparsed[self._parsed :] + data
            self._parsed = 0
            if self._share.turns.crowded:
                self._regulate()
            else:
                self._parse_on()

    def _parse_on(self) -> None:
        """Parse a large read slice by slice, until a call has to be waited for or others have to get their turn."""
        self._parsing = True
        end = monotonic() + _SLICE_TIME
        while self._parsed < len(self._unparsed) and not self._deaf and not self._is_held():
            self._parse_slice()
            while self._awaits_body() and self._parsed < len(self._unparsed) and monotonic() < end:
                self._parse_slice()  # a request that is all here is carried with all of its body
            self._act()
            if monotonic() >= end:
                break
        self._parsing = False
        if self._deaf or self._parsed >= len(self._unparsed):
            rest, self._unparsed = self._unparsed[self._parsed :], b""
            self._parsed = 0
            if rest:
                self._behind_a_switch(rest)
        if self._unparsed or self._reading_paused:
            self._regulate()
        if self._ended:
            self._end_if_done()

    def _parse_slice(self) -> None:
        start = self._parsed
        self._parsed = stop = min(start + self._slice_size(), len(self._unparsed))
        self._parse(self._unparsed[start:stop])

    def _awaits_body(self) -> bool:
        """Whether the end of a body is still to come, and will be read."""
        call = self._incoming
        return (
            not self._in_head and call is not None and call.body is not None and not call.body.complete
        ) and not self._deaf

    def _slice_size(self) -> int:
        """How many bytes to parse at once: all that is surely body; otherwise what holds neither too many requests nor
        too many fields or chunks."""
        call = self._incoming
        if self._awaits_body() and call is not None and call.body is not None and call.length:
            return call.length - call.body.size
        data, start = self._unparsed, self._parsed
        found = start
        for _ in range(_MOST_REQUESTS):
            found = data.find(b"\r\n\r\n", found, start + _SLICE)
            if found < 0:
                return _SLICE
            found += 4
        return found - start

    def _ask_turn(self) -> None:
        """There is more to do than fits into this turn of the loop."""
        if not self._turn_asked:
            self._turn_asked = True
            self._share.turns.ask(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_asked = False
        if self._lost:
            return
        if self._queue:
            if not self._carrying:
                self._carry_next(in_turn=True)
        elif self._unparsed:
            self._parse_on()

    def _parse(self, data: bytes) -> None:
        """Feed the parser, and bound what it has found."""
        self._feed_size = len(data)
        if self._in_head:
            self._head_bytes += self._feed_size
        self._whole = False
        self._stray_bytes += self._feed_size  # set back if there is any body in it
        behind_upgrade: int | None = None
        try:
            if self._until_switch:
                self._before_switch(data)
            else:
                self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            behind_upgrade = upgrade.args[0]
        except httptools.HttpParserError as error:  # not kept in a variable: its traceback holds us
            self._malformed(error)
        if behind_upgrade is not None:
            self._behind_upgrade(data, behind_upgrade)
        if self._pieces:
            self._feed_body()
        if self._in_head:
            self._bound_head(self.proxy.limits)
        elif self._stray_bytes > self.proxy.limits.header_bytes + _SLICE and self._awaits_body():
            # Bytes that are not body are chunk extensions or trailers: not passed on, and not without end.
            self._abort_incoming(Kind.BAD_REQUEST, "the chunk extensions or trailers of the body do not end")

    def _act(self) -> None:
        """Carry the requests that have come, pass on what has come of a body, watch the clock."""
        if self._oversize:
            self._refuse_oversize()
        if self._queue and self._active is None:
            self._carry_next()
        incoming = self._incoming
        if self._in_head or self._queue or (incoming is not None and incoming.body is not None):
            self._after_part_of_a_message()
        elif self._whole and incoming is not None:
            if self._active is not None and not self._reading_paused:
                self._rest()  # the idle time begins anew with the end of the answer
        else:
            self._await_head()

    def _after_part_of_a_message(self) -> None:
        """Something other than whole small requests came."""
        active, incoming = self._active, self._incoming
        if active is not None and active.body is not None and active is not incoming:
            self._pass_body_on(active, active.body)
        if incoming is not None and incoming.body is not None and (not self._deaf or incoming.body.complete):
            self._pass_body_on(incoming, incoming.body)
        if self._queue:
            if not self._turn_asked:
                self._carry_next()
            self._regulate()
        self._watch_the_clock()

    def _bound_head(self, limits: Limits) -> None:
        """Refuse a head that is too large already, although its end has not come."""
        assert self._incoming is not None
        if self._head_bytes > limits.header_bytes:
            self.proxy.stats.reached["header_bytes"] += 1
            detail = "the request head exceeds limits.header_bytes"
        elif len(self._incoming.fields) > limits.headers:
            self.proxy.stats.reached["headers"] += 1
            detail = f"the request has more than {limits.headers} fields (limits.headers)"
        else:
            return
        self._incoming.fields = []
        self._reject(Kind.HEAD_TOO_LARGE, detail)

    def eof_received(self) -> bool:
        if self._tunnel is not None:
            self._tunnel.ended(self)
            return self._transport.can_write_eof()  # the target may still have something to say
        if self._may_wait_for_answers():
            self._ended = self._moved = True
            self._look_pause = _PROBED_AFTER
            self.proxy.timers.arm(self, monotonic() + _PROBE_AFTER)
            return True
        self._hang_up()
        return False

    def _may_wait_for_answers(self) -> bool:
        """Whether an app that sends nothing more can still want something: docs/decisions/0014. Over TLS nothing can be
        sent to one that has ended its side."""
        active = self._active
        return (
            not self._lost
            and not self._lingering
            and (active is not None or bool(self._queue) or bool(self._unparsed))
            and (active is None or not active.upgrade)
            and (not self._awaits_body() or bool(self._unparsed))
            and self._transport.can_write_eof()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tunnel is not None:
            self._lost = True
            self._tunnel.lost(self)
            self._tunnel = None
        self._hang_up()
        self._parser = _NO_PARSER
        self.proxy.timers.forget(self)
        self._incoming = None
        self._transport = DISCARDING  # a TLS transport holds a quarter of a MiB of buffers
        self._descriptor = -1
        if self._told:
            self._told = False
            self._share.told -= 1
        if self._active is None:
            self._let_go()  # otherwise a call goes on without it

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._source is not None:
            self._source.pause_reading()
        elif self._tunnel is not None:
            self._tunnel.full(self, True)
        elif not self._lingering:
            self._watch_the_reader(monotonic())

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._source is not None:
            self._source.resume_reading()
        elif self._tunnel is not None:
            self._tunnel.full(self, False)
        else:
            self._watch_the_clock()
        if self._queue and not self._carrying:
            self._carry_next()

    def expired(self, now: float) -> None:
        """The app took too long over a head or a body, or over reading a last answer."""
        if self._lost:
            self._transport.abort()
        elif self._lingering:
            self._linger_on(now)
        elif self.write_paused and self._active is None:
            self._look_at_the_reader(now)
        elif self._ended or self._reading_paused:
            self._look_whether_it_left(now)  # it was we who made it wait; the clock is set again when we read on
        elif self._in_head or self._starting:
            self.proxy.stats.reached["header_timeout"] += 1
            self._reject(Kind.REQUEST_TIMEOUT, "the request head took longer than limits.header_timeout")
            self._carry_next()
        else:
            self._body_or_nothing_came(now)

    def _watch_the_reader(self, now: float) -> None:
        """The app does not take what it is sent: see to it that it goes on some time."""
        self._unsent = self.unsent_bytes()
        self._moved_at = now
        self.proxy.timers.arm(self, now + min(_LOOK_AFTER, self.proxy.limits.body_idle_timeout / 4))

    def _look_at_the_reader(self, now: float) -> None:
        """End an app that has not taken anything for too long. It may have pipelined requests, and then nothing else
        would: no call is under way, and its answers wait in memory."""
        unsent = self.unsent_bytes()
        limit = self.proxy.limits.body_idle_timeout
        if unsent < self._unsent:
            self._watch_the_reader(now)
        elif now - self._moved_at >= limit:
            self.proxy.stats.reached["body_idle_timeout"] += 1
            self.abort()
        else:
            self.proxy.timers.arm(self, now + min(_LOOK_AFTER, limit / 4))

    def _look_whether_it_left(self, now: float) -> None:
        """While nothing is read, or the app has ended its side, nobody tells us that it has gone: ask the kernel.

        An end of stream alone does not say that: the app may have closed its connection, or only its side of it, and
        still wait for the answer (RFC 9112 §9.6). To one that has closed, any byte we send comes back as a reset. So it
        is sent 100 Continue, which every client of HTTP/1.1 reads over (RFC 9110 §15.2).
        """
        poller = select.poll()
        poller.register(self._descriptor, select.POLLRDHUP)
        found = poller.poll(0)
        ended = self._ended or bool(found)
        call = self._active
        reset = bool(found) and bool(found[0][1] & (select.POLLHUP | select.POLLERR))
        if self._tunnel is not None and not reset:
            self.proxy.timers.arm(self, now + _LOOK_AFTER)  # what it sent before it ended its side is still to be read
            return
        if reset or (ended and (not self._transport.can_write_eof() or (call is not None and bool(call.upgrade)))):
            self._gone()
            return
        pause = _LOOK_AFTER
        if ended and call is not None and call.committed:
            if not self._moved and not self.unsent_bytes():
                self._gone()  # an answer that stands still cannot tell whether anybody is there
                return
            self._moved = False
        elif ended and call is not None:
            if not self._probed and call.minor and not self.write_paused:
                self._probed = call.continued = True
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._look_pause = _PROBED_AFTER
            pause = self._look_pause
            self._look_pause = min(4 * pause, _LOOK_AFTER)
        self.proxy.timers.arm(self, now + pause)

    def _gone(self) -> None:
        """The app is gone, although the loop has not noticed."""
        transport = self._transport
        self._hang_up()
        transport.abort()

    def _body_or_nothing_came(self, now: float) -> None:
        """The app is silent: it waits for leave to send its body, has stopped sending it, or has nothing to say."""
        limits = self.proxy.limits
        call = self._incoming
        if call is not None and call.body is not None and not call.body.complete and not self._deaf:
            if call is self._active and call.expect_continue and not call.continued and not call.body.size:
                interim = Response()
                interim.status, interim.reason = 100, b"Continue"
                self.write_interim(interim)
                self._watch_the_clock()
            else:
                self.proxy.stats.reached["body_idle_timeout"] += 1
                self._abort_incoming(Kind.REQUEST_TIMEOUT, "the body stood still longer than body_idle_timeout")
        elif self._active is None and not self._queue:
            silent = not self._served and limits.header_timeout < self._idle  # it has never said anything
            self.proxy.stats.reached["header_timeout" if silent else "downstream_idle_timeout"] += 1
            self._close_politely()
        else:
            self.proxy.timers.arm(self, now + limits.downstream_idle_timeout)

    # ---------------------------------------------------------------- parser callbacks: they only record

    def on_message_begin(self) -> None:
        self._whole = False
        self._parser.message_begins()

    def head_begins_again(self) -> None:
        """What has been read of a head is read once more, as the parser did not know its method."""
        self._in_head = False

    def on_url(self, url: bytes) -> None:
        if self._in_head:
            assert self._incoming is not None
            self._incoming.target += url
        elif not self._skip_head:
            self._in_head = True
            self._starting = False
            self._head_bytes = 0
            call = self._incoming = Call(self, url, monotonic())
            self._head_since = call.started

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # otherwise a trailer: not passed on, never merged (RFC 9110 §6.5.1)
            if value and value[-1] <= BLANK:
                value = value.rstrip(OWS)  # blanks around a value are no part of it (RFC 9110 §5.5)
            self._incoming.fields.append((name.lower(), name, value))  # type: ignore[union-attr] # see on_url

    def on_headers_complete(self) -> None:
        if self._skip_head:
            self._skip_head = False
            return
        call = self._incoming
        parser = self._parser
        if self._deaf or call is None:
            parser.head_ends(UNKNOWN)
            return
        self._in_head = False
        call.method = parser.get_method()
        may_be_large = bool(self._head_bytes) or self._feed_size > self.proxy.limits.header_bytes
        failure = self.proxy.head_checks.read(call, parser.get_http_version(), may_be_large)
        self._upgrading = (b"upgrade" in call.noted or call.method == b"CONNECT") and parser.should_upgrade()
        self._served += 1
        if failure is None and names_other_protocol(parser.head):
            failure = Failure(Kind.BAD_REQUEST, "the request line is not one of HTTP/1.1")
        parser.head_ends(UNKNOWN if failure is not None else CHUNKED if call.chunked else call.length or 0)
        if call.method == b"CONNECT":
            call.keep_alive = False
            self._deaf = True
        if failure is not None:
            call.keep_alive = False
            call.route = self.proxy.no_route
        else:
            failure = self._find_route(call)
        if failure is not None:
            call.aborted = failure
        if call.length or call.chunked:
            self._expect_body(call)
        self._queue.append(call)

    def _find_route(self, call: Call) -> Failure | None:
        """Where the request goes, and whether it may go there."""
        browsers, noted = self._browsers, call.noted
        failure: Failure | None = None
        if browsers is not None and (
            (self._asks_host and noted.get(b"host") not in browsers.fine)
            or (len(noted) > 1 and (b"origin" in noted or b"sec-fetch-site" in noted))
        ):
            failure = self._refuse_browser(call, browsers)
        match = self.proxy.table.resolve(call, self._dedicated) if failure is None else failure
        if isinstance(match, Failure):
            call.route = self.proxy.no_route
            return match
        service, call.path, call.prefix = match
        call.route = service.route_for(call.method, call.path) if service.declared else service.default
        if service.confined and has_dot_segments(call.path):
            return Failure(Kind.BAD_REQUEST, "dot segments could leave the path this service is bound to")
        if len(noted) > 1:
            failure = self._check_hops(call)
        return self._may_switch(call) if failure is None and self._upgrading else failure

    def _refuse_browser(self, call: Call, browsers: Browsers) -> Failure | None:
        """Why a request is refused that may come from a page in a browser on this machine; None if it is not."""
        failure = browsers.refuse_page(call)
        host = call.noted.get(b"host")
        if failure is not None or not self._asks_host or host in browsers.fine or host is None:
            return failure
        if not _is_loopback(self._transport.get_extra_info("sockname")):
            self._asks_host = False  # here we may have any name
            return None
        failure = browsers.refuse_host(host, self.proxy.table)
        return failure if call.target[:1] == b"/" else None  # an absolute URL says itself where it leads

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if self._pieces:
            self._feed_body()
        self._whole = True
        self._parser.message_ends()
        call = self._incoming
        if call is not None and call.body is not None and not self._upgrading:
            call.body.finish()

    def _feed_body(self) -> None:
        """What one feed has brought of a body, as one piece: it may have come in chunks of one byte."""
        pieces = self._pieces
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        call = self._incoming
        if call is not None and call.body is not None:
            call.body.feed(piece)
            self._stray_bytes = 0
            if call.body.size > call.body.max_size and call.aborted is None:
                self.proxy.stats.reached["body_bytes"] += 1
                call.aborted = body_too_large(call.body.size, call.body.max_size, call.route.inbound, complete=False)
                self._oversize = True

    # ---------------------------------------------------------------- reading requests

    def _check_hops(self, call: Call) -> Failure | None:
        """Whether a request has been here before, or may go no further (RFC 9110 §7.6.2 and §7.6.3)."""
        noted = call.noted
        via = noted.get(b"via")
        if via is not None and names_in_via(via, call.route.pseudonym):
            detail = f"the call has been here before: a URL of {call.route.shown} leads back to this sidecar"
            return Failure(Kind.LOOP_DETECTED, detail, tried_enough=True)
        if call.method == b"OPTIONS" and (left := noted.get(b"max-forwards", b"").strip()).isdigit():
            if int(left[-9:]) == 0:
                call.reply = Reply(200)
            else:
                one_less = b"%d" % (int(left[-9:]) - 1)
                call.fields = [
                    (lower, name, one_less if lower == b"max-forwards" else value) for lower, name, value in call.fields
                ]
        return None

    def _expect_body(self, call: Call) -> None:
        """A body follows the head, if it is not declared larger than its route allows."""
        limits, route = self.proxy.limits, call.route
        self._stray_bytes = 0
        call.body = RequestBody(self, limits.replay_bytes, call.chunked, route.max_body)
        if call.length is not None and call.length > route.max_body and call.aborted is None:
            self.proxy.stats.reached["body_bytes"] += 1
            call.aborted = body_too_large(call.length, route.max_body, route.inbound)

    def _may_switch(self, call: Call) -> Failure | None:
        """Whether this request may leave HTTP behind; if so, nothing after it is read as a request."""
        if call.method == b"CONNECT":
            if not call.route.allow_connect:
                return Failure(Kind.METHOD_REFUSED, f"{call.route.shown} does not allow CONNECT (allow_connect)")
            call.upgrade = b"connect"
        elif call.route.upgrade:
            call.upgrade = wanted_upgrade(call)
            self._deaf = bool(call.upgrade) and not call.length
            self._until_switch = call.length or 0 if call.upgrade else 0
        return None

    def _behind_upgrade(self, data: bytes, end: int) -> None:
        """The parser has stopped behind a head that asks for another protocol, which ends at `end`."""
        call = self._incoming
        if self._until_switch and call is not None and call.body is not None:
            self._upgrading = False
            self._read_body_anew(call)
            self._before_switch(data[end:])
        elif not self._deaf:
            self._ignore_upgrades(data[end:])
        elif self._incoming is not None and self._incoming.upgrade and end < len(data):
            self._keep_early(data[end:])

    def _before_switch(self, data: bytes) -> None:
        """The body of a request that asks for another protocol, and perhaps what comes behind it: that is kept until
        the target has answered."""
        body = data[: self._until_switch]
        self._until_switch -= len(body)
        if body:
            self._parser.feed_data(body)
        if not self._until_switch:
            self._deaf = True
            if len(data) > len(body):
                self._behind_a_switch(data[len(body) :])

    def _read_body_anew(self, call: Call) -> None:
        """Go on with a parser that stands behind the head of this call, and knows how its body is framed."""
        self._parser = RequestParser(self, self.head_begins_again)
        self._skip_head = True
        framing = b"transfer-encoding: chunked" if call.chunked else b"content-length: %d" % (call.length or 0)
        self._parser.feed_data(b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n" % framing)
        self._parser.head_ends(CHUNKED if call.chunked else call.length or 0)

    def _ignore_upgrades(self, rest: bytes) -> None:
        """An `Upgrade` is not taken up, which RFC 9110 §7.8 allows. The parser stops behind such a head, so a new
        one goes on with what follows; if that is the body of the same message, it must know how it is framed."""
        while True:
            self._upgrading = False
            call = self._incoming
            try:
                if call is not None and call.body is not None:
                    self._read_body_anew(call)
                else:
                    self._parser = RequestParser(self, self.head_begins_again)
                if rest:
                    self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                self._malformed(error)
                return

    def _malformed(self, error: Exception) -> None:
        """The parser gave up: refuse what is being read, and hear nothing more on this connection."""
        if self._pieces:
            self._feed_body()
        if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ is not None:
            raise error.__context__  # a callback of ours failed: our bug, not the app's
        call = self._incoming
        if call is not None and not self._in_head and call.body is not None and not call.body.complete:
            self._abort_incoming(Kind.BAD_REQUEST, f"the request body is malformed: {error}")
        elif call is not None and not self._in_head and not call.keep_alive:
            self._deaf = True  # bytes after a request that said `Connection: close`
        else:
            self._reject(Kind.BAD_REQUEST, f"the request is not valid HTTP/1.1: {error}")

    def _reject(self, kind: Kind, detail: str) -> None:
        """Refuse a head that is not even complete, after the answers that are still owed."""
        call = self._incoming if self._in_head and self._incoming is not None else Call(self, b"", monotonic())
        self._in_head = False
        call.keep_alive = False
        call.route = self.proxy.no_route
        call.aborted = Failure(kind, detail)
        self._incoming = call
        self._queue.append(call)
        self._deaf = True

    def _refuse_oversize(self) -> None:
        """A chunked body has outgrown the limit: end its call before anything more of it is passed on."""
        self._oversize = False
        self._deaf = True
        for call in (self._active, *self._queue):
            if call is not None and call.aborted is not None:
                call.keep_alive = False
        if self._active is not None and self._active.aborted is not None:
            self._drive.cancel()

    def give_up(self, call: Call, failure: Failure) -> None:
        """Stop a call that nobody waits for any more."""
        if call is self._active and call.aborted is None:
            call.aborted = failure
            call.keep_alive = False
            self._drive.cancel()

    def _abort_incoming(self, kind: Kind, detail: str) -> None:
        """Stop the call whose body cannot be read to its end."""
        call = self._incoming
        self._deaf = True
        if call is None:
            return
        call.aborted = call.aborted or Failure(kind, detail)
        call.keep_alive = False
        if call is self._active:
            self._drive.cancel()

    def _pass_body_on(self, call: Call, body: RequestBody) -> None:
        """Move what arrived of the active call's body towards the target."""
        body.flush()
        if body.complete and not body.announced and call.attempt is not None:
            body.announced = True
            call.attempt.upload_ended()

    # ---------------------------------------------------------------- flow and time

    def pause_body(self) -> None:
        """The target cannot take more of the body."""
        self._regulate()

    def resume_body(self) -> None:
        """The target can take more of the body."""
        self._regulate()

    def _regulate(self) -> None:
        """Read only while there is room: for a body that someone takes, and for no request behind another."""
        held = self._is_held()
        if self._unparsed and not held and not self._parsing:
            self._ask_turn()
        pause = (held or bool(self._unparsed)) and not self._lingering
        if self._ended:
            return  # nothing more comes
        if pause != self._reading_paused and not self._lost:
            self._reading_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
                self._head_since = monotonic()  # what we made wait is not the app's slowness
            self._watch_the_clock()

    def _is_held(self) -> bool:
        """Whether nothing more is to be parsed for now."""
        call = self._incoming
        paused = call is not None and call.body is not None and call.body.paused
        return paused or bool(self._queue) or bool(self._early)

    def _await_head(self) -> None:
        """The beginning of a method, or empty lines: a head is on its way, and must not take for ever."""
        if not self._starting:
            self._starting = True
            self.proxy.timers.arm(self, monotonic() + self.proxy.limits.header_timeout)

    def _watch_the_clock(self) -> None:
        """Set the time by which the app must have sent more."""
        limits = self.proxy.limits
        call = self._incoming
        if self._lingering or self._ended or call is None or (self.write_paused and self._active is None):
            return
        if self._reading_paused:
            self.proxy.timers.arm(self, monotonic() + _LOOK_AFTER)
        elif self._in_head:
            self.proxy.timers.arm(self, self._head_since + limits.header_timeout)
        elif call.body is None or call.body.complete or self._deaf:
            if self._whole or self._deaf:
                self.proxy.timers.arm(self, monotonic() + self._idle)
            else:
                self._await_head()
        elif call.expect_continue and not call.continued and not call.body.size:
            self.proxy.timers.arm(self, monotonic() + min(_CONTINUE_AFTER, call.route.body_idle))
        else:
            self.proxy.timers.arm(self, monotonic() + call.route.body_idle)

    def _hang_up(self) -> None:
        """The app is gone. Whatever is under way for it stops, and counts for nothing."""
        if self._lost:
            return
        self._lost = True
        self._deaf = True
        self._queue.clear()
        self._unparsed = b""
        if self._active is None:
            return
        if not self._active.goes_on():
            self._drive.cancel()
        else:
            self._active.end_by(monotonic() + TO_THE_END)
            self._transport = DISCARDING
            if self.write_paused:
                self.resume_writing()  # nobody reads any more, so nobody is too slow


def _endpoint_of(call: Call) -> Endpoint | None:
    """The endpoint that has answered this call."""
    return cast("Endpoint | None", call.attempt.endpoint) if call.attempt is not None else None


def _is_loopback(address: Any) -> bool:
    """Whether a socket's own address is one that only this machine reaches."""
    host = str(address[0]).removeprefix("::ffff:") if isinstance(address, tuple) else ""
    return host.startswith("127.") or host == "::1"


def _ending(call: Call, close: bool) -> bytes:
    """The end of an answer's head, which says whether the connection lasts. HTTP/1.0 must be told that it does."""
    if close:
        return CLOSE
    return KEEP if call.minor else b"connection: keep-alive\r\n\r\n"


def _readdressed_reply(call: Call, reply: Reply) -> Reply:
    """An earlier answer of the target, with the addresses in it as the app must see them."""
    endpoints = cast(Route, call.route).cluster.endpoints
    endpoint = endpoints[0] if endpoints else None
    lines: list[bytes] = []
    for name, value in reply.headers:
        lines += (name, b": ", value, b"\r\n")
    readdress(lines, call, endpoint, start=0)
    return Reply(reply.status, list(zip(lines[::4], lines[2::4], strict=True)), reply.body, reply.failure)


def _milliseconds(seconds: float) -> bytes:
    """Seconds as milliseconds with one decimal, from a table where the number is small, as it mostly is."""
    tenths = int(seconds * 10000)
    return _TENTHS[tenths] if 0 <= tenths < 1000 else b"%.1f" % max(0.0, seconds * 1000)


def _retried_line(call: Call, response: Response) -> bytes:
    """`Proxy-Status` on an answer that took more than one attempt (RFC 9209)."""
    attempt = call.attempt
    hop = attempt.endpoint.name if attempt is not None and attempt.endpoint is not None else ""
    received = f"; received-status={response.status}" if response.status >= 500 else ""
    return f'proxy-status: outrider; next-hop="{hop}"{received}; details="attempt {call.attempts}"\r\n'.encode()
