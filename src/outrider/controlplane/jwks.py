"""Key sets of token issuers (RFC 7517): from a file or a URL, read again when they change, and when a token names a key
that is not among them."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any

from outrider.config.checks import SHORTEST_SECRET
from outrider.config.keys import KeyTextError, fit
from outrider.controlplane.fetch import FetchError, fetch, parse_json
from outrider.controlplane.upkeep import repeat_steps
from outrider.dataplane.policies.guard.tokens import Keys, TokenProof
from outrider.files import FileError, read_apart
from outrider.model.addresses import hide_in_urls

log = logging.getLogger("outrider")

_FILE_EVERY = 1.0
_URL_EVERY = 300.0
# Seconds between two looks that unknown keys can ask for: anybody can invent those.
_ON_DEMAND_EVERY = 30.0
_AGAIN = 5.0
_BEING_WRITTEN = 2  # looks in a row: the first one may have come in the middle of a change
_TIMEOUT = 3.0
_LARGEST = 1 << 20
_MOST_KEYS = 100
_LONGEST_MEMBER = 4096  # characters; an RSA key of 16384 bits has 2731
# What a public key consists of (RFC 7518 §6). Everything else in a key, private members above all, is left aside.
_PUBLIC = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x"), "oct": ("k",)}


class KeySet:
    """One set, and the proof that takes its keys. While it cannot be read, the last keys stay in use."""

    def __init__(self, source: str, alg: str, proof: TokenProof) -> None:
        self._source = source
        self._shown = hide_in_urls(source)
        self._alg = alg
        self._proof = proof
        self._seen: bytes | None = None
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
                keys, skipped = await asyncio.to_thread(parse, data, self._alg)
                self._proof.replace(keys)
                self._seen = data
                log.info("%s has %d keys for %s", self._shown, len(keys), self._alg)
                if skipped:
                    log.warning("%s: %d keys are left out: %s", self._shown, len(skipped), "; ".join(skipped[:3]))
        except (FetchError, FileError, OSError, ValueError) as error:
            self._failures += 1
            if self._failures == (1 if self._is_url() else _BEING_WRITTEN):
                log.error("the key set %s cannot be used: %s; the last keys stay", self._shown, error)
            return _AGAIN if self._is_url() else _FILE_EVERY
        if self._failures:
            log.info("the key set %s can be used again", self._shown)
        self._failures = 0
        return _URL_EVERY if self._is_url() else _FILE_EVERY

    async def watch(self, pause: float) -> None:
        """Look again and again, sooner if a token names an unknown key, until cancelled."""
        await repeat_steps(f"key set {hide_in_urls(self._source)}", self.next_look, pause)

    async def next_look(self, pause: float) -> float:
        """Wait so many seconds, less if a token names an unknown key, and look; returns the next pause. Tokens bring a
        look forward, never put it off."""
        self._wanted.clear()
        due = monotonic() + pause
        try:
            async with asyncio.timeout(pause):
                await self._wanted.wait()
                await asyncio.sleep(min(due, self._looked + _ON_DEMAND_EVERY) - monotonic() if self._is_url() else 0.0)
        except TimeoutError:
            pass
        return await self.look()

    def _is_url(self) -> bool:
        return not self._source.startswith("/")

    async def _read(self) -> bytes:
        if not self._is_url():
            return await read_apart(self._source, _LARGEST)
        answer = await fetch(self._source, timeout=_TIMEOUT, limit=_LARGEST)
        if answer.status != 200:
            raise FetchError(f"it answered {answer.status}")
        return answer.body


def parse(data: bytes, alg: str) -> tuple[Keys, list[str]]:
    """The keys of a set that may be used with this algorithm, each with its `kid`, and why others that should be usable
    are not. Raises ValueError if there is none."""
    found = parse_json(data)
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is not a key set")
    keys: list[tuple[str | None, Any]] = []
    skipped: list[str] = []
    for one in listed:
        if not isinstance(one, dict) or one.get("alg", alg) != alg or one.get("use", "sig") != "sig":
            continue  # it is for something else
        if len(keys) + len(skipped) == _MOST_KEYS:
            skipped.append(f"there are more than {_MOST_KEYS}")
            break
        kid = one.get("kid")
        try:
            if kid is not None and not isinstance(kid, str):
                raise ValueError("its kid is not text")
            keys.append((kid, _public_key(one, alg)))
        except KeyTextError as error:
            if one.get("alg") == alg:  # otherwise the set is simply for several algorithms
                skipped.append(f"{_named(kid)}: {error}")
        except ValueError as error:
            skipped.append(f"{_named(kid)}: {error}")
    if not keys:
        raise ValueError(f"it has no key for {alg}" + "".join(f"; {why}" for why in skipped[:3]))
    return keys, skipped


def _public_key(members: dict[str, Any], alg: str) -> Any:
    """The key as PyJWT takes it. Raises ValueError, or KeyTextError for a good key that is not for this algorithm."""
    import jwt

    kind = members.get("kty")
    if not isinstance(kind, str) or kind not in _PUBLIC:
        raise ValueError("its kty is not known")
    public: dict[str, Any] = {"kty": kind}
    for name in _PUBLIC[kind]:
        value = members.get(name)
        if not isinstance(value, str) or len(value) > _LONGEST_MEMBER:
            raise ValueError(f"its member {name} is missing or too long")
        public[name] = value
    wanted = {"HS256": "oct", "RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}[alg]
    if kind != wanted:
        raise KeyTextError(f"a key of the kind {kind} is not for {alg}")
    try:
        key = jwt.PyJWK(public, alg).key
    except Exception:  # whatever a library makes of a stranger's numbers must not spoil the other keys
        raise ValueError("it cannot be read") from None
    if alg == "HS256":
        if len(key) < SHORTEST_SECRET:
            raise ValueError(f"it has fewer than {SHORTEST_SECRET} bytes")
        return key
    return fit(alg, key)


def _named(kid: object) -> str:
    return f"the key {kid[:40]!r}" if isinstance(kid, str) else "a key without kid"
