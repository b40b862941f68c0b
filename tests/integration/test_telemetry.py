"""What Outrider tells about itself: metrics, health, status, configuration and the access log."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from outrider.cli.check import series
from outrider.cli.health import ask
from outrider.controlplane.telemetry.logs import JsonFormatter
from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Client,
    Sidecar,
    Target,
    eventually,
    exchange,
    get,
    plain,
    request,
    reset_unanswered,
    silent,
)

TIMEOUT = aiohttp.ClientTimeout(total=5)


async def fetch(port: int, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of a page."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        async with session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as answer:
            return answer.status, await answer.text(), {name.lower(): value for name, value in answer.headers.items()}


async def metrics(proxy: Sidecar) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of /metrics, by name and labels."""
    status, text, headers = await fetch(proxy.telemetry, "/metrics")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def sample(found: dict[Any, float], name: str, **labels: str) -> float | None:
    """The value of one sample, or None."""
    return found.get((name, frozenset(labels.items())))


async def test_metrics_count_what_happened(outrider: Outrider) -> None:
    """After known traffic every counter has the known value."""
    text = """
services:
  user:
    url: '{}'
    retry: {{ backoff: 1ms..2ms }}
    circuit_breaker: {{ consecutive_failures: 3 }}
    rate_limit: {{ rate: 1/m, burst: 8 }}
    routes: [{{ match: 'GET /users/{{id}}', timeout: 5s }}]
"""
    script = [plain(), plain(404), plain(503), plain(), reset_unanswered, plain(503), plain(500)]
    async with Target(script) as target, outrider(text.format(target.url)) as proxy, Client(proxy.port) as client:
        await client.call(get("/user/users/1"))  # 200
        await client.call(get("/user/users/2"))  # 404
        await client.call(get("/user/other"))  # 503, then 200
        for _ in range(3):  # reset, 503, 500: the circuit opens
            await client.call(request("POST", "/user/other", b"x"))
        await client.call(get("/user/other"))  # circuit open
        await client.call(get("/nobody/x"))  # unknown service
        await client.call(request("MKCOL", "/user/other"))  # circuit open, unusual method
        await client.call(get("/user/other"))  # rate limited
        found = await metrics(proxy)

    def requests(**labels: str) -> float | None:
        return sample(found, "outrider_requests_total", **labels)

    route = "GET /users/{id}"
    assert requests(service="user", route=route, method="GET", code="200", outcome="ok") == 1
    assert requests(service="user", route=route, method="GET", code="404", outcome="ok") == 1
    assert requests(service="user", route="*", method="GET", code="200", outcome="retried") == 1
    assert requests(service="user", route="*", method="POST", code="502", outcome="upstream_error") == 1
    assert requests(service="user", route="*", method="POST", code="503", outcome="upstream_error") == 1
    assert requests(service="user", route="*", method="POST", code="500", outcome="upstream_error") == 1
    assert requests(service="user", route="*", method="GET", code="503", outcome="circuit_open") == 1
    assert requests(service="user", route="*", method="_OTHER", code="503", outcome="circuit_open") == 1
    assert requests(service="user", route="*", method="GET", code="429", outcome="rate_limited") == 1
    assert requests(service="_unknown", route="", method="GET", code="502", outcome="rejected") == 1
    assert sample(found, "outrider_attempts_total", service="user", result="2xx") == 2
    assert sample(found, "outrider_attempts_total", service="user", result="4xx") == 1
    assert sample(found, "outrider_attempts_total", service="user", result="5xx") == 3
    assert sample(found, "outrider_attempts_total", service="user", result="connection-reset") == 1
    assert sample(found, "outrider_retries_total", service="user", reason="503") == 1
    assert sample(found, "outrider_retries_suppressed_total", service="user", reason="not_idempotent") == 3
    assert sample(found, "outrider_circuit_state", service="user", state="open") == 1
    assert sample(found, "outrider_circuit_state", service="user", state="closed") == 0
    assert (
        sample(found, "outrider_circuit_transitions_total", **{"service": "user", "from": "closed", "to": "open"}) == 1
    )
    assert sample(found, "outrider_request_duration_seconds_count", service="user", route=route) == 2
    assert sample(found, "outrider_request_duration_seconds_bucket", service="user", route=route, le="+Inf") == 2
    assert sample(found, "outrider_overhead_seconds_count") == 9
    assert sample(found, "outrider_in_flight_requests", service="user") == 0
    assert sample(found, "outrider_endpoints", service="user", state="ready") == 1
    assert sample(found, "outrider_downstream_connections") == 1
    assert sample(found, "outrider_internal_errors_total") == 0
    assert sample(found, "outrider_metric_series_dropped_total") == 0
    assert any(name == "outrider_build_info" for name, _ in found)
    assert any(name == "process_resident_memory_bytes" for name, _ in found)


async def test_histograms_are_cumulative(outrider: Outrider) -> None:
    """Buckets never fall, and end with the count."""
    async with Target(plain()) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        async with Client(proxy.port) as client:
            for _ in range(20):
                await client.call(get("/user/x"))
        found = await metrics(proxy)
    rows = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in found.items()
        if name == "outrider_request_duration_seconds_bucket" and ("service", "user") in labels
    ]
    values = [value for _, value in sorted(rows)]
    assert len(values) == 15
    assert values == sorted(values)
    assert values[-1] == 20


async def test_paths_never_become_labels(outrider: Outrider) -> None:
    """A thousand paths and a hundred unknown services make no further series."""
    async with Target(plain()) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        async with Client(proxy.port) as client:
            await client.call(get("/user/x"))
            await client.call(get("/nobody/x"))
            before = set(await metrics(proxy))
            for number in range(50):
                await client.call(get(f"/user/{number}"))
                await client.call(get(f"/nobody{number}/x"))
            after = set(await metrics(proxy))
    assert after == before


async def test_calls_in_flight_are_seen(outrider: Outrider) -> None:
    """A call that waits for its target is in the gauge and in the status."""
    async with Target(silent) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: target.busy, "the call")
            found = await metrics(proxy)
            status = json.loads((await fetch(proxy.admin, "/api/v1/status"))[1])
    assert sample(found, "outrider_in_flight_requests", service="user") == 1
    assert sample(found, "outrider_upstream_connections", service="user", state="active") == 1
    assert (status["in_flight"], status["services"]["user"]["in_flight"]) == (1, 1)


@pytest.mark.parametrize("path", ["/healthz", "/-/healthy", "/readyz", "/-/ready", "/ready"])
async def test_health_does_not_depend_on_targets(outrider: Outrider, path: str) -> None:
    """A sidecar whose targets are all down is healthy and ready."""
    async with outrider("services: { user: 'http://127.0.0.1:9' }") as proxy:
        await exchange(proxy.port, get("/user/x", "x-outrider-retry: off"))
        status, text, _ = await fetch(proxy.telemetry, path)
    assert (status, text) == (200, "ok\n")


@pytest.mark.parametrize("path", ["/config", "/api/v1/status", "/user/x", "/"])
async def test_the_telemetry_port_serves_nothing_else(outrider: Outrider, path: str) -> None:
    """It is open to other machines, so it tells nothing that is not meant for them."""
    async with outrider("services: { user: 'http://127.0.0.1:9' }") as proxy:
        status, _, _ = await fetch(proxy.telemetry, path)
    assert status == 404


async def test_a_draining_sidecar_is_alive_but_not_ready(outrider: Outrider) -> None:
    """While draining, /readyz says 503 and /healthz 200, and calls are still carried, with Connection: close."""
    async with Target(plain()) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        async with Client(proxy.port) as client:
            await client.call(get("/user/x"))
            draining = asyncio.create_task(proxy.app.listener.drain(5))
            await asyncio.sleep(0)
            assert (await fetch(proxy.telemetry, "/readyz"))[0] == 503
            assert (await fetch(proxy.telemetry, "/healthz"))[0] == 200
            answer = await client.call(get("/user/x"))
            assert (answer.status, answer.get("connection")) == (200, "close")
            assert await client.end() == "eof"
        assert (await exchange(proxy.port, get("/user/x"))).status == 200
        async with asyncio.timeout(3):
            assert await draining


async def test_status_tells_how_the_services_are_doing(outrider: Outrider) -> None:
    """The admin port shows who runs, and each circuit and endpoint."""
    text = "services:\n  user: {{ url: '{}', retry: false }}"
    async with Target([plain(), *[plain(500)] * 5]) as target, outrider(text.format(target.url)) as proxy:
        async with Client(proxy.port) as client:
            for _ in range(6):
                await client.call(get("/user/x"))
        code, body, headers = await fetch(proxy.admin, "/api/v1/status")
    status = json.loads(body)
    assert code == 200
    assert "access-control-allow-origin" not in headers
    assert (status["service"], status["instance"], status["state"]) == ("booking", "booking-1", "ready")
    user = status["services"]["user"]
    assert user["circuits"]["user"]["state"] == "open"
    assert user["attempts"] == {"200": 1, "500": 5}
    assert user["endpoints"][0]["address"] == f"127.0.0.1:{target.port}"


async def test_the_configuration_is_shown_without_secrets(
    outrider: Outrider, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever holds a secret is `***`, and every value has its line."""
    (tmp_path / "key").write_text("from-a-file-s3cret\n")
    text = f"""
credentials:
  plain: {{ header: x-api-key, value: in-the-file-s3cret }}
  file: {{ header: x-other, value: '${{file:{tmp_path}/key}}' }}
services:
  user: {{ url: 'http://127.0.0.1:9', auth: [plain, file] }}
  odd: {{ url: 'http://127.0.0.1:9', headers: {{ set: {{ Authorization: 'Bearer s3cret', x-plain: shown }} }} }}
"""
    async with outrider(text) as proxy:
        code, body, _ = await fetch(proxy.admin, "/config")
        pages = [body, (await fetch(proxy.telemetry, "/metrics"))[1], (await fetch(proxy.admin, "/api/v1/status"))[1]]
    config = json.loads(body)
    assert code == 200
    assert not any("s3cret" in page for page in pages)
    assert config["config"]["credentials"]["plain"] == {"header": "x-api-key", "value": "***"}
    assert config["config"]["credentials"]["file"]["value"] == "***"
    assert config["config"]["services"]["odd"]["headers"]["set"] == {"Authorization": "***", "x-plain": "***"}
    assert config["provenance"]["credentials.plain.value"].endswith("outrider.yaml:8:38")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:4101", 200),
        ("LOCALHOST", 200),
        ("[::1]:4101", 200),
        ("evil.test", 421),
        ("127.0.0.1.evil.test:4101", 421),
        ("localhost.evil.test", 421),
        ("evil.test:127", 421),
        ("", 421),
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/status", "/config", "/nothing"])
async def test_the_admin_port_answers_only_to_its_own_names(
    outrider: Outrider, host: str, status: int, path: str
) -> None:
    """A page in a browser on this machine cannot read it under a name of its own (DNS rebinding)."""
    async with outrider("services: { user: 'http://127.0.0.1:9' }") as proxy:
        answer = await exchange(proxy.admin, get(path, "Connection: close", host=host))
    assert answer.status == (404 if status == 200 and path == "/nothing" else status)
    assert status == 200 or b"127.0.0.1:9" not in answer.body


async def test_the_admin_token_is_required(outrider: Outrider) -> None:
    """With a token set, nobody without it learns anything."""
    text = "admin: { listen: 127.0.0.1:0, token: 0123456789abcdef }\nservices: { user: 'http://127.0.0.1:9' }"
    async with outrider(text) as proxy:
        without, said, headers = await fetch(proxy.admin, "/config")
        wrong, _, _ = await fetch(proxy.admin, "/config", Authorization="Bearer 0123456789abcdeX")
        right, page, _ = await fetch(proxy.admin, "/config", Authorization="Bearer 0123456789abcdef")
    assert (without, wrong, right) == (401, 401, 200)
    assert headers["www-authenticate"] == "Bearer"
    assert "OUTRIDER_ADMIN_TOKEN" in said
    assert "admin.token" in said
    assert "0123456789abcdef" not in page


@pytest.mark.parametrize("end", ["", "\\n", " \\n\\n", "\\r\\n"])
async def test_white_space_behind_the_admin_token_locks_out_no_one(
    outrider: Outrider, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Files and variables often end with a line end; it is taken off on both sides."""
    text = (
        f'admin: {{ listen: 127.0.0.1:0, token: "0123456789abcdef{end}" }}\nservices: {{ user: "http://127.0.0.1:9" }}'
    )
    monkeypatch.setenv("OUTRIDER_ADMIN_TOKEN", f"0123456789abcdef{end}".encode().decode("unicode_escape"))
    async with outrider(text) as proxy:
        status, page = await asyncio.to_thread(ask, f"127.0.0.1:{proxy.admin}", "/api/v1/circuits")
    assert (status, list(json.loads(page)["circuits"])) == (200, ["user"])


async def test_no_secret_of_a_url_is_logged(outrider: Outrider, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of a key set nor of a health check nor of a store, whatever goes wrong with them."""
    text = """
inbound: { listen: 127.0.0.1:0, app: 'http://127.0.0.1:9', idempotency: { store: redis },
           accept: [ { jwt: { alg: RS256, audience: a, jwks: 'http://u:s3cret@127.0.0.1:9/keys?token=s3cret' } } ] }
redis: { url: 'redis://:p@s3cret@127.0.0.1:9/0?password=s3cret', timeout: 200ms }
services: { user: { url: 'http://127.0.0.1:9', health_check: { path: '/h?token=s3cret', every: 50ms } } }
"""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(JsonFormatter().format(record))  # type: ignore[method-assign] # for one test
    logging.getLogger("outrider").addHandler(handler)
    try:
        async with outrider(text) as proxy:
            proxy.expected_errors += ["key set", "store of idempotency keys"]
            await eventually(
                lambda: any("is unhealthy" in line for line in logged), "the health check is complained of"
            )
    finally:
        logging.getLogger("outrider").removeHandler(handler)
    assert any("key set http://***@127.0.0.1:9/keys?*** cannot be used" in line for line in logged)
    assert not [line for line in logged if "s3cret" in line]


async def test_the_hash_of_the_configuration_tells_nothing_of_secrets(outrider: Outrider) -> None:
    """It is on the open port, so it must not change with a secret that could then be guessed; it does with the rest."""
    hashes = []
    for key, timeout in (("one-secret", "1s"), ("another-secret", "1s"), ("one-secret", "2s")):
        text = f"credentials: {{ k: {{ header: x-a, value: {key} }} }}\n"
        text += f"services: {{ user: {{ url: 'http://127.0.0.1:9', timeout: {timeout} }} }}"
        async with outrider(text) as proxy:
            hashes.append(proxy.app.runtime.config_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        ("Bearer 0123456789abcdef", 200),
        ("bearer 0123456789abcdef", 200),
        ("BEARER   0123456789abcdef", 200),
        ("Bearer \xff", 401),
        ("Bearer 0123456789abcdef\xff", 401),
        ("Bearer", 401),
        ("Basic 0123456789abcdef", 401),
        ("0123456789abcdef", 401),
        ("", 401),
    ],
)
async def test_how_the_admin_token_is_shown(outrider: Outrider, shown: str, status: int) -> None:
    """The scheme has no case (RFC 9110 section 11.1), and whatever is no token is 401."""
    text = "admin: { listen: 127.0.0.1:0, token: 0123456789abcdef }\nservices: { user: 'http://127.0.0.1:9' }"
    async with outrider(text) as proxy:
        answer = await exchange(proxy.admin, get("/config", f"Authorization: {shown}", "Connection: close"))
    assert answer.status == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_no_other_site_gives_orders(outrider: Outrider, method: str) -> None:
    """What a page of another site can send changes nothing, and no preflight succeeds."""
    async with outrider("services: { user: 'http://127.0.0.1:9' }") as proxy:
        data = request(method, "/config", b"", "Origin: http://evil.test", "Connection: close", host="127.0.0.1")
        answer = await exchange(proxy.admin, data)
        order = request(
            method, "/-/quit", b"", "Origin: http://evil.test", "Content-Type: text/plain", "Connection: close"
        )
        order = order.replace(b"app.test", b"127.0.0.1")
        assert (await exchange(proxy.admin, order)).status in (403, 405)
        assert not proxy.app.runtime.proxy.draining
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.names()


# ---------------------------------------------------------------- the access log


def calls(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the access log said."""
    return [record.fields for record in caplog.records if record.name == "outrider.access"]


async def test_a_plain_success_is_not_logged(outrider: Outrider, caplog: pytest.LogCaptureFixture) -> None:
    """Neither is an answer like 404, which is the target's business."""
    caplog.set_level(logging.DEBUG, "outrider")
    async with Target([plain(), plain(204, b""), plain(404)]) as target:
        async with outrider(f"services: {{ user: '{target.url}' }}") as proxy, Client(proxy.port) as client:
            for _ in range(5):
                await client.call(get("/user/x"))
    assert calls(caplog) == []


async def test_a_retried_call_is_logged_with_its_story(outrider: Outrider, caplog: pytest.LogCaptureFixture) -> None:
    """The line says what each try came to, and where."""
    caplog.set_level(logging.DEBUG, "outrider")
    async with Target([plain(503), plain()]) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        await exchange(proxy.port, get("/user/orders/7?token=s3cret", "x-correlation-id: c-1", "x-api-key: s3cret"))
        (line,) = calls(caplog)
    assert (line["service"], line["method"], line["path"], line["status"]) == ("user", "GET", "/orders/7", 200)
    assert (line["outcome"], line["attempts"], line["correlation_id"]) == ("retried", 2, "c-1")
    assert [entry.split(" ")[0] for entry in line["why"]] == ["try", "wait", "try"]
    assert "503" in line["why"][0]
    assert f"127.0.0.1:{target.port}" in line["why"][0]
    assert "200" in line["why"][2]
    assert line["caller"] == "booking"
    assert "s3cret" not in caplog.text + json.dumps(line)


async def test_a_failed_call_is_logged_with_its_reason(outrider: Outrider, caplog: pytest.LogCaptureFixture) -> None:
    """The line says why there was no further try."""
    caplog.set_level(logging.DEBUG, "outrider")
    async with Target(reset_unanswered) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        await exchange(proxy.port, request("POST", "/user/x", b"charge-body"))
        (line,) = calls(caplog)
    assert (line["status"], line["outcome"], line["flags"], line["bytes_in"]) == (502, "upstream_error", "UC", 11)
    assert line["why"][-1] == "no retry: not_idempotent"
    assert "charge-body" not in json.dumps(line)


@pytest.mark.parametrize(
    ("data", "outcome", "flag"),
    [
        (get("/nobody/x"), "rejected", "NR"),
        (b"GARBAGE\r\n\r\n", "rejected", "DPE"),
        (get("/user/x", "x-outrider-timeout: soon"), "rejected", "DPE"),
        (get("/user/x", "x-outrider-timeout: 30ms"), "timeout", "UT"),
    ],
)
async def test_refusals_are_logged(
    outrider: Outrider, caplog: pytest.LogCaptureFixture, data: bytes, outcome: str, flag: str
) -> None:
    """What never reached a target, or never came back, is in the log with its flag and a reason."""
    caplog.set_level(logging.DEBUG, "outrider")
    async with Target(silent) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        await exchange(proxy.port, data)
        (line,) = calls(caplog)
    assert (line["outcome"], line["flags"]) == (outcome, flag)
    assert line["why"]


async def test_a_call_the_app_gave_up_is_logged_as_499(outrider: Outrider, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody hears the answer, but the log says what happened."""
    caplog.set_level(logging.DEBUG, "outrider")
    async with Target(silent) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: target.busy, "the call")
        await eventually(lambda: calls(caplog), "a line")
    (line,) = calls(caplog)
    assert (line["status"], line["outcome"], line["flags"], line["why"]) == (
        499,
        "cancelled",
        "DC",
        ["the app hung up"],
    )
    assert line["attempts"] == 1


async def test_a_refused_retry_is_told_and_not_counted_as_one(
    outrider: Outrider, caplog: pytest.LogCaptureFixture
) -> None:
    """`retries_total` counts what was sent again; a retry that the breaker refuses is a suppressed one, and the log
    does not end with the wait for it."""
    caplog.set_level(logging.DEBUG, "outrider")
    more = "{ retry: { backoff: 80ms..80ms }, circuit_breaker: { consecutive_failures: 2, open_for: 5s..5s } }"
    text = f"services: {{ user: {{ url: 'URL', {more[1:-1]} }} }}"
    async with Target(plain(503)) as target, outrider(text.replace("URL", target.url)) as proxy:
        route = proxy.app.runtime.compiled.routes[0]
        route.retry.jitter = lambda least, most: most
        await asyncio.gather(*(exchange(proxy.port, get("/user/x")) for _ in range(2)))
        stats = route.cluster.stats
        counted = sum(stats.retries.values()), sum(stats.attempts.values()), stats.suppressed["circuit_open"]
        assert counted == (len(target.seen) - 2, len(target.seen), 2)
    assert [line["why"][-1] for line in calls(caplog)] == ["no retry: circuit_open"] * 2


@pytest.mark.parametrize(("access", "lines"), [("none", 0), ("errors", 1), ("all", 3), ("0%", 1), ("100%", 3)])
async def test_what_is_logged_can_be_chosen(
    outrider: Outrider, caplog: pytest.LogCaptureFixture, access: str, lines: int
) -> None:
    """none, errors, all, or errors and a share of the rest."""
    caplog.set_level(logging.DEBUG, "outrider")
    text = f"observability: {{ log: {{ access: '{access}' }} }}\nservices: {{ user: 'URL' }}"
    async with Target([plain(), plain(), plain(500)]) as target, outrider(text.replace("URL", target.url)) as proxy:
        async with Client(proxy.port) as client:
            for _ in range(3):
                await client.call(get("/user/x", "x-outrider-retry: off"))
    assert len(calls(caplog)) == lines


async def test_the_error_body_is_problem_and_envelope(outrider: Outrider) -> None:
    """An own reply is RFC 9457 problem details and the platforms' error envelope in one."""
    async with outrider("services: { user: { url: 'http://127.0.0.1:9', retry: false } }") as proxy:
        answer = await exchange(proxy.port, get("/user/x", 'x-correlation-id: c-"1"'))
    problem = json.loads(answer.body)
    assert answer.get("content-type") == "application/problem+json"
    assert problem["type"] == "urn:outrider:connect-failed"
    assert (problem["status"], problem["error"], problem["origin"]) == (502, "CONNECT_FAILED", "network")
    assert (problem["service"], problem["attempts"], problem["retryable"]) == ("user", 1, True)
    assert problem["correlationId"] == 'c-"1"'
    assert problem["title"]
    assert problem["detail"] == problem["message"]


async def test_the_number_of_series_is_about_what_check_says(outrider: Outrider) -> None:
    """`outrider check` tells how many series a configuration makes before the first call, within a third."""
    text = (
        "services:\n  a: { url: 'http://127.0.0.1:9', routes: [{ match: GET /x }] }\n"
        "  b: { url: ['http://127.0.0.1:9', 'http://127.0.0.2:9'] }\n"
    )
    async with outrider(text) as proxy:
        _, page, _ = await fetch(proxy.telemetry, "/metrics")
    idle, busy = series(services=2, routes=3)
    there = sum(line.startswith("outrider_") for line in page.splitlines())
    assert idle * 2 / 3 < there < idle * 4 / 3
    assert busy > idle
