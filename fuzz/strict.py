"""A strict HTTP/1.1 parser of its own: nothing in it is shared with Outrider or with the parser Outrider uses.

It reads in two ways. Strictly, it judges what Outrider wrote: one spelling for everything, nothing left to guess.
With `tolerant=True` it reads what went into Outrider and says what that means to a careful reader of RFC 9112:
where each message ends, and from where on nothing can be trusted any more.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"http2-settings",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

# What decides over framing, routing, access or what the content is must not come behind the content.
NEVER_TRAILERS = HOP_BY_HOP | frozenset(
    (
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"host",
        b"set-cookie",
    )
)

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/1\.1")
_REQUEST_LINE_TOLERANT = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) +([\x21-\x7e]+) +HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.(1) ([1-5][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)")
_STATUS_LINE_TOLERANT = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})")
_SIZE_TOLERANT = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
# What the grammar of RFC 9112 §7.1.1 has behind a chunk size.
_EXTENSIONS = re.compile(rb"[0-9a-fA-F]+(?:;[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:=[!#$%&'*+.^_`|~0-9A-Za-z-]+)?)*")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_DIGITS = re.compile(rb"[0-9]{1,19}")

Fields = list[tuple[bytes, bytes]]


class Unclean(Exception):  # noqa: N818  # it is a verdict on somebody else's bytes, not an error of this program
    """These bytes are not what a careful sender writes."""


@dataclass(slots=True)
class Message:
    """A request (`method`, `target`) or a response (`status`, `reason`), as far as it has come.

    `framing` is none, length, chunked, close (until the end of the connection) or raw (no longer HTTP). `end` is
    where in the stream its last byte, or the last of its head, was. `odd` messages may as well be refused.
    """

    method: bytes = b""
    target: bytes = b""
    status: int = 0
    reason: bytes = b""
    minor: int = 1
    fields: Fields = field(default_factory=list)
    framing: str = "none"
    length: int = 0
    body: bytearray = field(default_factory=bytearray)
    trailers: Fields = field(default_factory=list)
    complete: bool = False
    end: int = 0
    odd: bool = False

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a field, in order."""
        return [value for key, value in self.fields if key.lower() == name]

    def tokens(self, name: bytes) -> list[bytes]:
        """The members of a list-valued field, lower case."""
        return [token.strip(b" \t").lower() for value in self.get_all(name) for token in value.split(b",")]

    @property
    def lasting(self) -> bool:
        """Whether the connection goes on after this message."""
        tokens = self.tokens(b"connection")
        return b"close" not in tokens and (self.minor == 1 or b"keep-alive" in tokens)


def parse_fields(lines: list[bytes]) -> Fields:
    """Field lines without their line ends. Raises Unclean."""
    fields: Fields = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Unclean(f"not a field line: {line[:200]!r}")
        fields.append((match[1], match[2].rstrip(b" \t")))
    return fields


def parse_request_head(head: bytes, *, tolerant: bool = False) -> Message:
    """A request head without its final empty line. Raises Unclean."""
    first, *lines = head.split(b"\r\n")
    match = (_REQUEST_LINE_TOLERANT if tolerant else _REQUEST_LINE).fullmatch(first)
    if match is None:
        raise Unclean(f"not a request line: {first[:200]!r}")
    message = Message(method=match[1], target=match[2], minor=int(match[3]) if tolerant else 1)
    message.fields = parse_fields(lines)
    if len(message.get_all(b"host")) != 1 and (message.minor or message.get_all(b"host")):
        raise Unclean(f"{len(message.get_all(b'host'))} Host fields")
    _frame(message, tolerant=tolerant)
    return message


def parse_response_head(head: bytes, method: bytes, *, tolerant: bool = False) -> Message:
    """The head of an answer to `method`, without its final empty line. Raises Unclean."""
    first, *lines = head.split(b"\r\n")
    match = (_STATUS_LINE_TOLERANT if tolerant else _STATUS_LINE).fullmatch(first)
    if match is None:
        raise Unclean(f"not a status line: {first[:200]!r}")
    message = Message(status=int(match[2]), reason=match[3] or b"", minor=int(match[1]))
    message.odd = _CONTROL.search(message.reason) is not None or message.status > 599
    message.fields = parse_fields(lines)
    _frame(message, tolerant=tolerant)
    status = message.status
    if status == 101:
        if not tolerant and message.framing != "none":
            raise Unclean("an answer that leaves HTTP with framing fields")
        message.framing = "raw"
    elif status < 200:
        # It ends with its head, whatever its fields say (RFC 9112 §6.3, rule 1).
        if not tolerant and message.framing != "none":
            raise Unclean("an informational response with framing fields")
        message.odd |= message.framing != "none" or not message.lasting
        message.framing = "none"
        message.length = 0
    elif method == b"HEAD" or status in (204, 304):
        if not tolerant and message.framing == "chunked":
            raise Unclean("Transfer-Encoding on an answer without a body")
        if not tolerant and status == 204 and message.get_all(b"content-length"):
            raise Unclean("Content-Length in a 204")
        message.framing = "none"
        message.length = 0
    elif message.framing == "none":
        message.framing = "close"
    return message


def _frame(message: Message, *, tolerant: bool) -> None:
    """How the message ends, as its framing fields say. Raises Unclean where two readers could disagree."""
    lengths = message.get_all(b"content-length")
    codings = message.get_all(b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise Unclean(f"ambiguous framing: Content-Length {lengths}, Transfer-Encoding {codings}")
    if codings:
        if codings[0].lower() != b"chunked":
            raise Unclean(f"transfer coding {codings[0]!r}")
        if not message.minor and not tolerant:
            raise Unclean("Transfer-Encoding in HTTP/1.0")
        message.framing = "chunked"
    elif lengths:
        if not _DIGITS.fullmatch(lengths[0]):
            raise Unclean(f"Content-Length {lengths[0]!r}")
        message.framing = "length"
        message.length = int(lengths[0])


class Reader:
    """Reads a stream of messages, fed in any pieces.

    `messages` are all of which the head was whole and clean, the last perhaps incomplete. `error` says why nothing
    further can be trusted. `offset` is where the bytes begin that are no message (yet). Responses need to know the
    `methods` they answer, in order; GET is assumed for any further.
    """

    def __init__(self, *, responses: bool = False, tolerant: bool = False, methods: Iterable[bytes] = ()) -> None:
        self.responses = responses
        self.tolerant = tolerant
        self.methods = deque(methods)
        self.messages: list[Message] = []
        self.error: str | None = None
        self.offset = 0
        self.finished = False  # nothing more is read: the last message said that the connection ends
        self._buffer = bytearray()
        self._state = self._head
        self._left = 0

    @property
    def partial(self) -> bool:
        """Whether the stream so far ends inside a message."""
        if self.error is not None or self.finished:
            return False
        rest = self._buffer.strip(b"\r\n") if self.tolerant and not self.responses else self._buffer
        return bool(rest) or bool(self.messages and not self.messages[-1].complete)

    @property
    def rest(self) -> bytes:
        """What has not been read as part of a message."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> None:
        """Read on."""
        self._buffer += data
        try:
            while self.error is None and not self.finished and self._state():
                pass
        except Unclean as unclean:
            self.error = str(unclean)

    def end(self) -> None:
        """The connection has ended in an orderly way."""
        if self.error is None and self.messages and self.messages[-1].framing == "close":
            self.messages[-1].complete = True
            self.finished = True

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        self.offset += count
        return taken

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > 1 << 17 or (b"\n" in self._buffer and not self.tolerant):
                raise Unclean(f"a line without end: {bytes(self._buffer[:200])!r}")
            return None
        return self._take(end + 2)[:-2]

    def _head(self) -> bool:
        before = self.offset
        if self.tolerant and (self.messages or not self.responses):  # RFC 9112 §2.2: empty lines are skipped
            while self._buffer.startswith((b"\r", b"\n")):
                self._take(1)
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end])
        if self.responses:
            method = self.methods[0] if self.methods else b"GET"
            message = parse_response_head(head, method, tolerant=self.tolerant)
            if message.status >= 200 and self.methods:
                self.methods.popleft()
        else:
            message = parse_request_head(head, tolerant=self.tolerant)
        message.odd |= self.responses and self.offset != before
        self._take(end + 4)
        self.messages.append(message)
        message.end = self.offset
        self._left = message.length
        if message.framing == "none" or (message.framing == "length" and not message.length):
            self._done()
        else:
            self._state = {
                "length": self._counted,
                "chunked": self._size,
                "close": self._endless,
                "raw": self._endless,
            }[message.framing]
        return True

    def _done(self) -> None:
        message = self.messages[-1]
        message.complete = True
        message.end = self.offset
        self._state = self._head
        if self.tolerant and not message.lasting and message.status not in range(100, 200):
            self.finished = True

    def _counted(self) -> bool:
        piece = self._take(min(self._left, len(self._buffer)))
        self.messages[-1].body += piece
        self._left -= len(piece)
        if not self._left:
            self._done()
            return True
        return False

    def _endless(self) -> bool:
        self.messages[-1].body += self._take(len(self._buffer))
        return False

    def _size(self) -> bool:
        line = self._line()
        if line is None:
            return False
        match = (_SIZE_TOLERANT if self.tolerant else _SIZE).fullmatch(line)
        if match is None:
            raise Unclean(f"not a chunk size: {line[:200]!r}")
        self._left = int(match[1], 16)
        self.messages[-1].odd |= _EXTENSIONS.fullmatch(line) is None
        self._state = self._chunk if self._left else self._trailers
        return True

    def _chunk(self) -> bool:
        piece = self._take(min(self._left, len(self._buffer)))
        self.messages[-1].body += piece
        self._left -= len(piece)
        if not self._left:
            self._state = self._chunk_end
            return True
        return False

    def _chunk_end(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if (end := self._take(2)) != b"\r\n":
            raise Unclean(f"a chunk ends with {end!r}")
        self._state = self._size
        return True

    def _trailers(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if not line:
            self._done()
            return True
        message = self.messages[-1]
        ((name, value),) = parse_fields([line])
        if not self.tolerant and (not self.responses or name.lower() not in message.tokens(b"trailer")):
            raise Unclean(f"a trailer that nobody announced: {line[:200]!r}")
        if not self.tolerant and name.lower() in NEVER_TRAILERS:
            raise Unclean(f"a trailer that must be a header: {line[:200]!r}")
        message.odd |= name.lower() in (b"content-length", b"transfer-encoding")
        message.trailers.append((name, value))
        return True


def chunked(pieces: Iterable[bytes]) -> bytes:
    """Pieces in chunked framing, last chunk included."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*(p for p in pieces if p), b""))


def serialize(message: Message) -> bytes:
    """A message as bytes, framed as it says; the inverse of reading for everything that is clean."""
    if message.status:
        first = b"HTTP/1.%d %d %b" % (message.minor, message.status, message.reason)
    else:
        first = b"%b %b HTTP/1.%d" % (message.method, message.target, message.minor)
    head = b"\r\n".join((first, *(b"%b: %b" % pair for pair in message.fields), b"", b""))
    body = bytes(message.body)
    return head + (chunked([body]) if message.framing == "chunked" else body)
