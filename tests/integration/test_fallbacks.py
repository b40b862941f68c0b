"""What the app gets when a service fails that something can stand in for."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    BrokenError,
    Client,
    Target,
    chunked,
    close_unanswered,
    eventually,
    exchange,
    get,
    in_steps,
    plain,
    raw,
    request,
    reset_unanswered,
    response,
    slow,
)
from tests.integration.load import in_turn

ALONE = "retry: false\n    circuit_breaker: false"


def config(target: Target, fallback: str, more: str = ALONE, others: dict[str, Target] | None = None) -> str:
    text = f"services:\n  user:\n    url: '{target.url}'\n    fallback: {fallback}\n    {more}\n"
    for name, other in (others or {}).items():
        text += f"  {name}: {{ url: '{other.url}', retry: false, circuit_breaker: false }}\n"
    return text


FAILING = [
    pytest.param(plain(503, b"busy"), "503", id="503"),
    pytest.param(plain(500, b"x" * 100_000), "500", id="a long 500"),
    pytest.param(reset_unanswered, "connection-reset", id="reset"),
    pytest.param(close_unanswered, "connection-reset", id="closed"),
    pytest.param(slow(0.3), "timeout", id="too slow"),
]


# ---------------------------------------------------------------- an earlier answer


@pytest.mark.parametrize(("failing", "cause"), FAILING)
async def test_an_earlier_answer_stands_in(outrider: Outrider, failing: Action, cause: str) -> None:
    """The last good answer to the same GET is given in place of a failure, whole and with its own fields, and says
    how old it is and what it covers up."""
    good = plain(200, b'{"name": "Ada"}', "Content-Type: application/json", "X-Mine: 1")
    async with Target([good, failing]) as target:
        more = ALONE + "\n    attempt_timeout: 150ms"
        async with outrider(config(target, "last-good", more)) as proxy, Client(proxy.port) as client:
            first = await client.call(get("/user/users/1"))
            second = await client.call(get("/user/users/1"))
            assert proxy.outcomes() == {"ok": 1, "fallback": 1}
    assert first.get("x-outrider-degraded") is None
    assert (second.status, second.body, second.get("x-mine")) == (200, first.body, "1")
    assert second.get("content-type") == "application/json"
    assert second.get("x-outrider-degraded") == f"last-good; age=0; cause={cause}"
    assert second.get("warning") == '110 - "Response is Stale"'


def _large(framing: str) -> Action:
    body = bytes(range(256)) * 400
    if framing == "length":
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        return in_steps(head + body[:1000], body[1000:50_000], body[50_000:], pause=0.005)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = chunked(*(body[at : at + 7000] for at in range(0, len(body), 7000)))
    return in_steps(head + data[:1000], data[1000:60_000], data[60_000:], pause=0.005)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_streamed_answer_is_kept_too(outrider: Outrider, framing: str) -> None:
    """An answer of 100 kB that arrives in pieces is taken down as it passes, byte for byte."""
    async with Target([_large(framing), plain(500)]) as target:
        async with outrider(config(target, "last-good")) as proxy, Client(proxy.port) as client:
            first = await client.call(get("/user/x"))
            second = await client.call(get("/user/x"))
    assert first.body == bytes(range(256)) * 400
    assert (second.status, second.body) == (200, first.body)
    assert (second.get("x-outrider-degraded") or "").startswith("last-good; age=0; cause=500")


async def test_an_answer_that_broke_off_is_not_kept(outrider: Outrider) -> None:
    """Half an answer never stands in for anything."""
    half = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000), then="close")
    async with Target([half, plain(500, b"failed")]) as target, outrider(config(target, "last-good")) as proxy:
        with pytest.raises(BrokenError):
            await exchange(proxy.port, get("/user/x"))
        answer = await exchange(proxy.port, get("/user/x"))
    assert (answer.status, answer.body) == (500, b"failed")


async def test_another_users_answer_is_never_served(outrider: Outrider) -> None:
    """Whatever in a request could make a difference to its answer tells answers apart."""
    lines = [
        [],
        ["Authorization: Bearer ada"],
        ["Authorization: Bearer bob"],
        ["Cookie: session=ada"],
        ["Cookie: session=bob"],
        ["X-User-Id: 7"],
        ["Accept: text/html"],
        ["Accept-Language: de"],
        ["X-Api-Key: k"],
    ]
    async with Target([plain(200, b"%d" % number) for number in range(len(lines))]) as target:
        async with outrider(config(target, "last-good")) as proxy, Client(proxy.port) as client:
            for number, own in enumerate(lines):
                assert (await client.call(get("/user/me", *own))).body == b"%d" % number
            target.script(plain(500, b"failed"))
            for number, own in enumerate(lines):
                answer = await client.call(get("/user/me", *own))
                assert (answer.status, answer.body) == (200, b"%d" % number)
            for own in (["Authorization: Bearer eve"], ["Cookie: session=ada; admin=1"], ["X-User-Id: 8"]):
                answer = await client.call(get("/user/me", *own))
                assert (answer.status, answer.body) == (500, b"failed")
            for path in ("/user/me?page=2", "/user/me/", "/user/you"):
                assert (await client.call(get(path))).status == 500


async def test_what_differs_from_call_to_call_makes_no_difference(outrider: Outrider) -> None:
    """Ids and trace context of a call do not keep an earlier answer from being found."""
    async with Target([plain(200, b"good"), plain(500)]) as target:
        async with outrider(config(target, "last-good")) as proxy, Client(proxy.port) as client:
            for number in (1, 2):
                own = [f"X-Correlation-Id: c{number}", f"X-Request-Id: r{number}", f"X-Outrider-Timeout: {number}s"]
                answer = await client.call(get("/user/me", *own, f"User-Agent: app/{number}"))
                assert (answer.status, answer.body) == (200, b"good")


@pytest.mark.parametrize(
    "line", ["Cache-Control: no-store", "Cache-Control: max-age=1, private", "Set-Cookie: a=b", "Vary: *"]
)
async def test_what_says_so_is_not_kept(outrider: Outrider, line: str) -> None:
    """An answer that is nobody else's business, or good for one time only, is not kept."""
    async with Target([plain(200, b"good", line), plain(500)]) as target:
        async with outrider(config(target, "last-good")) as proxy, Client(proxy.port) as client:
            assert (await client.call(get("/user/me"))).status == 200
            assert (await client.call(get("/user/me"))).status == 500


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_only_gets_are_covered_up(outrider: Outrider, method: str) -> None:
    """No earlier answer stands in for what was to be changed."""
    async with Target([plain(200, b"good"), plain(200, b"done"), plain(500, b"failed")]) as target:
        async with outrider(config(target, "last-good")) as proxy, Client(proxy.port) as client:
            await client.call(get("/user/x"))
            await client.call(request(method, "/user/x", b"charge"))
            answer = await client.call(request(method, "/user/x", b"charge"))
            assert (answer.status, answer.body) == (500, b"failed")
            assert answer.get("x-outrider-degraded") is None
            assert proxy.outcomes() == {"ok": 2, "upstream_error": 1}


async def test_what_is_kept_is_bounded(outrider: Outrider) -> None:
    """Beyond `max_bytes` the answers longest unused go, and what is larger than `max_answer` is never kept."""
    fallback = "{ last_good: { max_bytes: 20KiB, max_answer: 4KiB } }"
    async with Target(plain(200, b"x" * 2000)) as target:
        async with outrider(config(target, fallback)) as proxy, Client(proxy.port) as client:
            for number in range(40):
                await client.call(get(f"/user/{number}"))
            target.script(plain(200, b"y" * 5000))
            await client.call(get("/user/large"))
            target.script(_large("chunked"))
            await client.call(get("/user/streamed"))
            last_good = proxy.app.runtime.compiled.routes[0].fallback.last_good
            assert 10 * 1024 < last_good.size <= 20 * 1024
            target.script(plain(500))
            found = [number for number in range(40) if (await client.call(get(f"/user/{number}"))).status == 200]
            assert (await client.call(get("/user/large"))).status == 500
            assert (await client.call(get("/user/streamed"))).status == 500
    assert 3 <= len(found) <= 8
    assert found == list(range(40 - len(found), 40))


async def test_what_is_too_old_does_not_stand_in(outrider: Outrider) -> None:
    """An answer older than `max_age` is worse than the failure."""
    fallback = "{ last_good: { max_age: 100ms } }"
    async with Target([plain(200, b"good"), plain(500)]) as target:
        async with outrider(config(target, fallback)) as proxy, Client(proxy.port) as client:
            await client.call(get("/user/x"))
            assert (await client.call(get("/user/x"))).status == 200
            await asyncio.sleep(0.12)
            assert (await client.call(get("/user/x"))).status == 500


async def test_a_refusal_of_ours_is_covered_up_too(outrider: Outrider) -> None:
    """An open circuit is as good a reason as a failure."""
    more = "retry: false\n    circuit_breaker: { consecutive_failures: 1, open_for: 5s..5s }"
    async with Target([plain(200, b"good"), plain(500)]) as target:
        async with outrider(config(target, "last-good", more)) as proxy, Client(proxy.port) as client:
            causes = [(await client.call(get("/user/x"))).get("x-outrider-degraded") for _ in range(3)]
    assert causes == [None, "last-good; age=0; cause=500", "last-good; age=0; cause=circuit-open"]
    assert len(target.seen) == 2


async def test_the_apps_own_mistakes_are_not_covered_up(outrider: Outrider) -> None:
    """A 404 is an answer."""
    async with Target([plain(200, b"good"), plain(404, b"gone")]) as target:
        async with outrider(config(target, "[last-good, { status: 200 }]")) as proxy, Client(proxy.port) as client:
            await client.call(get("/user/x"))
            answer = await client.call(get("/user/x"))
    assert (answer.status, answer.body) == (404, b"gone")


# ---------------------------------------------------------------- another service


@pytest.mark.parametrize(("failing", "cause"), [case for case in FAILING if case.id != "a long 500"])
async def test_another_service_stands_in(outrider: Outrider, failing: Action, cause: str) -> None:
    """The same call goes to another service when the first one fails, and the app can see that."""
    other_answer = plain(200, b"from the replica", "X-Mine: 2")
    async with Target(failing) as target, Target(other_answer) as replica:
        more = ALONE + "\n    attempt_timeout: 150ms"
        text = config(target, "{ service: replica }", more, {"replica": replica})
        async with outrider(text) as proxy, Client(proxy.port) as client:
            answer = await client.call(get("/user/users/1?full=1", "X-Correlation-Id: c-1"))
            assert proxy.outcomes() == {"fallback": 1}
            assert proxy.outcomes("replica") == {}
    assert (answer.status, answer.body, answer.get("x-mine")) == (200, b"from the replica", "2")
    assert answer.get("x-outrider-degraded") == f"service; name=replica; cause={cause}"
    assert answer.get("x-outrider-attempts") == "2"
    (seen,) = replica.seen
    assert (seen.path, seen.get("x-correlation-id")) == ("/users/1?full=1", "c-1")
    assert seen.get("host") == f"127.0.0.1:{replica.port}"


async def test_a_streamed_answer_of_another_service(outrider: Outrider) -> None:
    """A long answer of the one that stands in passes as any other does."""
    async with Target(plain(500)) as target, Target(_large("chunked")) as replica:
        text = config(target, "{ service: replica }", others={"replica": replica})
        async with outrider(text) as proxy, Client(proxy.port) as client:
            for _ in range(2):
                answer = await client.call(get("/user/x"))
                assert (answer.status, answer.body) == (200, bytes(range(256)) * 400)


async def test_a_put_goes_to_another_service_with_its_body(outrider: Outrider) -> None:
    """What may be repeated may also be sent elsewhere, whole."""
    body = bytes(range(256)) * 100
    async with Target(plain(503)) as target, Target(plain(200, b"done")) as replica:
        text = config(target, "{ service: replica }", others={"replica": replica})
        async with outrider(text) as proxy:
            answer = await exchange(proxy.port, request("PUT", "/user/x", body))
    assert (answer.status, answer.body) == (200, b"done")
    assert replica.bodies() == [body]


@pytest.mark.parametrize(
    "failing", [plain(500, b"failed"), reset_unanswered, slow(0.3)], ids=["500", "reset", "too slow"]
)
async def test_a_post_that_was_sent_goes_nowhere_else(outrider: Outrider, failing: Action) -> None:
    """The target may have acted on it, so no other service is asked to."""
    async with Target(failing) as target, Target(plain()) as replica:
        more = ALONE + "\n    attempt_timeout: 150ms"
        text = config(target, "{ service: replica }", more, {"replica": replica})
        async with outrider(text) as proxy:
            answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
            assert answer.status >= 500
            assert proxy.outcomes().get("fallback") is None
    assert target.bodies() == [b"charge"]
    assert replica.seen == []


async def test_a_post_that_was_not_sent_goes_elsewhere(outrider: Outrider) -> None:
    """A refused connection proves that nobody has acted, and so does an open circuit."""
    async with Target(plain()) as target, Target(plain(200, b"done")) as replica:
        more = "retry: false\n    circuit_breaker: { consecutive_failures: 1, open_for: 5s..5s }"
        text = config(target, "{ service: replica }", more, {"replica": replica})
        async with outrider(text) as proxy:
            await target.stop()
            for cause in ("connect-failed", "circuit-open"):
                answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
                assert (answer.status, answer.body) == (200, b"done")
                assert answer.get("x-outrider-degraded") == f"service; name=replica; cause={cause}"
    assert replica.bodies() == [b"charge", b"charge"]


# ---------------------------------------------------------------- chains


async def test_a_chain_is_tried_in_order(outrider: Outrider) -> None:
    """First another service, then an earlier answer, then a prepared one; and the first again when it works."""
    chain = "[{ service: replica }, last-good, { status: 203, json: { name: unknown } }]"
    async with Target(plain(200, b"own")) as target, Target(plain(200, b"replica")) as replica:
        text = config(target, chain, others={"replica": replica})
        async with outrider(text) as proxy, Client(proxy.port) as client:

            async def asked(path: str) -> tuple[int, bytes, str]:
                answer = await client.call(get(path))
                return answer.status, answer.body, (answer.get("x-outrider-degraded") or "").partition(";")[0]

            assert await asked("/user/1") == (200, b"own", "")
            target.script(plain(500))
            assert await asked("/user/1") == (200, b"replica", "service")
            replica.script(plain(503))
            assert await asked("/user/1") == (200, b"own", "last-good")
            status, body, degraded = await asked("/user/2")
            assert (status, json.loads(body), degraded) == (203, {"name": "unknown"}, "static")
            target.script(plain(200, b"new"))
            assert await asked("/user/1") == (200, b"new", "")
            assert proxy.outcomes() == {"ok": 2, "fallback": 3}


async def test_several_services_are_asked_one_after_the_other(outrider: Outrider) -> None:
    """The next one is asked when the one before has no good answer either."""
    async with Target(plain(500)) as target, Target(plain(503)) as near, Target(plain(200, b"far")) as far:
        chain = "[{ service: near }, { service: far }]"
        async with outrider(config(target, chain, others={"near": near, "far": far})) as proxy:
            answer = await exchange(proxy.port, get("/user/x"))
    assert (answer.status, answer.body) == (200, b"far")
    assert answer.get("x-outrider-degraded") == "service; name=far; cause=500"
    assert (len(near.seen), len(far.seen)) == (1, 1)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_when_nothing_stands_in_the_answer_passes(outrider: Outrider, size: int) -> None:
    """A failure that nothing covers up reaches the app as the target made it, whole, and as a failure."""
    body = b"f" * size
    async with Target(plain(500, body, "X-Mine: 1", reason="Broken")) as target, Target(plain(503)) as replica:
        chain = "[{ service: replica }, last-good]"
        async with outrider(config(target, chain, others={"replica": replica})) as proxy, Client(proxy.port) as client:
            for _ in range(3):
                answer = await client.call(get("/user/x"))
                assert (answer.status, answer.reason, answer.body) == (500, "Broken", body)
                assert (answer.get("x-mine"), answer.get("x-outrider-degraded")) == ("1", None)
            assert proxy.outcomes() == {"upstream_error": 3}


async def test_a_prepared_answer_covers_a_post_up(outrider: Outrider) -> None:
    """What is written in the configuration stands in for any method."""
    fallback = "{ status: 202, json: { queued: false }, headers: { X-Plan: b } }"
    async with Target(reset_unanswered) as target, outrider(config(target, fallback)) as proxy:
        answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
    assert (answer.status, json.loads(answer.body), answer.get("x-plan")) == (202, {"queued": False}, "b")
    assert answer.get("x-outrider-degraded") == "static; cause=connection-reset"


async def test_the_one_that_stands_in_is_not_counted_as_the_service(outrider: Outrider) -> None:
    """A failure that another service covers up is still a failure of the first: its circuit opens, the other's does
    not, and a limit that learns from failures hears of them."""
    async with Target(plain(500)) as target, Target(slow(0.03)) as replica:
        more = "retry: false\n    max_in_flight: adaptive\n    circuit_breaker: { open_for: 5s..5s }"
        text = config(target, "{ service: replica }", more, {"replica": replica})
        async with outrider(text) as proxy:
            tally = await in_turn(proxy.port, 1, 8, lambda number: get(f"/user/{number}"))
            assert tally.good == 8
            assert proxy.breaker_state() == "open"
            (limit,) = (one for one in proxy.app.runtime.compiled.routes[0].policies if hasattr(one, "limit"))
            assert limit.limit < 20, "after five failures"
    assert (len(target.seen), len(replica.seen)) == (5, 8)


async def test_metrics_name_fallbacks(outrider: Outrider) -> None:
    """A call that something stood in for has the outcome `fallback`."""
    async with Target(plain(500)) as target, outrider(config(target, "{ status: 200 }")) as proxy:
        for _ in range(3):
            await exchange(proxy.port, get("/user/x"))
        page = await exchange(proxy.telemetry, get("/metrics", host="127.0.0.1"))
    pattern = r'outrider_requests_total\{code="200",method="GET",outcome="fallback",route="\*",service="user"\} 3\.0'
    assert re.search(pattern, page.body.decode())


async def test_an_app_that_hangs_up_while_another_is_asked(outrider: Outrider) -> None:
    """Nothing remains of a call whose app goes while another service stands in."""

    async def held(one: object) -> None:
        await asyncio.sleep(0.2)
        await one.send(response())

    async with Target(plain(500)) as target, Target(held) as replica:
        text = config(target, "{ service: replica }", others={"replica": replica})
        async with outrider(text) as proxy:
            async with Client(proxy.port) as client:
                await client.send(get("/user/x"))
                await eventually(lambda: replica.busy, "the other one is asked")
            await eventually(lambda: not proxy.leftovers(), "nothing held")
            assert proxy.outcomes() == {"cancelled": 1}
