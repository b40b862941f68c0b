"""Remedies for mistakes that are easily made: keys of other programs, at another place, values of another shape."""

from __future__ import annotations

import re
from typing import Any, Final

from outrider.config.known import known_keys, places_of
from outrider.config.problems import did_you_mean
from outrider.config.source import KeyPath
from outrider.config.wording import Sentence, own, say, shown

EXAMPLES: Final = {
    "service": "say what this app is called: service: booking-service",
    "services": "name what the app calls: services: { user: http://127.0.0.1:3001 }",
    "url": "say where it is: url: http://127.0.0.1:3001",
    "listen": "say where callers connect: listen: 0.0.0.0:4103",
    "app": "say where the app is: app: http://127.0.0.1:3000",
    "match": "say which calls: match: GET /users/{id}",
    "caller": "say which caller: caller: booking-service",
    "header": "say which header carries it: header: x-api-key",
    "value": "say where the secret is: value: ${file:/run/secrets/key}",
    "rate": "say how many: rate: 50/s",
    "alg": "say how it is signed: alg: RS256",
    "key": "say where the key is: key: ${file:/run/secrets/key.pem}",
    "audience": 'say for whom tokens must be: audience: "{service}"',
    "cert": "say where the certificate is: cert: /etc/tls/tls.crt",
    "token_url": "say where tokens are given out: token_url: https://login.example.com/oauth2/token",
    "client_id": "say under which name tokens are asked for: client_id: booking-service",
    "client_secret": "say where the secret is: client_secret: ${file:/run/secrets/client}",
}
"""What to write for a key that is missing."""

_MAPS: Final = {
    "retry": "say how often: retry: { max_retries: 2 }, or retry: false",
    "circuit_breaker": "it is on unless it is false; leave it out for that",
    "health_check": "say which path: health_check: { path: /health }",
    "inbound": "say where and for which app: inbound: { listen: 0.0.0.0:4103, app: http://127.0.0.1:3000 }",
    "services": "name what the app calls: services: { user: http://127.0.0.1:3001 }",
    "headers": "say which to set: headers: { set: { X-Tenant: blue } }",
    "set": "write NAME: VALUE: set: { X-Tenant: blue }",
    "tls": "say which authorities to trust: tls: { ca: /etc/tls/ca.crt }; leave it out to trust those of the system",
    "queue": "say how many calls may wait: queue: { size: 64, wait: 1s }",
    "hedge": "say when an answer is late: hedge: { after: p95 }",
    "throttle": "throttle: {} switches it on",
    "ejection": "it is on unless it is false; leave it out for that",
    "fallback": "say what stands in: fallback: last-good, or fallback: { status: 200, json: [] }",
    "admin": "say where it listens: admin: { listen: 127.0.0.1:4101 }",
    "telemetry": "say where it listens: telemetry: { listen: 0.0.0.0:4102 }",
    "log": "say what is logged: log: { level: info, access: errors }",
    "observability": "say what is logged: observability: { log: { access: all } }",
    "credentials": "declare one by name: credentials: { key: { header: x-api-key, value: '${KEY}' } }",
    "defaults": "say what holds for every service: defaults: { timeout: 5s }",
    "policies": "declare one by name: policies: { slow: { timeout: 30s } }",
    "limits": "say which: limits: { body_bytes: 10MiB }",
    "idempotency": "idempotency: {} switches it on",
    "jwt": "say how tokens are signed: jwt: { alg: RS256, ... }",
    "redis": "say where it is: redis: { url: redis://127.0.0.1:6379/0 }",
    "correlation": "say which header: correlation: { header: x-request-id }",
    "shutdown": "say how long calls may take: shutdown: { drain: 25s }",
    "dns": "say which servers: dns: { servers: [10.0.0.2] }",
    "oauth2": "say where tokens are given out: oauth2: { token_url: ..., client_id: ..., client_secret: ... }",
    "last_good": "last_good: {} takes the usual sizes",
    "routes": "write a list: routes: [ { match: GET /users/{id}, timeout: 2s } ]",
    "accept": "write a list: accept: [ { header: x-service-key, values: ['${KEY}'] } ]",
    "allow": "write a list: allow: [ { caller: booking-service, match: GET /users/** } ]",
    "claims": "write NAME: VALUE: claims: { role: reader }",
}
"""How a map or list of maps is written that something else was given for."""

_ANYWHERE: Final = {
    "attempts": "max_retries",
    "max_attempts": "max_retries",
    "num_retries": "max_retries",
    "retry_on": "on_status",
    "per_try_timeout": "attempt_timeout",
    "try_timeout": "attempt_timeout",
    "request_timeout": "timeout",
    "response_timeout": "timeout",
    "read_timeout": "body_idle_timeout",
    "connection_timeout": "connect_timeout",
    "dial_timeout": "connect_timeout",
    "keepalive_timeout": "idle_timeout",
    "connections": "downstream_connections",
    "max_connections": "downstream_connections",
    "concurrency": "max_in_flight",
    "max_concurrent": "max_in_flight",
    "max_concurrency": "max_in_flight",
    "max_requests": "max_in_flight",
    "bulkhead": "max_in_flight",
    "breaker": "circuit_breaker",
    "circuitbreaker": "circuit_breaker",
    "outlier_detection": "ejection",
    "healthcheck": "health_check",
    "health": "health_check",
    "interval": "every",
    "period": "every",
    "ssl": "tls",
    "cafile": "ca",
    "ca_file": "ca",
    "ca_cert": "ca",
    "certfile": "cert",
    "cert_file": "cert",
    "keyfile": "key",
    "key_file": "key",
    "sni": "server_name",
    "lb": "balance",
    "lb_policy": "balance",
    "load_balancer": "balance",
    "load_balancing": "balance",
    "ratelimit": "rate_limit",
    "limit": "rate",
    "rps": "rate",
    "requests": "rate",
    "websocket": "upgrade",
    "websockets": "upgrade",
    "host": "url",
    "address": "url",
    "addr": "url",
    "target": "url",
    "targets": "url",
    "upstream": "url",
    "upstreams": "url",
    "endpoint": "url",
    "endpoints": "url",
    "base_url": "url",
    "uri": "url",
    "path": "match",
    "pattern": "match",
    "route": "match",
    "name": "header",
    "secret": "value",
    "token": "value",
    "api_key": "value",
    "password": "value",
    "credentials": "auth",
    "default": "defaults",
    "bind": "listen",
    "app_url": "app",
    "whitelist": "allow",
    "rules": "allow",
    "authentication": "accept",
    "proofs": "accept",
    "grace_period": "drain",
    "add": "set",
    "delete": "remove",
    "ttl": "max_age",
    "logging": "observability",
    "loglevel": "level",
    "log_level": "level",
    "metrics": "telemetry",
    "prometheus": "telemetry",
    "threads": "workers",
    "processes": "workers",
}
"""Names that other programs have for keys of ours. The first that is known at the place is meant."""

_AT: Final = {
    (".", "port"): "say where the app calls: listen: 127.0.0.1:4100",
    (".", "name"): "service: booking-service says what this app is called",
    (".", "routes"): "routes belong to a service: services: { user: { url: ..., routes: [ ... ] } }",
    (".", "auth"): "declare secrets under credentials, and name them in auth of a service or of defaults",
    (".", "log"): "it belongs under observability: observability: { log: { level: info } }",
    (".", "logging"): "observability: { log: { level: info } }",
    (".", "log_level"): "observability: { log: { level: info } }",
    (".", "metrics"): "telemetry: { listen: 0.0.0.0:4102 } serves /metrics",
    (".", "upstreams"): "services: { user: http://127.0.0.1:3001 }",
    ("tls", "verify"): "certificates are always verified; ca: FILE trusts an authority of your own",
    ("tls", "insecure"): "certificates are always verified; ca: FILE trusts an authority of your own",
    ("tls", "insecure_skip_verify"): "certificates are always verified; ca: FILE trusts an authority of your own",
    ("rate_limit", "per"): "the time stands in the rate: rate: 50/s or 100/m",
    ("rate_limit", "period"): "the time stands in the rate: rate: 50/s or 100/m",
    ("fallback", "body"): "json: holds the body: fallback: { status: 200, json: [] }",
    ("routes", "method"): "the method stands in match: match: GET /users/{id}",
    ("routes", "methods"): "methods stand in match: match: GET|HEAD /users/{id}",
    ("routes", "url"): "a route has no URL of its own: declare another service for it",
    ("routes", "rewrite"): "paths are passed on as they are; a path in the url of the service stands before them",
    ("allow", "path"): "match: METHOD /path",
    ("credentials", "file"): "value: ${file:/run/secrets/key} reads it from a file",
    ("credentials", "env"): "value: ${NAME} takes it from a variable",
}


def misplaced(path: KeyPath, value: Any) -> Sentence:
    """The remedy for a key that is not known at its place."""
    known, key = known_keys(path[:-1]), str(path[-1])
    parent = next((part for part in reversed(path[:-1]) if part in _PARENTS), "." if len(path) == 1 else "")
    plain = _plain(key)
    if (str(parent), plain) in _AT:
        return own(_AT[str(parent), plain])
    near = did_you_mean(plain, known)
    if parent == "headers" and path[-2] == "headers" and not near:
        return say(
            "headers to set stand under set: headers: {{ set: {{ {name}: {value} }} }}", name=key, value=_short(value)
        )
    if plain in known:
        return say('did you mean "{key}"?', key=plain)
    if plain in ("enabled", "disabled", "enable"):
        return say("what is there is on; write {parent}: false to switch it off", parent=parent)
    if (changed := _with_unit(plain, value, known)) is not None:
        return changed
    other = _ANYWHERE.get(plain, "")
    if other in known:
        return say('did you mean "{key}"?', key=other)
    if near:
        return own(near)
    if places := places_of(other or plain):
        return say("it belongs to {place}; known keys here: {known}", place=_place(places, path), known=_list(known))
    return say("known keys: {known}", known=_list(known))


_PARENTS: Final = frozenset(parent for parent, _ in _AT) | {
    "headers", "retry", "circuit_breaker", "health_check", "ejection", "hedge", "queue", "throttle", "idempotency",
    "admin", "telemetry", "inbound", "limits", "log",
}  # fmt: skip


def misspelt(wrong: KeyPath, missing: Any) -> bool:
    """Whether an unknown key stands for the one that is missing beside it."""
    wanted = str(missing["loc"][-1])
    plain = _plain(str(wrong[-1]))
    return _ANYWHERE.get(plain) == wanted or bool(did_you_mean(plain, [wanted])) or _plain(wanted) == plain


def other_shape(kind: str, path: KeyPath, value: Any) -> Sentence | None:
    """How a value of another kind than the one expected is written, or None where there is no telling."""
    key = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
    if path == ("services",) and isinstance(value, str):
        return own("a space belongs behind the colon of each key")
    if path[-2:-1] == ("routes",) and isinstance(value, str):
        return say("write {{ match: {got} }}", got=shown(value))
    if path[-2:-1] == ("accept",) and isinstance(value, str):
        return own("write { header: x-service-key, values: ['${KEY}'] }")
    if kind == "list_type":
        if key in ("routes", "accept", "allow"):
            return own(_MAPS[key])
        return None if isinstance(value, dict) else say("write [{got}]", got=shown(value))
    if kind in ("model_type", "dict_type"):
        if isinstance(value, list) and key not in ("routes", "accept", "allow"):
            return own("write NAME: VALUE in each line, without a dash before it")
        return own(_MAPS[key]) if key in _MAPS else None
    if kind == "string_type":
        if isinstance(value, (dict, list)) or value is None:
            return None
        return say('put it in quotes: "{got}"', got=shown(value))
    return None


def _plain(key: str) -> str:
    """A key as we spell ours: `maxRetries` and `max-retries` are max_retries."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).replace("-", "_").replace(" ", "_").lower()


def _with_unit(key: str, value: Any, known: set[str]) -> Sentence | None:
    """For keys that name their unit, as timeout_ms does: here, the value does."""
    found = re.fullmatch(r"(\w+?)_?(ms|millis|milliseconds|s|sec|secs|seconds)", key)
    if found is None or found[1] not in known or isinstance(value, (dict, list)):
        return None
    unit = "ms" if found[2].startswith("m") else "s"
    return say("the unit stands in the value: {key}: {value}{unit}", key=found[1], value=shown(value), unit=unit)


def _short(value: Any) -> str:
    return "VALUE" if isinstance(value, (dict, list)) or value is None else shown(value)


def _place(places: tuple[str, ...], path: KeyPath) -> str:
    """The place that is meant: the one with the longest common beginning."""
    here = [str(part) if number != 1 or path[0] != "services" else "NAME" for number, part in enumerate(path)]

    def common(place: str) -> int:
        parts = place.split(".")
        return next((i for i, (a, b) in enumerate(zip(parts, here, strict=False)) if a != b), len(parts))

    return max(places, key=lambda place: (common(place), -len(place)))


def _list(known: set[str]) -> str:
    return ", ".join(sorted(known)) or "none"
