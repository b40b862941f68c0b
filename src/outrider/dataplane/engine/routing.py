"""Which service, and which of its routes, a request is for.

In this order: dedicated port, then header, then Host or absolute-form authority, then first path segment.
The path is never normalised: what the app wrote is what the target gets, so no two readers can disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from outrider.dataplane.policies.credentials import Credential, TokenCredential
from outrider.dataplane.policies.deciders.breaker import Breaker
from outrider.dataplane.policies.deciders.hedge import Hedge
from outrider.dataplane.policies.deciders.retry import Retry
from outrider.dataplane.policies.fallback import FallbackReplies, Prepared
from outrider.dataplane.policies.idempotency_key import KEY
from outrider.dataplane.policies.last_good import LastGood
from outrider.dataplane.route import RouteFacts

# The types of compiled fields must exist when the class is made, so these are real imports.
from outrider.dataplane.upstream.cluster import Cluster
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Request
from outrider.model.pattern_index import PatternIndex
from outrider.model.patterns import PathPattern

if TYPE_CHECKING:
    from outrider.dataplane.policy import Policy

_MAX_CACHED_HOSTS: Final = 256
_LONGEST_HOST: Final = 262
_LOOPBACK: Final = frozenset((b"127.0.0.1", b"localhost", b"[::1]", b"0.0.0.0"))


@dataclass(slots=True, kw_only=True)
class Route(RouteFacts):
    """Everything a call on this route needs, compiled; immutable once in the table.

    `policies` are admitted in order and observed in reverse; `breaker` and `stamps` act on every attempt.
    `connect_timeout` is in seconds.
    """

    cluster: Cluster
    policies: tuple[Policy, ...]
    stamps: tuple[Policy, ...]
    breaker: Breaker | None
    fallback: Fallback | None
    retry: Retry
    connect_timeout: float
    credentials: tuple[Credential | TokenCredential, ...] = ()
    hedge: Hedge | None = None

    def __post_init__(self) -> None:
        self.service = self.cluster.name
        self.shown = self.cluster.shown
        self.timing_name = b", %b;dur=" % self.cluster.shown.encode()
        if KEY in self.owned:
            self.retry = replace(self.retry, by_key=False)  # the target does not get the key that the app sends
        self.rules = self.retry
        self.be_named(b"outrider")


@dataclass(slots=True)
class Service:
    """A named service: its declared routes, first match wins, and the route for everything else. `confined`: some
    endpoint has a base path, which no request may climb out of."""

    name: str
    default: Route
    declared: Sequence[tuple[PathPattern, Route]] = ()
    confined: bool = False
    prefix: bytes = b""
    _index: PatternIndex = field(init=False)

    def __post_init__(self) -> None:
        self.prefix = b"/" + self.name.encode()
        self._index = PatternIndex([pattern for pattern, _ in self.declared])

    def route_for(self, method: bytes, path: bytes) -> Route:
        """The first declared route that matches, or the default one."""
        if self.declared:
            number = self._index.first(method, path.partition(b"?")[0])
            if number < len(self.declared):
                return self.declared[number][1]
        return self.default


class Fallback(FallbackReplies):
    """Stands in for a failure: `services` are asked first, in order; then the replies follow."""

    __slots__ = ("services",)

    def __init__(self, steps: Sequence[Prepared | LastGood], services: Sequence[Service] = ()) -> None:
        super().__init__(steps)
        self.services = tuple(services)


# Where a request goes: the service, the path as the target sees it, and the prefix that was taken off.
Match = tuple["Service", bytes, bytes]


@dataclass(slots=True)
class RouteTable:
    """All services by name and by host. Immutable: a reload puts a new table in place."""

    services: dict[bytes, Service] = field(default_factory=dict)
    hosts: dict[bytes, Service] = field(default_factory=dict)
    _seen_hosts: dict[bytes, Service | None] = field(default_factory=dict)

    def resolve(self, request: Request, dedicated: Service | None) -> Match | Failure:
        """Find the service a request names; `dedicated` is the service of the port it came in on."""
        target = request.target
        noted = request.noted
        host = noted.get(b"host", b"")
        if request.method == b"CONNECT":
            host, target = target, b"/"
        elif target[0] != 0x2F:
            authority, target = split_absolute(target)
            host = authority or host
        if dedicated is not None:
            return dedicated, target, b""
        if (len(noted) > 1 or b"host" not in noted) and (
            named := noted.get(b"x-outrider-service") or noted.get(b"dapr-app-id")
        ):
            service = self.services.get(named.lower())
            return (service, target, b"") if service is not None else self._unknown(named)
        service = self._seen_hosts[host] if host in self._seen_hosts else self._host(host)
        if service is not None:
            return service, target, b""
        if host and request.target[0] != 0x2F and bare_host(host) not in _LOOPBACK:
            return self._unknown(host)  # absolute-form, for somebody we do not know
        # The first path segment, and what is behind it.
        end = target.find(b"/", 1)
        if end > 0:
            service = self.services.get(target[1:end])
            if service is not None:
                return service, target[end:], service.prefix
        name, mark, query = target[1:].partition(b"?")
        service = self.services.get(name)
        if service is None:
            return self._unknown(name.partition(b"/")[0], lost_prefix=True)
        return service, b"/" + mark + query, service.prefix

    def _host(self, host: bytes) -> Service | None:
        name = bare_host(host)
        service = self.hosts.get(name)
        if service is None and name.endswith(b".localhost"):
            service = self.services.get(name.removesuffix(b".localhost"))
        if len(self._seen_hosts) < _MAX_CACHED_HOSTS and len(host) <= _LONGEST_HOST:
            self._seen_hosts[host] = service
        return service

    def _unknown(self, name: bytes, *, lost_prefix: bool = False) -> Failure:
        known = ", ".join(sorted(key.decode() for key in self.services)) or "none"
        shown = name[:80].decode("latin-1")
        detail = f'no service "{shown}"; the configuration knows: {known}.'
        if lost_prefix and self.services:
            example = min(self.services).decode()
            detail += (
                f" If your client dropped the base path (new URL('/x', base), urljoin),"
                f" give the service a port of its own: services.{example}.port."
            )
        return Failure(Kind.UNKNOWN_SERVICE, detail)


def split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """`(authority, origin-form)` of an absolute-form target; `*` stays as it is, with an empty authority."""
    if target == b"*":
        return b"", target
    rest = target.partition(b"://")[2]
    cut = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    path = rest[cut:]
    return rest[:cut], path if path.startswith(b"/") else b"/" + path


def bare_host(authority: bytes) -> bytes:
    """The host of an authority: lower case, without port, without a trailing dot."""
    host = authority.lower()
    if host.startswith(b"["):
        return host.partition(b"]")[0] + b"]"
    return host.partition(b":")[0].removesuffix(b".")
