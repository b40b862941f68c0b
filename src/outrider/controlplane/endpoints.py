"""Endpoints of one service, made from URLs and from what discovery finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from outrider.config.schema import ClientTls, Target
from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream.cluster import Cluster, Endpoint
from outrider.dataplane.upstream.tls import ClientTls as TlsContext
from outrider.dataplane.upstream.tls import ResumingContext
from outrider.model.addresses import port_of


@dataclass(slots=True, frozen=True)
class Address:
    """One place that discovery has found: an IP address or a host name. `name` goes into Host; `weight` is its share of
    calls; of several `tier`s the lowest is used that has a healthy endpoint (the priority of SRV records, RFC 2782).
    `expected` is the name a certificate must be for, which is never one that only DNS has told (RFC 6125 §6.2.1)."""

    host: str
    port: int
    name: str
    weight: float = 1.0
    tier: int = 0
    expected: str = ""


class EndpointMaker:
    """Makes the endpoints of one service. `made` are those with TLS, each with the name expected of it."""

    def __init__(self, name: str, files: ClientTls, *, stats: ClusterStats, **limits: Any) -> None:
        """`limits` are those that every Endpoint of the service has."""
        self.name = name
        self.files = files
        self.secure = False
        self.confined = False  # some endpoint has a base path, which no request may climb out of
        self.made: list[tuple[Endpoint, str]] = []
        self._context: ResumingContext | None = None
        self._stats = stats
        self._limits = limits

    def expect(self, url: str) -> None:
        """Endpoints like this URL's will be found later."""
        if url.startswith("file+"):  # anything may stand in a list
            self.secure = self.confined = True
            return
        parts = urlsplit(url.partition("+")[2])
        self.secure = self.secure or parts.scheme == "https"
        self.confined = self.confined or bool(parts.path.rstrip("/"))

    def from_url(self, url: str, weight: float = 1.0) -> Endpoint:
        """The endpoint that a plain URL names."""
        parts = urlsplit(url)
        address = Address(parts.hostname or "", port_of(parts), parts.netloc, weight)
        return self._make(address, parts.path, parts.scheme == "https")

    def from_address(self, url: str, address: Address) -> Endpoint:
        """An endpoint that was found for the URL (without its `dns+` or `dnssrv+`)."""
        parts = urlsplit(url)
        return self._make(address, parts.path, parts.scheme == "https")

    def use(self, context: ResumingContext) -> None:
        """From now on connections are made with this; those made with an earlier one are not used again."""
        self._context = context
        for endpoint, name in self.made:
            endpoint.tls = TlsContext(context, self.files.server_name or name)
            endpoint.pool.close()

    def retire(self, endpoint: Endpoint) -> None:
        """An endpoint has gone."""
        self.made[:] = [(one, name) for one, name in self.made if one is not endpoint]

    def _make(self, address: Address, path: str, secure: bool) -> Endpoint:
        base_path = path.rstrip("/")
        endpoint = Endpoint(
            address.host,
            address.port,
            authority=address.name,
            base_path=base_path,
            stats=self._stats,
            secure=secure,
            weight=address.weight,
            tier=address.tier,
            **self._limits,
        )
        self.confined = self.confined or bool(base_path)
        if secure:
            self.secure = True
            name = address.expected or urlsplit(f"//{address.name}").hostname or address.host
            self.made.append((endpoint, name))
            if self._context is not None:
                endpoint.tls = TlsContext(self._context, self.files.server_name or name)
        return endpoint


@dataclass(slots=True, frozen=True)
class Discovered:
    """A service whose endpoints come and go: from `sources`, beside the `fixed` ones."""

    cluster: Cluster
    maker: EndpointMaker
    sources: tuple[Target, ...]
    fixed: tuple[Endpoint, ...]
