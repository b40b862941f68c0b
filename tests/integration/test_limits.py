"""What is too much: rates, calls in flight, sizes, slowness and connections."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Answer,
    BrokenError,
    Client,
    Exchange,
    Target,
    chunked,
    eventually,
    exchange,
    get,
    in_steps,
    plain,
    raw,
    request,
    response,
    slow,
)


def config(target: Target, more: str = "", limits: str = "") -> str:
    return f"limits: {{ {limits} }}\nservices:\n  user: {{ url: '{target.url}', {more} }}"


class Gate:
    """A target script that holds every call until it is opened."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self, one: Exchange) -> None:
        await one.body()
        await self._open.wait()
        await one.send(response())


async def test_a_rate_limit_refuses_what_comes_too_soon(outrider: Outrider) -> None:
    """Beyond the burst the app gets 429 with the time to wait, and the target gets nothing."""
    more = "rate_limit: { rate: 10/m, burst: 3 }"
    async with Target(plain()) as target, outrider(config(target, more)) as proxy, Client(proxy.port) as client:
        answers = [await client.call(get("/user/x")) for _ in range(5)]
        assert proxy.outcomes() == {"ok": 3, "rate_limited": 2}
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[3].get("retry-after") == "6"
    assert b'"error": "RATE_LIMITED"' in answers[3].body
    assert "error=http_request_denied" in (answers[3].get("proxy-status") or "")
    assert len(target.seen) == 3


async def test_a_rate_limit_lets_go_again(outrider: Outrider) -> None:
    """The allowance comes back with time."""
    more = "rate_limit: { rate: 20/s, burst: 1 }"
    async with Target(plain()) as target, outrider(config(target, more)) as proxy, Client(proxy.port) as client:
        assert (await client.call(get("/user/x"))).status == 200
        assert (await client.call(get("/user/x"))).status == 429
        await asyncio.sleep(0.06)
        assert (await client.call(get("/user/x"))).status == 200


async def test_a_rate_limit_per_user_keeps_users_apart(outrider: Outrider) -> None:
    """One user at the limit does not use up what another may."""
    more = "rate_limit: { rate: 1/m, key: 'header:x-user-id' }"
    async with Target(plain()) as target, outrider(config(target, more)) as proxy, Client(proxy.port) as client:
        statuses = [(await client.call(get("/user/x", f"x-user-id: {user}"))).status for user in "aabbc"]
    assert statuses == [200, 429, 200, 429, 200]


async def test_no_more_calls_in_flight_than_allowed(outrider: Outrider) -> None:
    """The bulkhead refuses the next call at once, and opens again when one has ended."""
    gate = Gate()
    async with Target(gate) as target, outrider(config(target, "max_in_flight: 3")) as proxy:
        calls = [asyncio.create_task(exchange(proxy.port, get("/user/x"))) for _ in range(3)]
        await eventually(lambda: target.busy == 3, "three calls in flight")
        refused = await exchange(proxy.port, get("/user/x"))
        gate.open()
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 3
        assert (await exchange(proxy.port, get("/user/x"))).status == 200
    assert (refused.status, refused.get("retry-after")) == (503, "1")
    assert b'"error": "OVERLOADED"' in refused.body
    assert "error=connection_limit_reached" in (refused.get("proxy-status") or "")
    assert target.most_busy == 3


async def test_limits_of_one_service_are_no_limits_of_another(outrider: Outrider) -> None:
    """Rate and calls in flight are counted per service."""
    gate = Gate()
    async with Target(gate) as held, Target(plain()) as free:
        text = (
            f"defaults: {{ max_in_flight: 1, rate_limit: {{ rate: 1/m, burst: 2 }} }}\n"
            f"services: {{ user: '{held.url}', other: '{free.url}' }}"
        )
        async with outrider(text) as proxy:
            call = asyncio.create_task(exchange(proxy.port, get("/user/x")))
            await eventually(lambda: held.busy == 1, "a call in flight")
            assert (await exchange(proxy.port, get("/user/x"))).status == 503
            assert (await exchange(proxy.port, get("/user/x"))).status == 429
            assert (await exchange(proxy.port, get("/other/x"))).status == 200
            assert (await exchange(proxy.port, get("/other/x"))).status == 200
            gate.open()
            assert (await call).status == 200


async def test_a_slow_target_slows_nobody_else(outrider: Outrider) -> None:
    """While a hundred calls wait for one target, calls to another are as quick as ever."""
    gate = Gate()
    async with Target(gate) as held, Target(plain()) as quick:
        async with outrider(f"services: {{ user: '{held.url}', other: '{quick.url}' }}") as proxy:
            calls = [asyncio.create_task(exchange(proxy.port, get("/user/x"))) for _ in range(100)]
            await eventually(lambda: held.busy == 100, "a hundred calls waiting")
            began = monotonic()
            async with Client(proxy.port) as client:
                for _ in range(50):
                    assert (await client.call(get("/other/x"))).status == 200
            took = monotonic() - began
            gate.open()
            await asyncio.gather(*calls)
    assert took < 0.5


async def test_a_hundred_connections_are_carried_at_once(outrider: Outrider) -> None:
    """Calls on different connections do not wait for each other."""
    async with Target(slow(0.1)) as target, outrider(config(target)) as proxy:
        began = monotonic()
        answers = await asyncio.gather(*(exchange(proxy.port, get("/user/x")) for _ in range(100)))
        took = monotonic() - began
    assert {answer.status for answer in answers} == {200}
    assert took < 1.0


@pytest.mark.parametrize("expect", [False, True])
async def test_a_body_declared_too_large_is_refused(outrider: Outrider, expect: bool) -> None:
    """413 before a byte of the body has been asked for; the target hears nothing."""
    lines = ["Expect: 100-continue"] if expect else []
    async with Target(plain()) as target, outrider(config(target, limits="body_bytes: 1KiB")) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, "Content-Length: 1025", *lines))
            answer = await client.answer()
            await client.send(b"x" * 1025)
            assert await client.end() == "eof"
    assert (answer.status, answer.get("connection"), answer.interims) == (413, "close", [])
    assert b'"error": "BODY_TOO_LARGE"' in answer.body
    assert target.seen == []


async def test_bodies_stream_without_a_limit_unless_one_is_set(outrider: Outrider) -> None:
    """An upload of more than 10 MiB passes by default, in both framings."""
    body = b"x" * (10 * 1024 * 1024 + 1)
    text = "services:\n  user: '{}'"
    async with Target(plain()) as target, outrider(text.format(target.url)) as proxy:
        assert (await exchange(proxy.port, request("POST", "/user/x", body))).status == 200
        data = request("POST", "/user/x", None, "Transfer-Encoding: chunked") + chunked(body)
        assert (await exchange(proxy.port, data)).status == 200
    assert [len(seen.body) for seen in target.seen] == [len(body)] * 2


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_refused_body_is_told_the_sizes_and_counted_for_its_route(outrider: Outrider, framing: str) -> None:
    """The 413 names the size, the limit and the key, and is counted for the service and route that were called."""
    if framing == "length":
        data, size = request("POST", "/user/upload", b"x" * 2000), "2000 bytes"
    else:
        data = request("POST", "/user/upload", None, "Transfer-Encoding: chunked") + chunked(b"x" * 2000)
        size = "2000 bytes so far"
    text = "limits: {{ body_bytes: 1KiB }}\nservices:\n  user: {{ url: '{}', routes: [ {{ match: POST /upload }} ] }}"
    async with Target(plain()) as target, outrider(text.format(target.url)) as proxy:
        answer = await exchange(proxy.port, data)
        counted = {
            (route.stats.service, route.stats.route): dict(route.stats.requests)
            for route in proxy.app.runtime.all_routes()
            if route.stats.requests
        }
    assert answer.status == 413
    assert f"the request body has {size}; limits.body_bytes allows 1024".encode() in answer.body
    assert counted == {("user", "POST /upload"): {(b"POST", 413, "rejected"): 1}}


@pytest.mark.parametrize(
    ("limits", "largest"),
    [
        pytest.param("", {"proven": None, "unproven": 10 * 1024 * 1024}, id="left out"),
        pytest.param("limits: { body_bytes: 1KiB }", {"proven": 1024, "unproven": 1024}, id="for all listeners"),
        pytest.param("inbound.body_bytes: 2KiB", {"proven": 2048, "unproven": 2048}, id="for the guard"),
        pytest.param("inbound.body_bytes: false", {"proven": None, "unproven": None}, id="switched off"),
    ],
)
async def test_the_guard_bounds_what_unproven_callers_send(
    outrider: Outrider, limits: str, largest: dict[str, int | None]
) -> None:
    """By default a caller that has proven itself may send bodies of any size through the guard, another one 10 MiB; a
    limit that is set holds for both."""
    own = limits.removeprefix("inbound.") if limits.startswith("inbound.") else ""
    inbound = (
        "inbound: {{ listen: '127.0.0.1:0', app: '{}', protect: [/internal], {} "
        "accept: [ {{ header: x-api-key, values: [a-key-of-some-length] }} ] }}"
    )
    async with Target(plain()) as app:
        text = f"services: {{ user: '{app.url}' }}\n" + inbound.format(app.url, f"{own}," if own else "")
        async with outrider(f"{text}\n{limits}" if not own else text) as proxy:
            port = proxy.app.ports["inbound.listen"]
            for who, lines in {"proven": ["x-api-key: a-key-of-some-length"], "unproven": []}.items():
                most = largest[who]
                size = most if most is not None else 10 * 1024 * 1024 + 1
                assert (await exchange(port, request("POST", "/x", b"x" * size, *lines))).status == 200, who
                if most is not None:
                    declared = await exchange(port, request("POST", "/x", b"x" * (most + 1), *lines))
                    head = request("POST", "/x", None, "Transfer-Encoding: chunked", *lines)
                    grown = await exchange(port, head + chunked(b"x" * (most + 1)))
                    assert (declared.status, grown.status) == (413, 413), who
                    told = f"inbound.body_bytes allows {most}".encode()
                    assert told in declared.body
                    assert told in grown.body


async def test_a_body_of_exactly_the_limit_passes(outrider: Outrider) -> None:
    """The limit itself is allowed, in both framings."""
    body = b"x" * 1024
    async with Target(plain()) as target, outrider(config(target, limits="body_bytes: 1KiB")) as proxy:
        assert (await exchange(proxy.port, request("POST", "/user/x", body))).status == 200
        data = request("POST", "/user/x", None, "Transfer-Encoding: chunked") + chunked(body)
        assert (await exchange(proxy.port, data)).status == 200
    assert target.bodies() == [body, body]


async def test_a_chunked_body_that_grows_too_large_is_refused(outrider: Outrider) -> None:
    """An upload of unknown size is stopped at the limit, and the target never takes it for complete."""
    async with Target(plain()) as target, outrider(config(target, limits="body_bytes: 100KiB")) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, "Transfer-Encoding: chunked"))
            for _ in range(40):
                await client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await asyncio.sleep(0)
            answer = await client.answer()
        await eventually(lambda: not target.busy, "the target gave up")
    assert (answer.status, answer.get("connection")) == (413, "close")
    assert not any(seen.complete for seen in target.seen)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["X-Long: " + "x" * 2000], id="one long field"),
        pytest.param([f"X-{number}: 1" for number in range(30)], id="many fields"),
        pytest.param(["X-Long: " + "x" * 300_000], id="far too long"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_head_too_large_is_refused(outrider: Outrider, lines: list[str], at_once: bool) -> None:
    """431 for too many bytes or too many fields, however they arrive, and the connection ends."""
    data = get("/user/x", *lines)
    step = len(data) if at_once else 700
    async with Target(plain()) as target, outrider(config(target, limits="header_bytes: 1KiB, headers: 20")) as proxy:
        async with Client(proxy.port) as client:
            for start in range(0, len(data), step):
                await client.send(data[start : start + step])
                await asyncio.sleep(0.001 if len(data) < 10_000 else 0)
            answer = await client.answer()
            assert await client.end() in ("eof", "reset")
    assert (answer.status, answer.get("connection")) == (431, "close")
    assert b'"error": "HEAD_TOO_LARGE"' in answer.body
    assert target.seen == []


async def test_a_long_path_counts_as_head(outrider: Outrider) -> None:
    """The request target is part of what header_bytes bounds."""
    async with Target(plain()) as target, outrider(config(target, limits="header_bytes: 1KiB")) as proxy:
        assert (await exchange(proxy.port, get("/user/" + "x" * 2000))).status == 431
    assert target.seen == []


@pytest.mark.parametrize("part", [b"GET /user/x HTTP/1.1\r\nHost: a\r\nX-", b"GET /user/x", b"GET /", b"GE"])
async def test_a_head_too_slow_is_refused(outrider: Outrider, part: bytes) -> None:
    """A head that does not come to its end in time is answered 408, wherever it stopped."""
    async with Target(plain()) as target, outrider(config(target, limits="header_timeout: 150ms")) as proxy:
        async with Client(proxy.port) as client:
            began = monotonic()
            await client.send(part)
            async with asyncio.timeout(1):
                answer = await client.answer()
            assert 0.1 < monotonic() - began < 0.6
            assert await client.end() == "eof"
    assert (answer.status, answer.get("connection")) == (408, "close")
    assert target.seen == []


async def test_dripping_bytes_does_not_win_time(outrider: Outrider) -> None:
    """The time for a head runs from its first byte, whatever still trickles in."""
    async with Target(plain()) as target, outrider(config(target, limits="header_timeout: 150ms")) as proxy:
        async with Client(proxy.port) as client:
            began = monotonic()
            for byte in get("/user/x", "X-Slow: " + "x" * 60):
                await client.send(bytes([byte]))
                await asyncio.sleep(0.01)
                if monotonic() - began > 0.4:
                    break
            assert (await client.answer()).status == 408
    assert target.seen == []


async def test_an_idle_connection_is_not_a_slow_head(outrider: Outrider) -> None:
    """Between calls a kept connection may rest for longer than a head may take."""
    async with Target(plain()) as target, outrider(config(target, limits="header_timeout: 50ms")) as proxy:
        async with Client(proxy.port) as client:
            await client.call(get("/user/x"))
            await asyncio.sleep(0.15)
            assert (await client.call(get("/user/x"))).status == 200


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_that_stands_still_is_refused(outrider: Outrider, framing: str) -> None:
    """An upload that stops is answered 408, and the target never takes it for complete."""
    async with Target(plain()) as target, outrider(config(target, limits="body_idle_timeout: 150ms")) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, framing) + b"5\r\nabcde\r\n")
            answer = await client.answer()
            assert await client.end() in ("eof", "reset")
        await eventually(lambda: not target.busy, "the target gave up")
        assert proxy.breaker_state() == "closed"
    assert (answer.status, answer.get("connection")) == (408, "close")
    assert not any(seen.complete for seen in target.seen)


async def test_a_slow_but_moving_body_passes(outrider: Outrider) -> None:
    """The limit is on standing still, not on taking long."""
    async with Target(plain()) as target, outrider(config(target, limits="body_idle_timeout: 150ms")) as proxy:
        async with Client(proxy.port) as client:
            await client.send(request("POST", "/user/x", None, "Content-Length: 5"))
            for byte in b"abcde":
                await asyncio.sleep(0.06)
                await client.send(bytes([byte]))
            assert (await client.answer()).status == 200
    assert target.bodies() == [b"abcde"]


async def test_no_more_connections_than_allowed(outrider: Outrider) -> None:
    """Connections beyond the limit are told so and closed, and those within it are not disturbed."""

    async def refused() -> Answer:
        async with Client(proxy.port) as client:
            answer = await client.answer()
            assert await client.end() == "eof"
            return answer

    async with Target(plain()) as target, outrider(config(target, limits="downstream_connections: 2")) as proxy:
        async with Client(proxy.port) as one, Client(proxy.port) as two:
            await one.call(get("/user/x"))
            await two.call(get("/user/x"))
            answers = [await refused() for _ in range(3)]
            assert (await one.call(get("/user/x"))).status == 200
        await eventually(lambda: not proxy.app.runtime.proxy.connections, "all connections gone")
        assert (await exchange(proxy.port, get("/user/x"))).status == 200
        assert proxy.app.runtime.proxy.stats.reached["downstream_connections"] == 3
    for answer in answers:
        assert (answer.status, answer.get("retry-after"), answer.get("connection")) == (503, "1", "close")


async def test_a_refused_connection_never_reaches_a_target(outrider: Outrider) -> None:
    """What is sent on a connection beyond the limit is not carried out."""
    async with Target(plain()) as target, outrider(config(target, limits="downstream_connections: 1")) as proxy:
        async with Client(proxy.port) as one:
            await one.call(get("/user/x"))
            try:
                assert (await exchange(proxy.port, request("POST", "/user/x", b"charge"))).status == 503
            except BrokenError:
                pass
    assert [seen.method for seen in target.seen] == ["GET"]


async def test_a_connection_is_ended_politely_after_so_many_requests(outrider: Outrider) -> None:
    """The answer to the last request says so, and nothing that is sent behind it is carried."""
    limits = "downstream_requests: 3"
    async with Target(plain()) as target, outrider(config(target, limits=limits)) as proxy:
        async with Client(proxy.port) as client:
            last = [(await client.call(get("/user/x"))).get("connection") for _ in range(3)]
            assert last == [None, None, "close"]
            assert await client.end() == "eof"
        assert proxy.app.runtime.proxy.stats.reached["downstream_requests"] == 1
    assert len(target.seen) == 3


async def test_a_connection_that_idles_too_long_is_ended(outrider: Outrider) -> None:
    """Whether it has carried something or never said a word; a call under way is not idle."""
    limits = "downstream_idle_timeout: 150ms"
    script = [plain(), slow(0.4)]
    async with Target(script) as target, outrider(config(target, limits=limits)) as proxy:
        async with Client(proxy.port) as used, Client(proxy.port) as fresh, Client(proxy.port) as busy:
            await used.call(get("/user/x"))
            await busy.send(get("/user/slow"))
            assert await used.end() == "eof"
            assert await fresh.end() == "eof"
            assert (await busy.answer()).status == 200
        assert proxy.app.runtime.proxy.stats.reached["downstream_idle_timeout"] >= 2


async def test_limits_that_are_met_are_counted(outrider: Outrider) -> None:
    """`outrider_limit_reached_total` has a series per limit, named as in the configuration."""
    limits = "headers: 10, header_bytes: 1KiB, body_bytes: 10B, header_timeout: 100ms"
    too_large = {
        "headers": get("/user/x", *(f"X-{n}: 1" for n in range(20))),
        "header_bytes": get("/user/x", "X-A: " + "x" * 2000),
        "body_bytes": request("POST", "/user/x", b"x" * 11),
        "header_timeout": b"GET /user/x HT",
    }
    async with Target(plain()) as target, outrider(config(target, limits=limits)) as proxy:
        for data in too_large.values():
            assert 400 <= (await exchange(proxy.port, data)).status < 500
        page = await exchange(proxy.telemetry, get("/metrics", host="127.0.0.1"))
    for limit in too_large:
        assert f'outrider_limit_reached_total{{limit="{limit}"}} 1.0' in page.body.decode()
    assert not target.seen


@pytest.mark.parametrize("step", [0, 5000, 64])
async def test_a_half_head_of_many_fields_is_refused_before_its_end(outrider: Outrider, step: int) -> None:
    """Fields and bytes are counted as they come: 431 once there are too many, and no more are kept."""
    data = b"GET /user/x HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * (60_000 if step != 64 else 500)
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for start in range(0, len(data), step or len(data)):
            await client.send(data[start : start + (step or len(data))])
            await asyncio.sleep(0)
        answer = await client.answer()
        assert proxy.app.runtime.proxy.stats.reached["headers"] == 1
    assert (answer.status, answer.get("connection")) == (431, "close")
    assert target.seen == []


@pytest.mark.parametrize("behind", [b"1;" + b"a" * 100_000, b"1;a\r\nx\r\n0\r\n" + b"a:\r\n" * 25_000])
async def test_chunk_extensions_and_trailers_without_end_are_refused(outrider: Outrider, behind: bytes) -> None:
    """What is neither head nor body is bounded like a head, however it arrives."""
    data = request("POST", "/user/x", None, "Transfer-Encoding: chunked") + behind
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for start in range(0, len(data), 10_000):
            await client.send(data[start : start + 10_000])
            await asyncio.sleep(0)
        answer = await client.answer()
    assert (answer.status, answer.get("connection")) == (400, "close")
    assert not any(seen.complete for seen in target.seen)


@pytest.mark.parametrize(("names", "status"), [(100, 200), (101, 431)])
async def test_connection_names_no_more_fields_than_a_request_may_have(
    outrider: Outrider, names: int, status: int
) -> None:
    """Every name costs time: a request with more of them than it may have fields is refused as one with those."""
    async with Target(plain()) as target, outrider(config(target)) as proxy:
        answer = await exchange(proxy.port, get("/user/x", f"Connection: close{', x' * (names - 1)}"))
        reached = proxy.app.runtime.proxy.stats.reached["headers"]
    assert (answer.status, reached) == (status, int(status == 431))


@pytest.mark.parametrize(("names", "status"), [(100, 200), (101, 502)])
async def test_connection_names_no_more_fields_than_an_answer_may_have(
    outrider: Outrider, names: int, status: int
) -> None:
    """The same for answers; spread over two fields makes no difference."""
    lines = [f"Connection: x{', x' * (names // 2 - 1)}", f"Connection: y{', y' * (names - names // 2 - 1)}"]
    async with Target(plain(200, b"", *lines)) as target, outrider(config(target, "retry: false")) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
    assert answer.status == status


@pytest.mark.parametrize(("protocols", "status"), [(32, 101), (33, 200)])
async def test_a_list_of_too_many_protocols_is_not_taken_up(outrider: Outrider, protocols: int, status: int) -> None:
    """A request that asks for more protocols than anybody speaks is carried as one that asks for none."""

    async def switch(one: Exchange) -> None:
        if one.request.get("upgrade"):
            await one.send(b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n")
        else:
            await one.send(response())

    async with Target(switch) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(get("/user/x", "Connection: upgrade", f"Upgrade: a{', a' * (protocols - 1)}"))
        line = await client.reader.readline()
    assert line.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("interims", [64, 3000, 20_000])
async def test_any_number_of_informational_answers_is_passed_on(outrider: Outrider, interims: int) -> None:
    """Also where reads are full of them."""
    said = b"HTTP/1.1 102 P\r\n\r\n" * interims + response()
    async with Target(raw(said)) as target, outrider(config(target, "retry: false")) as proxy:
        async with Client(proxy.port) as client:
            answer = await client.call(get("/user/x"))
    assert answer.status == 200
    assert [interim.status for interim in answer.interims] == [102] * interims


@pytest.mark.parametrize(("fields", "status"), [(99, 200), (101, 502)])
@pytest.mark.parametrize("line", ["Keep-Alive: timeout=5", "Trailer: x", "X-Outrider-Retry: on", "Upgrade: x"])
async def test_fields_that_are_not_passed_on_count_as_well(
    outrider: Outrider, line: str, fields: int, status: int
) -> None:
    """An answer has at most limits.headers fields, whatever becomes of them."""
    said = plain(200, b"", *[line] * fields)
    async with Target(said) as target, outrider(config(target, "retry: false")) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
    assert answer.status == status


async def test_no_more_trailers_than_fields_are_taken(outrider: Outrider) -> None:
    """An answer with more trailers than a head may have fields is broken off."""
    for fields, complete in ((100, True), (101, False)):
        trailers = b"".join(b"x-%d: a\r\n" % number for number in range(fields))
        said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-1\r\n\r\n2\r\nok\r\n"
        step = in_steps(said, b"0\r\n" + trailers + b"\r\n", pause=0.02)
        async with Target(step) as target, outrider(config(target, "retry: false")) as proxy:
            try:
                answer = await exchange(proxy.port, get("/user/x"))
                whole = answer.body == b"ok"
            except BrokenError:
                whole = False
        assert whole is complete


@pytest.mark.parametrize("behind", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], ids=["", "another answer"])
@pytest.mark.parametrize("framing", ["length", "chunked", "chunks of one byte"])
async def test_a_large_answer_is_fed_in_slices_and_stays_the_same(
    outrider: Outrider, framing: str, behind: bytes
) -> None:
    """Head and body in one large read, with bytes behind it that belong to no answer: the body is the same, and the
    connection is only used again if nothing was behind it."""
    body = bytes(range(256)) * 400
    if framing == "length":
        said = response(200, body)
    else:
        pieces = (
            chunked(body) if framing == "chunked" else b"".join(chunked(body[at : at + 1])[:-5] for at in range(5000))
        )
        body = body if framing == "chunked" else body[:5000]
        pieces += b"" if framing == "chunked" else b"0\r\n\r\n"
        said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces
    async with Target(raw(said + behind)) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answers = [await client.call(get("/user/x")) for _ in range(2)]
    assert [answer.body for answer in answers] == [body] * 2
    assert len({seen.connection for seen in target.seen}) == (2 if behind else 1)
