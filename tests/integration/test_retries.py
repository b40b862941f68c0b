"""What is tried again, and above all what never is."""

from __future__ import annotations

import asyncio
import json
from time import monotonic

import pytest

from outrider.dataplane.policy import Policy
from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
    BrokenError,
    Client,
    Exchange,
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
    silent,
)
from tests.servers import free_port


def config(url: str, more: str = "") -> str:
    return f"services:\n  user:\n    url: '{url}'\n    circuit_breaker: false\n    " + more


QUICK = "retry: { backoff: 1ms..5ms }"
ONCE_BROKEN = [
    pytest.param(plain(503), id="503"),
    pytest.param(plain(500), id="500"),
    pytest.param(close_unanswered, id="closed"),
    pytest.param(reset_unanswered, id="reset"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-Le", then="close"), id="partial head"),
    pytest.param(raw(b"SSH-2.0-OpenSSH\r\n", then="close"), id="garbage"),
]


@pytest.mark.parametrize("first", ONCE_BROKEN)
async def test_a_get_survives_one_failure(outrider: Outrider, first: object) -> None:
    """A GET whose first attempt fails is answered by the second, and the app can see that."""
    async with Target([first, plain(200, b"good")]) as target, outrider(config(target.url, QUICK)) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
        assert proxy.outcomes() == {"retried": 1}
    assert (answer.status, answer.body, answer.get("x-outrider-attempts")) == (200, b"good", "2")
    assert "attempt 2" in (answer.get("proxy-status") or "")
    one, two = target.seen
    assert (one.get("x-outrider-attempt"), two.get("x-outrider-attempt")) == ("1", "2")
    for name in ("x-correlation-id", "traceparent"):
        assert one.get(name) == two.get(name)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("first", ONCE_BROKEN)
async def test_a_post_is_never_sent_twice(outrider: Outrider, first: object, method: str) -> None:
    """Once anything was sent, a request that may have had an effect is not repeated, whatever went wrong."""
    async with Target([first, plain()]) as target, outrider(config(target.url, QUICK)) as proxy:
        answer = await exchange(proxy.port, request(method, "/user/x", b"charge"))
        await asyncio.sleep(0.02)
    assert answer.status >= 500
    assert target.bodies() == [b"charge"]
    assert answer.get("x-outrider-attempts") == "1"


async def test_a_refused_post_passes_back_untouched(outrider: Outrider) -> None:
    """The target's own 503 to a POST is what the app gets, byte for byte."""
    said = plain(503, b"try later", "X-Mine: 1", reason="Busy")
    async with Target(said) as target, outrider(config(target.url, QUICK)) as proxy:
        answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
    assert (answer.status, answer.reason, answer.body, answer.get("x-mine")) == (503, "Busy", b"try later", "1")
    assert len(target.seen) == 1


async def test_a_post_that_times_out_is_sent_once(outrider: Outrider) -> None:
    """No answer does not mean no effect."""
    more = "attempt_timeout: 50ms\n    retry: { backoff: 1ms..5ms }"
    async with Target(silent) as target, outrider(config(target.url, more)) as proxy:
        answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
    assert (answer.status, len(target.seen)) == (504, 1)
    assert json.loads(answer.body)["retryable"] is False


@pytest.mark.parametrize("first", ONCE_BROKEN)
async def test_an_idempotency_key_makes_a_post_repeatable(outrider: Outrider, first: object) -> None:
    """With a key the target can recognise the repetition, so it is made, with the same key and body."""
    async with Target([first, plain()]) as target, outrider(config(target.url, QUICK)) as proxy:
        answer = await exchange(proxy.port, request("POST", "/user/x", b"charge", "Idempotency-Key: k-1"))
    assert answer.status == 200
    assert target.bodies() == [b"charge", b"charge"]
    assert [seen.get("idempotency-key") for seen in target.seen] == ["k-1", "k-1"]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(("Idempotency-Key: ",), id="empty"),
        pytest.param(("Idempotency-Key: k-1", "Connection: keep-alive, Idempotency-Key"), id="named in Connection"),
    ],
)
async def test_a_key_the_target_cannot_see_makes_nothing_repeatable(outrider: Outrider, lines: tuple[str, ...]) -> None:
    """A repetition is safe only if the key reaches the target; without that the POST is sent once."""
    async with Target([plain(503), plain()]) as target, outrider(config(target.url, QUICK)) as proxy:
        await exchange(proxy.port, request("POST", "/user/x", b"charge", *lines))
    keys = [seen.get("idempotency-key") for seen in target.seen]
    assert len(keys) == 1 or all(keys), f"sent {len(keys)} times with keys {keys}"


async def test_a_removed_key_makes_nothing_repeatable(outrider: Outrider) -> None:
    """A route that takes the key off cannot rely on it either."""
    more = QUICK + "\n    headers: { remove: [idempotency-key] }"
    async with Target([plain(503), plain()]) as target, outrider(config(target.url, more)) as proxy:
        await exchange(proxy.port, request("POST", "/user/x", b"charge", "Idempotency-Key: k-1"))
    assert len(target.seen) == 1


async def test_a_post_is_retried_when_nothing_was_sent(outrider: Outrider) -> None:
    """A refused connection proves that the target has not acted, so any method is tried again."""
    target = Target(plain(), port=free_port())
    more = "retry: { max_retries: 20, backoff: 40ms..80ms, budget: 100% }"
    async with outrider(config(target.url, more)) as proxy:
        pending = asyncio.create_task(exchange(proxy.port, request("POST", "/user/x", b"charge")))
        cluster = proxy.app.runtime.compiled.clusters[0]
        await eventually(lambda: cluster.stats.connects["connection_refused"], "a refused connection")
        async with target:
            answer = await pending
    assert answer.status == 200
    assert target.bodies() == [b"charge"]


async def test_a_connection_never_made_is_a_502(outrider: Outrider) -> None:
    """When nobody listens, the app hears that the network was at fault, and how often it was tried."""
    more = "retry: { max_retries: 2, backoff: 1ms..5ms }"
    async with outrider(config(f"http://127.0.0.1:{free_port()}", more)) as proxy:
        answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
    assert answer.status == 502
    assert b'"error": "CONNECT_FAILED"' in answer.body
    assert "error=connection_refused" in (answer.get("proxy-status") or "")
    assert answer.get("x-outrider-attempts") == "3"


@pytest.mark.parametrize("framing", ["length", "chunked", "in pieces"])
async def test_a_body_is_replayed_identically(outrider: Outrider, framing: str) -> None:
    """Every attempt sends the same bytes, however the app sent them."""
    body = bytes(range(256)) * 200
    async with Target([plain(503), reset_unanswered, plain()]) as target, outrider(config(target.url, QUICK)) as proxy:
        async with Client(proxy.port) as client:
            if framing == "chunked":
                await client.send(request("PUT", "/user/x", None, "Transfer-Encoding: chunked"))
                for start in range(0, len(body), 10000):
                    await client.send(chunked(body[start : start + 10000])[: -len(b"0\r\n\r\n")])
                    await asyncio.sleep(0.002)
                await client.send(b"0\r\n\r\n")
            elif framing == "length":
                await client.send(request("PUT", "/user/x", body))
            else:
                data = request("PUT", "/user/x", body)
                for start in range(0, len(data), 10000):
                    await client.send(data[start : start + 10000])
                    await asyncio.sleep(0.002)
            assert (await client.answer()).status == 200
    assert target.bodies() == [body] * 3


async def test_a_body_is_replayed_from_the_start_while_still_arriving(outrider: Outrider) -> None:
    """A target that refuses before it has everything gets the whole body on the next attempt."""

    async def refuse_early(exchange_: object) -> None:
        await exchange_.reader.readexactly(1000)
        exchange_.reset()

    body = b"0123456789" * 400
    data = request("PUT", "/user/x", body)
    async with Target([refuse_early, plain()]) as target, outrider(config(target.url, QUICK)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(data[:2000])
            await eventually(lambda: len(target.seen) == 2, "a second attempt")
            await client.send(data[2000:])
            assert (await client.answer()).status == 200
    assert target.seen[1].body == body


async def test_a_body_too_large_to_keep_is_sent_once(outrider: Outrider) -> None:
    """What exceeds replay_bytes passes through, is not repeated, and the answer passes back."""
    limits = "limits: { replay_bytes: 1KiB }\n"
    body = b"x" * 5000
    async with Target([plain(503, b"busy"), plain()]) as target, outrider(limits + config(target.url, QUICK)) as proxy:
        answer = await exchange(proxy.port, request("PUT", "/user/x", body))
        stats = proxy.app.runtime.compiled.clusters[0].stats
        assert dict(stats.suppressed) == {"body_too_large": 1}
    assert (answer.status, answer.body, target.bodies()) == (503, b"busy", [body])


async def test_the_app_can_forbid_retries(outrider: Outrider) -> None:
    """`x-outrider-retry: off` means one attempt."""
    async with Target([plain(503), plain()]) as target, outrider(config(target.url, QUICK)) as proxy:
        answer = await exchange(proxy.port, get("/user/x", "x-outrider-retry: off"))
    assert (answer.status, len(target.seen)) == (503, 1)


async def test_the_last_answer_passes_when_all_attempts_fail(outrider: Outrider) -> None:
    """Tries used up: the app gets the target's last answer, not one of ours."""
    script = [plain(503, b"%d" % number) for number in range(1, 6)]
    async with Target(script) as target, outrider(config(target.url, QUICK)) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
    assert (answer.status, answer.body, len(target.seen)) == (503, b"4", 4)
    assert answer.get("x-outrider-attempts") == "4"
    assert "received-status=503" in (answer.get("proxy-status") or "")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 501, 505])
async def test_what_will_not_get_better_is_not_repeated(outrider: Outrider, status: int) -> None:
    """Client errors, 429 without Retry-After, and answers that say never, are final."""
    async with Target([plain(status), plain()]) as target, outrider(config(target.url, QUICK)) as proxy:
        assert (await exchange(proxy.port, get("/user/x"))).status == status
    assert len(target.seen) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured(outrider: Outrider, status: int) -> None:
    """The next attempt comes when the target asked for it, not before."""
    async with Target([plain(status, b"", "Retry-After: 1"), plain()]) as target:
        async with outrider(config(target.url, QUICK)) as proxy:
            began = monotonic()
            answer = await exchange(proxy.port, get("/user/x"))
            took = monotonic() - began
    assert (answer.status, len(target.seen)) == (200, 2)
    assert 1.0 <= took < 1.8


async def test_a_retry_after_beyond_the_deadline_is_passed_on(outrider: Outrider) -> None:
    """Nobody waits for a retry that cannot come in time; the app gets the answer at once, with its Retry-After."""
    async with Target(plain(503, b"", "Retry-After: 60")) as target, outrider(config(target.url, QUICK)) as proxy:
        began = monotonic()
        answer = await exchange(proxy.port, get("/user/x"))
        took = monotonic() - began
    assert (answer.status, answer.get("retry-after"), len(target.seen)) == (503, "60", 1)
    assert took < 0.5


async def answer_then_reset_the_next(one: Exchange) -> None:
    """Answer, read the next request on the same connection, and reset it."""
    await one.body()
    await one.send(response())
    try:
        head = await one.reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return one.close()  # the test is over
    one.target.lost.append(head.split(b" ", 1)[0].decode())
    return one.reset()


def lossy(*then: Action) -> Target:
    """A target that loses the second request on its first connection; `lost` are the methods of such requests."""
    return Target([answer_then_reset_the_next, *then])


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize(("more", "line"), [("retry: false", "x-a: b"), (QUICK, "x-outrider-retry: off")])
async def test_a_request_is_not_sent_twice_where_retries_are_off(
    outrider: Outrider, method: str, more: str, line: str
) -> None:
    """A kept connection that breaks after it has taken the request may have delivered it: without retries, that is
    the end of the call."""
    async with lossy(plain()) as target, outrider(config(target.url, more)) as proxy, Client(proxy.port) as client:
        await client.call(get("/user/warm"))
        answer = await client.call(request(method, "/user/x", None, line))
        stats = proxy.app.runtime.compiled.clusters[0].stats
        await eventually(lambda: sum(stats.attempts.values()) == 2, "both attempts counted")
    assert (answer.status, answer.get("x-outrider-attempts")) == (502, "1")
    assert (target.lost, len(target.seen), target.connections) == ([method], 1, 1)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_retry_after_a_broken_kept_connection_is_one(outrider: Outrider, method: str) -> None:
    """Where retries are allowed, the request is sent again at once on a fresh connection: as attempt 2, from the
    budget, and counted."""
    slow_retries = "retry: { backoff: 5s..5s }"
    async with lossy(plain(200, b"fresh")) as target, outrider(config(target.url, slow_retries)) as proxy:
        async with Client(proxy.port) as client:
            await client.call(get("/user/warm"))
            answer = await client.call(request(method, "/user/x"))
        route = proxy.app.runtime.compiled.routes[0]
        stats = route.cluster.stats
        assert (answer.status, answer.body, answer.get("x-outrider-attempts")) == (200, b"fresh", "2")
        assert (target.lost, target.seen[-1].get("x-outrider-attempt")) == ([method], "2")
        assert dict(stats.retries) == {"reset": 1}
        assert dict(stats.attempts) == {200: 2, "connection-reset": 1}
        assert dict(stats.connects) == {"ok": 2}
        assert proxy.outcomes() == {"ok": 1, "retried": 1}


async def test_without_budget_a_broken_kept_connection_ends_the_call(outrider: Outrider) -> None:
    """The replacement of a kept connection costs the budget like any other retry."""
    more = "retry: { backoff: 1ms..5ms, budget: 0% }"
    script = [answer_then_reset_the_next] * 8
    async with Target(script) as target, outrider(config(target.url, more)) as proxy, Client(proxy.port) as client:
        statuses = [(await client.call(get("/user/x"))).status for _ in range(10)]
        stats = proxy.app.runtime.compiled.clusters[0].stats
        assert sum(stats.retries.values()) == 3  # the reserve of a second
        assert stats.suppressed["budget"] >= 1
        assert sum(stats.attempts.values()) == 10 + sum(stats.retries.values())
        assert len(target.seen) + len(target.lost) == sum(stats.attempts.values())
    assert 502 in statuses


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_stale_connection_is_replaced_silently(outrider: Outrider, method: str) -> None:
    """A kept connection that the target had ended before the request reached it is not the app's problem, and not an
    attempt: the target has not got anything, whatever the method."""
    async with Target(plain(200, b"fresh")) as target:
        async with outrider(config(target.url, "retry: false")) as proxy, Client(proxy.port) as client:
            await client.call(get("/user/warm"))
            route = proxy.app.runtime.compiled.routes[0]
            route.stamps = (*route.stamps, _CloseMeanwhile(target))
            answer = await client.call(request(method, "/user/x", b"charge"))
            stats = route.cluster.stats
            assert dict(stats.connects) == {"ok": 2, "stale": 1}
            assert (dict(stats.attempts), dict(stats.retries)) == ({200: 2}, {})
    assert (answer.status, answer.body, answer.get("x-outrider-attempts")) == (200, b"fresh", "1")
    assert (len(target.seen), target.seen[-1].get("x-outrider-attempt")) == (2, "1")


class _CloseMeanwhile(Policy):
    """Ends the idle connections of a target, once, between the last look at them and the moment a request is sent."""

    owned: frozenset[bytes] = frozenset()

    def __init__(self, target: Target) -> None:
        self._target = target
        self._closed = False

    def stamp(self, attempt: object) -> bytes:
        if not self._closed:
            self._closed = True
            self._target.shut_down_idle()
        return b""


async def test_a_post_never_takes_a_connection_that_has_closed(outrider: Outrider) -> None:
    """Before a POST the kernel is asked, so an idle connection that the target closed costs nothing."""
    async with Target(plain()) as target, outrider(config(target.url, QUICK)) as proxy, Client(proxy.port) as client:
        for number in range(1, 20):
            assert (await client.call(request("POST", "/user/x", b"%d" % number))).status == 200
            target.close_idle()
            if number % 2:
                await asyncio.sleep(0.002)
        assert target.connections > 1
    assert target.bodies() == [b"%d" % number for number in range(1, 20)]


async def test_a_post_lost_on_a_reused_connection_is_not_repeated(outrider: Outrider) -> None:
    """A target that closes just as the POST arrives may have acted on it: the app must decide."""
    async with lossy(plain()) as target, outrider(config(target.url, QUICK)) as proxy, Client(proxy.port) as client:
        await client.call(get("/user/warm"))
        answer = await client.call(request("POST", "/user/x", b"charge"))
    assert answer.status == 502
    assert (target.lost, len(target.seen)) == (["POST"], 1)


async def answer_then_408(one: Exchange) -> None:
    """Answer, and meet the next request on the same connection with a 408 (RFC 9110 §15.5.9)."""
    await one.body()
    await one.send(response())
    await one.reader.readuntil(b"\r\n\r\n")
    await one.send(response(408, b"tired", "Connection: close"))
    one.close()


@pytest.mark.parametrize(
    ("method", "line", "status", "attempts"),
    [
        ("GET", "x-a: b", 200, "2"),
        ("DELETE", "x-a: b", 200, "2"),
        ("POST", "x-a: b", 408, "1"),
        ("POST", "Idempotency-Key: k", 200, "2"),
        ("GET", "x-outrider-retry: off", 408, "1"),
    ],
)
async def test_a_408_on_a_kept_connection_is_tried_once_more(
    outrider: Outrider, method: str, line: str, status: int, attempts: str
) -> None:
    """A target that gives a kept connection up with 408 gets the request once more on a fresh one, where retries are
    allowed (RFC 9110 §15.5.9)."""
    async with Target([answer_then_408, plain(200, b"fresh")]) as target:
        async with outrider(config(target.url, QUICK)) as proxy, Client(proxy.port) as client:
            await client.call(get("/user/warm"))
            answer = await client.call(request(method, "/user/x", None, line))
            stats = proxy.app.runtime.compiled.clusters[0].stats
            assert stats.retries["408"] == int(attempts) - 1
    assert (answer.status, answer.get("x-outrider-attempts")) == (status, attempts)
    assert target.connections == int(attempts)


async def test_a_408_on_a_fresh_connection_is_the_answer(outrider: Outrider) -> None:
    """The target has seen this very request: what it says is for the app. And one fresh try is enough."""
    async with Target([answer_then_408, plain(408)]) as target:
        async with outrider(config(target.url, QUICK)) as proxy, Client(proxy.port) as client:
            await client.call(get("/user/warm"))
            answer = await client.call(get("/user/x"))
            assert (answer.status, answer.get("x-outrider-attempts"), target.connections) == (408, "2", 2)


async def test_posts_through_resets_are_executed_at_most_once(outrider: Outrider) -> None:
    """Hundreds of POSTs against a target that breaks in every way: each reaches it at most once."""
    script = [
        plain(),
        reset_unanswered,
        plain(),
        close_unanswered,
        plain(503),
        plain(),
        in_steps(b"HTTP/1.1 2", then="close"),
    ]
    numbers = range(300)
    async with Target(script * 100) as target, outrider(config(target.url, QUICK)) as proxy:

        async def some(start: int) -> None:
            for number in numbers[start::10]:
                async with Client(proxy.port) as client:
                    await client.call(request("POST", "/user/x", b"%d" % number))

        await asyncio.gather(*(some(start) for start in range(10)))
    bodies = target.bodies()
    assert len(bodies) == len(set(bodies)) == len(numbers)


async def test_total_failure_adds_a_fifth_of_load(outrider: Outrider) -> None:
    """A thousand calls that all fail load the target at most 1.2 times, plus three a second."""
    async with Target(plain(503)) as target, outrider(config(target.url, QUICK)) as proxy:
        began = monotonic()

        async def some() -> None:
            async with Client(proxy.port) as client:
                for _ in range(50):
                    assert (await client.call(get("/user/x"))).status == 503

        await asyncio.gather(*(some() for _ in range(20)))
        took = monotonic() - began
        suppressed = proxy.app.runtime.compiled.clusters[0].stats.suppressed["budget"]
    assert 1150 <= len(target.seen) <= 1200 + 3 * (int(took) + 2)
    assert suppressed > 500


async def test_the_next_attempt_goes_to_another_endpoint(outrider: Outrider) -> None:
    """A retry does not ask the endpoint that has just failed while there is another."""
    async with Target(plain(503)) as bad, Target(plain(200, b"good")) as good:
        text = config("PLACE", "retry: { backoff: 1ms..5ms, budget: 100% }").replace(
            "'PLACE'", f"['{bad.url}', '{good.url}']"
        )
        async with outrider(text) as proxy, Client(proxy.port) as client:
            for _ in range(10):
                assert (await client.call(get("/user/x"))).status == 200
    assert len(good.seen) == 10
    assert len(bad.seen) <= 10


async def test_a_route_may_retry_posts_by_its_own_word(outrider: Outrider) -> None:
    """A route that lists POST says that its target recognises repetitions; other routes stay safe."""
    routes = "routes: [{ match: 'POST /safe/**', retry: { methods: [POST], backoff: 1ms..5ms } }]"
    async with (
        Target([plain(503), plain(), plain(503), plain()]) as target,
        outrider(config(target.url, routes)) as proxy,
    ):
        assert (await exchange(proxy.port, request("POST", "/user/safe/x", b"1"))).status == 200
        assert (await exchange(proxy.port, request("POST", "/user/other", b"2"))).status == 503
    assert target.bodies() == [b"1", b"1", b"2"]


# ---------------------------------------------------------------- answers that break off

KEYED = "retry: { backoff: 1ms..5ms, idempotency_key: generate }"
BROKEN_OFF = [
    pytest.param(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npa", then="close"), id="length"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\npa\r\n", then="close"), id="chunked"),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", then="reset"), id="head alone"),
]


@pytest.mark.parametrize("first", BROKEN_OFF)
async def test_a_keyed_post_is_answered_whole_or_made_again(outrider: Outrider, first: object) -> None:
    """The app does not know a key that we have made, so it must not be left with half an answer."""
    async with Target([first, plain(201, b"paid")]) as target, outrider(config(target.url, KEYED)) as proxy:
        answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
        assert (answer.status, answer.body, answer.get("x-outrider-attempts")) == (201, b"paid", "2")
        one, two = (seen.get("idempotency-key") for seen in target.seen)
        assert one == two is not None


@pytest.mark.parametrize("first", BROKEN_OFF)
async def test_without_a_key_an_app_sees_that_an_answer_broke_off(outrider: Outrider, first: object) -> None:
    """What has been passed on cannot be taken back, and a plain POST is not made again."""
    async with Target([first, plain()]) as target, outrider(config(target.url, QUICK)) as proxy:
        with pytest.raises(BrokenError):
            await exchange(proxy.port, request("POST", "/user/x", b"charge"))
        assert len(target.seen) == 1


@pytest.mark.parametrize(
    ("more", "size"), [(KEYED + "\n    attempt_timeout: 100ms", 4), (KEYED, 100_000)], ids=["slow", "large"]
)
async def test_an_answer_is_not_held_for_ever(outrider: Outrider, more: str, size: int) -> None:
    """One that is larger than what we keep, or takes longer than a try may, is passed on as it comes."""
    finish = asyncio.Event()

    async def hesitant(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\nx" % size)
        await finish.wait()
        await one.send(b"x" * (size - 1))

    async with Target(hesitant) as target, outrider(config(target.url, more)) as proxy, Client(proxy.port) as client:
        await client.send(request("POST", "/user/x", b"charge"))
        head = await client.head("POST")
        finish.set()
        assert head.status == 200
        assert b"".join([piece async for piece in client.body(head)]) == b"x" * size
        assert len(target.seen) == 1


async def test_an_answer_is_not_held_while_the_app_is_uploading(outrider: Outrider) -> None:
    """How long that takes is not ours to bound: what comes meanwhile is passed on."""

    async def early(one: Exchange) -> None:
        await one.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npa")
        assert await one.body() == b"charge"
        await one.send(b"id")

    async with Target(early) as target, outrider(config(target.url, KEYED)) as proxy, Client(proxy.port) as client:
        data = request("POST", "/user/x", b"charge")
        await client.send(data[:-2])
        head = await client.head("POST")
        await client.send(data[-2:])
        assert b"".join([piece async for piece in client.body(head)]) == b"paid"
