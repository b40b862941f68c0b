"""Shares of connections: callers from outside never use up what the app needs for its own calls, nor do the silent use
up what the others need."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from outrider.dataplane.downstream import listener
from tests.integration.conftest import Outrider
from tests.integration.harness import Answer, Client, Sidecar, Target, eventually, exchange, get, plain, request, silent
from tests.integration.test_telemetry import metrics, sample
from tests.integration.test_tls import Authority, trusting

KEY = "key-of-the-platform-0123456789abcdef"
MINE = f"x-api-key: {KEY}"


def config(target: Target, limits: str = "", tls: str = "") -> str:
    return f"""
limits: {{ {limits} }}
inbound:
  listen: 127.0.0.1:0
  app: '{target.url}'
  accept: [{{ header: x-api-key, values: [{KEY}] }}]
  {f"tls: {{ {tls} }}" if tls else ""}
services: {{ user: '{target.url}' }}
"""


def inbound(proxy: Sidecar) -> int:
    return proxy.app.ports["inbound.listen"]


class Crowd(ExitStack):
    """Connections that say nothing, or always the same."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.socks: list[socket.socket] = []

    async def join(self, count: int, data: bytes = b"") -> None:
        """So many more."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            sock = self.enter_context(socket.socket())
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", self._port))
            await loop.sock_sendall(sock, data)
            self.socks.append(sock)

    def closed(self) -> int:
        """How many the other side has closed."""
        count = 0
        for sock in self.socks:
            try:
                count += sock.recv(1 << 16) == b""
            except BlockingIOError:
                pass
            except ConnectionError:
                count += 1
        return count


@pytest.mark.parametrize("data", [b"", b"GET /x HTTP/1.1\r\n", get("/x")], ids=["silent", "half a head", "refused"])
async def test_strangers_do_not_switch_the_apps_way_out_off(outrider: Outrider, data: bytes) -> None:
    """However many connections callers hold on the inbound port, the app's calls go out, and a caller with a key gets
    in: the oldest idle stranger makes way."""
    async with Target(plain()) as target, outrider(config(target, "downstream_connections: 20")) as proxy:
        with Crowd(inbound(proxy)) as crowd:
            await crowd.join(60, data)
            assert (await exchange(proxy.port, get("/user/x"))).status == 200
            assert (await exchange(inbound(proxy), get("/x", MINE))).status == 200
            share = proxy.app.runtime.proxy.inbound
            await eventually(lambda: share.displaced == 41, "who was there first has made way")
            assert share.count <= 20
            await eventually(lambda: crowd.closed() >= 41, "their connections are closed")
        assert len(target.seen) == 2


async def test_a_caller_that_has_proven_itself_keeps_its_idle_connection(outrider: Outrider) -> None:
    """Only those make way on whose connection nothing good has come yet."""
    async with Target(plain()) as target, outrider(config(target, "downstream_connections: 4")) as proxy:
        async with Client(inbound(proxy)) as client:
            assert (await client.call(get("/x", MINE))).status == 200
            with Crowd(inbound(proxy)) as crowd:
                await crowd.join(20)
                assert (await client.call(get("/x", MINE))).status == 200
        assert target.seen[0].connection == target.seen[1].connection


async def test_calls_under_way_are_not_cut_off_for_newcomers(outrider: Outrider) -> None:
    """With nothing but calls under way, a newcomer is refused, told so, and counted."""

    async def refused() -> Answer:
        async with Client(inbound(proxy)) as client:
            return await client.answer()

    async with Target(silent) as target, outrider(config(target, "downstream_connections: 3")) as proxy:
        with Crowd(inbound(proxy)) as crowd:
            await crowd.join(3, get("/x", MINE))
            await eventually(lambda: target.busy == 3, "three calls under way")
            answers = [await refused() for _ in range(4)]
            page = await metrics(proxy)
            assert sample(page, "outrider_downstream_connections_refused_total", side="inbound") == 4
            assert sample(page, "outrider_downstream_connections_refused_total", side="outbound") == 0
            assert target.busy == 3
    assert {answer.status for answer in answers} == {503}


async def test_a_flood_of_refused_connections_holds_few_descriptors(outrider: Outrider) -> None:
    """Of the refused, some are told why and may read it; the rest is closed at once."""
    async with Target(silent) as target, outrider(config(target, "downstream_connections: 1")) as proxy:
        with Crowd(inbound(proxy)) as calls, Crowd(inbound(proxy)) as crowd:
            await calls.join(1, get("/x", MINE))
            await eventually(lambda: target.busy == 1, "a call under way")
            await crowd.join(150)
            share = proxy.app.runtime.proxy.inbound
            await eventually(lambda: share.refused == 150, "all are refused")
            assert share.told <= 64
            await eventually(lambda: crowd.closed() >= 86, "most are gone already")


async def test_half_of_all_descriptors_are_for_the_apps_own_calls(outrider: Outrider) -> None:
    """Callers can fill their half and no more; those beyond it wait in the kernel's queue."""
    async with Target(silent) as target, outrider(config(target)) as proxy:
        data_plane = proxy.app.runtime.proxy
        data_plane.descriptors = 240  # 128 of which are usable
        with Crowd(inbound(proxy)) as crowd:
            await crowd.join(90, get("/x", MINE))
            await eventually(lambda: data_plane.stats.accept_pauses, "accepting has paused")
            assert data_plane.inbound.count + data_plane.inbound.to_app() <= 66
            target.script(plain())
            assert (await exchange(proxy.port, get("/user/x"))).status == 200


async def test_silence_before_the_first_byte_is_bounded_like_a_head(outrider: Outrider) -> None:
    """A new connection says something within limits.header_timeout; one that has made a call may rest for longer."""
    async with Target(plain()) as target, outrider(config(target, "header_timeout: 150ms")) as proxy:
        for port in (proxy.port, inbound(proxy)):
            async with Client(port) as client:
                assert await client.end() == "eof"
        assert proxy.app.runtime.proxy.stats.reached["header_timeout"] == 2
        async with Client(proxy.port) as client:
            await client.call(get("/user/x"))
            await asyncio.sleep(0.3)
            assert (await client.call(get("/user/x"))).status == 200


async def test_silent_handshakes_are_ended_and_counted(
    outrider: Outrider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who connects to a TLS port and says nothing has a few seconds; who says something else, or leaves, counts too."""
    monkeypatch.setattr(listener, "_HANDSHAKE", 0.1)
    authority = Authority(tmp_path)
    cert, key = authority.files("guard", "localhost")
    async with Target(plain()) as target, outrider(config(target, tls=f"cert: {cert}, key: {key}")) as proxy:
        failed = proxy.app.runtime.proxy.stats.handshakes_failed
        with Crowd(inbound(proxy)) as crowd:
            await crowd.join(5)
            await eventually(lambda: failed["timeout"] == 5, "their time is up")
            await eventually(lambda: crowd.closed() == 5, "they are closed")
            await crowd.join(1, request("GET", "/", None))
            await eventually(lambda: failed["refused"] == 1, "no TLS")
        with Crowd(inbound(proxy)) as crowd:
            await crowd.join(1, b"\x16\x03\x01\x00\xff\x01")
        await eventually(lambda: failed["broken_off"] == 1, "it has left")
        page = await metrics(proxy)
        assert sample(page, "outrider_inbound_handshakes_failed_total", reason="timeout") == 5


async def test_silent_handshakes_do_not_keep_callers_out(
    outrider: Outrider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of handshakes under way is bounded; a caller that speaks gets in although silent ones fill it."""
    monkeypatch.setattr(listener, "_MOST_HANDSHAKES", 20)
    authority = Authority(tmp_path)
    cert, key = authority.files("guard", "localhost")
    async with Target(plain()) as target, outrider(config(target, tls=f"cert: {cert}, key: {key}")) as proxy:
        data_plane = proxy.app.runtime.proxy
        with Crowd(inbound(proxy)) as crowd:
            await crowd.join(60)
            async with Client(inbound(proxy), tls=trusting(authority)) as client:
                assert (await client.call(get("/x", MINE))).status == 200
            assert data_plane.inbound.opening <= 20
            await eventually(lambda: crowd.closed() >= 40, "the oldest are closed")
            assert data_plane.stats.handshakes_failed["displaced"] >= 40


@pytest.mark.parametrize("port", ["listen", "inbound.listen"])
async def test_a_flood_of_connections_takes_no_long_turn(outrider: Outrider, port: str) -> None:
    """Of connections that wait to be accepted, a few are in each turn of the loop: each costs a tenth of a
    millisecond, for which the app's calls wait."""
    async with Target(plain()) as target, outrider(config(target)) as proxy:
        data_plane = proxy.app.runtime.proxy
        before = there = data_plane.stats.accepted
        most = 0
        with ExitStack() as flood:
            for _ in range(60):  # the loop has no turn meanwhile: they wait in the kernel's queue
                flood.enter_context(socket.create_connection(("127.0.0.1", proxy.app.ports[port])))
            async with asyncio.timeout(5):
                while there < before + 60:
                    await asyncio.sleep(0)
                    last, there = there, data_plane.stats.accepted
                    most = max(most, there - last)
        await eventually(lambda: not data_plane.connections, "all have left")
        assert most <= 16, "eight for each turn, of which there may be two while this test waits"
