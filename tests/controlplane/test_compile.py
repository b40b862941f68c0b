"""From a resolved configuration to the route table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outrider.config.load import load
from outrider.controlplane.compile import Compiled, compile_config
from outrider.dataplane.engine.routing import Route
from outrider.dataplane.policies.concurrency.limit import ConcurrencyLimit
from outrider.dataplane.policies.deadline import Deadline
from outrider.dataplane.policies.deciders.breaker import BreakerSettings
from outrider.dataplane.policies.rate_limit import RateLimit
from outrider.dataplane.policies.throttle import Throttle
from outrider.dataplane.runtime.timers import NEVER
from outrider.dataplane.upstream.ejection import EjectionSettings
from outrider.errors import ConfigError
from outrider.model.failure import Failure, Kind, Phase
from outrider.model.outcome import FAILURE
from tests.fakes import make_attempt, make_call, make_response


def compiled(tmp_path: Path, text: str, hooks: tuple[object, ...] = ()) -> Compiled:
    path = tmp_path / "outrider.yaml"
    path.write_text(f"service: booking\ninstance: b-1\n{text}")
    resolved, _ = load([str(path)], environment={})
    return compile_config(resolved, hooks)


LIMIT = ConcurrencyLimit
USER = "services:\n  user:\n    url: http://127.0.0.1:3001\n"


def default(made: Compiled, service: bytes = b"user") -> Route:
    return made.table.services[service].default


def routes(made: Compiled, service: bytes = b"user") -> list[Route]:
    return [route for _, route in made.table.services[service].declared]


def part(route: Route, kind: type) -> object:
    """The policy of a kind on a route, or None."""
    return next((policy for policy in route.policies if isinstance(policy, kind)), None)


def settings(route: Route) -> BreakerSettings:
    assert route.breaker is not None
    return route.breaker._settings


def head(route: Route, number: int = 1) -> dict[str, str]:
    """The headers that a route writes into an attempt."""
    text = b"".join(stamp.stamp(make_attempt(make_call(route=route), number=number)) for stamp in route.stamps)
    return dict(line.split(": ", 1) for line in text.decode().split("\r\n") if line)


def test_minimal(tmp_path: Path) -> None:
    """A URL alone becomes a service with one route and everything that is built in."""
    made = compiled(tmp_path, "services: {user: 'http://127.0.0.1:3001'}")
    route = default(made)
    assert made.routes == [route]
    assert (route.name, route.cluster.name) == ("*", "user")
    assert (route.attempt_timeout, route.connect_timeout) == (5.0, 1.0)
    assert route.retry.max_retries == 3
    assert made.breakers == [route.breaker]
    assert route.fallback is None
    assert part(route, RateLimit) is part(route, ConcurrencyLimit) is None


def test_endpoints(tmp_path: Path) -> None:
    """Every URL is an endpoint, with port 80 and no base path unless it says so."""
    made = compiled(tmp_path, "services: {user: ['http://a', 'http://[::1]:81/api/v1/']}")
    first, second = default(made).cluster.endpoints
    assert (first.host, first.port, first.base_path) == ("a", 80, b"")
    assert (second.host, second.port, second.base_path) == ("::1", 81, b"/api/v1")


def test_names_and_hosts(tmp_path: Path) -> None:
    """A service is found by its name, as a host, and by its further hosts in any case."""
    table = compiled(tmp_path, f"{USER}    hosts: [User-Service]").table
    assert set(table.hosts) == {b"user", b"user-service"}
    assert table.hosts[b"user-service"] is table.services[b"user"]


def test_dedicated_ports(tmp_path: Path) -> None:
    """A service with a port of its own is listed with it."""
    made = compiled(tmp_path, f"{USER}    port: 3100\n  other: http://h:1")
    assert made.dedicated == [made.table.services[b"user"]]


def test_first_route_wins(tmp_path: Path) -> None:
    """Routes are in the order written, and what matches none goes the default way."""
    made = compiled(tmp_path, f"{USER}    routes: [{{match: GET /a}}, {{match: '* /**'}}]")
    service = made.table.services[b"user"]
    assert service.route_for(b"GET", b"/a?x=1").name == "GET /a"
    assert service.route_for(b"POST", b"/a").name == "* /**"
    assert default(made).name == "*"


def test_times(tmp_path: Path) -> None:
    """Without a timeout a call has no deadline. An attempt has half of `timeout` unless told otherwise, and then the
    last one has all that is left."""
    assert part(default(compiled(tmp_path, f"{USER}    timeout: false")), Deadline).timeout == NEVER
    deadline = part(default(compiled(tmp_path, f"{USER}    timeout: 2s")), Deadline)
    assert isinstance(deadline, Deadline)
    assert (deadline.timeout, deadline.total_timeout) == (2.0, NEVER)
    for text, expected in (
        ("timeout: 30s", (15.0, True)),
        ("timeout: false", (NEVER, True)),
        ("attempt_timeout: 3s", (3.0, False)),
    ):
        route = default(compiled(tmp_path, f"{USER}    {text}"))
        assert (route.attempt_timeout, route.last_takes_all) == expected


def test_body_idle_timeout(tmp_path: Path) -> None:
    """A route's own, else its service's, else the one under limits."""
    text = "    body_idle_timeout: 5s\n    routes: [{match: GET /a, body_idle_timeout: 6s}, {match: GET /b}]"
    made = compiled(tmp_path, f"limits: {{body_idle_timeout: 7s}}\n{USER}{text}")
    assert sorted(route.body_idle for route in made.routes) == [5.0, 5.0, 6.0]
    made = compiled(tmp_path, f"limits: {{body_idle_timeout: 7s}}\n{USER}")
    assert [route.body_idle for route in made.routes] == [7.0]


def test_retry(tmp_path: Path) -> None:
    """The retry rules arrive as they were written."""
    text = "retry: {max_retries: 1, methods: [GET], on_status: [503], on_errors: [connect], backoff: 1s..2s}"
    retry = default(compiled(tmp_path, f"{USER}    {text}")).retry
    assert (retry.max_retries, retry.methods, retry.on_status) == (1, {b"GET"}, {503})
    assert (retry.on_errors, retry.first, retry.cap) == ({Phase.CONNECT}, 1.0, 2.0)


def test_switched_off(tmp_path: Path) -> None:
    """What is switched off is not on the path."""
    made = compiled(tmp_path, f"{USER}    retry: false\n    circuit_breaker: false")
    assert default(made).retry.max_retries == 0
    assert default(made).breaker is None
    assert made.breakers == []


def test_slow_call(tmp_path: Path) -> None:
    """An answer is slow from 80 % of attempt_timeout on, unless told otherwise."""
    assert settings(default(compiled(tmp_path, f"{USER}    attempt_timeout: 10s"))).slow_call == pytest.approx(8.0)
    assert settings(default(compiled(tmp_path, f"{USER}    circuit_breaker: {{slow_call: 1s}}"))).slow_call == 1.0


def test_breaker_settings(tmp_path: Path) -> None:
    """The breaker's rules arrive as they were written."""
    text = (
        "{consecutive_failures: 7, failure_rate: 40%, slow_rate: 0%, min_requests: 9, window: 3s, "
        "open_for: 1s..9s, probes: 2}"
    )
    assert settings(default(compiled(tmp_path, f"{USER}    circuit_breaker: {text}"))) == BreakerSettings(
        consecutive_failures=7,
        failure_rate=0.4,
        slow_rate=0.0,
        slow_call=4.0,
        min_requests=9,
        window=3.0,
        open_first=1.0,
        open_cap=9.0,
        probes=2,
    )


def test_hooks_hear_the_breakers(tmp_path: Path) -> None:
    """Every breaker tells its transitions to the hooks."""
    heard: list[tuple[str, str, str]] = []
    made = compiled(tmp_path, USER, (lambda *transition: heard.append(transition),))
    made.breakers[0].hold_open()
    assert heard == [("user", "closed", "open")]


def test_routes_share_the_parts_of_their_service(tmp_path: Path) -> None:
    """Limits, budget and breaker are one for a whole service."""
    made = compiled(tmp_path, f"{USER}    rate_limit: 5/s\n    max_in_flight: 3\n    routes: [{{match: GET /a}}]")
    (route,) = routes(made)
    base = default(made)
    assert route.breaker is base.breaker
    assert route.retry.budget is base.retry.budget
    assert part(route, RateLimit) is part(base, RateLimit) is not None
    assert part(route, ConcurrencyLimit) is part(base, ConcurrencyLimit) is not None


def test_route_with_parts_of_its_own(tmp_path: Path) -> None:
    """A route that declares a part has one of its own, and its breaker a name of its own."""
    own = "{match: GET /a, rate_limit: 1/s, max_in_flight: 1, circuit_breaker: {probes: 2}, retry: {max_retries: 1}}"
    made = compiled(tmp_path, f"{USER}    rate_limit: 5/s\n    max_in_flight: 3\n    routes: [{own}]")
    (route,) = routes(made)
    base = default(made)
    assert route.retry.budget is not base.retry.budget
    assert part(route, RateLimit) is not part(base, RateLimit)
    assert part(route, ConcurrencyLimit).limit == 1
    assert [breaker.name for breaker in made.breakers] == ["user", "user GET /a"]


def test_services_share_nothing(tmp_path: Path) -> None:
    """Two services never share a breaker, a budget or a limit, not even from `defaults`."""
    made = compiled(tmp_path, f"defaults: {{rate_limit: 5/s, max_in_flight: 3}}\n{USER}  other: http://h:1")
    user, other = default(made), default(made, b"other")
    assert user.breaker is not other.breaker
    assert user.retry.budget is not other.retry.budget
    assert part(user, RateLimit) is not part(other, RateLimit)
    assert part(user, ConcurrencyLimit) is not part(other, ConcurrencyLimit)


def test_rate_limit(tmp_path: Path) -> None:
    """A rate limit lets its burst through, which is the count unless it is given, and names itself when used up."""
    for text, burst in (("2/m", 2), ("{rate: 2/m, burst: 5}", 5), ("0.5/s", 1)):
        limit = part(default(compiled(tmp_path, f"{USER}    rate_limit: {text}")), RateLimit)
        assert isinstance(limit, RateLimit)
        answers = [limit.admit(make_call()) for _ in range(burst + 1)]
        assert answers[:-1] == [None] * burst
        assert isinstance(answers[-1], Failure)
        assert answers[-1].kind is Kind.RATE_LIMITED


def test_headers_that_are_read_are_noted(tmp_path: Path) -> None:
    """Every header that some part reads is noted where requests are parsed."""
    text = "rate_limit: {rate: 5/s, key: 'header:X-User-Id'}\n    headers: {set: {x-a: '{header:X-Tenant}'}}"
    made = compiled(tmp_path, f"{USER}    {text}\n    correlation: {{header: X-Trace}}")
    assert made.noted == {b"x-user-id", b"x-tenant", b"x-trace"}


def test_written_headers(tmp_path: Path) -> None:
    """Credentials, set headers and variables end up in every attempt, and the route owns their names."""
    made = compiled(
        tmp_path,
        "credentials: {k: {header: X-Api-Key, value: s3cret}}\n"
        f'{USER}    auth: k\n    headers: {{set: {{x-a: "{{target}}/{{attempt}}"}}}}',
    )
    written = head(default(made), number=2)
    assert written["X-Api-Key"] == "s3cret"
    assert (written["x-service-name"], written["x-service-id"]) == ("booking", "b-1")
    assert written["x-a"] == "user/2"
    assert {b"x-api-key", b"x-service-name", b"x-service-id", b"x-a"} <= default(made).owned


def test_removed_headers(tmp_path: Path) -> None:
    """A header to remove is owned, so that the app's own is not passed on."""
    assert b"cookie" in default(compiled(tmp_path, f"{USER}    headers: {{remove: [Cookie]}}")).owned


def test_fallback(tmp_path: Path) -> None:
    """A fallback answers with its status, JSON body and headers."""
    made = compiled(tmp_path, f"{USER}    fallback: {{status: 202, json: {{a: [1]}}, headers: {{x-b: 2}}}}")
    fallback = default(made).fallback
    assert fallback is not None
    reply = fallback.reply(make_call(), Failure(Kind.RESET, "x"))
    assert reply is not None
    assert reply.status == 202
    assert json.loads(reply.body) == {"a": [1]}
    assert (b"content-type", b"application/json") in reply.headers
    assert (b"x-b", b"2") in reply.headers


def test_fallback_without_a_body(tmp_path: Path) -> None:
    """A fallback without JSON has neither body nor content type."""
    fallback = default(compiled(tmp_path, f"{USER}    fallback: {{status: 204}}")).fallback
    assert fallback is not None
    reply = fallback.reply(make_call(), Failure(Kind.RESET, "x"))
    assert reply is not None
    assert reply.body == b""
    assert b"content-type" not in dict(reply.headers)


def test_a_chain_of_fallbacks(tmp_path: Path) -> None:
    """Services in the order written, then what answers from here; a service may stand before it is declared."""
    chain = "[{service: other}, {last_good: {max_age: 1m, max_bytes: 1MiB, max_answer: 1KiB}}, {status: 202}]"
    made = compiled(tmp_path, f"{USER}    fallback: {chain}\n  other: http://h:1")
    fallback = default(made).fallback
    assert fallback is not None
    assert fallback.services == (made.table.services[b"other"],)
    kept = fallback.last_good
    assert kept is not None
    assert (kept.max_age, kept.max_bytes, kept.max_answer) == (60.0, 1024 * 1024, 1024)
    reply = fallback.reply(make_call(), Failure(Kind.RESET, "x"))
    assert reply is not None
    assert reply.status == 202


def test_last_good_knows_the_correlation_header(tmp_path: Path) -> None:
    """An id that is another one every time does not keep earlier answers from being found."""
    made = compiled(tmp_path, f"{USER}    fallback: last-good\n    correlation: {{header: X-My-Id}}")
    fallback = default(made).fallback
    assert fallback is not None
    assert fallback.last_good is not None
    response = make_response(200)
    response.chunked = True
    recorder = fallback.last_good.recorder(make_call(), response)
    assert recorder is not None
    fallback.last_good.keep(make_call(headers={b"x-my-id": b"1"}), response, recorder)
    assert fallback.reply(make_call(headers={b"x-my-id": b"2"}), Failure(Kind.RESET, "x")) is not None


def test_routes_keep_their_own_answers(tmp_path: Path) -> None:
    """What one route has taken down does not push out another's."""
    made = compiled(tmp_path, f"{USER}    fallback: last-good\n    routes: [{{match: GET /a}}]")
    (route,) = routes(made)
    assert route.fallback is not None
    assert default(made).fallback is not None
    assert route.fallback.last_good is not default(made).fallback.last_good


def test_weights(tmp_path: Path) -> None:
    """Every endpoint has its weight."""
    made = compiled(tmp_path, "services: {user: {url: [{url: 'http://a', weight: 3}, 'http://b']}}")
    assert [endpoint.weight for endpoint in default(made).cluster.endpoints] == [3.0, 1.0]


def test_balance(tmp_path: Path) -> None:
    """The balance is the service's, and a header that is hashed is noted."""
    made = compiled(tmp_path, f"{USER}    balance: hash:header:X-User-Id")
    assert default(made).cluster.balance == "hash:header:X-User-Id"
    assert b"x-user-id" in made.noted
    assert default(compiled(tmp_path, USER)).cluster.balance == "least-latency"


def test_ejection(tmp_path: Path) -> None:
    """Its rules arrive as they were written, its news at the hooks; `false` leaves it out."""
    heard: list[tuple[object, ...]] = []
    rules = "{consecutive_failures: 1, failure_rate: 40%, slow_factor: 3, slow_call: 1s, base: 2s, max: 9s}"
    path = tmp_path / "outrider.yaml"
    path.write_text(f"service: booking\nservices: {{user: {{url: ['http://a', 'http://b'], ejection: {rules}}}}}")
    made = compile_config(load([str(path)], environment={})[0], on_ejection=(lambda *news: heard.append(news),))
    cluster = default(made).cluster
    assert cluster.ejection is not None
    assert cluster.ejection._settings == EjectionSettings(1, 0.4, 3.0, 1.0, 2.0, 9.0)
    cluster.observe(cluster.endpoints[0], FAILURE, 999.99, 0.01, 1000.0)
    assert heard == [("user", "a:80", True, "1 failures in a row")]
    assert default(compiled(tmp_path, f"{USER}    ejection: false")).cluster.ejection is None
    assert default(compiled(tmp_path, USER)).cluster.ejection is not None


def test_health_check(tmp_path: Path) -> None:
    """A service that asks for checks is listed with its settings, and no other."""
    made = compiled(tmp_path, f"{USER}    health_check: {{path: /ok, every: 2s}}\n  other: http://h:1")
    ((cluster, settings_of_it),) = made.checked
    assert cluster is default(made).cluster
    assert (settings_of_it.path, settings_of_it.every, settings_of_it.unhealthy_after) == ("/ok", 2.0, 3)


def test_hedge(tmp_path: Path) -> None:
    """By time from the first call on, by percentile once enough is known; each route learns for itself."""
    hedge = default(compiled(tmp_path, f"{USER}    hedge: {{after: 50ms, max: 2}}")).hedge
    assert hedge is not None
    assert (hedge.delay(), hedge.most) == (0.05, 2)
    made = compiled(tmp_path, f"{USER}    hedge: {{after: p95}}\n    routes: [{{match: GET /a}}]")
    (route,) = routes(made)
    assert route.hedge is not None
    assert route.hedge is not default(made).hedge
    for _ in range(100):
        route.hedge.learn(0.01)
    assert route.hedge.delay() == pytest.approx(0.01, rel=0.1)
    assert default(made).hedge.delay() == 0.0


def test_a_hedge_has_a_budget_without_retries(tmp_path: Path) -> None:
    """What is asked twice adds load, whether or not anything is ever tried again."""
    made = default(compiled(tmp_path, f"{USER}    retry: false\n    hedge: {{after: p95}}"))
    assert made.retry.max_retries == 0
    assert made.retry.budget is not None
    assert default(compiled(tmp_path, f"{USER}    retry: false")).retry.budget is None


def test_queue(tmp_path: Path) -> None:
    """How many may wait, and for how long; without it nobody does."""
    limit = part(default(compiled(tmp_path, f"{USER}    max_in_flight: 3\n    queue: {{size: 7, wait: 2s}}")), LIMIT)
    assert isinstance(limit, ConcurrencyLimit)
    assert (limit.limit, limit._size, limit.wait) == (3, 7, 2.0)
    plain = part(default(compiled(tmp_path, f"{USER}    max_in_flight: 3")), LIMIT)
    assert isinstance(plain, ConcurrencyLimit)
    assert plain._size == 0


def test_adaptive(tmp_path: Path) -> None:
    """`adaptive` finds its limit itself."""
    limit = part(default(compiled(tmp_path, f"{USER}    max_in_flight: adaptive")), LIMIT)
    assert isinstance(limit, ConcurrencyLimit)
    assert limit._adaptive is not None
    assert limit.limit == limit._adaptive.limit


def test_workers_share_limit_and_queue(tmp_path: Path) -> None:
    """Each of several processes has its part, rounded up."""
    made = compiled(tmp_path, f"workers: 4\n{USER}    max_in_flight: 10\n    queue: {{size: 6}}")
    limit = part(default(made), LIMIT)
    assert isinstance(limit, ConcurrencyLimit)
    assert (limit.limit, limit._size) == (3, 2)


def test_throttle(tmp_path: Path) -> None:
    """One for a whole service, before the bulkhead."""
    made = compiled(
        tmp_path, f"{USER}    throttle: {{ratio: 1.5}}\n    max_in_flight: 3\n    routes: [{{match: GET /a}}]"
    )
    (route,) = routes(made)
    throttle = part(default(made), Throttle)
    assert throttle is not None
    assert part(route, Throttle) is throttle
    kinds = [type(policy) for policy in default(made).policies]
    assert kinds.index(Throttle) < kinds.index(ConcurrencyLimit)
    assert part(default(compiled(tmp_path, USER)), Throttle) is None


def test_critical(tmp_path: Path) -> None:
    """What is said of a route holds for it, what is said of a service for the others."""
    made = compiled(tmp_path, f"{USER}    critical: true\n    routes: [{{match: GET /a, critical: false}}]")
    assert default(made).critical is True
    assert [route.critical for route in routes(made)] == [False]
    assert default(compiled(tmp_path, USER)).critical is None


def test_sources_of_endpoints(tmp_path: Path) -> None:
    """URLs are there at once; what must be found is listed with its service, whose routes are complete without it."""
    made = compiled(tmp_path, "services: {user: {url: ['http://a', 'dns+https://b:1/api', 'file+/x']}, c: 'http://c'}")
    (discovered,) = made.discovered
    cluster = default(made).cluster
    assert discovered.cluster is cluster
    assert [target.url for target in discovered.sources] == ["dns+https://b:1/api", "file+/x"]
    assert discovered.fixed == cluster.endpoints
    assert [endpoint.host for endpoint in cluster.endpoints] == ["a"]
    assert discovered.maker.secure
    assert made.table.services[b"user"].confined


def test_ramp_and_wait(tmp_path: Path) -> None:
    """What a breaker does after an outage, and for those who wait during one, is off unless asked for."""
    made = settings(default(compiled(tmp_path, f"{USER}    circuit_breaker: {{ramp: 5s, wait: 2s}}")))
    assert (made.ramp, made.wait) == (5.0, 2.0)
    built_in = settings(default(compiled(tmp_path, USER)))
    assert (built_in.ramp, built_in.wait) == (0.0, 0.0)


def test_limits(tmp_path: Path) -> None:
    """Limits arrive in bytes and seconds."""
    made = compiled(tmp_path, f"limits: {{body_bytes: 1KiB, header_timeout: 2s, headers: 7}}\n{USER}")
    limits = made.limits
    assert (limits.header_timeout, limits.headers, limits.replay_bytes) == (2.0, 7, 65536)
    assert [route.max_body for route in made.routes] == [1024]


def test_unusable_secret(tmp_path: Path) -> None:
    """A secret that cannot stand in a header is an error at its line, without the secret."""
    with pytest.raises(ConfigError) as caught:
        compiled(tmp_path, f"{USER}credentials:\n  k:\n    header: x-k\n    value: 'hunter2 '")
    (problem,) = caught.value.problems
    assert (problem.mark.line, problem.mark.column) == (9, 12)
    assert problem.path == "credentials.k.value"
    assert "hunter2" not in problem.message + problem.hint


def test_secrets_are_not_in_repr(tmp_path: Path) -> None:
    """Nothing that was compiled shows a secret."""
    made = compiled(tmp_path, f"credentials: {{k: {{header: x-k, value: hunter2}}}}\n{USER}    auth: k")
    assert "hunter2" not in repr(made.credentials)
    assert "hunter2" not in repr(made)


def test_variables_in_values_are_text(tmp_path: Path) -> None:
    """A value that looks like a variable is passed on as it is, not filled in a second time."""
    path = tmp_path / "outrider.yaml"
    path.write_text(f"service: booking\ninstance: '{{attempt}}'\n{USER}")
    resolved, _ = load([str(path)], environment={})
    assert head(default(compile_config(resolved)))["x-service-id"] == "{attempt}"
