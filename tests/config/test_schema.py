"""Every key of the configuration: what it takes, what it refuses, and what is for later."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from outrider.config.load import load
from outrider.config.problems import Problem
from outrider.errors import ConfigError

BASE: dict[str, Any] = {"service": "booking", "services": {"user": {"url": "http://127.0.0.1:3001"}}}


def errors(tmp_path: Any, values: dict[str, Any]) -> list[Problem]:
    """What is wrong with a configuration of these values."""
    path = tmp_path / "outrider.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        load([str(path)], environment={})
    except ConfigError as error:
        return error.problems
    return []


def top(**values: Any) -> dict[str, Any]:
    return {**BASE, **values}


def service(**values: Any) -> dict[str, Any]:
    return {**BASE, "services": {"user": {**BASE["services"]["user"], **values}}}


def route(**values: Any) -> dict[str, Any]:
    return service(routes=[{"match": "GET /users/{id}", **values}])


ACCEPTED: dict[str, dict[str, Any]] = {
    "minimal": BASE,
    "short form": top(services={"user": "http://127.0.0.1:3001"}),
    "list as short form": top(services={"user": ["http://10.0.0.1:3001", "http://10.0.0.2"]}),
    "version": top(version=1),
    "one worker": top(workers=1),
    "IPv6": top(listen="[::1]:4100"),
    "any port": top(listen="127.0.0.1:0"),
    "token": top(admin={"listen": "0.0.0.0:4101", "token": "0123456789abcdef"}),
    "limits": top(limits={"header_bytes": "32KiB", "headers": 50, "header_timeout": "5s"}),
    "log": top(observability={"log": {"level": "debug", "access": "1%"}, "redact": ["x-secret"]}),
    "drain": top(shutdown={"drain": "5s"}),
    "URL with path": service(url="http://[::1]:3001/api/v1"),
    "switches off": service(timeout=False, retry=False, circuit_breaker=False, auth=False, headers=False),
    "more switches": service(max_in_flight=False, rate_limit=False, fallback=False),
    "critical": service(critical=True, delivery="sync"),
    "rate in short": service(rate_limit="50/s"),
    "rate in full": service(rate_limit={"rate": "100/m", "burst": 5, "key": "header:x-user-id", "store": "memory"}),
    "fallback": service(fallback={"status": 202, "json": {"accepted": True}, "headers": {"x-a": "1"}}),
    "header of a number": service(headers={"set": {"x-version": 2}}),
    "routes": route(timeout="1s", rate_limit="5/s", retry={"max_retries": 0}),
    "https": service(url="https://h", tls={"server_name": "other"}, upgrade=False, allow_connect=True),
    "inbound": top(inbound={"listen": "0.0.0.0:4103", "app": "http://127.0.0.1:3003", "protect": []}),
    "more limits": top(limits={"downstream_requests": 5, "downstream_idle_timeout": "1m", "tunnel_idle_timeout": "1h"}),
    "balance": service(balance="round-robin", url=["http://a:1", "http://b:1"]),
    "balance by latency": service(balance="least-latency"),
    "balance by hash": service(balance="hash:header:X-User-Id"),
    "weights": service(url=[{"url": "http://a:1", "weight": 3}, {"url": "http://b:1", "weight": 0.5}, "http://c:1"]),
    "one URL with a weight": service(url={"url": "http://a:1", "weight": 2}),
    "dns": service(url="dns+http://user:3001/api"),
    "dns with TLS": service(url="dns+https://user", tls={"server_name": "other"}),
    "srv": service(url="dnssrv+http://_http._tcp.user"),
    "file": service(url="file+/etc/endpoints.yaml"),
    "sources and URLs": service(url=["http://a:1", "dns+http://user:3001", {"url": "file+/x.yaml"}]),
    "dns servers": top(dns={"servers": ["10.0.0.1", "10.0.0.2:5353", "[::1]:53", "::1"], "timeout": "500ms"}),
    "faults": top(admin={"allow_faults": True}),
    "health check": service(health_check={"path": "/healthz?deep=1", "every": "1s", "timeout": "200ms"}),
    "health check as built in": service(health_check={}),
    "thresholds": service(health_check={"unhealthy_after": 1, "healthy_after": 2}),
    "ejection": service(ejection={"consecutive_failures": 0, "failure_rate": "0%", "slow_factor": 0, "max": "1m"}),
    "ejection off": service(ejection=False, health_check=False, hedge=False, throttle=False, queue=False),
    "hedge by percentile": service(hedge={"after": "p95"}),
    "hedge by a finer one": service(hedge={"after": "p99.9", "max": 2}),
    "hedge by time": service(hedge={"after": "50ms"}),
    "hedge on a route": route(hedge={"after": "p50"}),
    "queue": service(max_in_flight=5, queue={"size": 3, "wait": "200ms"}),
    "adaptive": service(max_in_flight="adaptive", queue={}),
    "throttle": service(throttle={"ratio": 1.5, "window": "10s"}),
    "not critical": service(critical=False),
    "last good": service(fallback="last-good"),
    "last good in full": service(fallback={"last_good": {"max_age": "1h", "max_bytes": "1MiB", "max_answer": "1KiB"}}),
    "another service": top(services={"user": {"url": "http://a", "fallback": {"service": "b"}}, "b": "http://b"}),
    "a chain": top(
        services={
            "user": {"url": "http://a", "fallback": [{"service": "b"}, "last-good", {"status": 202, "json": {}}]},
            "b": "http://b",
        }
    ),
    "ramp": service(circuit_breaker={"ramp": "5s"}),
    "keys made here": service(retry={"idempotency_key": "generate"}),
    "a guard": top(
        inbound={
            "listen": "0.0.0.0:4103",
            "app": "http://h:1",
            "protect": ["/**"],
            "accept": [{"header": "x-service-key", "values": ["k" * 32]}],
            "idempotency": {"store": "/var/lib/outrider/x.db", "ttl": "1h", "exempt": ["POST /login"]},
        }
    ),
    "keys remembered together": top(
        redis={"url": "rediss://user:word@redis:6380/2", "timeout": "500ms"},
        inbound={
            "listen": "0.0.0.0:4103",
            "app": "http://h:1",
            "protect": [],
            "idempotency": {"store": "redis", "after_crash": "ask", "ask": "/internal/executions/{key}?full=1"},
        },
    ),
    "redis in a file": top(redis={"url": "unix:///run/redis.sock"}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(tmp_path: Any, name: str) -> None:
    """Everything that the contract offers and this version does is accepted."""
    assert errors(tmp_path, ACCEPTED[name]) == []


LATER: dict[str, dict[str, Any]] = {
    "outbox": top(outbox={"store": "sqlite"}),
    "observability.tracing": top(observability={"tracing": {"otlp": "http://h"}}),
    "services.user.env": service(env="USER_URL"),
    "services.user.contract": service(contract={"openapi": "x.yaml"}),
    "services.user.order_by": service(order_by="header:x-user-id"),
    "services.user.delivery": service(delivery="durable"),
    "services.user.rate_limit.key": service(rate_limit={"rate": "5/s", "key": "caller"}),
    "services.user.rate_limit.store": service(rate_limit={"rate": "5/s", "store": "redis"}),
    "services.user.routes[0].delivery": route(delivery="background"),
    "defaults.contract": top(defaults={"contract": {"request": "warn"}}),
    **{f"services.user.url {url}": service(url=url) for url in ("consul+http://h", "k8s+http://h")},
}


@pytest.mark.parametrize("name", LATER)
def test_not_supported_yet(tmp_path: Any, name: str) -> None:
    """A key or value of the contract whose feature comes later is refused in these words, never ignored."""
    (problem,) = errors(tmp_path, LATER[name])
    assert problem.path.removesuffix("[0]") == name.partition(" ")[0]
    assert "not supported yet" in problem.message


def remembering(**settings: Any) -> dict[str, Any]:
    return top(inbound={"listen": "0.0.0.0:4103", "app": "http://h:1", "protect": [], "idempotency": settings})


def guarding(**settings: Any) -> dict[str, Any]:
    accept = [{"header": "x-key", "values": ["k" * 32]}]
    return top(inbound={"listen": "0.0.0.0:4103", "app": "http://h:1", "accept": accept, **settings})


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "protect: a star in a segment": (guarding(protect=["/internal*"]), "inbound.protect[0]", 'write "**"'),
    "protect: a query": (guarding(protect=["/a", "/internal?x=1"]), "inbound.protect[1]", "leave"),
    "protect: a regular expression": (guarding(protect=["/internal/[a-z]+"]), "inbound.protect[0]", "no regular"),
    "protect: no path": (guarding(protect=["internal"]), "inbound.protect[0]", "a path like /internal"),
    "protect: parameters": (guarding(protect=["/a;b"]), "inbound.protect[0]", "leave"),
    "allow: a star in a segment": (
        guarding(allow=[{"caller": "a", "match": "GET /internal*"}]),
        "inbound.allow[0].match",
        'write "**"',
    ),
    "allow: a method in lower case": (
        guarding(allow=[{"caller": "a", "match": "get /internal"}]),
        "inbound.allow[0].match",
        "write GET",
    ),
    "exempt: a query": (remembering(exempt=["POST /a?b"]), "inbound.idempotency.exempt[0]", "leave"),
    "route: a star in a segment": (
        service(routes=[{"match": "GET /a*"}]),
        "services.user.routes[0].match",
        'write "**"',
    ),
    "retry: a method in lower case": (
        service(retry={"methods": ["get"]}),
        "services.user.retry.methods[0]",
        "write GET",
    ),
    "no such store": (remembering(store="memory"), "inbound.idempotency.store", "an absolute path or redis"),
    "browsers: refuse": (top(browsers="refuse"), "browsers", "a map with hosts"),
    "browsers: a URL": (top(browsers={"origins": ["http://x/y"]}), "browsers.origins[0]", "an origin like"),
    "redis nowhere": (remembering(store="redis"), "inbound.idempotency.store", "redis: { url:"),
    "nothing to ask": (remembering(after_crash="ask"), "inbound.idempotency.after_crash", "ask: /internal"),
    "asked without a key": (remembering(after_crash="ask", ask="/done"), "inbound.idempotency.ask", "{key}"),
    "a token for nobody": (
        top(
            inbound={
                "listen": "0.0.0.0:4103",
                "app": "http://h:1",
                "accept": [{"jwt": {"alg": "HS256", "key": "k" * 32}}],
            }
        ),
        "inbound.accept[0].jwt",
        "audience",
    ),
    "redis over http": (top(redis={"url": "http://secret@redis"}), "redis.url", "redis://127.0.0.1:6379/0"),
    "redis: port 0": (top(redis={"url": "redis://u:p@redis:0/1"}), "redis.url", "port 0 is not between"),
    "jwks: port 0": (
        top(
            inbound={
                "listen": "0.0.0.0:4103",
                "app": "http://h:1",
                "accept": [{"jwt": {"alg": "ES256", "jwks": "https://issuer:0/keys", "audience": "a"}}],
            }
        ),
        "inbound.accept[0].jwt.jwks",
        "port 0 is not between",
    ),
    "app: port 0": (
        top(inbound={"listen": "0.0.0.0:4103", "app": "http://h:0", "accept": [{"certificate": ["a"]}]}),
        "inbound.app",
        "port 0 is not between",
    ),
    "listen: port": (top(listen=4100), "listen", "expected HOST:PORT"),
    "listen: host": (top(listen="localhost"), "listen", "expected HOST:PORT"),
    "listen: a URL": (top(listen="http://127.0.0.1:4100"), "listen", "expected HOST:PORT"),
    "listen: a star": (top(listen="*:4100"), "listen", "expected HOST:PORT"),
    "listen: a path": (top(listen="unix:/x:1"), "listen", "expected HOST:PORT"),
    "listen: IPv6 without brackets": (top(listen="::1:4100"), "listen", "expected HOST:PORT"),
    "listen: no address": (top(listen="300.1.1.1:4100"), "listen", "expected HOST:PORT"),
    "listen: no digit": (top(listen="127.0.0.1:²"), "listen", "expected HOST:PORT"),
    "workers: too many": (top(workers=10_000), "workers", "64"),
    "listen: range": (top(listen="127.0.0.1:70000"), "listen", "expected HOST:PORT"),
    "admin for all": (top(admin={"listen": "0.0.0.0:4101"}), "admin.listen", "without a token"),
    "short token": (top(admin={"token": "short"}), "admin.token", "16"),
    "version": (top(version=2), "version", "1"),
    "log level": (top(observability={"log": {"level": "loud"}}), "observability.log.level", "debug"),
    "access": (top(observability={"log": {"access": "some"}}), "observability.log.access", "a share like 1%"),
    "size": (top(limits={"body_bytes": 5}), "limits.body_bytes", "expected a size"),
    "duration": (service(timeout=5), "services.user.timeout", "did you mean 5s or 5ms?"),
    "share": (service(retry={"budget": 0.2}), "services.user.retry.budget", "expected a share"),
    "range": (service(retry={"backoff": "50ms"}), "services.user.retry.backoff", "expected a range"),
    "rate": (service(rate_limit=50), "services.user.rate_limit", "expected a rate"),
    "status": (service(retry={"on_status": [99]}), "services.user.retry.on_status[0]", "100"),
    "error": (service(retry={"on_errors": ["dns"]}), "services.user.retry.on_errors[0]", "connect"),
    "method": (service(retry={"methods": ["get"]}), "services.user.retry.methods[0]", "get"),
    "too many": (service(retry={"max_retries": 99}), "services.user.retry.max_retries", "30"),
    "on": (service(retry=True), "services.user.retry", "expected a map"),
    "balance": (service(balance="random"), "services.user.balance", "least-requests, round-robin or hash:header:NAME"),
    "no URL": (service(url=[]), "services.user.url", "empty"),
    "wrong URL": (service(url="user:3001"), "services.user.url", "expected a URL"),
    "URL with query": (service(url="http://h:1/?a=1"), "services.user.url", "no query"),
    "URL with user": (service(url="http://me:pw@h:1"), "services.user.url", "user name or password"),
    "second URL": (service(url=["http://a", "b"]), "services.user.url[1]", "expected a URL"),
    "port": (service(port=70000), "services.user.port", "65535"),
    "hosts": (service(hosts="h"), "services.user.hosts", "expected a list"),
    "header name": (service(headers={"set": {"a b": "1"}}), "services.user.headers.set.a b", "not a header name"),
    "framing": (service(headers={"set": {"Host": "1"}}), "services.user.headers.set.Host", "frames the message"),
    "header value": (service(headers={"set": {"x-a": "1\r\nx-b: 2"}}), "services.user.headers.set.x-a", "one line"),
    "switch as header": (service(headers={"set": {"x-a": True}}), "services.user.headers.set.x-a", "in quotes"),
    "removing": (service(headers={"remove": ["Content-Length"]}), "services.user.headers.remove[0]", "frames"),
    "route": (service(routes=[{"match": "/users"}]), "services.user.routes[0].match", "expected METHOD /path"),
    "route without match": (service(routes=[{"timeout": "1s"}]), "services.user.routes[0]", '"match" is missing'),
    "rate without rate": (service(rate_limit={"burst": 5}), "services.user.rate_limit", '"rate" is missing'),
    "service without URL": (top(services={"user": {"timeout": "1s"}}), "services.user", '"url" is missing'),
    "empty service": (top(services={"user": None}), "services.user", "expected a map"),
    "no services": (top(services={}), "services", "no service is named"),
    "generate": (service(correlation={"generate": "uuid1"}), "services.user.correlation.generate", "uuid7"),
    "key": (service(rate_limit={"rate": "5/s", "key": "x-user-id"}), "services.user.rate_limit.key", "header:NAME"),
    "hash of nothing": (service(balance="hash:header:"), "services.user.balance", "hash:header:NAME"),
    "hash of a cookie": (service(balance="hash:cookie:id"), "services.user.balance", "hash:header:NAME"),
    "hedge of nothing": (service(hedge={"max": 2}), "services.user.hedge", '"after" is missing'),
    "hedge without bound": (service(hedge={"after": "p95", "max": 9}), "services.user.hedge.max", "5"),
    "hedge as a word": (service(hedge="p95"), "services.user.hedge", "expected a map"),
    "health check: path": (service(health_check={"path": "health"}), "services.user.health_check.path", "health"),
    "health check: never": (service(health_check={"unhealthy_after": 0}), "services.user.health_check.unhealthy_", "1"),
    "ejection: rate": (service(ejection={"failure_rate": 0.3}), "services.user.ejection.failure_rate", "like 20%"),
    "ejection: count": (service(ejection={"consecutive_failures": -1}), "services.user.ejection.consecutive_", "0"),
    "queue for nobody": (service(max_in_flight=1, queue={"size": 0}), "services.user.queue.size", "1"),
    "throttle below one": (service(throttle={"ratio": 0.5}), "services.user.throttle.ratio", "1"),
    "critical": (service(critical=0), "services.user.critical", "expected true or false"),
    "empty chain": (service(fallback=[]), "services.user.fallback", "the list of fallbacks is empty"),
    "fallback word": (service(fallback="lastgood"), "services.user.fallback", "expected last-good"),
    "body of no content": (service(fallback={"status": 204, "json": 1}), "services.user.fallback", "has no body"),
    "body in a chain": (service(fallback=["last-good", {"status": 304, "json": 1}]), "services.user.fallback", "body"),
    "unknown service": (service(fallback={"service": "usr"}), "services.user.fallback", 'did you mean "user"?'),
    "itself": (service(fallback={"service": "user"}), "services.user.fallback", "cannot stand in for itself"),
    "in a chain": (service(fallback=["last-good", {"service": "x"}]), "services.user.fallback", "no service"),
    "dns of what": (service(url="dns+h:1"), "services.user.url", "expected a URL"),
    "dns of ftp": (service(url="dns+ftp://h"), "services.user.url", "dns+http://name:port"),
    "dns: port": (service(url="dns+http://h:99999"), "services.user.url", "between 1 and 65535"),
    "dns: itself": (service(url="dns+http://127.0.0.1:4100"), "services.user.url", "is Outrider itself"),
    "srv with a port": (service(url="dnssrv+http://h:80"), "services.user.url", "SRV records bring their own"),
    "srv with a port and a path": (service(url="dnssrv+http://h:80/a"), "services.user.url", "leave the port out"),
    "file nowhere": (service(url="file+endpoints.yaml"), "services.user.url", "file+/etc"),
    "no weight": (service(url=[{"url": "http://a", "weight": 0}]), "services.user.url[0].weight", "above 0"),
    "too much weight": (service(url={"url": "http://a", "weight": 1001}), "services.user.url.weight", "1000"),
    "weight of what": (service(url=[{"weight": 1}]), "services.user.url", '"url" is missing'),
    "faults": (top(admin={"allow_faults": "yes"}), "admin.allow_faults", "expected true or false"),
    "dns servers": (top(dns={"servers": ["dns.example"]}), "dns.servers[0]", "dns.example"),
    "dns server: port missing": (top(dns={"servers": ["10.0.0.1:"]}), "dns.servers[0]", "10.0.0.2:5353"),
    "dns server: letters": (top(dns={"servers": ["a:b"]}), "dns.servers[0]", "a:b"),
    "dns server: port": (top(dns={"servers": ["10.0.0.1:99999"]}), "dns.servers[0]", "99999"),
    "dns server: port 0": (top(dns={"servers": ["[::1]:0"]}), "dns.servers[0]", "[::1]:0"),
    "dns server: bracket": (top(dns={"servers": ["[::1"]}), "dns.servers[0]", "[::1"),
    "dns server: nothing": (top(dns={"servers": [""]}), "dns.servers[0]", "expected an address"),
    "dns server: too long": (top(dns={"servers": ["10.0.0.0.1"]}), "dns.servers[0]", "expected an address"),
    "ejection: base": (service(ejection={"base": "1m", "max": "1s"}), "services.user.ejection", "longer than max"),
    "weight as a switch": (service(url={"url": "http://a", "weight": True}), "services.user.url.weight", "number"),
    "max_in_flight: none": (service(max_in_flight=0), "services.user.max_in_flight", "from 1"),
    "max_in_flight: less": (service(max_in_flight=-5), "services.user.max_in_flight", "from 1"),
    "max_in_flight: a part": (service(max_in_flight=1.5), "services.user.max_in_flight", "whole number"),
    "max_in_flight: word": (service(max_in_flight="many"), "services.user.max_in_flight", "adaptive"),
    "max_in_flight: true": (service(max_in_flight=True), "services.user.max_in_flight", "got true"),
    "early percentile": (service(hedge={"after": "p49"}), "services.user.hedge.after", "p50 to p99.9"),
    "whole percentile": (service(hedge={"after": "p100"}), "services.user.hedge.after", "p50 to p99.9"),
    "bare hedge": (service(hedge={"after": 50}), "services.user.hedge.after", "a duration like 50ms"),
    "hedge at once": (service(hedge={"after": "0ms"}), "services.user.hedge.after", "a duration like 50ms"),
    "one dns server": (top(dns={"servers": "10.0.0.1"}), "dns.servers", "expected a list"),
    "our name": (top(service="a b"), "service", "a b"),
    "number as name": (top(service=5), "service", "in quotes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Any, name: str) -> None:
    """What cannot work is one error, at its key, that says what was expected."""
    values, path, words = REFUSED[name]
    (problem,) = errors(tmp_path, values)
    assert problem.path.removesuffix("[0]").startswith(path.removesuffix("[0]"))
    assert words in problem.message + problem.hint


# Where one of several kinds of value may stand, the complaint about the kind that was meant is among the others.
REFUSED_OF_SEVERAL: dict[str, tuple[dict[str, Any], str, str]] = {
    "fallback status": (service(fallback={"status": 100}), "services.user.fallback.status", "200"),
    "fallback key": (service(fallback={"jsn": 1}), "services.user.fallback.jsn", 'did you mean "json"?'),
    "fallback in a list": (service(fallback=["last-good", {"status": 1}]), "services.user.fallback[1].status", "200"),
}


@pytest.mark.parametrize("name", REFUSED_OF_SEVERAL)
def test_refused_of_several(tmp_path: Any, name: str) -> None:
    """Where several kinds of value may stand, every complaint is about that key, and one is about what was meant."""
    values, path, words = REFUSED_OF_SEVERAL[name]
    problems = errors(tmp_path, values)
    key = ".".join(path.split(".")[:3]).partition("[")[0]
    assert all(problem.path.startswith(key) for problem in problems)
    assert any(problem.path == path and words in problem.message + problem.hint for problem in problems)


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "servises": (top(servises={}), "services"),
    "admin.lisen": (top(admin={"lisen": "x"}), "listen"),
    "defaults.timout": (top(defaults={"timout": "1s"}), "timeout"),
    "policies.p.extend": (top(policies={"p": {"extend": "q"}}), "extends"),
    "services.user.polcy": (service(polcy="p"), "policy"),
    "services.user.retry.max_retrys": (service(retry={"max_retrys": 1}), "max_retries"),
    "services.user.circuit_breaker.probe": (service(circuit_breaker={"probe": 1}), "probes"),
    "services.user.rate_limit.brust": (service(rate_limit={"rate": "5/s", "brust": 1}), "burst"),
    "services.user.ejection.bas": (service(ejection={"bas": "1s"}), "base"),
    "services.user.hedge.afte": (service(hedge={"after": "p95", "afte": "p95"}), "after"),
    "services.user.health_check.evry": (service(health_check={"evry": "1s"}), "every"),
    "services.user.queue.sze": (service(max_in_flight=1, queue={"sze": 1}), "size"),
    "services.user.throttle.ratioo": (service(throttle={"ratioo": 2}), "ratio"),
    "services.user.url[0].wight": (service(url=[{"url": "http://a", "wight": 1}]), "weight"),
    "dns.server": (top(dns={"server": []}), "servers"),
    "services.user.headers.sett": (service(headers={"sett": {}}), "set"),
    "services.user.routes[0].mach": (route(mach="x"), "match"),
    "observability.log.acces": (top(observability={"log": {"acces": "all"}}), "access"),
    "limits.header_byte": (top(limits={"header_byte": "1KiB"}), "header_bytes"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_key(tmp_path: Any, name: str) -> None:
    """An unknown key at any depth is one error that offers the nearest known one."""
    values, near = UNKNOWN[name]
    (problem,) = errors(tmp_path, values)
    assert problem.path == name
    assert problem.message.startswith("unknown key")
    assert problem.hint == f'did you mean "{near}"?'


def test_far_unknown_key_lists_the_known_ones(tmp_path: Any) -> None:
    """An unknown key that is near to none comes with all that are known."""
    (problem,) = errors(tmp_path, top(admin={"zzz": 1}))
    assert problem.hint == "known keys: allow_faults, listen, token"


@pytest.mark.parametrize(
    "key",
    [
        *("timeout", "retry", "circuit_breaker", "max_in_flight", "rate_limit", "fallback", "auth"),
        *("ejection", "health_check", "hedge", "queue", "throttle"),
    ],
)
def test_zero_is_not_false(tmp_path: Any, key: str) -> None:
    """`false` switches off; the bare number 0 is an error like any other bare number."""
    assert {problem.path for problem in errors(tmp_path, service(**{key: 0}))} == {f"services.user.{key}"}


@pytest.mark.parametrize(
    ("values", "path"),
    [
        (service(max_in_flight=True), "services.user.max_in_flight"),
        (service(port=True), "services.user.port"),
        (service(retry={"max_retries": True}), "services.user.retry.max_retries"),
        (top(workers=True), "workers"),
    ],
    ids=["max_in_flight", "port", "max_retries", "workers"],
)
def test_true_is_not_one(tmp_path: Any, values: dict[str, Any], path: str) -> None:
    """`true` where a number belongs is an error, not the number 1."""
    assert [problem.path for problem in errors(tmp_path, values)] == [path]


@pytest.mark.parametrize(
    "values",
    [
        {"timeout": "0s"},
        {"attempt_timeout": "0s"},
        {"connect_timeout": "0ms"},
        {"circuit_breaker": {"window": "0s"}},
        {"health_check": {"every": "0s"}},
        {"health_check": {"timeout": "0s"}},
        {"max_in_flight": 1, "queue": {"wait": "0s"}},
        {"throttle": {"window": "0s"}},
        {"ejection": {"base": "0s"}},
    ],
    ids=str,
)
def test_no_time_at_all(tmp_path: Any, values: dict[str, Any]) -> None:
    """A time within which nothing can happen is an error; it neither means "for ever" nor breaks calls later."""
    assert len(errors(tmp_path, service(**values))) == 1


def test_token_is_not_shown(tmp_path: Any) -> None:
    """A token that is refused does not appear in the complaint."""
    (problem,) = errors(tmp_path, top(admin={"token": "hunter2"}))
    assert "hunter2" not in problem.message


def test_service_name(tmp_path: Any) -> None:
    """A service name that cannot be one is complained about at the name, and by the name."""
    (problem,) = errors(tmp_path, {"service": "a", "services": {"User": "http://h:1", "ok": "http://h:2"}})
    assert "User" in problem.message
    assert "http://h:1" not in problem.message
    assert (problem.mark.line, problem.mark.column) == (3, 3)


def test_jwt_credential_alone(tmp_path: Any) -> None:
    """A credential of the contract's jwt form is one complaint, not one about each key of the other form."""
    problems = errors(tmp_path, top(credentials={"k": {"jwt": {"alg": "HS256"}}}, defaults={"auth": "k"}))
    assert [problem.path for problem in problems] == ["credentials.k.jwt"]


@pytest.mark.parametrize("instance", ["a\r\nx-evil: 1", "→"])
def test_instance_can_stand_in_a_header(tmp_path: Any, instance: str) -> None:
    """The instance is written into every request, so it must be one line of printable ASCII."""
    assert [problem.path for problem in errors(tmp_path, top(instance=instance))] == ["instance"]
