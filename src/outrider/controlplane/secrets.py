"""Credentials that come from files are read again when the files change."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field
from time import time

from outrider.config.interpolate import interpolate
from outrider.config.resolve import Resolved
from outrider.dataplane.policies.credentials import Credential

log = logging.getLogger("outrider")

# Seconds between looks. Orchestrators replace mounted secrets by renaming, so contents are compared, not times.
_INTERVAL = 1.0


@dataclass(slots=True)
class Source:
    """Where a credential comes from. `template` is None when it cannot change; `since` is Unix time."""

    credential: Credential
    template: str | None
    value: str = field(repr=False)
    since: float
    complained: bool = False


class Secrets:
    """All credentials of a configuration. What cannot be read keeps its last value, and the log says so once."""

    def __init__(self, resolved: Resolved, credentials: dict[str, Credential]) -> None:
        templates = resolved.document.templates
        self.sources = {
            name: Source(
                credential,
                templates.get(("credentials", name, "value")),
                resolved.credentials[name].value,
                time(),
            )
            for name, credential in credentials.items()
        }

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        watched = [(name, source) for name, source in self.sources.items() if source.template is not None]
        while watched:
            await asyncio.sleep(_INTERVAL)
            for name, source in watched:
                self.refresh(name, source)

    def refresh(self, name: str, source: Source) -> None:
        """Read one credential again, and use it if it is new and usable."""
        assert source.template is not None
        try:
            value = interpolate(source.template, os.environ)
            if value == source.value:
                source.complained = False
                return
            source.credential.replace(value)
        except ValueError as error:
            if not source.complained:
                log.error("credential %s keeps its last value: %s", name, error)
                source.complained = True
            return
        source.value, source.since, source.complained = value, time(), False
        log.info("credential %s was replaced", name)

    def ages(self) -> dict[str, float]:
        """Seconds since each credential took its present value."""
        now = time()
        return {name: now - source.since for name, source in self.sources.items()}
