"""Asks the app what became of a call that was handed to it and whose answer nobody has heard.

The app's side is one operation: `GET` the configured path. It answers what it would have answered the call; 404 if it
has neither executed nor begun the call, and nothing else as long as it is at it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from outrider.dataplane.policies.guard import CALLER_HEADER
from outrider.dataplane.policies.idempotency import KEY_HEADER, UnknownError
from outrider.model.messages import HOP_BY_HOP, is_field_value
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from aiohttp import ClientSession

_TIMEOUT: Final = 2.0
_FRAMING: Final = HOP_BY_HOP | {b"content-length"}


class AppLookup:
    """`path` has `{key}` in it. An answer that is larger than `limit` bytes cannot be used."""

    def __init__(self, app: str, path: str, limit: int) -> None:
        self._url = app.rstrip("/") + path
        self._limit = limit
        self._session: ClientSession | None = None

    async def __call__(self, key: bytes, caller: str) -> Reply | None:
        """The answer of the call with this key; None if it has not been executed. Raises UnknownError."""
        import aiohttp  # takes longer than everything else at the start, and most guards never need it
        from yarl import URL

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        headers = {KEY_HEADER: key.decode("latin-1")}
        if caller and is_field_value(caller):
            headers[CALLER_HEADER.decode()] = caller
        url = URL(self._url.replace("{key}", quote(key.decode("latin-1"), safe="", encoding="latin-1")), encoded=True)
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
                body = await answer.content.read(self._limit + 1)
                while len(body) <= self._limit and (more := await answer.content.read(self._limit + 1 - len(body))):
                    body += more
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise UnknownError(f"the app cannot be asked: {error or 'no answer in time'}") from None
        if answer.status == 404:
            return None
        if answer.status >= 500 or answer.status in (408, 409, 425, 429) or answer.status < 200:
            raise UnknownError(f"the app, asked about it, answers {answer.status}")
        if len(body) > self._limit:
            raise UnknownError("the app's word about it is larger than max_answer")
        lines = [(name, value) for name, value in answer.raw_headers if name.lower() not in _FRAMING]
        return Reply(answer.status, lines, body)

    async def close(self) -> None:
        """Close the connections to the app."""
        if self._session is not None:
            await self._session.close()
