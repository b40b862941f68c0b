"""Endpoints that come and go: `dns+` (A and AAAA records), `dnssrv+` (SRV records, RFC 2782), `file+` (a list).

Whatever a source says is only ever replaced by something it says later: when it fails, or answers nothing, the last
good answer stays, because an empty answer is far more often a fault of the source than a service without instances.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import yaml
from pydantic import TypeAdapter, ValidationError

from outrider.config.schema import Service, Target
from outrider.controlplane.endpoints import Address, Discovered
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.cluster import Endpoint
from outrider.model.addresses import port_of

log = logging.getLogger("outrider")

# Seconds between two looks at a name: what its records say, within these bounds.
SHORTEST, LONGEST = 1.0, 60.0
# Without a TTL, as the system's own resolver gives none.
_NO_TTL = 5.0
# After a failure, doubling.
_AGAIN_FIRST, _AGAIN_LAST = 0.5, 15.0
_FILE_INTERVAL = 0.5
_LARGEST_FILE = 1 << 20
_DNS_PORT = 53
# What a record with weight 0 counts for beside others: little, but not nothing (RFC 2782).
_LEAST_WEIGHT = 0.01
_MOST_ENDPOINTS = 256


@dataclass(slots=True, frozen=True)
class Found:
    """What a source has said: addresses with the URL each is used with, and for how many seconds that holds."""

    places: tuple[tuple[str, Address], ...]
    ttl: float


class SourceError(Exception):
    """A source could not say anything; the message tells why."""


class Source(Protocol):
    """Something that knows endpoints."""

    async def look(self) -> Found: ...


class Resolver:
    """Asks DNS: with dnspython, which tells for how long an answer holds; without it, as the system does."""

    def __init__(self, servers: Sequence[str] = (), timeout: float = 2.0) -> None:
        """`servers` are `ADDRESS` or `ADDRESS:PORT`; none: those of the system."""
        self._own_servers = bool(servers)
        self._timeout = timeout
        self._dns: Any = None
        try:
            import dns.asyncresolver
            import dns.resolver
        except ImportError:
            return
        try:
            self._dns = dns.asyncresolver.Resolver(configure=not servers)
        except dns.resolver.NoResolverConfiguration:
            return  # the system has its own ways
        if servers:
            addresses = [split_port(server) for server in servers]
            self._dns.nameserver_ports = dict(addresses)
            self._dns.nameservers = [address for address, _ in addresses]
        self._dns.lifetime = timeout
        self._dns.cache = None

    async def addresses(self, name: str) -> tuple[list[str], float]:
        """The addresses of a name, and for how many seconds they hold. Raises SourceError."""
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in name else socket.AF_INET, name)
            return [name], LONGEST
        except OSError:
            pass
        if self._dns is not None:
            found, ttl, error = await self._both(name)
            if found:
                return found, ttl
            if self._own_servers:
                raise SourceError(error or f"{name} has no address")
        return await self._from_the_system(name), _NO_TTL

    async def services(self, name: str) -> tuple[list[tuple[int, int, int, str]], float]:
        """The SRV records of a name as `(priority, weight, port, target)`, and for how long they hold. Raises
        SourceError."""
        if self._dns is None:
            raise SourceError("dnssrv+ needs dnspython: pip install 'outrider[dns]'")
        import dns.exception

        try:
            answer = await self._dns.resolve(name, "SRV", search=True)
        except dns.exception.DNSException as error:
            raise SourceError(f"no SRV records for {name}: {_said(error)}") from None
        records = [
            (record.priority, record.weight, record.port, record.target.to_text(omit_final_dot=True))
            for record in answer
        ]
        return [one for one in records if one[3] != "."], float(answer.rrset.ttl)

    async def _both(self, name: str) -> tuple[list[str], float, str]:
        import dns.exception
        import dns.resolver

        answers = await asyncio.gather(
            *(self._dns.resolve(name, kind, search=True) for kind in ("A", "AAAA")), return_exceptions=True
        )
        found: list[str] = []
        ttl, error = LONGEST, ""
        for answer in answers:
            if isinstance(answer, (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN)):
                error = error or f"{name}: {_said(answer)}"
            elif isinstance(answer, dns.exception.DNSException):
                raise SourceError(f"{name}: {_said(answer)}")  # half an answer would remove the other half
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += [record.address for record in answer]
                ttl = min(ttl, float(answer.rrset.ttl))
        return found, ttl, error

    async def _from_the_system(self, name: str) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            asking = loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            found = await asyncio.wait_for(asking, self._timeout)
        except (OSError, TimeoutError) as error:
            raise SourceError(f"{name}: {getattr(error, 'strerror', None) or 'no answer in time'}") from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


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
        self._known: dict[str, list[str]] = {}  # addresses of targets, for when one cannot be resolved any more

    async def look(self) -> Found:
        name = urlsplit(self._url).hostname or ""
        records, ttl = await self._resolver.services(name)
        weighted = any(weight for _, weight, _, _ in records)
        tiers = sorted({priority for priority, _, _, _ in records})
        places: list[tuple[str, Address]] = []
        known, failed = self._known, None
        self._known = {}
        for priority, weight, port, target in sorted(records):
            try:
                addresses, holds = await self._resolver.addresses(target)
            except SourceError as error:
                failed = error
                addresses, holds = known.get(target, []), SHORTEST
            self._known[target] = addresses
            ttl = min(ttl, holds)
            share = float(weight or _LEAST_WEIGHT) if weighted else 1.0
            tier = tiers.index(priority)
            places += [
                (self._url, Address(one, port, f"{target}:{port}", share, tier, name)) for one in sorted(addresses)
            ]
        if failed is not None and not places:
            raise failed
        return Found(tuple(places), ttl)


class FileSource:
    """A YAML or JSON list of URLs, or of maps with url and weight; read again when it changes."""

    _adapter: TypeAdapter[Service] = TypeAdapter(Service)

    def __init__(self, target: Target) -> None:
        self._path = Path(target.url.removeprefix("file+"))
        self._seen: bytes | None = None
        self._found = Found((), _FILE_INTERVAL)

    async def look(self) -> Found:
        try:
            data = self._path.read_bytes()
            if data == self._seen:
                return self._found
            if len(data) > _LARGEST_FILE:
                raise SourceError(f"{self._path} is larger than {_LARGEST_FILE} bytes")
            listed = await asyncio.to_thread(yaml.safe_load, data)
            if not isinstance(listed, list):
                raise SourceError(f"{self._path}: expected a list of URLs")
            targets = self._adapter.validate_python({"url": listed}).url if listed else []
        except OSError as error:
            raise SourceError(f"{self._path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SourceError(f"{self._path} is not YAML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][1:])
            raise SourceError(f"{self._path}: {place}: {first['msg']}") from None
        if any(target.is_source for target in targets):
            raise SourceError(f"{self._path}: only http:// and https:// URLs can stand in a list")
        places = []
        for target in targets:
            parts = urlsplit(target.url)
            try:
                port = port_of(parts)
            except ValueError:
                raise SourceError(f"{self._path}: the port of {target.url} is not between 1 and 65535") from None
            places.append((target.url, Address(parts.hostname or "", port, parts.netloc, target.weight)))
        self._seen, self._found = data, Found(tuple(places), _FILE_INTERVAL)
        return self._found


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


def split_port(server: str) -> tuple[str, int]:
    """The address and port of a DNS server: `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:5353`."""
    if server.startswith("["):
        address, _, port = server[1:].partition("]")
        return address, int(port.removeprefix(":") or _DNS_PORT)
    if server.count(":") == 1:
        address, _, port = server.partition(":")
        return address, int(port)
    return server, _DNS_PORT


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
