"""Credentials that are not simply written down: minted tokens, tokens from an issuer (OAuth 2 client credentials, RFC
6749 §4.4), and what a command prints."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import Sequence
from random import uniform
from time import monotonic
from typing import Any, Protocol
from urllib.parse import quote_plus

from outrider.config.keys import signing_key
from outrider.config.schema import Credential as CredentialConfig
from outrider.config.schema import MintedJwt, OAuth2
from outrider.controlplane.commands import run_command
from outrider.controlplane.fetch import FetchError, fetch, parse_json
from outrider.controlplane.upkeep import repeat_steps
from outrider.dataplane.policies.credentials import Credential, Mint, Renewal
from outrider.model.addresses import hide_in_urls

log = logging.getLogger("outrider")

# The share of its life after which a token is fetched anew, and seconds between tries when that fails: first, and cap.
_RENEW_AT = 0.8
_AGAIN_FIRST, _AGAIN_LAST = 0.5, 30.0
_TIMEOUT = 10.0
_LARGEST = 64 * 1024
_SHORTEST_PAUSE = 0.5
_USUAL_LIFE, _LONGEST_LIFE = 300.0, 30 * 86400.0


class Fetch(Protocol):
    """Gets a secret: its value, and for how many seconds it is good."""

    async def __call__(self) -> tuple[str, float]: ...


def minter(jwt: MintedJwt, service: str, key: str) -> Mint:
    """What signs tokens with this key. Raises ValueError if the key is not one for the algorithm."""
    import jwt as pyjwt

    signs = signing_key(jwt.alg, key)
    issuer = jwt.issuer.replace("{service}", service)
    headers = {"kid": jwt.kid} if jwt.kid is not None else None

    def mint(audience: str, issued: int, expires: int) -> str:
        claims: dict[str, Any] = {"iss": issuer, "sub": issuer, "aud": audience, "iat": issued, "exp": expires}
        return pyjwt.encode({**jwt.claims, **claims}, signs, algorithm=jwt.alg, headers=headers)

    return mint


class Fetched:
    """One credential that has to be fetched again and again. While its source fails, the last value stays in use."""

    def __init__(self, name: str, credential: Credential, fetch: Fetch) -> None:
        self.name = name
        self.credential = credential
        self._fetch = fetch
        self.expires = 0.0  # monotonic seconds
        self.failures = 0
        self._refused = asyncio.Event()  # a target has refused the value
        self._under_way: asyncio.Task[float] | None = None
        credential.renewal = Renewal(self._refused.set)

    async def first(self) -> float:
        """Fetch once; in how many seconds to do it again."""
        return await self.refresh()

    async def watch(self, pause: float) -> None:
        """Fetch ahead of expiry, and when a target has refused the value, until cancelled."""
        await repeat_steps(f"credential {self.name}", self.next_fetch, pause)

    async def next_fetch(self, pause: float) -> float:
        """Wait so many seconds, or until a target has refused the value, and fetch; returns the next pause."""
        try:
            async with asyncio.timeout(pause):
                await self._refused.wait()
        except TimeoutError:
            pass
        else:
            log.info("credential %s was refused by a target and is fetched anew", self.name)
        return await self.refresh()

    async def refresh(self) -> float:
        """Fetch now, together with whatever else wants it now; returns in how many seconds to do it again."""
        if self._under_way is None:
            self._under_way = asyncio.create_task(self._refresh())
            self._under_way.add_done_callback(self._ended)
        return await asyncio.shield(self._under_way)

    async def close(self) -> None:
        """End the fetch under way, and wait until it has closed its connection."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.wait((self._under_way,), timeout=1.0)

    def _ended(self, _: asyncio.Task[float]) -> None:
        self._under_way = None
        self._refused.clear()
        if self.credential.renewal is not None:
            self.credential.renewal.ended()

    async def _refresh(self) -> float:
        try:
            value, life = await self._fetch()
            self.credential.replace(value)
        except (FetchError, ValueError) as error:
            self.failures += 1
            if self.failures == 1 or not self.credential.ready:
                left = max(0.0, self.expires - monotonic())
                state = f"the last value is good for {left:.0f} s more" if left else "there is no value to use"
                log.error("credential %s cannot be fetched: %s; %s", self.name, error, state)
            return min(_AGAIN_LAST, _AGAIN_FIRST * 2.0 ** min(self.failures - 1, 10)) * uniform(0.8, 1.2)
        if self.failures:
            log.info("credential %s is fetched again", self.name)
        self.failures = 0
        self.expires = monotonic() + life
        return max(_SHORTEST_PAUSE, life * _RENEW_AT * uniform(0.9, 1.0))


def fetch_oauth2(settings: OAuth2) -> Fetch:
    """Asks the issuer for an access token."""
    shown = hide_in_urls(settings.token_url)

    async def fetch_token() -> tuple[str, float]:
        form = {"grant_type": "client_credentials"}
        if settings.scope is not None:
            form["scope"] = settings.scope
        if settings.audience is not None:
            form["audience"] = settings.audience
        headers = {"authorization": f"Basic {_basic(settings.client_id, settings.client_secret)}"}
        answer = await fetch(settings.token_url, timeout=_TIMEOUT, limit=_LARGEST, form=form, headers=headers)
        if answer.status != 200:
            raise FetchError(f"{shown} answered {answer.status}")
        try:
            return _token(answer.body)
        except ValueError as error:
            raise FetchError(f"{shown}: {error}") from None

    return fetch_token


def _token(data: bytes) -> tuple[str, float]:
    """The token in an issuer's answer, and for how many seconds it is good. Raises ValueError."""
    answer = parse_json(data)
    token = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token:
        raise ValueError("it gave no access_token")
    life = answer.get("expires_in", _USUAL_LIFE)
    try:
        seconds = float(life)  # some issuers write it in quotes
    except (TypeError, ValueError, OverflowError):
        seconds = _USUAL_LIFE
    return token, seconds if 0 < seconds < _LONGEST_LIFE else _USUAL_LIFE


def _basic(name: str, secret: str) -> str:
    """Both form-encoded, then as RFC 7617 has it (RFC 6749 §2.3.1)."""
    return b64encode(f"{quote_plus(name)}:{quote_plus(secret)}".encode()).decode()


def fetch_command(command: Sequence[str], every: float) -> Fetch:
    """Runs a command, and takes what it prints."""

    async def fetch() -> tuple[str, float]:
        output = await run_command(command, _TIMEOUT, _LARGEST)
        return output.decode("utf-8", "replace").strip(), every / _RENEW_AT

    return fetch


def fetched(name: str, config: CredentialConfig, credential: Credential) -> Fetched | None:
    """The watch over a credential that has to be fetched; None for one that has not."""
    if config.oauth2 is not None:
        return Fetched(name, credential, fetch_oauth2(config.oauth2))
    if config.command is not None:
        return Fetched(name, credential, fetch_command(config.command, config.every))
    return None
