"""Configuration to route table: the only module that knows both the configuration and the policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TypeVar

from outrider.config.resolve import Effective, EffectiveRoute, EffectiveService, Resolved
from outrider.config.schema import CircuitBreaker, ClientTls, Correlation, HealthCheck, Inbound, Target
from outrider.config.schema import Fallback as FallbackConfig
from outrider.config.tls import other_proofs
from outrider.controlplane.certificates import Certificates
from outrider.controlplane.credentials import minter
from outrider.controlplane.endpoints import Discovered, EndpointMaker
from outrider.controlplane.inbound import (
    Guarded,
    Remembered,
    compile_guard,
    compile_idempotency,
    max_bodies,
    no_larger_than,
)
from outrider.controlplane.limits import concurrency, rate_limit
from outrider.dataplane.downstream.browsers import Browsers
from outrider.dataplane.downstream.proxy import Correlate
from outrider.dataplane.engine.pipeline import Parts, around_the_call, into_each_attempt, owned_by
from outrider.dataplane.engine.routing import Fallback, Route, RouteTable, Service
from outrider.dataplane.inbound_context import ContextStore
from outrider.dataplane.policies.concurrency.limit import ConcurrencyLimit
from outrider.dataplane.policies.context import Context
from outrider.dataplane.policies.credentials import Credential, FetchedCredentials, TokenCredential
from outrider.dataplane.policies.criticality import CRITICAL
from outrider.dataplane.policies.deadline import Deadline
from outrider.dataplane.policies.deciders.breaker import Breaker, BreakerSettings, TransitionHook
from outrider.dataplane.policies.deciders.budget import RetryBudget
from outrider.dataplane.policies.deciders.hedge import Hedge, Percentile
from outrider.dataplane.policies.deciders.retry import Retry
from outrider.dataplane.policies.fallback import Prepared
from outrider.dataplane.policies.forwarded import WRITTEN, Forwarded
from outrider.dataplane.policies.headers import Headers
from outrider.dataplane.policies.idempotency_key import MintKey
from outrider.dataplane.policies.inbound_context import Keep, Restore
from outrider.dataplane.policies.incoming import READ, AppHealth, IncomingDeadline
from outrider.dataplane.policies.last_good import LastGood
from outrider.dataplane.policies.template import Template
from outrider.dataplane.policies.throttle import Throttle
from outrider.dataplane.runtime.counters import ClusterStats, RouteStats
from outrider.dataplane.runtime.ids import ID_FORMATS
from outrider.dataplane.runtime.timers import NEVER
from outrider.dataplane.shared import Limits
from outrider.dataplane.upstream.balance import HASH
from outrider.dataplane.upstream.cluster import Cluster, Endpoint
from outrider.dataplane.upstream.ejection import Ejection, EjectionSettings
from outrider.model.failure import Phase
from outrider.model.messages import NO_NAMES
from outrider.model.patterns import PathPattern
from outrider.model.variables import header_names

DEFAULT_ROUTE = "*"
# The service that inbound calls reach: no name that a configuration could use.
APP = "_app"
_APP_IDLE = 4.0
_APP_CONNECT = 1.0
# An answer counts as slow, unless told otherwise, when it takes this share of attempt_timeout.
_SLOW_SHARE = 0.8

# What hedges may add to load where retries, whose budget they otherwise share, are off.
_HEDGE_BUDGET = 0.2

T = TypeVar("T")
# Service, endpoint, whether it is out, and why.
EjectionHook = Callable[[str, str, bool, str], None]


@dataclass(slots=True)
class Compiled:
    """What the data plane runs on, and what the control plane looks at."""

    table: RouteTable
    limits: Limits
    noted: frozenset[bytes]
    correlate: Correlate
    browsers: Browsers | None
    clusters: list[Cluster]
    routes: list[Route]
    breakers: list[Breaker]
    credentials: dict[str, Credential | TokenCredential]
    dedicated: list[Service] = field(default_factory=list)  # with a port of their own
    app: Service | None = None  # behind the inbound listener
    discovered: list[Discovered] = field(default_factory=list)  # whose endpoints come and go
    limits_in_force: list[tuple[str, ConcurrencyLimit]] = field(default_factory=list)  # by service or route
    throttles: list[tuple[str, Throttle]] = field(default_factory=list)
    guarded: Guarded | None = None
    idempotency: Remembered | None = None
    contexts: ContextStore = field(default_factory=ContextStore)
    checked: list[tuple[Cluster, HealthCheck]] = field(default_factory=list)  # that are asked whether they are well
    certificates: Certificates = field(default_factory=Certificates)


def compile_config(
    resolved: Resolved, hooks: tuple[TransitionHook, ...] = (), on_ejection: tuple[EjectionHook, ...] = ()
) -> Compiled:
    """Build the route table. `hooks` hear every breaker transition, `on_ejection` every endpoint set aside or taken
    back."""
    return _Compiler(resolved, hooks, on_ejection).run()


class _Compiler:
    def __init__(
        self, resolved: Resolved, hooks: tuple[TransitionHook, ...], on_ejection: tuple[EjectionHook, ...]
    ) -> None:
        self._resolved = resolved
        self._config = resolved.config
        self._hooks = hooks
        self._on_ejection = on_ejection
        self._stand_ins: list[tuple[Route, tuple[FallbackConfig, ...], bytes]] = []
        self._noted: set[bytes] = set()
        correlation = self._config.defaults.correlation or Correlation()
        correlate = (correlation.header.lower().encode(), ID_FORMATS[correlation.generate])
        self._out = Compiled(
            RouteTable(), self._limits(), frozenset(), correlate, self._browsers(), [], [], [], self._credentials()
        )

    def run(self) -> Compiled:
        out = self._out
        for declared in self._resolved.services:
            service = self._service(declared)
            out.table.services[declared.name.encode()] = service
            for host in (declared.name, *declared.hosts):
                out.table.hosts[host.lower().encode()] = service
            if declared.port is not None:
                out.dedicated.append(service)
        for route, chain, correlation in self._stand_ins:
            route.fallback = self._fallback(chain, correlation)
        out.app = self._app()
        out.noted = frozenset(self._noted)
        return out

    def _fallback(self, chain: tuple[FallbackConfig, ...], correlation: bytes) -> Fallback:
        """What stands in on a route; all services are there by now."""
        steps: list[Prepared | LastGood] = []
        services = []
        for one in chain:
            if one.service is not None:
                services.append(self._out.table.services[one.service.encode()])
            elif one.last_good is not None:
                kept = one.last_good
                neutral = frozenset((correlation,))
                steps.append(LastGood(kept.max_age, kept.max_bytes, kept.max_answer, neutral))
            else:
                steps.append(_prepared(one))
        return Fallback(steps, services)

    def _browsers(self) -> Browsers | None:
        """What keeps pages in a browser away; None where the app passes browsers' requests on."""
        settings = self._config.browsers
        return None if settings == "pass" else Browsers(settings.hosts, settings.origins)

    def _limits(self) -> Limits:
        limits = self._config.limits
        return Limits(**{one.name: getattr(limits, one.name) for one in fields(Limits)})

    def _credentials(self) -> dict[str, Credential | TokenCredential]:
        made: dict[str, Credential | TokenCredential] = {}
        for name, credential in self._resolved.credentials.items():
            header = credential.header or "Authorization"
            if credential.jwt is not None:
                mint = minter(credential.jwt, self._config.service, credential.jwt.key)
                audience = credential.jwt.audience.replace("{service}", self._config.service)
                ttl, overlap = credential.jwt.ttl, credential.overlap
                made[name] = TokenCredential(mint, audience=audience, ttl=ttl, header=header, overlap=overlap)
            else:
                prefix = "Bearer " if credential.oauth2 is not None else ""
                overlap = credential.overlap if credential.oauth2 is None else 0.0  # an issuer's tokens just end
                made[name] = Credential(header, credential.value or "", overlap=overlap, prefix=prefix)
        return made

    def _service(self, declared: EffectiveService) -> Service:
        stats = ClusterStats()
        policy = declared.policy
        maker = self._maker(declared.name, policy.idle_timeout, stats, policy.tls)
        endpoints = []
        sources: list[Target] = []
        for target in declared.targets:
            if target.is_source:
                sources.append(target)
                maker.expect(target.url)
            else:
                endpoints.append(maker.from_url(target.url, target.weight))
        self._secure(maker)
        cluster = Cluster(declared.name, endpoints, policy.balance, stats, self._ejection(declared.name, policy))
        self._note_hash(policy.balance)
        self._out.clusters.append(cluster)
        if sources:
            self._out.discovered.append(Discovered(cluster, maker, tuple(sources), tuple(endpoints)))
        if policy.health_check is not None:
            self._out.checked.append((cluster, policy.health_check))
        shared = _Shared()
        default = self._route(declared, cluster, None, shared)
        routes = [
            (PathPattern(route.match), self._route(declared, cluster, route, shared)) for route in declared.routes
        ]
        return Service(declared.name, default, routes, maker.confined)

    def _app(self) -> Service | None:
        """What inbound calls reach: our own app. It is not retried, and its time is the caller's business."""
        inbound = self._config.inbound
        if inbound is None:
            return None
        stats = ClusterStats()
        maker = self._maker(APP, _APP_IDLE, stats, ClientTls())
        endpoint = maker.from_url(inbound.app)
        self._secure(maker)
        if inbound.tls is not None:
            self._out.certificates.serve(inbound.tls, client_optional=other_proofs(inbound))
        cluster = Cluster(APP, [endpoint], "least-requests", stats, shown=self._config.service)
        self._out.clusters.append(cluster)
        correlation = self._config.defaults.correlation or Correlation()
        self._noted.add(correlation.header.lower().encode())
        guarded = self._out.guarded = compile_guard(self._config, inbound)
        workers = self._config.workers
        in_flight = concurrency(inbound.max_in_flight or None, inbound.queue, workers)
        remembered = self._out.idempotency = compile_idempotency(self._config, inbound, guarded.guard)
        parts = Parts(
            deadline=Deadline(NEVER, heeds_app=False),  # that header is for apps, not for their callers
            context=Context(correlation.header.encode(), ID_FORMATS[correlation.generate]),
            guard=guarded.guard,
            forwarded=_forwarded(inbound),
            incoming=IncomingDeadline(),
            health=AppHealth(cluster.has_healthy) if inbound.health_check is not None else None,
            rate_limit=rate_limit(inbound.rate_limit, workers, guarded.noted),
            concurrency=in_flight,
            keep=Keep(self._out.contexts, inbound.identity),
            idempotency=remembered.policy if remembered is not None else None,
            headers=Headers({}, []),
        )
        self._noted |= guarded.noted | READ | (WRITTEN if inbound.forwarded == "add" else NO_NAMES)
        if in_flight is not None:
            self._out.limits_in_force.append((APP, in_flight))
        if inbound.health_check is not None:
            self._out.checked.append((cluster, inbound.health_check))
        stamps = into_each_attempt(parts)
        route = Route(
            name=DEFAULT_ROUTE,
            cluster=cluster,
            stats=RouteStats(APP, DEFAULT_ROUTE),
            policies=around_the_call(parts),
            stamps=stamps,
            retry=Retry(max_retries=0, by_key=False),  # the key is for us: to the app it says nothing
            breaker=None,
            fallback=None,
            attempt_timeout=NEVER,
            connect_timeout=_APP_CONNECT,
            body_idle=self._config.limits.body_idle_timeout,
            inbound=True,
            max_body=max_bodies(self._config)[0],
            passes_host=inbound.host == "caller",
            owned=owned_by(stamps),
        )
        self._out.routes.append(route)
        return Service(APP, route, (), bool(endpoint.base_path))

    def _maker(self, name: str, idle_timeout: float, stats: ClusterStats, tls: ClientTls) -> EndpointMaker:
        limits = self._config.limits
        return EndpointMaker(
            name,
            tls,
            stats=stats,
            idle_timeout=idle_timeout,
            max_head_bytes=limits.header_bytes,
            max_fields=limits.headers,
        )

    def _secure(self, maker: EndpointMaker) -> None:
        """Give https endpoints their context, those to come included."""
        if maker.secure:
            self._out.certificates.secure(maker)

    def _ejection(self, name: str, policy: Effective) -> Ejection | None:
        settings = policy.ejection
        if settings is None:
            return None

        def hook(endpoint: Endpoint, out: bool, why: str) -> None:
            for one in self._on_ejection:
                one(name, endpoint.name, out, why)

        return Ejection(
            EjectionSettings(
                consecutive_failures=settings.consecutive_failures,
                failure_rate=settings.failure_rate,
                slow_factor=settings.slow_factor,
                slow_call=settings.slow_call,
                base=settings.base,
                cap=settings.max,
            ),
            hook=hook,
        )

    def _note_hash(self, balance: str) -> None:
        if balance.startswith(HASH):
            self._noted.add(balance.removeprefix(HASH).lower().encode())

    def _route(
        self, declared: EffectiveService, cluster: Cluster, route: EffectiveRoute | None, shared: _Shared
    ) -> Route:
        """One route. Limits and breaker are shared by the whole service, unless the route declares its own."""
        policy = route.policy if route is not None else declared.policy
        own = route.own if route is not None else frozenset()
        name = route.match if route is not None else DEFAULT_ROUTE
        known = {"service": self._config.service, "target": declared.name, "instance": self._resolved.instance}
        correlation = policy.correlation
        templates = {header: Template(str(value), known) for header, value in policy.headers.set.items()}
        if policy.critical is False:
            templates[CRITICAL.decode()] = Template("false", {})
        for value in policy.headers.set.values():
            self._noted.update(header_names(str(value)))
        self._noted.add(correlation.header.lower().encode())
        timeout = policy.timeout if policy.timeout is not None else NEVER
        workers = self._config.workers
        parts = Parts(
            deadline=Deadline(timeout, policy.total_timeout or NEVER),
            context=Context(correlation.header.encode(), ID_FORMATS[correlation.generate]),
            mint_key=MintKey() if policy.retry is not None and policy.retry.idempotency_key is not None else None,
            restore=Restore(self._out.contexts, correlation.header.lower().encode())
            if self._config.inbound is not None
            else None,
            headers=Headers(templates, policy.headers.remove),
            credentials=[self._out.credentials[name] for name in policy.auth],
            fetched=self._fetched(policy.auth),
            rate_limit=shared.once("rate_limit", own, lambda: rate_limit(policy.rate_limit, workers, self._noted)),
            throttle=shared.once(
                "throttle", own, lambda: self._throttle(_label(declared, name, "throttle", own), policy)
            ),
            concurrency=shared.once(
                "max_in_flight",
                own | ({"max_in_flight"} if "queue" in own else frozenset()),
                lambda: self._concurrency(_label(declared, name, "max_in_flight", own), policy),
            ),
        )
        stamps = into_each_attempt(parts)
        label = _label(declared, name, "circuit_breaker", own)
        made = Route(
            name=name,
            cluster=cluster,
            stats=RouteStats(declared.name, name),
            policies=around_the_call(parts),
            stamps=stamps,
            retry=self._retry(policy, own, shared),
            breaker=shared.once("circuit_breaker", own, lambda: self._breaker(label, policy)),
            fallback=None,  # see _stand_ins
            attempt_timeout=_one_attempt(policy),
            last_takes_all=policy.attempt_timeout is None,
            connect_timeout=policy.connect_timeout,
            body_idle=policy.body_idle_timeout or self._config.limits.body_idle_timeout,
            upgrade=policy.upgrade,
            allow_connect=policy.allow_connect,
            credentials=tuple(parts.credentials),
            hedge=_hedge(policy),
            critical=policy.critical,
            max_body=no_larger_than(self._config.limits.body_bytes),
            owned=owned_by(stamps),
        )
        self._out.routes.append(made)
        if policy.fallback:
            self._stand_ins.append((made, policy.fallback, correlation.header.lower().encode()))
        return made

    def _fetched(self, names: tuple[str, ...]) -> FetchedCredentials | None:
        """What refuses calls until their credentials have been fetched; None where none has to be."""
        made = [(name, self._out.credentials[name]) for name in names]
        waited_for = [(name, one) for name, one in made if isinstance(one, Credential) and not one.ready]
        return FetchedCredentials(waited_for) if waited_for else None

    def _throttle(self, label: str, policy: Effective) -> Throttle | None:
        if policy.throttle is None:
            return None
        throttle = Throttle(policy.throttle.ratio, policy.throttle.window)
        self._out.throttles.append((label, throttle))
        return throttle

    def _concurrency(self, label: str, policy: Effective) -> ConcurrencyLimit | None:
        made = concurrency(policy.max_in_flight, policy.queue, self._config.workers)
        if made is not None:
            self._out.limits_in_force.append((label, made))
        return made

    def _retry(self, policy: Effective, own: frozenset[str], shared: _Shared) -> Retry:
        retry = policy.retry
        if retry is None:
            hedges = shared.once("retry", own, lambda: RetryBudget(_HEDGE_BUDGET)) if policy.hedge else None
            return Retry(max_retries=0, budget=hedges)
        budget = shared.once("retry", own, lambda: RetryBudget(retry.budget))
        return Retry(
            max_retries=retry.max_retries,
            methods=frozenset(method.encode() for method in retry.methods),
            on_status=frozenset(retry.on_status),
            on_errors=frozenset(Phase(error) for error in retry.on_errors),
            first=retry.backoff[0],
            cap=retry.backoff[1],
            budget=budget,
        )

    def _breaker(self, label: str, policy: Effective) -> Breaker | None:
        if policy.circuit_breaker is None:
            return None
        breaker = Breaker(label, _breaker_settings(policy.circuit_breaker, policy), hooks=self._hooks)
        self._out.breakers.append(breaker)
        return breaker


class _Shared:
    """The parts that the routes of one service have in common."""

    def __init__(self) -> None:
        self._made: dict[str, object] = {}

    def once(self, part: str, own: frozenset[str], make: Callable[[], T]) -> T:
        """The service's one, or a new one for a route that declares this part itself."""
        if part in own:
            return make()
        if part not in self._made:
            self._made[part] = make()
        return self._made[part]  # type: ignore[return-value] # what `make` made under the same name


def _breaker_settings(breaker: CircuitBreaker, policy: Effective) -> BreakerSettings:
    return BreakerSettings(
        consecutive_failures=breaker.consecutive_failures,
        failure_rate=breaker.failure_rate,
        slow_rate=breaker.slow_rate,
        slow_call=breaker.slow_call if breaker.slow_call is not None else _SLOW_SHARE * _one_attempt(policy),
        min_requests=breaker.min_requests,
        window=breaker.window,
        open_first=breaker.open_for[0],
        open_cap=breaker.open_for[1],
        probes=breaker.probes,
        ramp=breaker.ramp,
        wait=breaker.wait,
    )


def _one_attempt(policy: Effective) -> float:
    """Seconds that an attempt may take which may be followed by another."""
    if policy.attempt_timeout is not None:
        return policy.attempt_timeout
    return policy.timeout / 2 if policy.timeout is not None else NEVER


def _label(declared: EffectiveService, route: str, part: str, own: frozenset[str]) -> str:
    """What a part is called: by its service, or by its route where that has one of its own."""
    return declared.name if part not in own else f"{declared.name} {route}"


def _hedge(policy: Effective) -> Hedge | None:
    hedge = policy.hedge
    if hedge is None:
        return None
    if isinstance(hedge.after, str):
        return Hedge(percentile=Percentile(float(hedge.after[1:]) / 100), most=hedge.max)
    assert hedge.after is not None  # resolve has seen to that
    return Hedge(hedge.after, most=hedge.max)


def _forwarded(inbound: Inbound) -> Forwarded | None:
    if inbound.forwarded == "pass":
        return None
    return Forwarded(adds=inbound.forwarded == "add", secure=inbound.tls is not None)


def _prepared(fallback: FallbackConfig) -> Prepared:
    headers = [(name.encode(), str(value).encode()) for name, value in fallback.headers.items()]
    body = b""
    if fallback.json_ is not None:
        body = json.dumps(fallback.json_).encode()
        headers.insert(0, (b"content-type", b"application/json"))
    assert fallback.status is not None
    return Prepared(fallback.status, headers, body)
