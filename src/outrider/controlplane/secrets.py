"""Credentials, and the keys of the guard, that come from files are read again when the files change."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, time

from outrider.blocking import run_apart
from outrider.config.interpolate import interpolate
from outrider.config.keys import verifying_key
from outrider.config.resolve import Resolved
from outrider.controlplane.credentials import Fetched, fetched, minter
from outrider.controlplane.inbound import Guarded
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.policies.credentials import Credential, TokenCredential
from outrider.dataplane.policies.guard.guard import KeyProof
from outrider.dataplane.policies.guard.tokens import TokenProof
from outrider.files import READ_TIMEOUT
from outrider.model.messages import is_field_value

log = logging.getLogger("outrider")

# Seconds between looks. Orchestrators replace mounted secrets by renaming, so contents are compared, not times.
_INTERVAL = 1.0
_BEING_WRITTEN = 2  # looks in a row: the first one may have come in the middle of a change


@dataclass(slots=True)
class Source:
    """Where a secret comes from, and who is told of a new one, which may refuse it with ValueError. `template` is None
    when it cannot change; `since` is Unix time."""

    use: Callable[[str], None]
    template: str | None
    value: str = field(repr=False)
    since: float
    failures: int = 0  # looks in a row at which it could not be used


class Secrets:
    """All secrets of a configuration. What cannot be read keeps its last value, and the log says so once."""

    def __init__(
        self, resolved: Resolved, credentials: dict[str, Credential | TokenCredential], guarded: Guarded | None = None
    ) -> None:
        templates = resolved.document.templates
        self.sources: dict[str, Source] = {}
        self.fetched: list[Fetched] = []
        self._credentials = credentials
        for name, credential in credentials.items():
            config = resolved.credentials[name]
            if isinstance(credential, TokenCredential):
                self._watch_minted(resolved, name, credential)
            elif config.value is not None:
                template = templates.get(("credentials", name, "value"))
                self.sources[name] = Source(credential.replace, template, config.value, time())
            elif (one := fetched(name, config, credential)) is not None:
                self.fetched.append(one)
        self._uses = guarded.guard.key_uses if guarded is not None else {}
        if guarded is not None:
            self._watch_guard(resolved, guarded)

    def _watch_minted(self, resolved: Resolved, name: str, credential: TokenCredential) -> None:
        """The key that our own tokens are signed with."""
        jwt = resolved.credentials[name].jwt
        assert jwt is not None
        service = resolved.config.service

        def use(key: str) -> None:
            credential.replace(minter(jwt, service, key))

        template = resolved.document.templates.get(("credentials", name, "jwt", "key"))
        self.sources[name] = Source(use, template, jwt.key, time())

    def _watch_guard(self, resolved: Resolved, guarded: Guarded) -> None:
        """The keys that callers show, and those that their tokens are signed with."""
        templates = resolved.document.templates
        inbound = resolved.config.inbound
        assert inbound is not None
        for index, proof in guarded.keys.items():
            values = list(inbound.accept[index].values)
            for number, value in enumerate(values):
                at = ("inbound", "accept", index, "values")
                template = templates.get((*at, number)) or (templates.get(at) if len(values) == 1 else None)

                def use(new: str, number: int = number, values: list[str] = values, proof: KeyProof = proof) -> None:
                    if new != new.strip() or not is_field_value(new):
                        raise ValueError("a key must be one line of printable ASCII without spaces around it")
                    values[number] = new
                    proof.replace(values)

                self.sources[f"inbound.accept[{index}].values[{number}]"] = Source(use, template, value, time())
        for index, tokens in guarded.tokens.items():
            jwt = inbound.accept[index].jwt
            if jwt is None or jwt.key is None:
                continue

            def use_key(new: str, alg: str = jwt.alg, tokens: TokenProof = tokens) -> None:
                tokens.replace([(None, verifying_key(alg, new))])

            template = templates.get(("inbound", "accept", index, "jwt", "key"))
            self.sources[f"inbound.accept[{index}].jwt"] = Source(use_key, template, jwt.key, time())

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        watched = [(name, source) for name, source in self.sources.items() if source.template is not None]
        looks = (repeat(f"credential {name}", partial(self._look, name, one), _INTERVAL) for name, one in watched)
        await asyncio.gather(*looks)

    async def _look(self, name: str, source: Source) -> float:
        await self.refresh(name, source)
        return _INTERVAL

    async def close(self) -> None:
        """End the fetches under way."""
        await asyncio.gather(*(one.close() for one in self.fetched))

    async def refresh(self, name: str, source: Source) -> None:
        """Read one credential again, and use it if it is new and usable."""
        template = source.template
        assert template is not None
        try:
            value = await run_apart(("secret", name), lambda: interpolate(template, os.environ), READ_TIMEOUT)
            if value == source.value:
                source.failures = 0
                return
            source.use(value)
        except (ValueError, OSError) as error:
            source.failures += 1
            if source.failures == _BEING_WRITTEN:
                why = "its file could not be read in time" if isinstance(error, TimeoutError) else error
                log.error("credential %s keeps its last value: %s", name, why)
            return
        source.value, source.since, source.failures = value, time(), 0
        log.info("credential %s was replaced", name)

    def shown(self) -> dict[str, dict[str, object]]:
        """All of them, by name: where they come from and how old they are."""
        now = time()
        found: dict[str, dict[str, object]] = {}
        for name, source in self.sources.items():
            credential = self._credentials.get(name)
            found[name] = {
                "source": "watched" if source.template is not None else "fixed",
                "age_seconds": round(now - source.since, 1),
                "old_uses": credential.old_uses if credential is not None else 0,
            }
            if name in self._uses:
                found[name]["shown_by"] = sorted(self._uses[name])
        for one in self.fetched:
            found[one.name] = {
                "source": "fetched",
                "expires_in_seconds": round(max(0.0, one.expires - monotonic()), 1),
                "failures": one.failures,
                "old_uses": one.credential.old_uses,
            }
        return found

    async def rotate(self) -> None:
        """Read all of them now."""
        for name, source in self.sources.items():
            if source.template is not None:
                await self.refresh(name, source)
        await asyncio.gather(*(one.refresh() for one in self.fetched))

    def ages(self) -> dict[str, float]:
        """Seconds since each credential took its present value."""
        now = time()
        return {name: now - source.since for name, source in self.sources.items()}
