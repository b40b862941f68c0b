"""Leaving HTTP: WebSocket and other upgrades, CONNECT where it is allowed, and what never leaves."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Action,
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
    silent,
)

SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
LINES = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)


def config(target: Target, more: str = "", limits: str = "{}") -> str:
    return (
        "credentials: { key: { header: x-api-key, value: secret-of-the-platform } }\n"
        f"limits: {limits}\n"
        f"services:\n  user: {{ url: '{target.url}', auth: key, {more} }}"
    )


def switching(first: bytes = b"", then: Action | None = None) -> Action:
    """Agree, and then send every byte back, until the other side ends; `first` comes with the agreement."""

    async def act(exchange: Exchange) -> None:
        await exchange.send(SWITCH + first)
        if then is not None:
            await then(exchange)
        else:
            while data := await exchange.reader.read(65536):
                await exchange.send(data)
        exchange.close()

    return act


async def say(client: Client, data: bytes) -> bytes:
    await client.send(data)
    return await client.reader.readexactly(len(data))


async def test_a_websocket_is_tunnelled(outrider: Outrider) -> None:
    """The target sees the handshake, with the credential; the app sees the 101; then bytes pass as they are."""
    async with Target(switching()) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/socket", *LINES))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            assert b"connection: upgrade\r\nupgrade: websocket\r\n" in head
            assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
            for data in (b"\x81\x05hello", b"GET /user/evil HTTP/1.1\r\n\r\n", bytes(range(256)) * 2000):
                assert await say(client, data) == data
            assert proxy.app.runtime.compiled.clusters[0].stats.tunnels == 1
        await eventually(lambda: not proxy.app.runtime.proxy.in_flight, "the tunnel has ended")
        stats = proxy.app.runtime.compiled.clusters[0].stats
        assert stats.tunnels == 0
        assert stats.tunnelled == {"sent": 7 + 27 + 512_000, "received": 7 + 27 + 512_000}
        assert proxy.outcomes() == {"ok": 1}
    (seen,) = target.seen
    assert (seen.path, seen.get("x-api-key")) == ("/socket", "secret-of-the-platform")
    assert (seen.get("connection"), seen.get("upgrade")) == ("upgrade", "websocket")
    assert seen.get("sec-websocket-key") == "dGhlIHNhbXBsZSBub25jZQ=="


async def test_what_comes_with_the_agreement_is_not_lost(outrider: Outrider) -> None:
    """Bytes right behind the 101, and bytes that the app sent before it had the answer, arrive."""
    async with Target(switching(b"welcome")) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/socket", *LINES) + b"early")
            await client.send(b" bird")
            await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.readexactly(7) == b"welcome"
            assert await client.reader.readexactly(10) == b"early bird"


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["in one segment", "in two segments"])
async def test_an_app_that_leaves_before_the_target_has_agreed_is_noticed(outrider: Outrider, pause: float) -> None:
    """What comes early is kept and nothing further read, so no event tells that the app has gone: it is looked for."""
    head = get("/user/socket", *LINES)
    async with Target(silent) as target, outrider(config(target, "timeout: false")) as proxy:
        async with Client(proxy.port) as client:
            await client.send(head if pause else head + b"early")
            await eventually(lambda: target.seen, "the target has the request")
            if pause:
                await client.send(b"early")
                await asyncio.sleep(pause)
            client.reset()
        await eventually(lambda: not proxy.app.runtime.proxy.connections, "its connection is gone")


async def test_an_ended_side_may_still_listen(outrider: Outrider) -> None:
    """An end of stream is passed on, and what the other side still has to say arrives."""

    async def after_the_end(exchange: Exchange) -> None:
        received = await exchange.reader.read()
        await exchange.send(b"you sent %d bytes" % len(received))

    async with Target(switching(then=after_the_end)) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/socket", *LINES))
            await client.reader.readuntil(b"\r\n\r\n")
            await client.send(b"abc")
            client.writer.write_eof()
            assert await client.reader.read() == b"you sent 3 bytes"


async def test_a_side_that_takes_nothing_slows_the_other(outrider: Outrider) -> None:
    """A target that does not read makes the app wait instead of filling our memory."""
    go_on = asyncio.Event()

    async def sleep(exchange: Exchange) -> None:
        await go_on.wait()
        while await exchange.reader.read(1 << 18):
            pass

    async with Target(switching(then=sleep)) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(get("/user/socket", *LINES))
        await client.reader.readuntil(b"\r\n\r\n")
        sent = 0
        try:
            async with asyncio.timeout(0.5):
                while sent < 96 << 20:
                    client.writer.write(b"x" * 65536)
                    await client.writer.drain()
                    sent += 65536
        except TimeoutError:
            pass
        assert sent < 32 << 20
        go_on.set()


async def test_an_app_that_leaves_a_tunnel_that_is_not_taken_from_is_noticed(outrider: Outrider) -> None:
    """While a target reads nothing, nothing is read of the app: that its connection was reset is looked for, as the
    time for silent tunnels is long."""
    go_on = asyncio.Event()

    async def sleep(exchange: Exchange) -> None:
        await go_on.wait()

    async with Target(switching(then=sleep)) as target, outrider(config(target)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/socket", *LINES))
            await client.reader.readuntil(b"\r\n\r\n")
            client.writer.write(bytes(32 << 20))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.writer.drain()
            client.reset()
        await eventually(lambda: not proxy.app.runtime.proxy.connections, "its connection is gone")
        go_on.set()


async def test_a_silent_tunnel_ends(outrider: Outrider) -> None:
    """Nothing moving for `tunnel_idle_timeout` ends it, and counts; traffic keeps it, past every other timeout."""
    async with Target(switching()) as target:
        text = config(target, "timeout: 100ms", "{ tunnel_idle_timeout: 150ms }")
        async with outrider(text) as proxy, Client(proxy.port) as client:
            await client.send(get("/user/socket", *LINES))
            await client.reader.readuntil(b"\r\n\r\n")
            for _ in range(6):
                await asyncio.sleep(0.05)
                assert await say(client, b"ping") == b"ping"
            assert await client.end() == "eof"
            assert proxy.app.runtime.proxy.stats.reached["tunnel_idle_timeout"] == 1


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_target_that_leaves_ends_the_tunnel(outrider: Outrider, then: str) -> None:
    """However it leaves, the app notices, and what was sent before arrives."""

    async def leave(exchange: Exchange) -> None:
        await exchange.send(b"bye")
        await asyncio.sleep(0.02)
        if then == "reset":
            exchange.reset()
            raise BrokenError("reset")

    async with Target(switching(then=leave)) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(get("/user/socket", *LINES))
        await client.reader.readuntil(b"\r\n\r\n")
        assert await client.reader.readexactly(3) == b"bye"
        client.writer.write_eof()
        assert await client.end() in ("eof", "reset")


async def test_a_refused_upgrade_ends_the_connection(outrider: Outrider) -> None:
    """The app gets the target's answer; what it may have sent behind its request is never read as another."""
    smuggled = get("/user/smuggled")
    async with Target(plain(403, b"no")) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(get("/user/socket", *LINES) + smuggled)
        await client.send(smuggled)
        answer = await client.answer()
        assert (answer.status, answer.body, answer.get("connection")) == (403, b"no", "close")
        await client.send(smuggled)
        assert await client.end() in ("eof", "reset")
    assert [seen.path for seen in target.seen] == ["/socket"]


async def test_a_failing_target_is_answered_for(outrider: Outrider) -> None:
    """Nobody there: the usual 502, and the connection ends."""
    async with Target(plain()) as target:
        pass
    async with outrider(config(target, "retry: false")) as proxy, Client(proxy.port) as client:
        answer = await client.call(get("/user/socket", *LINES))
        assert (answer.status, answer.get("connection")) == (502, "close")


@pytest.mark.parametrize("method", ["POST", "PUT", "REPORT"])
@pytest.mark.parametrize("body", [None, b"", b'{"Detach": false}'], ids=["none", "empty", "some"])
@pytest.mark.parametrize("step", [0, 40, 7, 1], ids=["at once", "in a few pieces", "in pieces", "byte by byte"])
async def test_any_method_may_ask_for_an_upgrade(
    outrider: Outrider, method: str, body: bytes | None, step: int
) -> None:
    """`docker attach`, `docker exec` and `kubectl exec` POST, with or without a body of declared length; what follows
    it belongs to the other protocol, however the bytes come."""
    head = request(method, "/user/attach", body, *(line.replace("websocket", "tcp") for line in LINES[:2]))
    data = head + b"GET /user/evil HTTP/1.1\r\n\r\n"
    switch = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"

    async def act(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.send(switch)
        while more := await exchange.reader.read(65536):
            await exchange.send(more)
        exchange.close()

    async with Target(act) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        for start in range(0, len(data), step or len(data)):
            await client.send(data[start : start + (step or len(data))])
            await asyncio.sleep(0)
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 UPGRADED")
        assert await client.reader.readexactly(27) == b"GET /user/evil HTTP/1.1\r\n\r\n"
        assert await say(client, b"stdin") == b"stdin"
    (seen,) = target.seen
    assert (seen.method, seen.body, seen.get("upgrade")) == (method, body or b"", "tcp")


async def test_what_follows_a_refused_upgrade_with_a_body_is_dropped(outrider: Outrider) -> None:
    """The target answers a POST with Upgrade as plain HTTP: the connection ends, and nothing behind it is a request."""
    data = request("POST", "/user/attach", b"body", *LINES[:2]) + get("/user/evil")
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        answer = await client.call(data)
        assert await client.end() == "eof"
    assert (answer.status, answer.get("connection")) == (200, "close")
    assert [(seen.path, seen.body) for seen in target.seen] == [("/attach", b"body")]


async def test_no_target_switches_in_the_middle_of_a_request(outrider: Outrider) -> None:
    """A 101 before the body has been sent is an invalid answer."""
    head = request("POST", "/user/attach", None, "Content-Length: 10", *LINES)

    async def act(exchange: Exchange) -> None:
        await exchange.send(SWITCH)
        await exchange.until_closed()

    async with Target(act) as target, outrider(config(target, "retry: false")) as proxy, Client(proxy.port) as client:
        await client.send(head + b"half")
        assert (await client.answer()).status == 502


UNASKED = {
    "another protocol": SWITCH.replace(b"websocket", b"h2c"),
    "no protocol": SWITCH.replace(b"Upgrade: websocket\r\n", b""),
    "no connection option": SWITCH.replace(b"Connection: Upgrade\r\n", b""),
}


@pytest.mark.parametrize("answer", UNASKED.values(), ids=UNASKED)
async def test_only_what_was_asked_for_is_switched_to(outrider: Outrider, answer: bytes) -> None:
    """A 101 to something else is an invalid answer, and no byte behind it reaches the app."""
    async with Target(raw(answer + b"LEAK", then="wait")) as target:
        async with outrider(config(target, "retry: false")) as proxy, Client(proxy.port) as client:
            got = await client.call(get("/user/socket", *LINES))
            assert got.status == 502
            assert b"LEAK" not in got.body


ORDINARY = {
    "half a request to switch": ("Upgrade: websocket",),
    "the other half": ("Connection: Upgrade",),
    "not allowed by the route": LINES,
}


@pytest.mark.parametrize(("name", "lines"), ORDINARY.items(), ids=ORDINARY)
async def test_otherwise_a_request_stays_ordinary(outrider: Outrider, name: str, lines: tuple[str, ...]) -> None:
    """It is carried as HTTP without any of these fields, and the connection lasts."""
    more = "upgrade: false" if "route" in name else ""
    async with Target(plain()) as target, outrider(config(target, more)) as proxy, Client(proxy.port) as client:
        for _ in range(2):
            assert (await client.call(get("/user/socket", *lines))).status == 200
    assert not target.seen[0].names() & {"upgrade", "connection"}


async def test_interim_answers_before_the_switch_pass(outrider: Outrider) -> None:
    """103 first, 101 in another segment, data in a third."""
    steps = in_steps(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", SWITCH[:30], SWITCH[30:], b"data", pause=0.02)
    async with Target(steps) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(get("/user/socket", *LINES))
        assert b" 103 " in await client.reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in await client.reader.readuntil(b"\r\n\r\n")
        assert await client.reader.readexactly(4) == b"data"


async def test_permits_are_held_as_long_as_the_tunnel(outrider: Outrider) -> None:
    """`max_in_flight` counts tunnels, and gets the permit back."""
    text = "max_in_flight: 1"
    async with Target([switching(), plain()]) as target, outrider(config(target, text)) as proxy:
        async with Client(proxy.port) as client:
            await client.send(get("/user/socket", *LINES))
            await client.reader.readuntil(b"\r\n\r\n")
            assert (await exchange(proxy.port, get("/user/x"))).status == 503
        await eventually(lambda: not proxy.app.runtime.proxy.in_flight, "the tunnel has ended")
        assert (await exchange(proxy.port, get("/user/x"))).status == 200


# ---------------------------------------------------------------- CONNECT


def connect(authority: str) -> bytes:
    return f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()


async def test_connect_is_refused_by_default(outrider: Outrider) -> None:
    """405, the connection ends, and what follows is not read."""
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        await client.send(connect("user:443") + get("/user/smuggled"))
        answer = await client.answer("CONNECT")
        assert (answer.status, answer.get("connection")) == (405, "close")
        assert b"allow_connect" in answer.body
        assert await client.end() == "eof"
    assert not target.seen


async def test_connect_opens_a_tunnel_where_it_is_allowed(outrider: Outrider) -> None:
    """To an endpoint of the service that the host names; nothing of ours is put into it."""
    received: list[bytes] = []

    async def speak_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        received.append(await reader.readexactly(4))
        writer.write(b"250 ok\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(speak_first, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        text = f"services: {{ mail: {{ url: 'http://127.0.0.1:{port}', allow_connect: true }} }}"
        async with outrider(text) as proxy, Client(proxy.port) as client:
            await client.send(connect("mail:25"))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head == b"HTTP/1.1 200 Connection established\r\n\r\n"
            assert await client.reader.readexactly(11) == b"220 ready\r\n"
            await client.send(b"EHLO")
            assert await client.reader.readexactly(8) == b"250 ok\r\n"
    assert received == [b"EHLO"]


async def test_connect_only_reaches_what_is_configured(outrider: Outrider) -> None:
    """An unknown host is 502, whatever service allows CONNECT; a target that is no authority is 400."""
    async with Target(plain()) as target, outrider(config(target, "allow_connect: true")) as proxy:
        for authority, status in (("elsewhere:443", 502), ("user", 400), ("user:443/x", 400), ("user:99999", 400)):
            async with Client(proxy.port) as client:
                await client.send(connect(authority))
                assert (await client.answer("CONNECT")).status == status, authority
    assert not target.seen


async def test_a_body_of_unknown_length_is_no_place_to_switch(outrider: Outrider) -> None:
    """A POST in chunks that asks to switch is carried as it is, body and all."""
    body = b"GET /user/smuggled HTTP/1.1\r\n\r\n"
    data = request("POST", "/user/x", None, *LINES, "Transfer-Encoding: chunked") + chunked(body)
    async with Target(plain()) as target, outrider(config(target)) as proxy, Client(proxy.port) as client:
        assert (await client.call(data)).status == 200
        assert (await client.call(get("/user/y"))).status == 200
    assert [seen.path for seen in target.seen] == ["/x", "/y"]
    assert target.seen[0].body == body
