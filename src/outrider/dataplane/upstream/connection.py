"""One connection to a target: asyncio.Protocol + response parser.

Parser callbacks only record; `data_received` acts once, after `feed_data` has returned. The connection settles
twice per exchange, at the head and at the end of the body, and each time resumes the call; in between the body
flows from this connection to the app's without waking anyone.

    idle ──begin──> waiting for the head ──settled──> paused until `pipe` ──> body ──settled──> idle, or closed
"""

from __future__ import annotations

import os
import select
from asyncio import Transport
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from outrider.dataplane.http1.heads import (
    ADDRESSED,
    BLANK,
    OWS,
    PASSED_ON,
    RESPONSE_NOTED,
    authenticates_connection,
    has_at_most,
    nominated_fields,
    trailer_names,
    without,
)
from outrider.dataplane.ports import AppConnection, BodyTap, TargetConnection
from outrider.dataplane.runtime.discarding import DISCARDING
from outrider.dataplane.runtime.kernel import unacknowledged
from outrider.dataplane.runtime.timers import NEVER, Timers
from outrider.dataplane.tunnel import Tunnel
from outrider.dataplane.upstream.tls import refused_our_certificate
from outrider.model.failure import Failure, Kind
from outrider.model.messages import NO_NAMES, Response
from outrider.model.units import format_duration

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.body import RequestBody
    from outrider.dataplane.upstream.cluster import Endpoint

# The parser would also take RTSP/1.0 and ICE/1.0.
_BEGINNING: Final = b"HTTP/1."
_ONE: Final = 0x31  # the first digit of a status like 103, at this place:
_STATUS_AT: Final = 9
# Bytes of a read that are fed at once where they may be fields.
_SLICE: Final = 16 * 1024
_MANY_PIECES: Final = 64  # of a body in one slice: as one they cost the rest of the way less
_MOST_PARAMETERS: Final = 16  # of a Keep-Alive: two are known
# Digits of a Content-Length, leading zeros included: more than any length has, and than every reader takes.
_LONGEST_LENGTH: Final = 19
# Seconds by which an answer that waits in the kernel may be read too late, when the event loop is busy.
_OUR_LATENESS: Final = 0.25
# Seconds that a target gets at most when its time has passed while we stood still.
_AFTER_STANDING_STILL: Final = 1.0
_ENDED: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR
_AT_ONCE: Final = 64 * 1024  # bytes
# Seconds between two looks at an upload that the target is slow to take.
_SHORTEST_LOOK: Final = 0.01
_LONGEST_LOOK: Final = 1.0
_CLOSED_UNSENT: Final = "the target closed the connection before the request reached it"
_NO_ANSWER: Final = {
    Kind.DEADLINE: "the call's timeout passed before the target answered",
    Kind.ATTEMPT_TIMEOUT: "the target did not answer within attempt_timeout",
}


class Upstream(TargetConnection):
    """A connection to an endpoint, with at most one exchange at a time. An asyncio.Protocol in all but name."""

    __slots__ = (
        "_app",
        "_begun",
        "_clean",
        "_closing",
        "_collected",
        "_connection",
        "_counted",
        "_descriptor",
        "_endpoint",
        "_fed",
        "_feed_size",
        "_finishing",
        "_given_up",
        "_head_bytes",
        "_head_done",
        "_interims",
        "_last_buffered",
        "_last_progress",
        "_moved_at",
        "_nominations",
        "_noted",
        "_parser",
        "_personal",
        "_poll",
        "_reading_paused",
        "_received",
        "_refusal",
        "_seam",
        "_slow_to_take",
        "_stale_parser",
        "_stray_bytes",
        "_taken",
        "_tap",
        "_timers",
        "_tls",
        "_trailers",
        "_transport",
        "_tunnel",
        "_unfed",
        "_written",
        "attempt",
        "idle_limit",
    )

    def __init__(self, endpoint: Endpoint, timers: Timers, raw: bool = False) -> None:  # noqa: PLR0915 # one per slot
        """`raw`: for a tunnel only, without TLS of ours and without HTTP."""
        self._endpoint = endpoint
        self._timers = timers
        self.raw = raw
        self._tls = endpoint.tls if not raw else None
        self._transport: Transport = cast(Transport, None)
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._descriptor = -1
        self._parser: Any = None  # from the moment the connection is made: it holds us, we hold it
        self.alive = False
        self._counted = False
        self.reused = False  # whether an earlier exchange already used this connection
        self.idle_limit = endpoint.idle_timeout
        self.due = NEVER
        self.wake = NEVER
        # Of the current exchange
        self.attempt: Attempt | None = None
        self.response: Response = Response()
        self.failure: Failure | None = None
        self.settled = False  # there is news for the call: a head, the end of the body, or a failure
        self.write_paused = False
        self._written = 0  # bytes of the request that we have tried to send
        self._received = False  # whether any byte of an answer has come
        self._begun = False  # whether a head is under way
        self._seam = b""  # the end of its latest piece
        self._head_done = False
        self._feed_size = 0
        self._fed = 0  # bytes of the latest piece, in which the present head goes on
        self._head_bytes = 0
        self._stray_bytes = 0  # since the last byte of body
        self._connection: list[bytes] = []  # the values of this field of the head that is being read
        self._noted = 0  # fields of the head that is being read that are looked at, or trailers
        self._nominations = 0  # how many names there are in them
        self._trailers = bytearray()
        self._closing = False  # the target has announced that it will close
        self._interims: list[Response] = []
        self._unfed = b""  # what has been read, and waits for its turn
        self._refusal = ""  # why the target has ended the connection before anything was sent
        self._given_up = False  # closed by us, perhaps before the connection was made
        self._personal = False  # somebody has proven who it is for all that comes on this connection
        self._clean = True  # no byte has arrived that belongs to no exchange
        self._collected: list[bytes] = []
        self._app: AppConnection | None = None  # where the body goes
        self._tap: BodyTap | None = None  # and what sees it pass
        self._tunnel: Tunnel | None = None
        self._stale_parser = False
        self._reading_paused = False
        self._last_progress = 0.0
        self._last_buffered = 0
        self._taken = 0  # bytes of the request that the target had at the latest look
        self._moved_at = 0.0  # when a look last found more of them
        self._finishing = False  # the answer is there, and the upload goes on
        self._slow_to_take = False  # a look found the upload ended by the app but not taken by the target

    # ---------------------------------------------------------------- one exchange, as the attempt drives it

    def begin(self, attempt: Attempt, due: float) -> None:
        """Take the connection for one exchange; waiting for the head ends at `due` (monotonic seconds)."""
        self.attempt = attempt
        self.response = Response()
        self.failure = None
        self.settled = self._received = self._begun = self._head_done = self._closing = False
        self._connection = []
        self._nominations = self._noted = 0
        self._trailers = bytearray()
        authorization = attempt.call.noted.get(b"authorization")
        if authorization is not None and authenticates_connection(authorization):
            self._personal = True
        self._head_bytes = self._stray_bytes = self._written = self._taken = 0
        self._moved_at = attempt.sent
        self._slow_to_take = self._finishing = False
        self._seam = b""
        self.due = due
        if due < self.wake:
            self._timers.arm(self, due)
        if not self.alive:
            if self._refusal:
                self._fail(Kind.TLS_ALERT, self._refusal)
            else:
                self._fail(Kind.CLOSED_UNSENT, _CLOSED_UNSENT)
            self.settled = True

    def write(self, data: bytes) -> None:
        """Send request bytes. Not once the target has ended the connection: a write that fails would end our side, too,
        and with it the answer that may wait to be read."""
        if self._written and self._tunnel is None and self._ended_by_target():
            self._clean = False
            return
        self._written += len(data)
        self._transport.write(data)

    def rearm(self, due: float) -> None:
        """Move the end of the wait for the head, e.g. to a full attempt after a long upload."""
        if not self._head_done:
            self._timers.arm(self, due)

    def watch_upload(self, now: float) -> None:
        """The app has sent all of the request: look soon whether the target is taking it."""
        attempt = self.attempt
        if attempt is not None and not self._head_done:
            self._timers.arm(self, min(attempt.due, now + self._look_after(attempt)))

    def finish_upload(self) -> None:
        """The target has answered before it had all of the request, and may go on taking it; `settled` is set anew when
        the upload is over, one way or the other."""
        self._finishing = True
        self.settled = not self.alive
        attempt = self.attempt
        assert attempt is not None
        self._moved_at = now = monotonic()
        self._timers.arm(self, min(attempt.call.ends, now + self._look_after(attempt)))

    def upload_finished(self) -> bool:
        """The app has sent all of the request; whether anything was waiting for that."""
        if self._finishing:
            self._settle()
        return self._finishing

    def pipe(self, app: AppConnection, tap: BodyTap | None) -> None:
        """Let the rest of the body flow to the app, past `tap`; `settled` is set anew at its end."""
        self.settled = self.failure is not None
        self._app = app
        self._tap = tap
        app.set_source(self)
        self._last_progress = monotonic()
        self._last_buffered = 0
        self._watch_body(self._last_progress)
        if not app.write_paused:
            self.resume_reading()

    def end(self, now: float) -> None:
        """Give the connection up: back to the pool if it is provably clean, closed otherwise."""
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return
        body = attempt.call.body
        if self._app is not None:
            self._app.set_source(None)
            self._app = self._tap = None
        if (
            self.response.keep_alive  # which implies that it is complete
            and self._clean
            and not self._personal
            and self.alive
            and self.failure is None
            and (body is None or self._took_all_of(body))
            and self._tls is self._endpoint.tls
            and not self._endpoint.retired
        ):
            if self._reading_paused:
                self.resume_reading()
            if self._tls is not None and not self.reused:
                self._tls.remember(self._transport.get_extra_info("ssl_object"))
            self.reused = True
            self.due = due = now + self.idle_limit
            if due < self.wake:
                self._timers.arm(self, due)
            self._endpoint.pool.idle.append(self)
        else:
            if body is not None:
                body.detach(self)
            if self._finishing and self.alive and body is not None and body.sent:
                self._close_when_sent(attempt, now)
            elif self._tunnel is None:  # which closes by itself, once everything has been sent
                self.close()

    def _took_all_of(self, body: RequestBody) -> bool:
        """Whether the target has taken the whole request. One that answers before that may drop the rest, or take
        it for the next request: its connection is not used again (RFC 9112 §9.3)."""
        return body.sent and not self.write_paused and self._transport.get_write_buffer_size() == 0

    def _close_when_sent(self, attempt: Attempt, now: float) -> None:
        """Close once the rest of an upload has gone out, which may not take for ever."""
        self._lost()
        self._transport.close()
        self._timers.arm(self, now + attempt.route.body_idle)

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        self.due = NEVER
        self._given_up = True
        self._lost()
        if self._transport is not None:
            self._transport.abort()
            self._let_go()

    def retire(self) -> None:
        """Finish the exchange under way, and close instead of going back to the pool."""
        if self.attempt is not None:
            self._clean = False
        elif self._tunnel is None:
            self.close()

    def untouched(self) -> bool:
        """Whether the target has provably not acted on this exchange's request: it has ended the connection, and until
        then its kernel had not acknowledged a single byte. Only an orderly end proves that: the FIN carries an
        acknowledgement of everything that came before it, a reset does not. With TLS, bytes cannot be compared."""
        return self._tls is None and unacknowledged(self._descriptor) >= self._written

    def _ended_by_target(self) -> bool:
        """Ask the kernel whether the target has ended or reset the connection, which we may not have read yet."""
        return self._poll is None or any(events & _ENDED for _, events in self._poll(0))

    def disturbed(self) -> bool:
        """Ask the kernel whether the target has closed, or sent bytes nobody asked for, while we were idle."""
        return self._poll is not None and bool(self._poll(0))

    def pause_reading(self) -> None:
        """The sink cannot take more."""
        if not self._reading_paused and self.alive:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The sink can take more."""
        if self._reading_paused:
            self._reading_paused = False
            if self.alive:
                self._transport.resume_reading()

    # ---------------------------------------------------------------- one end of a tunnel

    def connected(self) -> None:
        """The answer to CONNECT: there is a connection."""
        response = self.response
        response.status, response.reason = 200, b"Connection established"
        response.switches = response.complete = self._head_done = self.settled = True
        response.pieces, self._collected = self._collected, []
        self.due = NEVER

    def join(self, tunnel: Tunnel) -> None:
        """From now on bytes go through the tunnel."""
        self._tunnel = tunnel
        self.settled = False
        self.due = NEVER
        self.resume_reading()

    def end_writing(self) -> None:
        """Pass the app's end of stream on; where that is not possible, close when all is sent."""
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def leave(self) -> None:
        """The tunnel is over."""
        self._transport.close()

    # ---------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        if self._given_up:
            transport.abort()  # a loop may still make a connection whose connecting was cancelled
            return
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self.alive = True
        sock = transport.get_extra_info("socket")
        if sock is not None:
            poller = select.poll()
            self._descriptor = sock.fileno()
            poller.register(self._descriptor, select.POLLIN | select.POLLRDHUP)
            self._poll = poller.poll

    def counted(self) -> None:
        """The connection has been handed over to whoever dialled it: from here the pool knows of it."""
        if self.alive:
            self._counted = True
            self._endpoint.pool.open += 1

    def data_received(self, data: bytes) -> None:
        attempt = self.attempt
        if attempt is None or self.response.complete:
            if self._tunnel is not None:
                self._tunnel.from_target(data)
                return
            if self.raw:  # who speaks first, before the tunnel is there
                self._collected.append(data)
                self.pause_reading()
                return
            # Bytes nobody asked for: whoever used this connection next would get somebody else's answer.
            self._clean = False
            self.close()
            return
        self._received = True
        self._feed_size = len(data)
        if len(data) > _SLICE:
            self._feed_in_slices(data)
        elif self._head_done or (not self._begun and len(data) > _STATUS_AT and data[_STATUS_AT] != _ONE):
            self._feed(data, data)
        else:
            self._feed_head_by_head(data)
        if self._interims:
            self._pass_interims(attempt)
            if self._unfed:
                return
        response = self.response
        if self._stale_parser and self.alive:
            self._stale_parser = False
            self._parser = httptools.HttpResponseParser(self)
        if response.complete and self._app is None and self.failure is None:
            # The common case: a whole answer at once.
            response.pieces += self._collected
            self._collected = []
            if not self.settled:
                self.settled = True
                attempt.resume()
        else:
            self._partial(data)

    def eof_received(self) -> bool:
        if self._tunnel is not None:
            self._tunnel.ended(self)
            return self._transport.can_write_eof()  # we may still have to pass something on
        response = self.response
        if self.attempt is not None and self._head_done and response.length is None and not response.chunked:
            response.complete = True  # the body ends with the connection (RFC 9112 §6.3, rule 8)
            self._settle()
        elif self.attempt is not None and not self._received and self.untouched():
            self._fail(Kind.CLOSED_UNSENT, _CLOSED_UNSENT)
            self._settle()
        else:
            self._broken("closed the connection")
        self._lost()
        if self._finishing:
            self._settle()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()
        if exc is not None and self._tls is None:
            self._read_what_is_left()
        if self._tunnel is not None:
            self._tunnel.lost(self)
        elif refused_our_certificate(exc):
            self._refusal = f"{self._endpoint.name} does not accept our certificate (tls.cert): {exc}"
            if self.attempt is not None and not self._received:
                self._fail(Kind.TLS_ALERT, self._refusal)
                self._settle()
        else:
            self._broken("reset the connection" if exc else "closed the connection")
            if self._finishing:
                self._settle()
        self._let_go()

    def _read_what_is_left(self) -> None:
        """A write has failed, which ends the connection for the event loop. What the target had said before is still in
        the kernel: often why it takes no more."""
        try:
            while self.attempt is not None and not self.response.complete and self._tunnel is None:
                data, self._unfed = self._unfed, b""
                if data:
                    self.data_received(data)
                    continue
                data = os.read(self._descriptor, _AT_ONCE)
                if not data:
                    break
                self.data_received(data)
        except OSError:
            pass  # nothing is left

    def pause_writing(self) -> None:
        self.write_paused = True
        if self._tunnel is not None:
            self._tunnel.full(self, True)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._tunnel is not None:
            self._tunnel.full(self, False)
        elif self.attempt is not None and self.attempt.call.body is not None:
            self.attempt.call.body.writable()

    def expired(self, now: float) -> None:
        """`due` has passed: the connection idled too long, the head did not come, or the body stands still."""
        attempt = self.attempt
        if attempt is None:
            self.close()
        elif not self._head_done:
            self._head_expired(attempt, now)
        elif self._finishing:
            self._finishing_expired(attempt, now)
        elif self._app is None and not self.settled:
            if now < attempt.due:
                self._timers.arm(self, attempt.due)
                return
            self.pause_reading()
            self._settle()  # it has been held for long enough: the app gets what is there
        elif not self.response.complete:
            self._body_expired(attempt, now)

    # ---------------------------------------------------------------- parser callbacks: they only record

    def on_message_begin(self) -> None:
        self._begun = True
        if self.response.complete:
            self._clean = False

    def on_status(self, reason: bytes) -> None:
        if not self._head_done:
            self.response.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if value and value[-1] <= BLANK:
            value = self._stripped(lower, value)
        if lower in RESPONSE_NOTED or self._head_done:
            self._note(lower, name, value)
        else:
            self.response.lines += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        response = self.response
        if response.complete:
            self._clean = False
            return
        self._noted = 0  # trailers are counted anew
        status = response.status = self._parser.get_status_code()
        if self._connection:
            self._remove_nominated(response)
        if not 100 <= status < 600 or not (self.reused or self._speaks_http_1()):
            self._fail(Kind.INVALID_RESPONSE, f"the target answered HTTP/{self._parser.get_http_version()} {status}")
        elif (
            self._feed_size > self._endpoint.max_head_bytes and self._head_size() > self._endpoint.max_head_bytes
        ) or len(response.lines) > self._endpoint.max_fields * 4:
            self._too_large()
        elif status < 200:
            self._interims.append(response)  # its message_complete makes room for the next head
            self._head_bytes = 0
        else:
            self._head_done = True
            attempt = self.attempt
            if attempt is not None and attempt.call.method == b"HEAD":
                # The parser does not know that an answer to HEAD has no body: it must be replaced.
                response.keep_alive = self._parser.get_http_version() == "1.1" and not self._closing
                response.complete = self._stale_parser = True

    def on_body(self, piece: bytes) -> None:
        if self.response.complete:
            self._clean = False
        elif self._head_done:
            self._collected.append(piece)
        else:
            self._fail(Kind.INVALID_RESPONSE, "the target sent an informational answer with a body")

    def on_message_complete(self) -> None:
        response = self.response
        if response.complete:
            return
        if response.status < 200:
            self.response = Response()
            self._begun = False
            return
        response.complete = True
        if self._trailers:
            response.trailers = bytes(self._trailers)
            self._trailers = bytearray()
        response.keep_alive = self._parser.should_keep_alive()
        if response.chunked and self._parser.get_http_version() == "1.0":
            response.keep_alive = False  # who frames like that may mean something else by it (RFC 9112 §6.1)

    # ---------------------------------------------------------------- feeding the parser

    def _feed(self, piece: bytes, rest: bytes) -> None:
        """Give the parser a piece, with which `rest` begins."""
        if not self._begun and not self._head_done and piece[:7] != _BEGINNING[: len(piece)]:
            self._fail(Kind.INVALID_RESPONSE, "the target's answer is not HTTP/1.1")
            return
        self._fed = len(piece)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._switched(rest[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self.response.complete:
                self._clean = False
            else:
                self._fail(Kind.INVALID_RESPONSE, f"the target's answer is not valid HTTP: {error}")

    def _feed_in_slices(self, data: bytes) -> None:
        """Feed a large read, and look between slices whether it is too much already: fields and trailers cost more time
        than a body, and a target chooses how many there are."""
        start = heads = 0
        while start < len(data) and self.failure is None and not self.response.complete:
            begun, head_done, pieces = self._begun, self._head_done, len(self._collected)
            stop = len(data) if head_done and not self.response.chunked else start + _SLICE
            piece = data[start:stop]
            if head_done or (not begun and len(piece) > _STATUS_AT and piece[_STATUS_AT] != _ONE):
                self._feed(piece, piece)
            else:
                self._feed_head_by_head(piece)
            start = stop
            if len(self._collected) - pieces > _MANY_PIECES:
                self._collected[pieces:] = (b"".join(self._collected[pieces:]),)
            if not self._head_done:
                if self._interims:
                    heads = 0
                    if self._take_turns(data[stop:]):
                        return
                heads += len(piece)
                if heads > self._endpoint.max_head_bytes or len(self.response.lines) > self._endpoint.max_fields * 4:
                    self._too_large()
        if start < len(data):
            if self.response.switches:
                self.response.pieces.append(data[start:])
            else:
                self._clean = False  # bytes behind a whole answer

    def _take_turns(self, rest: bytes) -> bool:
        """Informational answers may be many, and each is passed on: let others have their turn, and feed the `rest`
        afterwards. Returns False if nothing is left, or nothing more will be read."""
        attempt = self.attempt
        if not rest or attempt is None or self.failure is not None or self.response.switches:
            return False
        self._unfed = rest
        self.pause_reading()
        attempt.call.app.shared.loop.call_soon(self._feed_rest)
        return True

    def _feed_rest(self) -> None:
        """It is the turn of this connection again."""
        rest, self._unfed = self._unfed, b""
        if rest and self.alive:
            self.resume_reading()
            self.data_received(rest)

    def _feed_head_by_head(self, data: bytes) -> None:
        """Informational answers may come, or a head comes in pieces: feed one head at a time, so that the beginning of
        each can be looked at."""
        while data and self.failure is None and not self.response.complete:
            if self._head_done:
                self._feed(data, data)
                return
            seam = self._seam
            found = (seam + data).find(b"\r\n\r\n")
            piece = data if found < 0 else data[: found + 4 - len(seam)]
            self._seam = (seam + piece)[-3:] if found < 0 else b""
            rest, data = data, data[len(piece) :]
            self._feed(piece, rest)
        if data and not self.response.switches:
            self._clean = False  # bytes behind a whole answer

    # ---------------------------------------------------------------- what happens after a feed

    def _partial(self, data: bytes) -> None:
        """Something other than a whole answer at once: part of a head or of a body, or a failure."""
        response = self.response
        if not self._head_done:
            if self._begun:
                self._head_bytes += self._fed
            if self._head_bytes > self._endpoint.max_head_bytes:
                self._too_large()
            if self.failure is None:
                return
        elif not self._collected:
            # Neither head nor body: chunk extensions or trailers, which are not passed on, and not without end.
            self._stray_bytes += len(data)
            if self._stray_bytes > self._endpoint.max_head_bytes:
                self._fail(Kind.INVALID_RESPONSE, "the target's chunk extensions or trailers do not end")
        if self._collected:
            self._stray_bytes = 0
            if self._app is not None:
                self._last_progress = monotonic()
                if self._tap is not None:
                    self._tap.add(self._collected)
                self._app.write_body(self._collected)
            else:
                response.pieces += self._collected
            self._collected = []
        if not response.complete and self.failure is None:
            if self._app is not None or self._is_held():
                return
            self.pause_reading()  # until somebody wants the rest
        self._settle()

    def _is_held(self) -> bool:
        """Whether nobody wants this answer before it is whole, and it is small enough to wait for that."""
        attempt, response = self.attempt, self.response
        if attempt is None or self.settled or not attempt.route.rules.holds(attempt.call):
            return False
        size = response.length if response.length is not None else sum(map(len, response.pieces))
        return size <= attempt.call.app.shared.limits.replay_bytes

    def _settle(self) -> None:
        """There is news for the call."""
        if self.attempt is not None and not self.settled:
            self.settled = True
            self.attempt.resume()

    def _fail(self, kind: Kind, detail: str) -> None:
        """Record why the exchange failed; the first reason stands."""
        if self.failure is None:
            self.failure = Failure(kind, detail, endpoint=self._endpoint.name)

    def _broken(self, what: str) -> None:
        """The connection is gone; say in which phase that caught the exchange."""
        if self.attempt is None or self.response.complete:
            return
        if self._received:
            self._fail(Kind.INCOMPLETE, f"the target {what} in the middle of its answer")
        else:
            self._fail(Kind.RESET, f"the target {what} without answering")
        self._settle()

    def _head_expired(self, attempt: Attempt, now: float) -> None:
        """No head yet, and a time has passed: find out whether there is more of it, and else who let it pass."""
        if now < attempt.due + _OUR_LATENESS and not self._reading_paused and self.disturbed():
            self._timers.arm(self, now + _OUR_LATENESS / 10)  # the answer is here: it is we who are late
            return
        call = attempt.call
        if call.body is not None and self._upload_goes_on(attempt, call.body, now):
            return
        if now < attempt.due or attempt.has_more_time():
            self._timers.arm(self, attempt.due)
            return
        if (missed := self._timers.missed(attempt.due)) > 0.0:
            # The time passed while we stood still, and perhaps the target with us: it gets a moment to answer.
            attempt.due = min(now + min(missed, _AFTER_STANDING_STILL), call.ends)
            call.deadline = max(call.deadline, attempt.due)
            if now < attempt.due:
                self._timers.arm(self, attempt.due)
                return
        had = now - attempt.served_from
        if missed > 0.0:
            self._fail(Kind.CALL_ENDED, "the call's time passed while Outrider stood still")
        elif now < call.deadline:
            self._fail(Kind.ATTEMPT_TIMEOUT, _NO_ANSWER[Kind.ATTEMPT_TIMEOUT])
        elif attempt.served_from > attempt.started and had < min(attempt.limit, (now - call.started) / 2):
            left = format_duration(had)
            self._fail(Kind.CALL_ENDED, f"the app sent its body so slowly that the target had only {left} to answer")
        else:
            self._fail(Kind.DEADLINE, _NO_ANSWER[Kind.DEADLINE])
        self._settle()

    def _upload_goes_on(self, attempt: Attempt, body: RequestBody, now: float) -> bool:
        """Look how far the request has got. True if there is nothing to say about the answer yet: the request is still
        on its way, or that it is not has been dealt with here."""
        queued = self._queued()
        if self._written - queued > self._taken:
            self._taken = self._written - queued
            self._moved_at = now
        if queued:
            return self._target_takes_its_time(attempt, body, now)
        if not body.complete and now < attempt.due:
            self._timers.arm(self, min(attempt.due, now + self._look_after(attempt)))  # it waits for the app, as we do
        elif not body.complete:
            self._fail(Kind.REQUEST_TIMEOUT, "the app was still sending its body when the call's time had passed")
            self._settle()
        elif self._slow_to_take:
            self._slow_to_take = False
            attempt.taken(now)
            self._timers.arm(self, attempt.due)
        else:
            return False
        return True

    def _target_takes_its_time(self, attempt: Attempt, body: RequestBody, now: float) -> bool:
        """Bytes of the request wait for the target. Its time to answer begins with the last of them; until then it only
        has to go on taking some."""
        call = attempt.call
        patience = min(attempt.route.body_idle, attempt.limit, call.deadline - call.started)
        if body.complete:
            self._slow_to_take = True
        moving = now - self._moved_at < patience
        if moving and now < call.ends:
            self._timers.arm(self, min(call.ends, now + self._look_after(attempt)))
            return True
        if moving:
            self._fail(Kind.CALL_ENDED, "the call's time passed while the target was still taking the request")
        else:
            kind = Kind.ATTEMPT_TIMEOUT if now < call.deadline else Kind.DEADLINE
            self._fail(kind, f"the target took nothing of the request for {format_duration(patience)}")
        self._settle()
        return True

    def _finishing_expired(self, attempt: Attempt, now: float) -> None:
        """Look whether the rest of an upload is still taken by a target that has answered already. If it waits for the
        app, that is watched by the app's connection."""
        call = attempt.call
        queued = self._queued()
        if self._written - queued > self._taken or not queued:
            self._taken = self._written - queued
            self._moved_at = now
        if now < call.ends and now - self._moved_at < attempt.route.body_idle:
            self._timers.arm(self, min(call.ends, now + self._look_after(attempt)))
        else:
            self._settle()

    def _queued(self) -> int:
        """Bytes of the request that the target has not taken yet."""
        return self._transport.get_write_buffer_size() + max(0, unacknowledged(self._descriptor))

    def _look_after(self, attempt: Attempt) -> float:
        """Seconds between two looks at an upload: few beside any of the times that it may take."""
        call = attempt.call
        shortest = min(attempt.limit, call.deadline - call.started, attempt.route.body_idle)
        return max(_SHORTEST_LOOK, min(_LONGEST_LOOK, shortest / 8))

    def _body_expired(self, attempt: Attempt, now: float) -> None:
        """Cut a body off at the end of the call's time, or when it has stood still for too long; otherwise look again.
        What the app has not taken is its own slowness, not the target's."""
        call = attempt.call
        app = self._app
        buffered = app.unsent_bytes() if app is not None else 0
        if buffered < self._last_buffered:
            self._last_progress = now  # a slow reader is still a reader
        self._last_buffered = buffered
        still = now - self._last_progress
        app_is_behind = buffered > 0 or self._reading_paused
        if now >= call.ends:
            # A body of known length that stood still for most of its time would not have come; a stream may be silent.
            stuck = self.response.length is not None and still > (now - attempt.answered) / 2
            kind = Kind.DEADLINE if stuck and not app_is_behind else Kind.CALL_ENDED
            self._fail(kind, "the call's time passed in the middle of the answer")
        elif still >= attempt.route.body_idle:
            self._reached("body_idle_timeout")
            if app_is_behind:
                self._fail(Kind.APP_STALLED, "the app took nothing of the answer for longer than body_idle_timeout")
            else:
                self._fail(Kind.INCOMPLETE, "the answer stood still for longer than body_idle_timeout")
        else:
            self._watch_body(now)
            return
        self._settle()

    def _watch_body(self, now: float) -> None:
        attempt = self.attempt
        assert attempt is not None
        self._timers.arm(self, min(attempt.call.ends, now + attempt.route.body_idle / 4))

    def _reached(self, limit: str) -> None:
        if self.attempt is not None:
            self.attempt.call.app.shared.stats.reached[limit] += 1

    def _speaks_http_1(self) -> bool:
        """Whether the version is one we speak. Asked once per connection: a target does not change its mind, and
        an answer in another version would not have left the connection reusable."""
        version: str = self._parser.get_http_version()
        return version in ("1.1", "1.0")

    def _head_size(self) -> int:
        """Bytes of the head, about; looked at only where a single read was larger than a head may be."""
        return sum(map(len, self.response.lines))

    def _too_large(self) -> None:
        self._reached("response_header_bytes")
        self._fail(Kind.RESPONSE_HEAD_TOO_LARGE, "the target's response head exceeds limits.header_bytes or .headers")

    def _note(self, lower: bytes, name: bytes, value: bytes) -> None:
        """Look at a field that is not simply passed on, unless there are too many of them."""
        if self.failure is not None or self.response.complete:
            return  # what else comes does not matter, and may be much
        self._noted += 1
        if self._noted > self._endpoint.max_fields:
            self._too_large()
        elif self._head_done:
            self._note_trailer(self.response, lower, name, value)
        else:
            self._take_facts(lower, name, value)

    def _take_facts(self, lower: bytes, name: bytes, value: bytes) -> None:
        """Take the facts out of a field of the head. The parser has refused conflicting ones."""
        response = self.response
        if lower == b"content-length":
            if len(value) > _LONGEST_LENGTH:
                self._fail(Kind.INVALID_RESPONSE, "the target's Content-Length has too many digits")
            else:
                response.length = int(value)
                response.lines += (name, b": ", value, b"\r\n")
        elif lower == b"date":
            response.dated = True
            response.lines += (name, b": ", value, b"\r\n")
        elif lower == b"connection":
            self._note_connection(value)
        elif lower == b"transfer-encoding":
            # Passing on a transfer coding that we take out of the head would garble the body.
            if value.lower() != b"chunked" or response.chunked:
                self._fail(Kind.INVALID_RESPONSE, f"the target used the transfer coding {value[:80].decode('latin-1')}")
            response.chunked = True
        elif lower == b"keep-alive":
            self._learn_idle_limit(value)
        elif lower == b"trailer" and self.attempt is not None and self.attempt.call.trailers:
            self._note_trailer_names(response, value)
        elif lower == b"upgrade":
            response.upgrade = value
        elif lower == b"x-outrider-retry":
            response.tried_below = value.lower() == b"off"
        elif lower in PASSED_ON:
            response.lines += (name, b": ", value, b"\r\n")
            self._note_passed(response, lower, value)

    def _note_passed(self, response: Response, lower: bytes, value: bytes) -> None:
        """The same for fields that are also passed on as they are."""
        if lower in ADDRESSED:
            response.addressed = True
        elif lower == b"retry-after":
            response.retry_after = value
        elif lower == b"www-authenticate":
            self._personal = self._personal or authenticates_connection(value)
        else:
            response.rate_limit = response.rate_limit or value

    def _note_connection(self, value: bytes) -> None:
        """Keep what `Connection` says; it is looked at once, with all of it there."""
        self._connection.append(value)
        self._closing = self._closing or value.lower().find(b"close") >= 0
        self._nominations += value.count(b",") + 1
        if self._nominations > self._endpoint.max_fields:
            self._too_large()

    def _note_trailer_names(self, response: Response, value: bytes) -> None:
        """Keep the names of trailers that will come; no more than a head may have fields."""
        room = self._endpoint.max_fields - len(response.trailer_names)
        if has_at_most(room, value):
            response.trailer_names = response.trailer_names | trailer_names(value)

    def _stripped(self, lower: bytes, value: bytes) -> bytes:
        """A value without the blanks behind it (RFC 9110 §5.5)."""
        if lower == b"transfer-encoding" and b"\t" in value:
            # The parser takes blanks there, but with a tab it reads the body to the end of the connection.
            self._fail(Kind.INVALID_RESPONSE, "the target's Transfer-Encoding has a tab in it")
        return value.rstrip(OWS)

    def _note_trailer(self, response: Response, lower: bytes, name: bytes, value: bytes) -> None:
        if lower in response.trailer_names and not response.complete:
            self._trailers += b"%b: %b\r\n" % (name, value)
            if len(self._trailers) > self._endpoint.max_head_bytes:
                self._too_large()

    def _remove_nominated(self, response: Response) -> None:
        """Take out what `Connection` names; not the framing, which is not the target's to take away."""
        # Of more names than a head may have fields, the answer is refused already.
        nominated = nominated_fields(b",".join(self._connection)) if self.failure is None else NO_NAMES
        self._connection = []
        self._nominations = 0
        if not nominated:
            return
        response.lines = without(response.lines, nominated - {b"content-length"})
        response.trailer_names = response.trailer_names - nominated
        response.dated = response.dated and b"date" not in nominated

    def _learn_idle_limit(self, value: bytes) -> None:
        """Heed `Keep-Alive: timeout=N`: leave the connection a second before the target closes it."""
        for parameter in value.lower().split(b",", _MOST_PARAMETERS)[:_MOST_PARAMETERS]:
            name, _, seconds = parameter.strip().partition(b"=")
            if name == b"timeout" and seconds.isdigit():
                self.idle_limit = min(self._endpoint.idle_timeout, max(0.0, int(seconds[:6]) - 1.0))

    def _pass_interims(self, attempt: Attempt) -> None:
        """1xx answers go to the app as they come; for 101 see `_switched`."""
        interims, self._interims = self._interims, []
        for interim in interims:
            if interim.status != 101:
                attempt.call.app.write_interim(interim)
            elif not interim.complete:
                self._fail(Kind.INVALID_RESPONSE, "the target switched protocols without being asked")

    def _switched(self, rest: bytes) -> None:
        """The target has answered 101, and `rest` is no longer HTTP. Only one of the protocols that were asked for
        may be switched to, and only by a request that asked (RFC 9110 §7.8)."""
        attempt = self.attempt
        interim = self._interims[-1] if self._interims else None
        if (
            attempt is None
            or interim is None
            or interim.status != 101
            or self.failure is not None
            or self._parser.get_http_version() != "1.1"
        ):
            self._fail(Kind.INVALID_RESPONSE, "the target switched protocols without being asked")
            return
        if not attempt.call.all_here():
            self._fail(Kind.INVALID_RESPONSE, "the target switched protocols in the middle of the request")
            return
        asked = [one.strip().lower() for one in attempt.call.upgrade.split(b",")]
        if not attempt.call.upgrade or interim.upgrade.lower() not in asked:
            self._fail(Kind.INVALID_RESPONSE, "the target switched to a protocol that was not asked for")
            return
        interim.switches = interim.complete = self._head_done = True
        interim.pieces = [rest] if rest else []
        self.response = interim
        self.pause_reading()  # until the tunnel is there

    def _let_go(self) -> None:
        """The connection is gone: leave nothing that would keep this object, or its transport, in memory."""
        self._timers.forget(self)
        self._parser = self._poll = self._tunnel = None
        self._descriptor = -1
        self._transport = DISCARDING

    def _lost(self) -> None:
        if self.alive:
            self.alive = False
            if self._counted:
                self._endpoint.pool.forget(self)
