"""Asks the app what became of a call that was handed to it and whose answer nobody has heard.

The app's side is one operation: `GET` the configured path. It answers what it would have answered the call; 404 if it
has neither executed nor begun the call, and nothing else as long as it is at it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from outrider.dataplane.policies.guard import CALLER_HEADER
from outrider.dataplane.policies.idempotency import UnknownError, identity_of
from outrider.dataplane.policies.idempotency_key import KEY
from outrider.dataplane.readings import readings
from outrider.model.folding import folded
from outrider.model.messages import HOP_BY_HOP, is_field_value
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from outrider.dataplane.call import Call

_TIMEOUT: Final = 2.0
# Answers below 500 that are about the question, not about the call.
_NO_ANSWER: Final = frozenset((401, 403, 405, 406, 407, 408, 409, 421, 425, 426, 429))
_FRAMING: Final = HOP_BY_HOP | {b"content-length"}


class AppLookup:
    """`path` has `{key}` in it. An answer that is larger than `limit` bytes cannot be used."""

    def __init__(self, app: str, path: str, limit: int) -> None:
        self._app = app.rstrip("/")
        self._path = path
        before, in_path, _ = path.partition("?")[0].partition("{key}")
        self._below = folded(before.encode()) if in_path else b"/"
        self._limit = limit
        self._session: ClientSession | None = None

    async def __call__(self, call: Call, key: bytes) -> Reply | None:
        """The answer of the first call with this key; None if it has not been executed. Raises UnknownError."""
        import aiohttp  # takes longer than everything else at the start, and most guards never need it
        from yarl import URL

        from outrider.controlplane.connecting import connector

        path = self._path.replace("{key}", quote(key.decode("latin-1"), safe="", encoding="latin-1"))
        paths = readings(path.encode())
        if paths is None or not all(one.startswith(self._below) for one in paths):
            raise UnknownError("the key would lead to another path of the app")  # which nobody has been let in to
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
            # What one asks must not depend on what another one was answered.
            jar = aiohttp.DummyCookieJar()
            self._session = aiohttp.ClientSession(
                connector=connector(), timeout=timeout, auto_decompress=False, cookie_jar=jar
            )
        url, headers = URL(self._app + path, encoded=True), _headers(call, key)
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
                body = await answer.content.read(self._limit + 1)
                while len(body) <= self._limit and (more := await answer.content.read(self._limit + 1 - len(body))):
                    body += more
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise UnknownError(f"the app cannot be asked: {error or 'no answer in time'}") from None
        if answer.status == 404:
            return None
        if not (200 <= answer.status < 300 or 400 <= answer.status < 500) or answer.status in _NO_ANSWER:
            raise UnknownError(f"the app, asked about it, answers {answer.status}")
        if len(body) > self._limit:
            raise UnknownError("the app's word about it is larger than max_answer")
        lines = [(name, value) for name, value in answer.raw_headers if name.lower() not in _FRAMING]
        return Reply(answer.status, lines, body)

    async def close(self) -> None:
        """Close the connections to the app."""
        if self._session is not None:
            await self._session.close()


def _headers(call: Call, key: bytes) -> list[tuple[str, str]]:
    """Who asks, for whom, and about which operation, in the bytes of the call. Raises UnknownError if it cannot be."""
    fields = [
        (KEY, key),
        (b"x-outrider-operation", b"%b %b" % (call.method, call.path)),
        (b"accept-encoding", b"identity"),
    ]
    if call.caller and is_field_value(call.caller):
        fields.append((CALLER_HEADER, call.caller.encode()))
    try:
        # The client encodes what it sends as UTF-8, so these are the bytes that the app got with the call.
        return [(name.decode(), value.decode()) for name, value in [*fields, *identity_of(call)]]
    except UnicodeDecodeError:
        raise UnknownError("the app cannot be asked: the call has headers that are not UTF-8") from None
