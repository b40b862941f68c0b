"""One bounded HTTP request for what Outrider itself needs from others: key sets, tokens, the state of an app.

Whoever answers may be broken or hostile, so time and size are limited, redirects and cookies are not followed, nothing
is decompressed, and no message shows the secrets of a URL.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider.controlplane.late import Late
from outrider.model.addresses import hide_in_urls

if TYPE_CHECKING:
    from aiohttp import ClientResponse


def _import_client() -> None:
    import outrider.controlplane.connecting  # noqa: F401 # for the side effect: aiohttp, which takes long to import


_CLIENT = Late(_import_client)


class FetchError(Exception):
    """Something could not be had; the message says why, without any secret."""


class TooLargeError(FetchError):
    """The answer is larger than allowed."""


@dataclass(slots=True, frozen=True)
class Answer:
    """A complete answer."""

    status: int
    body: bytes = field(repr=False)


async def fetch(
    url: str,
    *,
    timeout: float,
    limit: int,
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """GET a URL, or POST a form to it, and read the answer to its end, however it is framed and cut into segments.

    `timeout` is in seconds, for everything together; `limit` in bytes of the body. Raises FetchError.
    """
    await _CLIENT.get()
    import aiohttp

    from outrider.controlplane.connecting import connector

    asked = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "outrider", **(headers or {})}
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector(),
                timeout=aiohttp.ClientTimeout(total=timeout),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
            session.request(
                "GET" if form is None else "POST", url, data=form, headers=asked, allow_redirects=False
            ) as response,
        ):
            return Answer(response.status, await read_bounded(response, limit))
    except TimeoutError:
        raise FetchError(f"{hide_in_urls(url)} did not answer within {timeout:g} s") from None
    except TooLargeError as error:
        raise TooLargeError(f"{hide_in_urls(url)} {error}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise FetchError(f"{hide_in_urls(url)}: {reason(error)}") from None


async def read_bounded(response: ClientResponse, limit: int) -> bytes:
    """The body of an answer to its end. Raises TooLargeError as soon as more than `limit` bytes have come."""
    if (response.content_length or 0) > limit:
        raise TooLargeError(f"answered more than {limit} bytes")
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise TooLargeError(f"answered more than {limit} bytes")
    return bytes(body)


def reason(error: BaseException) -> str:
    """Why a request failed, in one line without the secrets of URLs."""
    text = str(error).splitlines()
    return hide_in_urls(text[0])[:200] if text else type(error).__name__


def parse_json(data: bytes) -> Any:
    """What a stranger's JSON says. Raises ValueError, also for nesting without end and numbers without end."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
