"""Asks the app what became of a call that was handed to it and whose answer is not known.

The app's side is one operation: `GET` the configured path. It answers what it would have answered the call; 404 if it
has neither executed nor begun the call, and nothing else as long as it is at it.

The app is asked with the very bytes of the call, which need not be text in any encoding. The standard library's client
can do that; it blocks, so it has threads of its own.
"""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from outrider.blocking import run_apart
from outrider.dataplane.http1.path_interpretations import readings
from outrider.dataplane.policies.guard.guard import CALLER_HEADER, OPERATION_HEADER, caller_value
from outrider.dataplane.policies.idempotency import UnknownError, identity_of
from outrider.dataplane.policies.idempotency_key import KEY
from outrider.model.folding import folded
from outrider.model.messages import HOP_BY_HOP
from outrider.model.patterns import HeaderNames
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

Fields = list[tuple[bytes, bytes]]

_TIMEOUT: Final = 2.0  # seconds
_AT_ONCE: Final = 8  # questions
# Answers below 500 that are about the question, not about the call.
_NO_ANSWER: Final = frozenset((401, 403, 405, 406, 407, 408, 409, 421, 425, 426, 429))
_FRAMING: Final = HOP_BY_HOP | {b"content-length"}


class AppLookup:
    """`path` has `{key}` in it. An answer that is larger than `limit` bytes cannot be used. `identity` are names of
    headers, or beginnings with `*`, that say who somebody is."""

    def __init__(self, app: str, path: str, limit: int, identity: Sequence[str] = ()) -> None:
        self._app = urlsplit(app)
        self._path = path
        before, in_path, _ = path.partition("?")[0].partition("{key}")
        self._below = folded(before.encode()) if in_path else b"/"
        self._limit = limit
        self._identity = HeaderNames(identity)
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def __call__(self, call: Call, key: bytes) -> Reply | None:
        """The answer of the first call with this key; None if it has not been executed. Raises UnknownError."""
        path = self._path.replace("{key}", quote(key.decode("latin-1"), safe="", encoding="latin-1"))
        paths = readings(path.encode())
        if paths is None or not all(one.startswith(self._below) for one in paths):
            raise UnknownError("the key would lead to another path of the app")  # which the caller may not see
        fields = self._fields(call, key)
        try:
            async with asyncio.timeout(_TIMEOUT), self._at_once:
                ends = monotonic() + _TIMEOUT
                status, lines, body = await run_apart(object(), lambda: self._ask(path, fields, ends), _TIMEOUT)
        except (http.client.HTTPException, OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise UnknownError(f"the app cannot be asked: {error or 'no answer in time'}") from None
        if status == 404:
            return None
        if not (200 <= status < 300 or 400 <= status < 500) or status in _NO_ANSWER:
            raise UnknownError(f"the app, asked about it, answers {status}")
        if len(body) > self._limit:
            raise UnknownError("the app's word about it is larger than max_answer")
        return Reply(status, [(name, value) for name, value in lines if name.lower() not in _FRAMING], body)

    def _ask(self, path: str, fields: Fields, ends: float) -> tuple[int, Fields, bytes]:
        """Status, fields and body of the app's answer. Raises OSError or HTTPException; runs in a thread."""
        kind = http.client.HTTPSConnection if self._app.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._app.hostname or "", self._app.port, timeout=_TIMEOUT)
        try:
            connection.putrequest("GET", self._app.path.rstrip("/") + path, skip_accept_encoding=True)
            for name, value in fields:
                connection.putheader(name.decode("latin-1"), value)
            connection.endheaders()
            with connection.getresponse() as answer:
                declared = answer.length
                if declared is None and not answer.chunked:
                    # It would end with the connection, and so does one that is cut off, even in the middle of its head.
                    raise http.client.HTTPException("its answer does not say how long it is")
                wanted = self._limit + 1 if declared is None else min(self._limit + 1, declared)
                body = b""
                while len(body) < wanted and (piece := answer.read1(wanted - len(body))):
                    body += piece
                    if monotonic() > ends:
                        raise TimeoutError("no answer in time")
                if declared is not None and len(body) < wanted:
                    raise http.client.IncompleteRead(body, declared)
                lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.getheaders()]
                return answer.status, lines, body
        finally:
            connection.close()

    def _fields(self, call: Call, key: bytes) -> Fields:
        """Who asks, for whom, and about which operation, in the bytes of the call."""
        fields = [
            (KEY, key),
            (OPERATION_HEADER, b"%b %b" % (call.method, call.path)),
            (b"accept-encoding", b"identity"),
            (b"connection", b"close"),
        ]
        if call.caller:
            fields.append((CALLER_HEADER, caller_value(call.caller)))
        return fields + identity_of(call, self._identity)
