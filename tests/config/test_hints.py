"""Mistakes that newcomers make, and the remedy that each one gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.config.load import load
from outrider.config.problems import Problem
from outrider.errors import ConfigError

USER = "services: { user: http://127.0.0.1:3001 }\n"


def problems(tmp_path: Path, text: str) -> list[Problem]:
    (tmp_path / "a.yaml").write_text(text if text.startswith("service:") else f"service: booking\n{text}")
    try:
        return load([str(tmp_path / "a.yaml")], environment={})[1]
    except ConfigError as error:
        return error.problems


def of_user(text: str) -> str:
    return f"services: {{ user: {{ url: 'http://127.0.0.1:3001', {text} }} }}\n"


MISTAKES = {
    "a header beside set": (of_user("headers: { X-Tenant: blue }"), "headers: { set: { X-Tenant: blue } }"),
    "a route as text": (of_user("routes: ['GET /x']"), "write { match: GET /x }"),
    "routes as a map": (of_user("routes: { 'GET /x': { timeout: 1s } }"), "routes: [ { match: GET /users/{id}"),
    "a method of its own": (of_user("routes: [ { match: '* /x', method: GET } ]"), "match: GET /users/{id}"),
    "path for match": (of_user("routes: [ { path: /x } ]"), '"match"'),
    "services as a list": ("services: [ { name: user, url: 'http://a:1' } ]\n", "without a dash"),
    "host for url": ("services: { user: { host: 'http://a:1' } }\n", '"url"'),
    "upstreams": ("services: { user: { upstreams: ['http://a:1'] } }\n", '"url"'),
    "camel case": (of_user("maxInFlight: 5"), '"max_in_flight"'),
    "dashes": (of_user("rate-limit: 5/s"), '"rate_limit"'),
    "a number of retries": (of_user("retry: 3"), "max_retries: 2"),
    "retries elsewhere": (of_user("max_retries: 3"), "it belongs to services.NAME.retry.max_retries"),
    "attempts": (of_user("retry: { attempts: 3 }"), '"max_retries"'),
    "per try": (of_user("per_try_timeout: 1s"), '"attempt_timeout"'),
    "unit in the key": (of_user("timeout_ms: 250"), "timeout: 250ms"),
    "no unit": (of_user("timeout: 30"), "30s or 30ms"),
    "enabled": (of_user("circuit_breaker: { enabled: true }"), "circuit_breaker: false"),
    "the breaker": (of_user("breaker: {}"), '"circuit_breaker"'),
    "concurrency": (of_user("concurrency: 5"), '"max_in_flight"'),
    "rate and period": (of_user("rate_limit: { rate: 5/s, per: s }"), "rate: 50/s"),
    "ssl": (of_user("ssl: { ca: /x }"), '"tls"'),
    "no verification": (of_user("tls: { verify: false }"), "always verified"),
    "a body for the fallback": (of_user("fallback: { body: x }"), "json:"),
    "a secret in place": (of_user("auth: [ { header: x-a, value: b } ]"), "for example auth: [internal-key]"),
    "a port at the top": (f"port: 4100\n{USER}", "listen: 127.0.0.1:4100"),
    "log at the top": (f"log: {{ level: debug }}\n{USER}", "observability: { log: { level: info } }"),
    "level at the top": (f"level: debug\n{USER}", "observability.log.level"),
    "metrics": (f"metrics: {{}}\n{USER}", "telemetry: { listen: 0.0.0.0:4102 }"),
    "routes at the top": (f"routes: []\n{USER}", "routes belong to a service"),
    "default": (f"default: {{ timeout: 1s }}\n{USER}", '"defaults"'),
    "the secret's name": (f"credentials: {{ k: {{ header: x-a, password: b }} }}\n{USER}", '"value"'),
    "a file": (f"credentials: {{ k: {{ header: x-a, file: /x }} }}\n{USER}", "value: ${file:/run/secrets/key}"),
    "accept as a map": (
        f"inbound: {{ listen: ':1', app: 'http://a:1', accept: {{ header: x-a, values: [a] }} }}\n{USER}",
        "accept: [ { header: x-service-key",
    ),
    "accept as text": (
        f"inbound: {{ listen: '127.0.0.1:1', app: 'http://a:1', accept: [x-key] }}\n{USER}",
        "write { header: x-service-key",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_usual_mistake_gets_its_remedy(tmp_path: Path, name: str) -> None:
    """What was meant is said, at the place of the mistake."""
    text, remedy = MISTAKES[name]
    found = problems(tmp_path, text)
    assert any(remedy in f"{one.message} {one.hint}" for one in found), [f"{one.message} {one.hint}" for one in found]


def test_an_allowance_per_caller_needs_callers_that_do_not_name_themselves(tmp_path: Path) -> None:
    """Otherwise another name is another allowance; with a name of its own for each key it is not."""
    inbound = "inbound: { listen: '127.0.0.1:1', app: 'http://a:1', rate_limit: { rate: 5/s, key: caller }, accept: ["
    own = f"{{ header: x-a, values: [{'k' * 32}], caller: ledger }}"
    chosen = f"{{ header: x-a, values: [{'k' * 32}] }}"
    assert problems(tmp_path, f"{inbound} {own} ] }}\n{USER}") == []
    (only,) = problems(tmp_path, f"{inbound} {chosen} ] }}\n{USER}")
    assert (only.path, only.severity) == ("inbound.rate_limit.key", "warning")


# What is wrong, and nothing else is to be said: the only complaint is about the first line that is named.
ALONE = {
    "accept[0].header": "inbound: { listen: '127.0.0.1:1', app: 'http://a:1',"
    " accept: [ { header: 5, values: [a] } ] }\n",
    "accept": "inbound: { listen: '127.0.0.1:1', app: 'http://a:1', accept: x-key,"
    " allow: [ { caller: a, match: GET /a } ] }\n",
    "accept[0].jwt.jwks": "inbound: { listen: '127.0.0.1:1', app: 'http://a:1',"
    " accept: [ { jwt: { alg: RS256, audience: a, jwks: keys } } ] }\n",
    "protect[0]": "inbound: { listen: '127.0.0.1:1', app: 'http://a:1', protect: [internal] }\n",
    "allow[1].match": "inbound: { listen: '127.0.0.1:1', app: 'http://a:1',"
    f" accept: [ {{ header: x-a, caller: a, values: [{'k' * 32}] }} ],"
    " allow: [ { caller: a, match: GET /a }, { caller: a, match: get /a } ] }\n",
    "inbound.tls": "inbound: { listen: '127.0.0.1:1', app: 'http://a:1', tls: 5, accept: [ { certificate: [a] } ] }\n",
    "redis.url": "redis: { url: nowhere }\ninbound: { listen: '127.0.0.1:1', app: 'http://a:1', protect: [],"
    " idempotency: { store: redis } }\n",
    "policies.slow": "policies: { slow: 5 }\nservices: { user: { url: 'http://a:1', policy: slow } }\n",
    "policies.a": "policies: { a: 5, b: { extends: a } }\n",
    "services.b": "services: { user: { url: 'http://a:1', fallback: { service: b } }, b: 5 }\n",
    "admin.token": "admin: { listen: '0.0.0.0:4101', token: short }\n",
    "listen": "listen: nowhere\ntelemetry: { listen: '127.0.0.1:4100' }\n",
    "services.user.max_in_flight": of_user("max_in_flight: many, queue: {}"),
    "services.user.timeout": of_user("timeout: 60, attempt_timeout: 20s"),
    "defaults.timeout": "defaults: { timeout: 60 }\n" + of_user("attempt_timeout: 20s"),
    "services.user.routes[1].match": of_user("routes: [ { match: GET /a }, { match: get /a } ]"),
    "credentials.k.key": "credentials: { k: { header: x-a, key: b } }\n" + of_user("auth: k"),
    "services.user.host": "services: { user: { host: 'http://a:1' } }\n",
}


@pytest.mark.parametrize("place", ALONE)
def test_what_follows_from_a_mistake_is_not_complained_of(tmp_path: Path, place: str) -> None:
    """One mistake, one complaint: what it makes of the rest is not the user's fault."""
    text = ALONE[place]
    found = problems(tmp_path, text if "services:" in text else text + USER)
    assert [one.path for one in found] == [f"inbound.{place}" if place[:3] in ("acc", "pro", "all") else place], [
        f"{one.path}: {one.message}" for one in found
    ]
