"""Inheritance and cross references: what holds for each route in the end.

built-in < `defaults` < `policy` (a list; later wins, each with what it extends) < service < route. Maps merge by
key, lists and scalars replace, `false` switches off. Problems are added to the document, at the line responsible.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from outrider.config.exposure import check_exposure
from outrider.config.extras import check_extras
from outrider.config.inbound import check_inbound
from outrider.config.keys import KeyTextError, signing_key
from outrider.config.problems import did_you_mean
from outrider.config.schema import (
    CircuitBreaker,
    ClientTls,
    Config,
    Correlation,
    Credential,
    Ejection,
    Fallback,
    Headers,
    HealthCheck,
    Hedge,
    LastGood,
    PolicyFields,
    Queue,
    RateLimit,
    Retry,
    Service,
    Target,
    Throttle,
)
from outrider.config.shadows import Shadows
from outrider.config.source import Document, KeyPath
from outrider.config.times import check_times, layers_of, written
from outrider.config.tls import check_tls
from outrider.config.wording import say
from outrider.model.addresses import port_of
from outrider.model.messages import as_field_value, is_field_value
from outrider.model.variables import unknown_variables

BUILT_IN: dict[str, Any] = {
    "timeout": 10.0,
    "connect_timeout": 1.0,
    "idle_timeout": 4.0,
    "auth": [],
    "headers": {"set": {"x-service-name": "{service}", "x-service-id": "{instance}"}},
    "correlation": {},
    "retry": {},
    "circuit_breaker": {},
    "balance": "least-latency",
    "ejection": {},
    "upgrade": True,
    "allow_connect": False,
    "tls": {},
}
# What the endpoints of a service have, whatever the route.
_OF_THE_SERVICE = frozenset(("balance", "ejection", "health_check", "idle_timeout"))
_SHARED_PORTS = frozenset({0})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class Effective:
    """Everything that holds for one route. Times in seconds; None or False: off."""

    timeout: float | None
    total_timeout: float | None
    attempt_timeout: float | None  # None: a share of the time that the call has
    body_idle_timeout: float | None  # None: the one under limits
    connect_timeout: float
    idle_timeout: float
    auth: tuple[str, ...]
    headers: Headers
    correlation: Correlation
    retry: Retry | None
    circuit_breaker: CircuitBreaker | None
    max_in_flight: int | str | None  # a number, or adaptive
    queue: Queue | None
    throttle: Throttle | None
    critical: bool | None
    rate_limit: RateLimit | None
    fallback: tuple[Fallback, ...]
    balance: str
    health_check: HealthCheck | None
    ejection: Ejection | None
    hedge: Hedge | None
    upgrade: bool
    allow_connect: bool
    tls: ClientTls


@dataclass(frozen=True, slots=True)
class EffectiveRoute:
    """A declared route. `own` are the policy fields that it declares itself: those parts it does not share with
    the rest of its service."""

    match: str
    policy: Effective
    own: frozenset[str]


@dataclass(frozen=True, slots=True)
class EffectiveService:
    """A service with everything inherited."""

    name: str
    targets: tuple[Target, ...]
    port: int | None
    hosts: tuple[str, ...]
    policy: Effective
    routes: tuple[EffectiveRoute, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A whole configuration, ready to be compiled."""

    config: Config
    instance: str
    services: tuple[EffectiveService, ...]
    document: Document

    @property
    def credentials(self) -> dict[str, Credential]:
        return self.config.credentials


def resolve(config: Config, document: Document) -> Resolved:
    """Apply inheritance and check what only shows across keys."""
    _check_layers(config, document)
    ours = _own_ports(config)
    services = tuple(_service(config, document, name, service, ours) for name, service in config.services.items())
    instance = config.instance or as_field_value(socket.gethostname())
    resolved = Resolved(config, instance, services, document)
    _check_ports(resolved)
    _check_hosts(resolved)
    check_exposure(config, [one.name for one in services if any(part.auth for part in _policies(one))], document)
    _check_policies(config, document)
    check_tls(config, document)
    check_inbound(config, document)
    check_extras(config, document)
    return resolved


def _policies(service: EffectiveService) -> list[Effective]:
    return [service.policy, *(route.policy for route in service.routes)]


def _service(config: Config, document: Document, name: str, service: Service, ours: frozenset[int]) -> EffectiveService:
    here: KeyPath = ("services", name)
    layers = [BUILT_IN, _declared(config.defaults)]
    for bundle in service.policy:
        if bundle in config.policies:
            layers += _bundle(config, bundle)
        else:
            hint = did_you_mean(bundle, config.policies) or "declare it under policies"
            place: KeyPath = ("policies", bundle)
            missing = say('there is no policy "{name}"', name=bundle)
            document.complain((*here, "policy"), missing, hint, follows=[place, (*here, "policy")])
    layers.append(_declared(service))
    policy = _effective(config, document, here, layers)
    routes = []
    shadows = Shadows()
    for index, route in enumerate(service.routes):
        at = (*here, "routes", index)
        own = _declared(route)
        routes.append(EffectiveRoute(route.match, _effective(config, document, at, [*layers, own]), frozenset(own)))
        for key in sorted(_OF_THE_SERVICE & set(own)):
            document.complain(
                (*at, key), f"{key} belongs to the whole service, not to a route", "move it up", warn=True
            )
        shadow = shadows.add(route.match)
        if shadow is not None:
            message = f"never reached: {shadow} stands before it and matches everything it would"
            document.complain((*at, "match"), message, "put the narrower route first", warn=True, follows=[at])
    for index, target in enumerate(service.url):
        url = target.url
        places = ((*here, "url", index, "url"), (*here, "url", index), (*here, index), (*here, "url"))
        place = next((place for place in places if place in document.marks), here)
        _check_url(document, place, url, ours)
        if service.tls and "https://" not in url and not url.startswith("file+"):
            document.complain(place, f"tls has no effect on {url}", "begin the URL with https://", warn=True)
    _check_fallback(config, document, here, name, policy)
    for index, made in enumerate(routes):
        _check_fallback(config, document, (*here, "routes", index), name, made.policy)
    return EffectiveService(name, tuple(service.url), service.port, tuple(service.hosts), policy, tuple(routes))


def _bundle(config: Config, name: str, seen: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The layers of a policy, what it extends first. Unknown names and circles are complained about elsewhere."""
    if name in seen or name not in config.policies:
        return []
    policy = config.policies[name]
    layers = [layer for base in policy.extends for layer in _bundle(config, base, (*seen, name))]
    return [*layers, _declared(policy)]


def _declared(fields: PolicyFields) -> dict[str, Any]:
    """What was actually written, as plain values."""
    names = set(PolicyFields.model_fields)
    values = fields.model_dump(include=names, exclude_unset=True, by_alias=True)
    return {key: value for key, value in values.items() if value is not None}


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}
    return over


def _effective(config: Config, document: Document, at: KeyPath, layers: list[dict[str, Any]]) -> Effective:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    headers = Headers.model_construct(**(merged["headers"] or {}))
    auth = merged["auth"] or []
    _check_owners(config, document, at, auth, headers, merged["correlation"].get("header", "x-correlation-id"))
    effective = Effective(
        timeout=merged["timeout"] or None,
        total_timeout=merged.get("total_timeout") or None,
        attempt_timeout=merged.get("attempt_timeout"),
        body_idle_timeout=merged.get("body_idle_timeout"),
        connect_timeout=merged["connect_timeout"],
        idle_timeout=merged["idle_timeout"],
        auth=tuple(auth),
        headers=headers,
        correlation=Correlation.model_construct(**merged["correlation"]),
        retry=_built(Retry, merged["retry"]),
        circuit_breaker=_built(CircuitBreaker, merged["circuit_breaker"]),
        max_in_flight=merged.get("max_in_flight") or None,
        queue=_built(Queue, merged.get("queue")),
        throttle=_built(Throttle, merged.get("throttle")),
        critical=merged.get("critical"),
        rate_limit=_built(RateLimit, merged.get("rate_limit")),
        fallback=_fallbacks(merged.get("fallback")),
        balance=merged["balance"],
        health_check=_built(HealthCheck, merged.get("health_check")),
        ejection=_built(Ejection, merged["ejection"]),
        hedge=_built(Hedge, merged.get("hedge")),
        upgrade=merged["upgrade"],
        allow_connect=merged["allow_connect"],
        tls=ClientTls.model_construct(**(merged["tls"] or {})),
    )
    return _checked(document, at, effective)


def _checked(document: Document, at: KeyPath, effective: Effective) -> Effective:
    """Complain of parts that cannot work together; those that cannot work at all are left out."""
    if effective.rate_limit is not None and effective.rate_limit.rate is None:
        # A rate that cannot be read, here or where it is inherited from, has been complained about.
        if not any(problem.path.endswith(("rate_limit", "rate_limit.rate")) for problem in document.problems):
            document.complain((*at, "rate_limit"), 'the key "rate" is missing', "say how many: rate: 50/s")
        effective = replace(effective, rate_limit=None)
    if effective.hedge is not None and effective.hedge.after is None and (*at, "hedge", "after") in document.marks:
        effective = replace(effective, hedge=None)  # it has been complained about
    elif effective.hedge is not None and effective.hedge.after is None:
        document.complain((*at, "hedge"), 'the key "after" is missing', "say when an answer is late: after: p95")
        effective = replace(effective, hedge=None)
    ejection = effective.ejection
    if ejection is not None and ejection.base > ejection.max and written(document, at, "ejection"):
        document.complain(
            (*at, "ejection"), "base is longer than max", "let max be the longer one", follows=[(*at, "ejection")]
        )
    if effective.queue is not None and effective.max_in_flight is None and written(document, at, "queue"):
        message = "no call ever waits here without max_in_flight"
        follows = layers_of(document, at, "max_in_flight")
        document.complain((*at, "queue"), message, "set it, too: max_in_flight: 20", warn=True, follows=follows)
    check_times(document, at, effective)
    return effective


def _check_layers(config: Config, document: Document) -> None:
    """Names and variables, where they are written, once each."""
    layers: list[tuple[KeyPath, PolicyFields]] = [(("defaults",), config.defaults)]
    layers += [(("policies", name), policy) for name, policy in config.policies.items()]
    for name, service in config.services.items():
        layers.append((("services", name), service))
        layers += [(("services", name, "routes", index), route) for index, route in enumerate(service.routes)]
    credentials = document.values.get("credentials")
    known = set(credentials) if isinstance(credentials, dict) else set()
    for at, layer in layers:
        for index, name in enumerate(layer.auth or ()):
            if name not in known:
                place = (*at, "auth", index) if (*at, "auth", index) in document.marks else (*at, "auth")
                hint = did_you_mean(name, known) or "declare it under credentials"
                missing = say('there is no credential "{name}"', name=name)
                document.complain(place, missing, hint, follows=[("credentials", name)])
        for header, value in (layer.headers.set if layer.headers else {}).items():
            for variable in unknown_variables(str(value), frozenset(("service", "target", "instance"))):
                hint = "see {service} {instance} {header:NAME} ..."
                document.complain((*at, "headers", "set", header), f"nothing provides {{{variable}}}", hint)
    for name, credential in config.credentials.items():
        _check_credential(document, name, credential)
        secret = credential.value
        if secret is not None and (secret != secret.strip() or not is_field_value(secret)):
            message = "a credential must be one line of printable ASCII without spaces around it"
            document.complain(("credentials", name, "value"), message, "openssl rand -hex 32 makes a good one")


def _check_credential(document: Document, name: str, credential: Credential) -> None:
    """A secret has one source, and a header where that does not go without saying."""
    at: KeyPath = ("credentials", name)
    kinds = [kind for kind in ("value", "command", "jwt", "oauth2") if (*at, kind) in document.marks]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        message = f"expected exactly one of value, command, jwt and oauth2, got {found}"
        document.complain(at, message, "value: ${file:/run/secrets/key} reads it from a file", follows=[at])
    elif credential.header is None and kinds[0] in ("value", "command") and not document.has_error((*at, "header")):
        document.complain(at, 'the key "header" is missing', "say which header carries the secret")
    jwt = credential.jwt
    if jwt is not None:
        try:
            signing_key(jwt.alg, jwt.key)
        except KeyTextError as error:
            document.complain((*at, "jwt", "key"), str(error), error.hint)
    reserved = sorted({"iss", "sub", "aud", "iat", "exp"} & set(jwt.claims)) if jwt is not None else []
    for claim in reserved:
        document.complain((*at, "jwt", "claims", claim), f"{claim} is written by Outrider", "take it out")


def _check_owners(
    config: Config, document: Document, at: KeyPath, auth: list[str], headers: Headers, correlation: str
) -> None:
    """Every header that Outrider writes has one source: two would send it twice."""
    owners = {correlation.lower().replace("_", "-"): "the correlation id"}
    for name in auth:
        credential = config.credentials.get(name)
        if credential is not None:
            _claim(document, (*at, "auth"), owners, credential.header or "authorization", f"the credential {name}")
    for header in headers.set:
        _claim(document, (*at, "headers", "set", header), owners, header, "headers.set")


def _claim(document: Document, path: KeyPath, owners: dict[str, str], header: str, who: str) -> None:
    owner = owners.setdefault(header.lower().replace("_", "-"), who)
    if owner != who:
        place = next((p for p in (path, ("defaults", *path[2:])) if p in document.marks), path)
        document.complain(place, f"{header} is already written by {owner}", "let only one of them write it")


def _built(model: type[Any], values: dict[str, Any] | bool | None) -> Any:
    if values is False or values is None:
        return None
    assert isinstance(values, dict)
    return model.model_construct(**{("json_" if key == "json" else key): value for key, value in values.items()})


def _fallbacks(values: Any) -> tuple[Fallback, ...]:
    """The chain, one kind of fallback in each."""
    chain: list[Fallback] = []
    for one in values if isinstance(values, list) else [values] if isinstance(values, dict) else []:
        if one.get("service") is not None:
            chain.append(Fallback.model_construct(service=one["service"]))
        if one.get("last_good") is not None:
            chain.append(Fallback.model_construct(last_good=LastGood.model_construct(**one["last_good"])))
        here = any(one.get(key) is not None for key in ("status", "json", "headers"))
        if here or not (one.get("service") or one.get("last_good") is not None):
            prepared = {key: one[key] for key in ("status", "headers") if one.get(key) is not None}
            chain.append(Fallback.model_construct(**{"status": 200, **prepared, "json_": one.get("json")}))
    return tuple(chain)


def _check_fallback(config: Config, document: Document, at: KeyPath, name: str, policy: Effective) -> None:
    """A service that stands in exists, and is another one that has nobody standing in for it in turn."""
    for fallback in policy.fallback:
        other = fallback.service
        if other is None:
            continue
        place = next((p for p in ((*at, "fallback"), (*at[:2], "fallback")) if p in document.marks), at)
        if other not in config.services:
            hint = did_you_mean(other, config.services) or "declare it under services"
            message = say('there is no service "{name}"', name=other)
            document.complain(place, message, hint, follows=[("services", other)])
        elif other == name:
            document.complain(place, f"{name} cannot stand in for itself", "name another service")


def _own_ports(config: Config) -> frozenset[int]:
    """The ports that calls come in on."""
    inbound = {config.inbound.listen[1]} if config.inbound is not None else set()
    services = {service.port for service in config.services.values() if service.port is not None}
    return frozenset((inbound | {config.listen[1], *services}) - _SHARED_PORTS)


def _check_url(document: Document, at: KeyPath, url: str, ours: frozenset[int]) -> None:
    if url.startswith("file+"):
        return
    parts = urlsplit(url.partition("+")[2] if url.startswith("dns") else url)
    try:
        port = port_of(parts)
    except ValueError:
        document.complain(at, f"the port of {url} is not between 1 and 65535")
        return
    if parts.hostname in _LOOPBACK and port in ours:
        document.complain(at, f"{url} is Outrider itself: every call would go round in a circle")


def _check_ports(resolved: Resolved) -> None:
    config, document = resolved.config, resolved.document
    taken: dict[int, KeyPath] = {}
    wanted: list[tuple[KeyPath, int]] = [
        (("listen",), config.listen[1]),
        (("admin", "listen"), config.admin.listen[1]),
        (("telemetry", "listen"), config.telemetry.listen[1]),
        *([(("inbound", "listen"), config.inbound.listen[1])] if config.inbound is not None else []),
        *((("services", service.name, "port"), service.port) for service in resolved.services if service.port),
    ]
    for path, port in wanted:
        if port in taken and port not in _SHARED_PORTS:
            # Blame what is written, not a default.
            blamed, other = (path, taken[port]) if path in document.marks else (taken[port], path)
            used_by = ".".join(map(str, other))
            message = f"port {port} is already used by {used_by}"
            document.complain(blamed, message, "choose another port", follows=[blamed, other])
        taken.setdefault(port, path)
    if config.admin.listen[0] not in _LOOPBACK - {"0.0.0.0", "::"} and config.admin.token is None:
        message = "the admin port would be reachable from other machines without a token"
        hint, token = "listen on 127.0.0.1, or set admin.token", ("admin", "token")
        document.complain(("admin", "listen"), message, hint, follows=[token])


def _check_hosts(resolved: Resolved) -> None:
    owners: dict[str, str] = {service.name: service.name for service in resolved.services}
    for service in resolved.services:
        for index, host in enumerate(service.hosts):
            owner = owners.setdefault(host.lower(), service.name)
            if owner != service.name:
                path = ("services", service.name, "hosts", index)
                resolved.document.complain(path, f'the host "{host}" already belongs to {owner}')


def _check_policies(config: Config, document: Document) -> None:
    for name, policy in config.policies.items():
        path = ("policies", name, "extends")
        for base in policy.extends:
            if base not in config.policies:
                hint = did_you_mean(base, config.policies) or "declare it under policies"
                message = say('there is no policy "{name}"', name=base)
                document.complain(path, message, hint, follows=[("policies", base)])
            elif _reaches(config, base, name):
                document.complain(path, f"the policies {name} and {base} extend each other", "remove one extends")


def _reaches(config: Config, start: str, goal: str, seen: frozenset[str] = frozenset()) -> bool:
    if start == goal:
        return True
    if start in seen or start not in config.policies:
        return False
    return any(_reaches(config, base, goal, seen | {start}) for base in config.policies[start].extends)
