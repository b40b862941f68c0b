"""The little HTTP/1.1 that a page to look at needs: GET and HEAD, one request after the other, no bodies.

Strangers may ask. A head is bounded, a connection with anything unusual on it is answered once and closed, and what
follows a request is read when that has been answered and the answer has been taken.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from time import gmtime, strftime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from outrider.controlplane.servers import Visitor

log = logging.getLogger("outrider")

_LONGEST_HEAD: Final = 16 * 1024
_END: Final = b"\r\n\r\n"
# RFC 9112 §3; a target is any visible ASCII.
_REQUEST_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([01])")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as far as it matters here. `path` is without its query; `last`: none may follow on the connection."""

    method: str
    path: str
    accept: str = ""
    last: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[Asked], Awaitable[Reply]]

_BAD: Final = Reply(400, b"this is no request\n")
_TOO_LARGE: Final = Reply(431, b"the head is too large\n")


def parse(head: bytes) -> Asked | None:
    """The request of a head, up to and with its empty line; None if it is not one."""
    line, *fields = head[: -len(_END)].decode("latin-1").removeprefix("\r\n").split("\r\n")
    request = _REQUEST_LINE.fullmatch(line)
    if request is None:
        return None
    values: dict[str, str] = {}
    for field in fields:
        name, colon, value = field.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or _CONTROL.search(value):
            return None
        name, value = name.lower(), value.strip(" \t")
        values[name] = f"{values[name]}, {value}" if name in values else value
    method, target, minor = request.groups()
    # A body is not read, so what would follow it cannot be found.
    has_body = "transfer-encoding" in values or values.get("content-length", "0") != "0"
    wants_close = "close" in [one.strip() for one in values.get("connection", "").lower().split(",")]
    return Asked(method, _path(target), values.get("accept", ""), last=minor == "0" or has_body or wants_close)


def _path(target: str) -> str:
    """The path of a target in origin or absolute form (RFC 9112 §3.2)."""
    if not target.startswith("/"):
        target = "/" + target.partition("://")[2].partition("/")[2]
    return target.partition("?")[0]


def formed(reply: Reply, *, head_only: bool, last: bool) -> bytes:
    """An answer as it goes on the wire."""
    lines = [
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
        f"Date: {strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime())}",
        f"Content-Type: {reply.content_type}",
        f"Content-Length: {len(reply.body)}",
        *(["Allow: GET, HEAD"] if reply.status == 405 else []),
        *(["Connection: close"] if last else []),
    ]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if head_only else head + reply.body


class PlainHandler:
    """Serves pages by their path."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages

    async def serve(self, accepted: socket.socket, visitor: Visitor) -> None:
        """Answer requests until the visitor leaves, is made to leave, or says something unusual."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_LONGEST_HEAD)
        protocol = asyncio.StreamReaderProtocol(reader)
        visitor.transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted)
        writer = asyncio.StreamWriter(visitor.transport, protocol, reader, loop)
        try:
            while await self._one(reader, writer, visitor):
                pass
        except asyncio.IncompleteReadError:
            pass  # it has left
        finally:
            visitor.transport.close()

    async def close(self) -> None:
        """Every connection is served to its end by `serve`."""

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, visitor: Visitor) -> bool:
        """Answer a request. Returns whether another one may follow."""
        try:
            asked = parse(await reader.readuntil(_END))
        except asyncio.LimitOverrunError:
            asked, reply = None, _TOO_LARGE
        else:
            reply = _BAD if asked is None else await self._answer(asked, visitor)
        last = asked is None or asked.last
        writer.write(formed(reply, head_only=asked is not None and asked.method == "HEAD", last=last))
        await writer.drain()
        await asyncio.sleep(0)  # requests that have come together do not hold the event loop
        return not last

    async def _answer(self, asked: Asked, visitor: Visitor) -> Reply:
        page = self._pages.get(asked.path)
        if page is None:
            return Reply(404, b"not found\n")
        if asked.method not in ("GET", "HEAD"):
            return Reply(405, b"method not allowed\n")
        try:
            async with visitor.attended():
                return await page(asked)
        except TimeoutError:
            return Reply(503, b"it took too long\n")
        except Exception:
            log.exception("a bug in Outrider: %s cannot be shown", asked.path)
            return Reply(500, b"internal error\n")
