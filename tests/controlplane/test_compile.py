"""From a resolved configuration to the route table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outrider.config.load import load
from outrider.controlplane.compile import Compiled, compile_config
from outrider.dataplane.policies.breaker import BreakerSettings
from outrider.dataplane.policies.concurrency import ConcurrencyLimit
from outrider.dataplane.policies.deadline import Deadline
from outrider.dataplane.policies.rate_limit import RateLimit
from outrider.dataplane.routing import Route
from outrider.dataplane.timers import NEVER
from outrider.errors import ConfigError
from outrider.model.failure import Failure, Kind, Phase
from tests.fakes import make_attempt, make_call


def compiled(tmp_path: Path, text: str, hooks: tuple[object, ...] = ()) -> Compiled:
    path = tmp_path / "outrider.yaml"
    path.write_text(f"service: booking\ninstance: b-1\n{text}")
    resolved, _ = load([str(path)], environment={})
    return compile_config(resolved, hooks)  # type: ignore[arg-type] # hooks of a test


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
    """Without a timeout a call has no deadline; an attempt never has more time than its call."""
    assert part(default(compiled(tmp_path, f"{USER}    timeout: false")), Deadline).timeout == NEVER  # type: ignore[union-attr] # it is there, or the test fails
    deadline = part(default(compiled(tmp_path, f"{USER}    timeout: 2s")), Deadline)
    assert isinstance(deadline, Deadline)
    assert (deadline.timeout, deadline.attempt_timeout) == (2.0, 2.0)


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
    made.breakers[0].open()
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
    assert part(route, ConcurrencyLimit).limit == 1  # type: ignore[union-attr] # it is there, or the test fails
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
    reply = fallback.reply(Failure(Kind.RESET, "x"))
    assert reply.status == 202
    assert json.loads(reply.body) == {"a": [1]}
    assert (b"content-type", b"application/json") in reply.headers
    assert (b"x-b", b"2") in reply.headers


def test_fallback_without_a_body(tmp_path: Path) -> None:
    """A fallback without JSON has neither body nor content type."""
    fallback = default(compiled(tmp_path, f"{USER}    fallback: {{status: 204}}")).fallback
    assert fallback is not None
    reply = fallback.reply(Failure(Kind.RESET, "x"))
    assert reply.body == b""
    assert b"content-type" not in dict(reply.headers)


def test_limits(tmp_path: Path) -> None:
    """Limits arrive in bytes and seconds."""
    limits = compiled(tmp_path, f"limits: {{body_bytes: 1KiB, header_timeout: 2s, headers: 7}}\n{USER}").limits
    assert (limits.body_bytes, limits.header_timeout, limits.headers, limits.replay_bytes) == (1024, 2.0, 7, 65536)


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
