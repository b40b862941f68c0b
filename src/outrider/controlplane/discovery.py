"""Endpoints that come and go: `dns+` (A and AAAA records), `dnssrv+` (SRV records, RFC 2782), `file+` (a list).

Whatever a source says is only ever replaced by something it says later: when it fails, or answers nothing, the last
good answer stays, because an empty answer is far more often a fault of the source than a service without instances.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from random import random
from typing import Protocol
from urllib.parse import urlsplit

from outrider.config.schema import Target
from outrider.controlplane.dns import Resolver, SourceError
from outrider.controlplane.endpoint_list import EndpointList
from outrider.controlplane.endpoints import Address, Discovered
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.upstream.cluster import Endpoint
from outrider.model.addresses import port_of

log = logging.getLogger("outrider")

# Seconds between two looks at a name: what its records say, within these bounds.
SHORTEST, LONGEST = 1.0, 60.0
# After a failure, doubling.
_AGAIN_FIRST, _AGAIN_LAST = 0.5, 15.0
_FILE_INTERVAL = 0.5
# What a record with weight 0 counts for beside others: little, but not nothing (RFC 2782).
_LEAST_WEIGHT = 0.01
_MOST_ENDPOINTS = 256
# Names of SRV records that are looked up at a time, and the seconds for all of them together.
_AT_A_TIME, _ALL_WITHIN = 16, 4.0


@dataclass(slots=True, frozen=True)
class Found:
    """What a source has said: addresses with the URL each is used with, and for how many seconds that holds."""

    places: tuple[tuple[str, Address], ...]
    ttl: float


class Source(Protocol):
    """Something that knows endpoints."""

    async def look(self) -> Found: ...


class DnsSource:
    """Every address of a name."""

    def __init__(self, target: Target, resolver: Resolver) -> None:
        self._url = target.url.partition("+")[2]
        self._weight = target.weight
        self._resolver = resolver

    async def look(self) -> Found:
        parts = urlsplit(self._url)
        port = port_of(parts)
        found, ttl = await self._resolver.addresses(parts.hostname or "")
        places = tuple((self._url, Address(one, port, parts.netloc, self._weight)) for one in sorted(found))
        return Found(places, ttl)


class SrvSource:
    """Every SRV record of a name, with its port, weight and priority."""

    def __init__(self, target: Target, resolver: Resolver) -> None:
        self._url = target.url.partition("+")[2]
        self._resolver = resolver
        self._failing: set[str] = set()
        self._known: dict[str, list[str]] = {}  # addresses of targets, for when one cannot be resolved any more

    async def look(self) -> Found:
        name = urlsplit(self._url).hostname or ""
        records, ttl = await self._resolver.services(name)
        records = sorted(records)[:_MOST_ENDPOINTS]
        weighted = any(weight for _, weight, _, _ in records)
        tiers = sorted({priority for priority, _, _, _ in records})
        found, ttl, failed = await self._addresses({target for _, _, _, target in records}, ttl)
        places = [
            (
                self._url,
                Address(
                    address,
                    port,
                    f"{target}:{port}",
                    float(weight or _LEAST_WEIGHT) if weighted else 1.0,
                    tiers.index(priority),
                    name,
                ),
            )
            for priority, weight, port, target in records
            for address in sorted(found[target])
        ]
        if failed is not None and not places:
            raise failed
        return Found(tuple(places), ttl)

    async def _addresses(self, targets: set[str], ttl: float) -> tuple[dict[str, list[str]], float, SourceError | None]:
        """The addresses of all targets, for how long all of them hold (at most `ttl` seconds), and a failure if there
        was one. Names are looked up side by side, some at a time; those that have failed, or that have not been
        reached when the time is over, keep their last addresses. Those that failed the last time come last, so that
        however many they are, every other one is reached sooner or later."""
        few = asyncio.Semaphore(_AT_A_TIME)

        async def look_up(target: str) -> tuple[list[str], float]:
            async with few:
                return await self._resolver.addresses(target)

        in_order = sorted(targets, key=lambda target: (target in self._failing, random()))
        asking = {target: asyncio.create_task(look_up(target)) for target in in_order}
        failed: SourceError | None = None
        known: dict[str, list[str]] = {}
        failing: set[str] = set()
        try:
            if asking:
                await asyncio.wait(asking.values(), timeout=_ALL_WITHIN)
            for target, task in asking.items():
                try:
                    if not task.done():
                        raise SourceError(f"{target}: no answer in time")
                    addresses, holds = task.result()
                except SourceError as error:
                    failed = error
                    if task.done() or target in self._failing:
                        failing.add(target)
                    addresses, holds = self._known.get(target, []), SHORTEST
                known[target] = addresses
                ttl = min(ttl, holds)
        finally:
            for task in asking.values():
                task.cancel()
        self._known, self._failing = known, failing
        return known, ttl, failed


class FileSource:
    """Every entry of a list in a file."""

    def __init__(self, target: Target) -> None:
        self._list = EndpointList(target.url.removeprefix("file+"))

    async def look(self) -> Found:
        entries = await self._list.read()
        places = tuple((one.url, Address(one.host, one.port, one.netloc, one.weight)) for one in entries)
        return Found(places, _FILE_INTERVAL)


def source_for(target: Target, resolver: Resolver) -> Source:
    """The source that a URL names."""
    if target.url.startswith("file+"):
        return FileSource(target)
    return DnsSource(target, resolver) if target.url.startswith("dns+") else SrvSource(target, resolver)


class Discovery:
    """Keeps the endpoints of one service as its sources say."""

    def __init__(self, discovered: Discovered, resolver: Resolver) -> None:
        self._cluster = discovered.cluster
        self._maker = discovered.maker
        self._fixed = discovered.fixed
        self._urls = [target.url for target in discovered.sources]
        self._sources = [source_for(target, resolver) for target in discovered.sources]
        self._said: list[tuple[tuple[str, Address], ...]] = [() for _ in self._sources]
        self._failures = [0] * len(self._sources)
        self._pauses = [SHORTEST] * len(self._sources)
        self._endpoints: dict[tuple[str, Address], Endpoint] = {}

    async def first(self) -> None:
        """Look once; an answer or a complaint from every source."""
        self._pauses = await asyncio.gather(*(self.look(number) for number in range(len(self._sources))))

    async def watch(self) -> None:
        """Look again whenever an answer has become old, until cancelled."""
        name = f"endpoints of {self._cluster.name}"
        looks = (repeat(name, partial(self.look, number), pause) for number, pause in enumerate(self._pauses))
        await asyncio.gather(*looks)

    async def look(self, number: int) -> float:
        """Ask one source, and use what it says; how many seconds that holds."""
        try:
            found = await self._sources[number].look()
            if not found.places:
                more = " any more" if self._said[number] else ""
                raise SourceError(f"{self._urls[number]} lists no endpoint{more}")
            if found.places != self._said[number]:
                said = [*self._said[:number], found.places, *self._said[number + 1 :]]
                self._apply(said)
                self._said = said
        except SourceError as error:
            return self._failed(number, str(error))
        except Exception as error:  # whatever a name server can think of must not end the watch
            return self._failed(number, f"cannot be used: {type(error).__name__}: {error}")
        self._failures[number] = 0
        shortest = _FILE_INTERVAL if isinstance(self._sources[number], FileSource) else SHORTEST
        return min(max(found.ttl, shortest), LONGEST)

    def _failed(self, number: int, why: str) -> float:
        self._failures[number] += 1
        if self._failures[number] == 1:
            kept = len(self._said[number])
            log.warning("endpoints of %s: %s; %d stay as they were", self._cluster.name, why, kept)
        if isinstance(self._sources[number], FileSource):
            return _FILE_INTERVAL  # looking costs next to nothing
        return min(_AGAIN_LAST, _AGAIN_FIRST * 2.0 ** min(self._failures[number] - 1, 10))

    def _apply(self, all_said: list[tuple[tuple[str, Address], ...]]) -> None:
        """Make the endpoints that are new, and let go of those that have gone."""
        wanted = list(dict.fromkeys(place for said in all_said for place in said))[:_MOST_ENDPOINTS]
        new = {place: self._maker.from_address(*place) for place in wanted if place not in self._endpoints}
        for place, endpoint in new.items():
            endpoint.begin_slowly(self._cluster.endpoints)
            self._endpoints[place] = endpoint
        for place in [place for place in self._endpoints if place not in wanted]:
            self._maker.retire(self._endpoints.pop(place))
        self._cluster.replace([*self._fixed, *self._endpoints.values()])
        names = ", ".join(endpoint.name for endpoint in self._cluster.endpoints) or "none"
        log.info("endpoints of %s: %s", self._cluster.name, names)
