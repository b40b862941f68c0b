"""Inheritance, and what only shows across keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.config.load import load
from outrider.config.problems import Problem
from outrider.config.resolve import Effective, Resolved
from outrider.errors import ConfigError


def resolved(tmp_path: Path, text: str) -> tuple[Resolved, list[Problem]]:
    path = tmp_path / "outrider.yaml"
    path.write_text(f"service: booking\n{text}")
    return load([str(path)], environment={})


def policy(tmp_path: Path, text: str) -> Effective:
    """What holds in the end for the first service."""
    return resolved(tmp_path, text)[0].services[0].policy


def route(tmp_path: Path, text: str) -> Effective:
    """What holds in the end for the first service's first route."""
    return resolved(tmp_path, text)[0].services[0].routes[0].policy


def complaints(tmp_path: Path, text: str) -> list[str]:
    """`line:column message` of every problem; line 1 is `service: booking`."""
    try:
        problems = resolved(tmp_path, text)[1]
    except ConfigError as error:
        problems = error.problems
    return [f"{problem.mark.line}:{problem.mark.column} {problem.message}" for problem in problems]


USER = "services:\n  user:\n    url: http://127.0.0.1:3001\n"


def test_built_in(tmp_path: Path) -> None:
    """What nobody says is Outrider's own default."""
    built_in = policy(tmp_path, USER)
    assert (built_in.timeout, built_in.attempt_timeout, built_in.connect_timeout) == (10.0, None, 1.0)
    assert (built_in.total_timeout, built_in.body_idle_timeout) == (None, None)
    assert built_in.retry is not None
    assert built_in.retry.max_retries == 3
    assert built_in.retry.methods == ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"]
    assert built_in.circuit_breaker is not None
    assert (built_in.max_in_flight, built_in.rate_limit, built_in.fallback) == (None, None, ())
    assert built_in.headers.set == {"x-service-name": "{service}", "x-service-id": "{instance}"}
    assert built_in.correlation.header == "x-correlation-id"
    assert (built_in.auth, built_in.balance) == ((), "least-latency")
    assert (built_in.hedge, built_in.throttle, built_in.queue, built_in.health_check) == (None, None, None, None)
    assert built_in.critical is None
    assert built_in.ejection is not None
    assert built_in.ejection.consecutive_failures == 5


LAYERS = ["defaults", "policy", "later policy", "service", "route"]


def layered(times: dict[str, str]) -> str:
    """A configuration that sets `timeout` on these layers."""

    def line(layer: str) -> str:
        return f"timeout: {times[layer]}" if layer in times else "idle_timeout: 3s"

    return (
        f"defaults: {{{line('defaults')}}}\n"
        f"policies: {{p: {{{line('policy')}}}, q: {{{line('later policy')}}}}}\n"
        f"services: {{user: {{url: 'http://h:1', policy: [p, q], {line('service')}, "
        f"routes: [{{match: 'GET /a', {line('route')}}}]}}}}\n"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(LAYERS), st.integers(6, 99)))
def test_the_last_layer_wins(tmp_path: Path, times: dict[str, int]) -> None:
    """built-in < defaults < policies in order < service < route, for any set of layers."""
    expected = next((float(times[layer]) for layer in reversed(LAYERS) if layer in times), 10.0)
    assert route(tmp_path, layered({layer: f"{time}s" for layer, time in times.items()})).timeout == expected


def test_route_does_not_change_its_service(tmp_path: Path) -> None:
    """What a route says holds for that route only."""
    services = resolved(tmp_path, f"{USER}    routes: [{{match: GET /a, timeout: 9s}}, {{match: GET /b}}]")[0].services
    assert services[0].policy.timeout == 10.0
    assert [made.policy.timeout for made in services[0].routes] == [9.0, 10.0]
    assert [made.own for made in services[0].routes] == [frozenset({"timeout"}), frozenset()]


def test_maps_merge_by_key(tmp_path: Path) -> None:
    """Maps are merged key by key over all layers, at any depth."""
    made = policy(
        tmp_path,
        "defaults: {retry: {max_retries: 1, budget: 10%}, headers: {set: {x-a: d, x-b: d}}}\n"
        "policies: {p: {retry: {backoff: 1s..2s}, headers: {set: {x-b: p}}}}\n"
        f"{USER}    policy: p\n    retry: {{max_retries: 2}}\n    headers: {{remove: [cookie]}}",
    )
    assert made.retry is not None
    assert (made.retry.max_retries, made.retry.budget, made.retry.backoff) == (2, 0.1, (1.0, 2.0))
    assert made.headers.set == {"x-service-name": "{service}", "x-service-id": "{instance}", "x-a": "d", "x-b": "p"}
    assert made.headers.remove == ["cookie"]


def test_lists_replace(tmp_path: Path) -> None:
    """A list takes the place of the one below."""
    made = policy(
        tmp_path,
        "credentials: {a: {header: x-a, value: s}, b: {header: x-b, value: s}}\n"
        "defaults: {auth: [a, b], retry: {on_status: [500, 502]}}\n"
        f"{USER}    auth: b\n    retry: {{on_status: [503]}}",
    )
    assert made.auth == ("b",)
    assert made.retry is not None
    assert made.retry.on_status == [503]


def test_false_switches_off(tmp_path: Path) -> None:
    """`false` switches off what a lower layer switched on."""
    made = policy(
        tmp_path,
        "credentials: {a: {header: x-a, value: s}}\n"
        "defaults: {auth: a, max_in_flight: 5, rate_limit: 5/s, fallback: {status: 202}}\n"
        f"{USER}    auth: false\n    retry: false\n    circuit_breaker: false\n    max_in_flight: false\n"
        "    rate_limit: false\n    fallback: false\n    timeout: false\n    headers: false",
    )
    assert (made.retry, made.circuit_breaker, made.max_in_flight, made.rate_limit) == (None, None, None, None)
    assert (made.fallback, made.timeout, made.auth) == ((), None, ())
    assert not made.headers.set


def test_switched_on_again(tmp_path: Path) -> None:
    """What a lower layer switched off can be switched on again, from the built-in values."""
    made = route(tmp_path, f"{USER}    retry: false\n    routes: [{{match: GET /a, retry: {{max_retries: 7}}}}]")
    assert made.retry is not None
    assert (made.retry.max_retries, made.retry.budget) == (7, 0.2)


def test_empty_key_says_nothing(tmp_path: Path) -> None:
    """A key without a value leaves things as they are."""
    made = policy(tmp_path, f"defaults: {{timeout: 7s}}\n{USER}    timeout:\n    retry: ~")
    assert made.timeout == 7.0
    assert made.retry is not None


def test_extends(tmp_path: Path) -> None:
    """A policy starts from what it extends, the later ones on top, over any number of steps."""
    made = policy(
        tmp_path,
        "policies:\n"
        "  a: {timeout: 11s, attempt_timeout: 1s, connect_timeout: 1ms}\n"
        "  b: {extends: a, timeout: 12s, attempt_timeout: 2s}\n"
        "  c: {timeout: 13s}\n"
        "  d: {extends: [b, c], idle_timeout: 9s}\n"
        f"{USER}    policy: d",
    )
    assert (made.timeout, made.attempt_timeout, made.connect_timeout, made.idle_timeout) == (13.0, 2.0, 0.001, 9.0)


def test_extends_circle(tmp_path: Path) -> None:
    """Policies that extend each other are all complained about, at their `extends`, and nothing hangs."""
    text = "policies:\n  a:\n    extends: b\n  b:\n    extends: [c]\n  c:\n    extends: a\n" + USER + "    policy: a"
    assert complaints(tmp_path, text) == [
        "4:14 the policies a and b extend each other",
        "6:14 the policies b and c extend each other",
        "8:14 the policies c and a extend each other",
    ]


def test_extends_itself(tmp_path: Path) -> None:
    """A policy that extends itself is complained about."""
    assert complaints(tmp_path, f"policies:\n  a: {{extends: a}}\n{USER}") == [
        "3:16 the policies a and a extend each other"
    ]


def test_extending_a_circle_is_no_circle(tmp_path: Path) -> None:
    """A policy that merely extends a circle is not blamed for it."""
    text = f"policies:\n  a: {{extends: b}}\n  b: {{extends: a}}\n  c: {{extends: a}}\n{USER}    policy: c"
    assert [line.partition(" ")[0] for line in complaints(tmp_path, text)] == ["3:16", "4:16"]


def test_unknown_policy(tmp_path: Path) -> None:
    """An unknown policy is an error where it is named, with the nearest one that exists."""
    path = tmp_path / "outrider.yaml"
    path.write_text(
        f"service: a\npolicies: {{critical: {{}}, x: {{extends: critcal}}}}\n{USER}    policy: [x, critcal]\n"
    )
    with pytest.raises(ConfigError) as caught:
        load([str(path)], environment={})
    shown = [(problem.mark.line, problem.message, problem.hint) for problem in caught.value.problems]
    assert shown == [
        (2, 'there is no policy "critcal"', 'did you mean "critical"?'),
        (6, 'there is no policy "critcal"', 'did you mean "critical"?'),
    ]


def test_unknown_credential(tmp_path: Path) -> None:
    """An unknown credential is an error where it is named, once."""
    assert complaints(tmp_path, f"{USER}    auth: nope") == ['5:11 there is no credential "nope"']
    assert complaints(tmp_path, f"defaults:\n  auth: nope\n{USER}") == ['3:9 there is no credential "nope"']
    routes = "    routes:\n      - match: GET /a\n        auth: nope"
    assert complaints(tmp_path, USER + routes) == ['7:15 there is no credential "nope"']


def test_unknown_variable(tmp_path: Path) -> None:
    """A variable that nothing provides is an error at the header that uses it."""
    text = f'{USER}    headers: {{set: {{x-a: "{{service}}/{{nope}}"}}}}'
    assert complaints(tmp_path, text) == ["5:26 nothing provides {nope}"]


PORTS = [
    ("listen: 127.0.0.1:4100\nadmin: {listen: 127.0.0.1:4100}\n" + USER, "3:17 port 4100 is already used by listen"),
    ("telemetry: {listen: 127.0.0.1:4101}\n" + USER, "2:21 port 4101 is already used by admin.listen"),
    (USER + "    port: 4102", "5:11 port 4102 is already used by telemetry.listen"),
    (
        USER + "    port: 3100\n  other: {url: 'http://h:1', port: 3100}",
        "6:36 port 3100 is already used by services.user.port",
    ),
]


@pytest.mark.parametrize(("text", "complaint"), PORTS, ids=["admin", "telemetry", "service", "two services"])
def test_port_collision(tmp_path: Path, text: str, complaint: str) -> None:
    """Two listeners on one port are an error at the second one, naming the first."""
    assert complaints(tmp_path, text) == [complaint]


def test_port_zero_is_free_for_all(tmp_path: Path) -> None:
    """Port 0 lets the system choose, and collides with nothing."""
    listeners = "listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}\ntelemetry: {listen: 127.0.0.1:0}\n"
    assert complaints(tmp_path, f"{listeners}{USER}    port: 0") == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_own_address(tmp_path: Path, host: str) -> None:
    """A target that is Outrider itself is an error at the URL."""
    text = f"services:\n  user: http://{host}:4100/api\n"
    (complaint,) = complaints(tmp_path, text)
    assert complaint.startswith("3:9 ")
    assert "is Outrider itself" in complaint


def test_own_address_in_a_list(tmp_path: Path) -> None:
    """Each URL of a list is looked at, and only the wrong one complained about."""
    text = "listen: 127.0.0.1:80\nservices:\n  user:\n    url: [http://h:1, http://127.0.0.1]"
    assert [line.partition(" ")[0] for line in complaints(tmp_path, text)] == ["5:23"]


def test_port_of_a_url(tmp_path: Path) -> None:
    """A port that no port can be is an error at the URL."""
    (complaint,) = complaints(tmp_path, "services:\n  user: http://h:70000")
    assert complaint.startswith("3:9 the port 70000")


def test_host_of_two_services(tmp_path: Path) -> None:
    """A host name can belong to one service only, in any case of letters."""
    text = "services:\n  a: {url: 'http://h:1', hosts: [shop, B]}\n  b: {url: 'http://h:2', hosts: [Shop]}"
    assert complaints(tmp_path, text) == [
        '3:40 the host "B" already belongs to b',
        '4:34 the host "Shop" already belongs to a',
    ]


SHADOWED = [
    ("GET /a", "GET /a"),
    ("* /a", "GET /a"),
    ("GET /a/**", "GET /a/b"),
    ("GET /a/**", "GET /a"),
    ("* /**", "POST /payments/{id}"),
]
SEPARATE = [("GET /a", "POST /a"), ("GET /a/**", "GET /ab"), ("GET /a/b", "GET /a/**"), ("GET /a", "* /a")]


@pytest.mark.parametrize(("first", "second"), SHADOWED)
def test_shadowed_route(tmp_path: Path, first: str, second: str) -> None:
    """A route that can never be reached is a warning at its match, and not an error."""
    text = f"{USER}    routes:\n      - match: {first!r}\n      - match: {second!r}"
    _, problems = resolved(tmp_path, text)
    assert [(problem.severity, problem.mark.line, problem.mark.column) for problem in problems] == [("warning", 7, 16)]
    assert f"{first} stands before it" in problems[0].message


@pytest.mark.parametrize(("first", "second"), SEPARATE)
def test_route_that_is_reached(tmp_path: Path, first: str, second: str) -> None:
    """No warning for a route that an earlier one leaves something to."""
    assert complaints(tmp_path, f"{USER}    routes:\n      - match: {first!r}\n      - match: {second!r}") == []


def test_repeated_post(tmp_path: Path) -> None:
    """Repeating POST although the target may have acted is a warning."""
    _, (problem,) = resolved(tmp_path, f"{USER}    retry: {{methods: [GET, POST]}}")
    assert problem.severity == "warning"
    assert (problem.mark.line, problem.mark.column) == (5, 22)


def test_attempt_longer_than_the_call(tmp_path: Path) -> None:
    """An attempt_timeout beyond timeout is a warning where it is written."""
    _, (problem,) = resolved(tmp_path, f"{USER}    timeout: 1s\n    attempt_timeout: 2s")
    assert problem.severity == "warning"
    assert (problem.mark.line, problem.mark.column) == (6, 22)


def test_short_timeout_alone_is_fine(tmp_path: Path) -> None:
    """What nobody has written down is no reason to warn: it follows what is written."""
    for text in ("timeout: 1s", "timeout: 30s", "retry: { max_retries: 9 }", "timeout: 1s\n    total_timeout: 1s"):
        assert complaints(tmp_path, f"{USER}    {text}") == []


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("timeout: 4s\n    attempt_timeout: 4s", (6, 22), r"\(4s\) leaves no time within timeout \(4s\) for a retry"),
        ("timeout: 4s\n    attempt_timeout: 4s\n    retry: false", None, ""),
        ("timeout: 4s\n    attempt_timeout: 4s\n    retry: { max_retries: 0 }", None, ""),
        ("timeout: 4s\n    attempt_timeout: 4s\n    retry: { on_errors: [connect] }", None, ""),
        ("attempt_timeout: 4s\n    retry: { max_retries: 3 }", None, ""),
        ("timeout: 500ms\n    retry: { backoff: 1s..2s }", (6, 23), "3 retries pause for about 2.5s in all"),
        ("timeout: 2s\n    retry: { max_retries: 9 }", (6, 27), "9 retries pause .* timeout is 2s"),
        ("timeout: 3s\n    retry: { max_retries: 9, backoff: 1ms..5ms }", None, ""),
        ("total_timeout: 5s", (5, 20), "total_timeout is shorter than timeout"),
        ("timeout: 6s\n    total_timeout: 5s", (6, 20), "total_timeout is shorter than timeout"),
    ],
)
def test_times_that_do_not_fit(tmp_path: Path, text: str, place: tuple[int, int] | None, words: str) -> None:
    """Attempts and pauses that are asked for and cannot all fit into the call's time are a warning."""
    _, problems = resolved(tmp_path, f"{USER}    {text}")
    if place is None:
        assert problems == []
        return
    (problem,) = problems
    assert problem.severity == "warning"
    assert (problem.mark.line, problem.mark.column) == place
    assert re.search(words, problem.message)


def test_instance_defaults_to_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `instance` we go by the host name."""
    monkeypatch.setattr("socket.gethostname", lambda: "pod-7")
    assert resolved(tmp_path, USER)[0].instance == "pod-7"
    assert resolved(tmp_path, f"instance: b-1\n{USER}")[0].instance == "b-1"


def test_unknown_credential_of_a_policy(tmp_path: Path) -> None:
    """An unknown credential in a policy is an error there, and not somewhere else."""
    text = f"policies:\n  p:\n    auth: nope\n{USER}    policy: p"
    assert complaints(tmp_path, text) == ['4:11 there is no credential "nope"']


def test_unknown_credential_of_a_policy_that_nobody_uses(tmp_path: Path) -> None:
    """A policy is checked whether or not it is used."""
    assert complaints(tmp_path, f"policies:\n  p:\n    auth: nope\n{USER}") == ['4:11 there is no credential "nope"']


def test_unknown_credential_of_a_service_with_routes(tmp_path: Path) -> None:
    """What routes inherit is complained about once, where it is written."""
    text = f"{USER}    auth: nope\n    routes: [{{match: GET /a}}, {{match: GET /b}}]"
    assert complaints(tmp_path, text) == ['5:11 there is no credential "nope"']


def test_unknown_variable_in_defaults(tmp_path: Path) -> None:
    """What services inherit is complained about once, where it is written."""
    text = f'defaults:\n  headers:\n    set: {{x-a: "{{nope}}"}}\n{USER}  other: http://h:1'
    assert complaints(tmp_path, text) == ["4:16 nothing provides {nope}"]


def test_collision_with_a_port_that_is_not_written(tmp_path: Path) -> None:
    """A collision with a default port is an error at the line that can be changed."""
    (complaint,) = complaints(tmp_path, f"listen: 127.0.0.1:4102\n{USER}")
    assert complaint.startswith("2:9 ")


@pytest.mark.parametrize("owner", ["user", "other"])
def test_own_dedicated_port(tmp_path: Path, owner: str) -> None:
    """A target that is one of Outrider's dedicated ports is Outrider itself, too."""
    ports = {"user": "", "other": ""} | {owner: ", port: 3001"}
    text = (
        f"services:\n  user: {{url: 'http://127.0.0.1:3001'{ports['user']}}}\n"
        f"  other: {{url: 'http://h:1'{ports['other']}}}"
    )
    (complaint,) = complaints(tmp_path, text)
    assert complaint.startswith("3:15 ")
    assert "is Outrider itself" in complaint


def test_rate_limit_merges_like_any_map(tmp_path: Path) -> None:
    """A service may add a burst to the rate that it inherits."""
    made = policy(tmp_path, f"defaults: {{rate_limit: 50/s}}\n{USER}    rate_limit: {{burst: 3}}")
    assert made.rate_limit is not None
    assert (made.rate_limit.rate, made.rate_limit.burst) == ((50.0, 1.0), 3)


def test_empty_key_is_not_a_part_of_its_own(tmp_path: Path) -> None:
    """A key without a value does not part a route from the breaker and limits of its service."""
    services = resolved(tmp_path, f"{USER}    routes: [{{match: GET /a, retry: , circuit_breaker: }}]")[0].services
    assert services[0].routes[0].own == frozenset()


def test_hedge_merges_like_any_map(tmp_path: Path) -> None:
    """A route may change how many, and inherit when."""
    made = route(tmp_path, f"{USER}    hedge: {{after: p95}}\n    routes: [{{match: GET /a, hedge: {{max: 2}}}}]")
    assert made.hedge is not None
    assert (made.hedge.after, made.hedge.max) == ("p95", 2)


def test_hedge_after(tmp_path: Path) -> None:
    """A percentile stays what it is, a duration becomes seconds."""
    assert policy(tmp_path, f"{USER}    hedge: {{after: p99.9}}").hedge.after == "p99.9"
    assert policy(tmp_path, f"{USER}    hedge: {{after: 50ms}}").hedge.after == 0.05


def test_queue_without_a_limit(tmp_path: Path) -> None:
    """Where nothing is limited nobody waits: a warning where the queue is written, and no error."""
    _, (problem,) = resolved(tmp_path, f"{USER}    queue: {{size: 5}}")
    assert problem.severity == "warning"
    assert (problem.mark.line, problem.mark.column) == (5, 12)
    assert "max_in_flight" in problem.message
    assert complaints(tmp_path, f"{USER}    queue: {{size: 5}}\n    max_in_flight: adaptive") == []


def test_queue_in_defaults(tmp_path: Path) -> None:
    """How to wait may be said for all, for those that have a limit."""
    assert complaints(tmp_path, f"defaults: {{queue: {{size: 5}}}}\n{USER}") == []


@pytest.mark.parametrize("key", ["balance: round-robin", "ejection: false", "health_check: {}", "idle_timeout: 1s"])
def test_what_belongs_to_the_service(tmp_path: Path, key: str) -> None:
    """Endpoints are a service's; a route that says something about them is warned that it has no effect."""
    _, (problem,) = resolved(tmp_path, f"{USER}    routes:\n      - match: GET /a\n        {key}")
    assert problem.severity == "warning"
    assert problem.mark.line == 7
    assert "belongs to the whole service" in problem.message


CHAINS = [
    ("fallback: {status: 202}", [("status", 202)]),
    ("fallback: {json: {}}", [("status", 200)]),
    ("fallback: {headers: {x-a: 1}}", [("status", 200)]),
    ("fallback: {}", [("status", 200)]),
    ("fallback: last-good", [("last_good", 600.0)]),
    ("fallback: {last_good: {max_age: 1m}}", [("last_good", 60.0)]),
    ("fallback: {service: other}", [("service", "other")]),
    ("fallback: [last-good]", [("last_good", 600.0)]),
    (
        "fallback: [{service: other}, last-good, {status: 503}]",
        [("service", "other"), ("last_good", 600.0), ("status", 503)],
    ),
    (
        "fallback: {status: 204, last_good: {}, service: other}",
        [("service", "other"), ("last_good", 600.0), ("status", 204)],
    ),
    ("fallback: [{status: 503}, last-good]", [("status", 503), ("last_good", 600.0)]),
    ("fallback: false", []),
]


@pytest.mark.parametrize(("text", "chain"), CHAINS, ids=[text for text, _ in CHAINS])
def test_fallback_in_all_its_spellings(tmp_path: Path, text: str, chain: list[tuple[str, object]]) -> None:
    """A status, a word, a map of several or a list of them come down to a chain with one kind in each."""
    made = policy(tmp_path, f"{USER}    {text}\n  other: http://h:1")
    shown = []
    for one in made.fallback:
        if one.service is not None:
            shown.append(("service", one.service))
        elif one.last_good is not None:
            shown.append(("last_good", one.last_good.max_age))
        else:
            shown.append(("status", one.status))
    assert shown == chain


def test_what_is_said_beside_a_service_is_not_lost(tmp_path: Path) -> None:
    """A body beside another service is the answer when that one fails, too."""
    made = policy(tmp_path, f"{USER}    fallback: {{service: other, json: {{a: 1}}}}\n  other: http://h:1")
    assert [(one.service, one.json_) for one in made.fallback] == [("other", None), (None, {"a": 1})]


def test_unknown_service_of_a_fallback(tmp_path: Path) -> None:
    """It is an error where it is named, once, however many routes inherit it."""
    text = f"{USER}    fallback: {{service: usr}}\n    routes: [{{match: GET /a}}, {{match: GET /b}}]"
    assert complaints(tmp_path, text) == ['5:15 there is no service "usr"']
    text = f"{USER}    routes:\n      - match: GET /a\n        fallback: [last-good, {{service: usr}}]"
    assert complaints(tmp_path, text) == ['7:19 there is no service "usr"']


def test_a_service_cannot_stand_in_for_itself(tmp_path: Path) -> None:
    """Not even for one of its routes."""
    text = f"{USER}    routes:\n      - match: GET /a\n        fallback: {{service: user}}"
    assert complaints(tmp_path, text) == ["7:19 user cannot stand in for itself"]


def test_two_services_may_stand_in_for_each_other(tmp_path: Path) -> None:
    """A stand-in is asked itself, and not those that would stand in for it."""
    text = f"{USER}    fallback: {{service: b}}\n  b: {{url: 'http://h:1', fallback: {{service: user}}}}"
    assert complaints(tmp_path, text) == []


def test_targets(tmp_path: Path) -> None:
    """Weights arrive with their URLs, and are 1 where nothing is said."""
    text = "services:\n  user:\n    url: [{url: http://a, weight: 3}, http://b, {url: 'dns+http://c:1', weight: 0.5}]"
    targets = resolved(tmp_path, text)[0].services[0].targets
    assert [(target.url, target.weight) for target in targets] == [
        ("http://a", 3.0),
        ("http://b", 1.0),
        ("dns+http://c:1", 0.5),
    ]


def test_wrong_port_of_a_source(tmp_path: Path) -> None:
    """The URL behind `dns+` is looked at like any other, where it is written."""
    text = "services:\n  user:\n    url:\n      - http://a\n      - {url: dns+http://b:70000, weight: 2}"
    (complaint,) = complaints(tmp_path, text)
    assert complaint.startswith("6:15 the port 70000")


@pytest.mark.parametrize("url", ["dns+http://h", "dnssrv+http://h"])
def test_tls_without_effect_on_a_source(tmp_path: Path, url: str) -> None:
    """What is found for a plain URL is spoken to plainly; what a file lists may be anything."""
    _, (problem,) = resolved(tmp_path, f"services:\n  user: {{url: {url}, tls: {{server_name: x}}}}")
    assert problem.severity == "warning"
    assert "tls has no effect" in problem.message
    assert complaints(tmp_path, "services:\n  user: {url: file+/x, tls: {server_name: x}}") == []


def test_own_address_in_a_list_in_short(tmp_path: Path) -> None:
    """The URL of a list is pointed at in the short form, too."""
    text = "listen: 127.0.0.1:80\nservices:\n  user: [http://h:1, http://127.0.0.1]"
    assert [line.partition(" ")[0] for line in complaints(tmp_path, text)] == ["4:22"]


@pytest.mark.parametrize(
    ("listen", "remedy"),
    [
        ("http://127.0.0.1:4100", "leave the scheme out: 127.0.0.1:4100"),
        ("http://localhost", "leave the scheme out and add a port: localhost:4100"),
        ("'*:4100'", "write 0.0.0.0:4100 for every IPv4 address, or [::]:4100 for every address"),
        ("unix:/x:1", "it listens on TCP ports only"),
        ("'::1:4100'", "put an IPv6 address in brackets: [::1]:4100"),
        ("':4100'", "write 127.0.0.1:4100"),
    ],
)
def test_a_listen_of_other_programs_has_a_remedy(tmp_path: Path, listen: str, remedy: str) -> None:
    """What nginx, Go or Docker would take is refused with what to write instead."""
    (tmp_path / "outrider.yaml").write_text(f"service: x\nlisten: {listen}\n{USER}")
    with pytest.raises(ConfigError) as caught:
        load([str(tmp_path / "outrider.yaml")], environment={})
    (problem,) = caught.value.problems
    assert problem.hint.startswith(remedy)


@pytest.mark.parametrize(
    ("digits", "why"), [(5, "expected a whole number from 1 to 64"), (5000, "expected a whole number from 1 to 64")]
)
def test_a_number_without_end_is_a_complaint(tmp_path: Path, digits: int, why: str) -> None:
    """Thousands of digits are no number, and no traceback."""
    (complaint,) = complaints(tmp_path, f"workers: {'9' * digits}\n{USER}")
    assert complaint.startswith(f"2:10 {why}, got 999")


def test_a_host_name_of_any_kind_names_the_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `instance` it is the host name, percent-encoded where that may not stand in a header."""
    monkeypatch.setattr("socket.gethostname", lambda: "Zoës\r\nRechner")
    made, _ = resolved(tmp_path, "services: {user: 'http://127.0.0.1:1'}")
    assert made.instance == "Zo%C3%ABs%0D%0ARechner"
