"""HTTP/1.1 messages as RFC 9112 has them, and nothing else: the parsers of both ends of the wire tests.

They share no code with Outrider or with the parser Outrider uses, know no leniency, and take bytes, not sockets:
each function looks at the start of a buffer and says what is there, `None` for "not whole yet", or raises Violation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)")
_VALUE = rb"((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)"
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*" + _VALUE + rb"[ \t]*")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_EXTENSION = rb"[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})((?:" + _EXTENSION + rb")*)")

Fields = list[tuple[bytes, bytes]]


class Violation(Exception):  # noqa: N818 - it is not an error of the program
    """These bytes are not what RFC 9112 allows."""


@dataclass
class Message:
    """A head, and the body that belongs to it. `size` is what both took of the buffer."""

    fields: Fields
    minor: int
    framing: str = "none"  # none, length, chunked, close
    length: int = 0
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    extensions: bytes = b""
    complete: bool = False
    head_size: int = 0
    size: int = 0

    def values(self, name: str) -> list[bytes]:
        """Every value of a field, in order."""
        wanted = name.lower().encode()
        return [value for key, value in self.fields if key.lower() == wanted]

    def tokens(self, name: str) -> list[bytes]:
        """The members of a list field, in lower case."""
        members = (part.strip().lower() for value in self.values(name) for part in value.split(b","))
        return [member for member in members if member]

    def names(self) -> set[str]:
        """All field names, in lower case."""
        return {name.lower().decode() for name, _ in self.fields}


@dataclass
class Request(Message):
    """A request as the target received it."""

    method: str = ""
    target: str = ""
    connection: int = 0
    number: int = 0

    def __repr__(self) -> str:
        state = "whole" if self.complete else "part"
        return f"<{self.method} {self.target} {self.framing} {self.body[:40]!r} {state}, connection {self.connection}>"


@dataclass
class Response(Message):
    """A response as the app received it."""

    status: int = 0
    reason: bytes = b""

    def __repr__(self) -> str:
        return f"<{self.status} {self.framing} {self.body[:60]!r}{'' if self.complete else ' ...'}>"


def request_head(buffer: bytes) -> Request | None:
    """The request head at the start of the buffer."""
    head = _head(buffer)
    if head is None:
        return None
    first, *lines = head[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise Violation(f"not a request line: {first[:80]!r}")
    request = Request(_fields(lines), int(match[3]), method=match[1].decode(), target=match[2].decode())
    hosts = request.values("host")
    if len(hosts) > 1 or (not hosts and request.minor):
        raise Violation(f"{len(hosts)} Host fields")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise Violation(f"not a host: {hosts[0]!r}")
    if not request.target.startswith(("/", "http://")) and (request.method, request.target) != ("OPTIONS", "*"):
        raise Violation(f"not a target for {request.method}: {request.target!r}")
    request.framing, request.length = _framing(request) or ("none", 0)
    request.head_size = len(head)
    return request


def response_head(buffer: bytes, method: str, minor: int) -> Response | None:
    """The response head at the start of the buffer, in answer to `method` from an HTTP/1.`minor` app."""
    head = _head(buffer)
    if head is None:
        return None
    first, *lines = head[:-4].split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise Violation(f"not a status line: {first[:80]!r}")
    response = Response(_fields(lines), int(match[1]), status=int(match[2]), reason=match[3])
    framing = _framing(response)
    if framing is not None and (response.status < 200 or response.status == 204):
        raise Violation(f"{response.status} with a declared body (RFC 9110 section 8.6, RFC 9112 section 6.1)")
    if not minor and response.status < 200:
        raise Violation("1xx for an HTTP/1.0 app (RFC 9110 section 15.2)")
    if not minor and response.values("transfer-encoding"):
        raise Violation("Transfer-Encoding for an HTTP/1.0 app (RFC 9112 section 6.1)")
    if method == "HEAD" or response.status < 200 or response.status in (204, 304):
        framing = ("none", 0)
    response.framing, response.length = framing or ("close", 0)
    response.head_size = len(head)
    return response


def take_body(buffer: bytes, message: Message) -> bool:
    """Read what the buffer, which starts with the message's head, holds of its body; True when that is all of it.

    A body that ends with the connection is never complete here: only the end of the connection shows it.
    """
    if message.framing == "chunked":
        return _take_chunks(buffer, message)
    end = len(buffer) if message.framing == "close" else message.head_size + message.length
    message.body = buffer[message.head_size : end]
    message.size = min(end, len(buffer))
    message.complete = message.framing != "close" and len(buffer) >= end
    return message.complete


def _take_chunks(buffer: bytes, message: Message) -> bool:
    at, pieces = message.head_size, []
    message.complete, message.extensions = False, b""
    while (end := buffer.find(b"\r\n", at)) >= 0:
        match = _CHUNK_SIZE.fullmatch(buffer[at:end])
        if match is None:
            raise Violation(f"not a chunk size: {buffer[at:end][:60]!r}")
        size, at = int(match[1], 16), end + 2
        message.extensions += match[2]
        if size == 0:
            end = at - 2 if buffer[at : at + 2] == b"\r\n" else buffer.find(b"\r\n\r\n", at)
            if end >= 0:
                trailers = buffer[at:end] if end > at else b""
                message.trailers = _fields(trailers.split(b"\r\n")) if trailers else []
                message.complete = True
                message.size = end + 4
            break
        pieces.append(buffer[at : at + size])
        at += size
        if len(buffer) >= at + 2 and buffer[at : at + 2] != b"\r\n":
            raise Violation(f"a chunk that ends with {buffer[at : at + 2]!r}")
        at += 2
    else:
        if len(buffer) - at > 4096:
            raise Violation("a chunk-size line without end")
    message.body = b"".join(pieces)
    if not message.complete:
        message.size = len(buffer)
    return message.complete


def _head(buffer: bytes) -> bytes | None:
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        # A head that cannot become well-formed is not waited for.
        for line in buffer[:65536].split(b"\r\n")[:-1]:
            if b"\n" in line or b"\r" in line or b"\0" in line:
                raise Violation(f"control bytes in a line: {line[:80]!r}")
        return None
    return buffer[: end + 4]


def _fields(lines: list[bytes]) -> Fields:
    fields = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Violation(f"not a field line: {line[:80]!r}")
        fields.append((match[1], match[2]))
    return fields


def _framing(message: Message) -> tuple[str, int] | None:
    lengths, codings = message.values("content-length"), message.values("transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise Violation(f"framed more than once: {lengths + codings}")
    if codings:
        if codings[0].lower() != b"chunked" or not message.minor:
            raise Violation(f"Transfer-Encoding: {codings[0]!r} in HTTP/1.{message.minor}")
        return "chunked", 0
    if lengths:
        if not re.fullmatch(rb"[0-9]{1,15}", lengths[0]):
            raise Violation(f"Content-Length: {lengths[0]!r}")
        return "length", int(lengths[0])
    return None
