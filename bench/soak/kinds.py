"""Kinds of calls: what a client sends, how it behaves, and what may come back."""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

KEY: Final = "soak-key-that-proves-the-caller-0123456789"
ID_LENGTH: Final = 12
# In a request, the place of its id; every request and its answer carry one.
ID: Final = b"@" * ID_LENGTH


@dataclass(frozen=True)
class Kind:
    """A kind of call. `weight` is its share; `data` the request, with ID where its id goes.

    `statuses` may come back; `size` is the length of the body of a 200. `echoes`: the answer carries the id. `breaks`:
    the connection may break instead of an answer.

    `behaviour` is more than asking and waiting: `abort` hangs up at the first byte of the answer, `leave` hangs up
    without waiting for it, `reset` resets the connection at once, `unread` never reads the answer, `half` ends the
    sending side after the request, `end` does so under TLS too and leaves, `later` sends `rest` a moment later,
    `tunnel` leaves HTTP, `slow` reads the answer slowly, `pipeline` sends the request eight times at once.
    """

    name: str
    weight: int
    data: bytes
    statuses: tuple[int, ...] = (200,)
    size: int | None = None
    echoes: bool = True
    behaviour: str = ""
    rest: bytes = b""
    breaks: bool = False

    @property
    def uncertain(self) -> bool:
        """Whether the client cannot know if the request was carried."""
        return self.behaviour in ("abort", "leave", "reset", "unread", "end") or self.breaks


def _head(method: str, path: str, *lines: str) -> bytes:
    fields = ("Host: 127.0.0.1:4100", f"x-soak-id: {ID.decode()}", *lines)
    return "\r\n".join((f"{method} {path} HTTP/1.1", *fields)).encode() + b"\r\n\r\n"


def _post(path: str, body: bytes, *lines: str) -> bytes:
    return _head("POST", path, f"Content-Length: {len(body)}", *lines) + body


_CHUNKS = (b"2000\r\n" + bytes(8192) + b"\r\n") * 4 + b"0\r\n\r\n"
FRAME: Final = bytes([0x81, 0x85, 1, 2, 3, 4]) + bytes(a ^ b for a, b in zip(b"hello", [1, 2, 3, 4, 1], strict=True))
_UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eHl6")

# The app's own calls, through both sidecars.
CALLS: Final = (
    Kind("small", 600, _head("GET", "/peer/small"), size=42),
    Kind("post", 80, _post("/peer/small", bytes(20)), size=42),
    Kind("keyed post", 40, _post("/peer/small", bytes(20), f"Idempotency-Key: {ID.decode()}"), size=42),
    Kind("put", 20, b"PUT" + _post("/peer/small", bytes(20))[4:], size=42),
    Kind("large", 25, _head("GET", "/peer/large"), size=65536),
    Kind("chunked", 25, _head("GET", "/peer/chunked"), size=32768),
    Kind("upload", 15, _head("POST", "/peer/small", "Transfer-Encoding: chunked"), behaviour="later", rest=_CHUNKS),
    Kind("pipelined", 10, _head("GET", "/peer/small"), size=42, behaviour="pipeline"),
    Kind("slow reader", 3, _head("GET", "/peer/huge"), size=1 << 20, behaviour="slow"),
    Kind("slow target", 10, _head("GET", "/peer/slow")),
    Kind("error", 15, _head("GET", "/faulty/error"), (500, 504)),
    Kind("reset", 10, _head("GET", "/faulty/reset"), (502, 504), echoes=False),
    Kind("closed", 10, _head("GET", "/faulty/close"), (502, 504), echoes=False),
    Kind("hang", 3, _head("GET", "/faulty/hang"), (504,), echoes=False),
    Kind("truncated", 10, _head("GET", "/faulty/truncated"), (502, 504), echoes=False, breaks=True),
    Kind("garbage answer", 10, _head("GET", "/faulty/garbage"), (502, 504), echoes=False),
    Kind("circuit", 10, _head("GET", "/broken/reset"), (502, 503, 504), echoes=False),
    Kind("unknown", 5, _head("GET", "/nobody/x"), (502,), echoes=False),
    Kind("client aborts", 10, _head("GET", "/peer/huge"), behaviour="abort"),
    Kind("client half-closes", 8, _head("GET", "/peer/small"), behaviour="half", breaks=True),
    Kind("client leaves a hang", 3, _head("GET", "/faulty/hang"), behaviour="leave"),
    Kind("garbage", 5, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", (400,), echoes=False),
    Kind("upload breaks off", 5, _post("/peer/small", bytes(9999))[:-9900], behaviour="leave"),
    Kind("tunnel", 8, _head("GET", "/plain/switch", *_UPGRADE), (101,), echoes=False, behaviour="tunnel"),
)

# Callers with the key, at the guard.
CALLERS: Final = (
    Kind("proven", 60, _head("GET", "/small", f"x-api-key: {KEY}", "x-service-name: direct"), size=42),
    Kind("proven keyed", 20, _post("/small", bytes(20), f"x-api-key: {KEY}", "x-service-name: direct",
                                   f"Idempotency-Key: {ID.decode()}"), size=42),
    Kind("proven large", 5, _head("GET", "/large", f"x-api-key: {KEY}", "x-service-name: direct"), size=65536),
)  # fmt: skip

# Strangers, at the guard. The last four never send a request that could be answered.
STRANGERS: Final = (
    Kind("without a key", 20, _head("GET", "/small"), (401,), echoes=False),
    Kind("wrong key", 10, _head("GET", "/small", "x-api-key: guess"), (401,), echoes=False),
    Kind("refused upload", 10, _post("/small", bytes(30_000)), (401,), echoes=False, breaks=True),
    Kind("pipelined refusals", 5, _head("GET", "/small"), (401,), echoes=False, behaviour="pipeline", breaks=True),
    Kind("spelled oddly", 5, _head("GET", "/%2e%2e/%2fsmall;a/%20" + "%20" * 50), (401,), echoes=False),
    Kind("garbage from a stranger", 10, b"\x00\x01\x02garbage\r\n\r\n", (400,), echoes=False),
    Kind("half a head", 10, _head("GET", "/small")[:-20], behaviour="leave"),
    Kind("silence", 10, b"", behaviour="leave"),
    Kind("many fields", 5, _head("GET", "/small")[:-2] + b"a:b\r\n" * 4000, (431, 408), echoes=False, breaks=True),
    Kind("leaves after asking", 5, _head("GET", "/small"), behaviour="leave"),
)

# One connection each: half of them as they should be.
_MINE: Final = f"x-api-key: {KEY}"


def connections(prefix: str) -> tuple[Kind, ...]:
    """What becomes of a connection to a listener where the app is found at `prefix`; the second half misbehave."""
    small, vast = prefix + "/small", prefix + "/vast"  # more than all the buffers on the way hold
    return (
        Kind("one call", 5, _head("GET", small, _MINE), size=42),
        Kind("the last call", 2, _head("GET", small, _MINE, "Connection: close"), size=42),
        Kind("post", 2, _post(small, bytes(2000), _MINE), size=42),
        Kind("pipelined", 1, _head("GET", small, _MINE), size=42, behaviour="pipeline"),
        Kind("silence", 1, b"", behaviour="leave"),
        Kind("half a head", 2, _head("GET", small, _MINE)[:-20], behaviour="leave"),
        Kind("reset at once", 1, b"", behaviour="reset"),
        Kind("reset after asking", 1, _head("GET", prefix + "/slow", _MINE), behaviour="reset"),
        Kind("reset in its upload", 1, _post(small, bytes(60_000), _MINE)[:-10_000], behaviour="reset"),
        Kind("leaves its upload", 1, _post(small, bytes(9999), _MINE)[:-9000], behaviour="leave"),
        Kind("garbage", 1, b"\x00\x01\x02garbage\r\n\r\n", (400,), echoes=False),
        Kind("half-closed", 1, _head("GET", prefix + "/slow", _MINE), behaviour="end"),
        Kind("unread answer", 1, _head("GET", vast, _MINE), behaviour="unread"),
    )


def _hello() -> bytes:
    """The first message of a TLS client."""
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


_HELLO: Final = _hello()

# To a listener that has TLS, without it.
HANDSHAKES: Final = (
    Kind("half a hello", 2, _HELLO[:100], behaviour="leave"),
    Kind("half a hello, then reset", 1, _HELLO[:100], behaviour="reset"),
    Kind("handshake left", 2, _HELLO, behaviour="unread"),
    Kind("handshake reset", 1, _HELLO, behaviour="reset"),
    Kind("no TLS", 1, _head("GET", "/small", _MINE), behaviour="leave"),
    Kind("not a word", 1, b"", behaviour="leave"),
    Kind("reset before the hello", 1, b"", behaviour="reset"),
)
