"""Key sets of token issuers (RFC 7517): from a file or a URL, read again when they change, and when a token names a key
that is not among them."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from time import monotonic
from typing import Any

from outrider.dataplane.policies.tokens import TokenProof

log = logging.getLogger("outrider")

_FILE_EVERY = 1.0
_URL_EVERY = 300.0
# Seconds between two looks that unknown keys can ask for: anybody can invent those.
_ON_DEMAND_EVERY = 30.0
_AGAIN = 5.0
_BEING_WRITTEN = 2  # looks in a row: the first one may have come in the middle of a change
_TIMEOUT = 3.0
_LARGEST = 1 << 20


class KeySet:
    """One set, and the proof that takes its keys. While it cannot be read, the last keys stay in use."""

    def __init__(self, source: str, alg: str, proof: TokenProof) -> None:
        self._source = source
        self._alg = alg
        self._proof = proof
        self._seen = b""
        self._failures = 0
        self._wanted = asyncio.Event()
        self._looked = 0.0
        proof.unknown_key = self._wanted.set

    async def look(self) -> float:
        """Read the set now, and use it; in how many seconds to do it again."""
        self._looked = monotonic()
        try:
            data = await self._read()
            if data != self._seen:
                keys = parse(data, self._alg)
                self._proof.replace(keys)
                self._seen = data
                log.info("%s has %d keys for %s", self._source, len(keys), self._alg)
        except (OSError, ValueError, TimeoutError) as error:
            self._failures += 1
            if self._failures == (1 if self._is_url() else _BEING_WRITTEN):
                log.error("the key set %s cannot be used: %s; the last keys stay", self._source, error or "no answer")
            return _AGAIN if self._is_url() else _FILE_EVERY
        self._failures = 0
        return _URL_EVERY if self._is_url() else _FILE_EVERY

    async def watch(self, pause: float) -> None:
        """Look again and again, sooner if a token names an unknown key, until cancelled."""
        while True:
            self._wanted.clear()
            try:
                await asyncio.wait_for(self._wanted.wait(), pause)
                await asyncio.sleep(max(0.0, self._looked + _ON_DEMAND_EVERY - monotonic()) if self._is_url() else 0.0)
            except TimeoutError:
                pass
            pause = await self.look()

    def _is_url(self) -> bool:
        return not self._source.startswith("/")

    async def _read(self) -> bytes:
        if not self._is_url():
            return await asyncio.to_thread(Path(self._source).read_bytes)
        import aiohttp  # late, as it takes long to import

        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT)) as session,
                session.get(self._source, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise ValueError(f"it answered {response.status}")
                data = await response.content.read(_LARGEST + 1)
        except aiohttp.ClientError as error:
            raise ValueError(str(error) or type(error).__name__) from None
        if len(data) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        return data


def parse(data: bytes, alg: str) -> dict[str | None, Any]:
    """The keys of a set that are for this algorithm, by `kid`. Raises ValueError if there are none."""
    import jwt

    try:
        listed = json.loads(data)["keys"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("it is not a key set") from None
    keys: dict[str | None, Any] = {}
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict) or one.get("alg", alg) != alg or one.get("use", "sig") != "sig":
            continue
        try:
            keys[one.get("kid")] = jwt.PyJWK(one, alg).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue  # one key of a kind that we do not know does not spoil the others
    if not keys:
        raise ValueError(f"it has no key for {alg}")
    return keys
