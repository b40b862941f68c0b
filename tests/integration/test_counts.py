"""Every answer is counted, once, under a label that nobody outside can choose."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    BrokenError,
    Client,
    Exchange,
    Sidecar,
    Target,
    chunked,
    exchange,
    get,
    plain,
    request,
    silent,
)

KEY = "key-of-the-platform-0123456789abcdef"
# What Outrider calls the outcomes of calls.
OUTCOMES = {
    "ok",
    "retried",
    "rejected",
    "rate_limited",
    "overloaded",
    "circuit_open",
    "upstream_error",
    "timeout",
    "fallback",
    "unauthenticated",
    "forbidden",
}


async def counted(proxy: Sidecar) -> Counter[tuple[str, str, str]]:
    """`requests_total` by service, status and outcome, as the telemetry port tells it."""
    page = await exchange(proxy.telemetry, get("/metrics", "Accept: text/plain", host="127.0.0.1"))
    counts: Counter[tuple[str, str, str]] = Counter()
    for family in text_string_to_metric_families(page.body.decode()):
        for sample in family.samples:
            if sample.name == "outrider_requests_total":
                labels = sample.labels
                assert labels["outcome"] in OUTCOMES, labels
                assert len(labels["method"]) < 20, labels
                counts[labels["service"], labels["code"], labels["outcome"]] += int(sample.value)
    return counts


async def script(one: Exchange) -> None:
    """A target that does as the path says."""
    if one.request.path.startswith("/silent"):
        await silent(one)
    elif one.request.path.startswith("/503"):
        await plain(503)(one)
    else:
        await plain()(one)


async def test_every_answer_is_counted_once(outrider: Outrider, tmp_path: Path) -> None:
    """The sum over `requests_total` is the number of answers that were given, whoever made them: refusals of what is
    malformed, too large, too slow, unknown, too much or in a circle, answers of targets, and those in their place."""
    text = """
limits: {{ body_bytes: 1KiB, header_bytes: 2KiB, header_timeout: 150ms, body_idle_timeout: 150ms }}
defaults: {{ retry: false, circuit_breaker: false }}
services:
  user: {{ url: '{0}', routes: [ {{ match: GET /users/**, timeout: 5s }} ] }}
  slow: {{ url: '{0}', timeout: 100ms }}
  limited: {{ url: '{0}', rate_limit: {{ rate: 1/m }} }}
  open: {{ url: '{0}', circuit_breaker: {{ consecutive_failures: 1, open_for: 1m..1m }} }}
  gone: http://127.0.0.1:9
  helped: {{ url: http://127.0.0.1:9, fallback: {{ status: 202, json: {{}} }} }}
"""
    chunks = request("POST", "/user/x", None, "Transfer-Encoding: chunked")
    once = [
        get("/user/x"),
        get("/user/users/1"),
        request("HEAD", "/user/x"),
        request("PURGE-EVERYTHING-" + "X" * 100, "/user/x"),
        request("OPTIONS", "/user/x", None, "Max-Forwards: 0"),
        get("/nobody/x"),
        get("/user/x", "x-outrider-service: nobody"),
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"NONSENSE\r\n\r\n",
        b"GET /user/x HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /user/x RTSP/1.0\r\nHost: a\r\n\r\n",
        get("/user/x", "X-Long: " + "x" * 3000),
        get("/user/x", *(f"X-{number}: 1" for number in range(200))),
        request("TRACE", "/user/x"),
        b"CONNECT user:443 HTTP/1.1\r\nHost: user:443\r\n\r\n",
        request("POST", "/user/x", b"x" * 2000),
        chunks + chunked(b"x" * 2000),
        chunks + b"zz\r\n",
        request("POST", "/user/x", None, "Transfer-Encoding: gzip"),
        get("/user/x", "Via: 1.1 {pseudonym}"),
        request("POST", "/user/x", None, "Content-Length: 10") + b"half",  # and then nothing
        b"GET /user/x HTTP/1.1\r\nHos",  # and then nothing
        get("/slow/silent"),
        get("/limited/x"),
        get("/limited/x"),
        get("/open/503"),
        get("/open/x"),
        get("/gone/x"),
        get("/helped/x"),
    ]
    async with Target(script) as target, outrider(text.format(target.url)) as proxy:
        user = next(route for route in proxy.app.runtime.compiled.routes if route.cluster.name == "user")
        answers: Counter[int] = Counter()
        for data in once:
            async with Client(proxy.port) as client:
                await client.send(data.replace(b"{pseudonym}", user.pseudonym))
                method = data.partition(b" ")[0].decode()
                answers[(await client.answer(method if method in ("HEAD", "CONNECT") else "GET")).status] += 1
        async with Client(proxy.port) as client:  # several on one connection, the last one malformed
            await client.send(get("/user/x") * 3 + get("/nobody/x") + b"\0\r\n\r\n")
            for _ in range(5):
                answers[(await client.answer()).status] += 1
        counts = await counted(proxy)
    by_status: Counter[int] = Counter()
    for (_, status, _), count in counts.items():
        by_status[int(status)] += count
    assert by_status == answers
    assert {service for service, _, _ in counts} == {"_unknown", "user", "slow", "limited", "open", "gone", "helped"}
    assert set(answers) == {200, 202, 400, 405, 408, 413, 429, 431, 501, 502, 503, 504, 505, 508}


async def test_every_answer_of_the_guard_is_counted_once(outrider: Outrider, tmp_path: Path) -> None:
    """The same for calls from outside: refused ones, those answered from memory, and those that reach the app."""
    text = f"""
inbound:
  listen: 127.0.0.1:0
  app: '{{}}'
  protect: [/internal]
  accept: [ {{{{ header: x-api-key, values: [{KEY}], require: [x-service-id] }}}} ]
  allow: [ {{{{ caller: web, match: "* /internal/**" }}}} ]
  body_bytes: 1KiB
  idempotency: {{{{ store: '{tmp_path / "keys.db"}' }}}}
  rate_limit: {{{{ rate: 10/m, key: caller }}}}
services: {{{{ other: 'http://127.0.0.1:9' }}}}
"""
    proven = (f"x-api-key: {KEY}", "x-service-name: web", "x-service-id: web-1")
    keyed = request("POST", "/internal/x", b"pay", *proven, "Idempotency-Key: a")
    calls = [
        get("/public"),
        get("/internal/x"),
        get("/internal/x", *proven),
        get("/internal/x", *proven[:2]),
        get("/internal/x", proven[0], "x-service-name: other", proven[2]),
        get("/internal/x", *proven, "x-request-timeout-ms: 0"),
        keyed,
        keyed,
        request("POST", "/internal/x", b"other", *proven, "Idempotency-Key: a"),
        request("POST", "/public", b"x" * 2000),
        *[get("/internal/x", *proven)] * 8,
        b"NONSENSE\r\n\r\n",
    ]
    async with Target(plain()) as app, outrider(text.format(app.url)) as proxy:
        port = proxy.app.ports["inbound.listen"]
        answers = Counter([(await exchange(port, data)).status for data in calls])
        counts = await counted(proxy)
    by_status: Counter[int] = Counter()
    for (_, status, _), count in counts.items():
        by_status[int(status)] += count
    assert by_status == answers
    assert {200, 400, 401, 403, 413, 422, 429, 504} <= set(answers)


async def test_an_app_that_hangs_up_is_counted_as_one_that_did(outrider: Outrider) -> None:
    """A call that was not answered because its app had gone is counted, too, as 499 and cancelled."""
    async with Target(silent) as target, outrider(f"services: {{ user: '{target.url}' }}") as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/x"))
            while not target.busy:
                await asyncio.sleep(0.002)
            client.reset()
            try:
                await client.answer()
            except BrokenError:
                pass
        while proxy.app.runtime.proxy.in_flight:
            await asyncio.sleep(0.002)
        assert proxy.outcomes() == {"cancelled": 1}
