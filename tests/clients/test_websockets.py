"""WebSocket clients, in Python and in Node, talk with a target through Outrider, by path prefix and by port."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from tests.clients.conftest import Outrider
from tests.clients.drivers import NODE, PATIENCE

MEGABYTE = random.Random(1).randbytes(1 << 20)


@pytest.fixture(params=["prefix", "port"])
def base(request: pytest.FixtureRequest, outrider: Outrider) -> Iterator[str]:
    """The URL before the path; in the end no tunnel is left."""
    if request.param == "prefix":
        yield f"ws://127.0.0.1:{outrider.port}/target"
    else:
        yield f"ws://127.0.0.1:{outrider.ports['services.target.port']}"
    outrider.wait_for("outrider_in_flight_requests", 0)
    outrider.wait_for("outrider_tunnels", 0)
    assert outrider.metric("outrider_internal_errors_total") == 0


def talk(url: str, **more: Any) -> connect:
    """A connection without compression, so that sizes are what they seem, and without proxies of the environment."""
    return connect(url, proxy=None, open_timeout=5, max_size=8 << 20, **{"compression": None, **more})


# ---------------------------------------------------------------- Python


async def test_text_and_binary(base: str) -> None:
    """Messages of both kinds come back as they were sent, many on one connection."""
    async with talk(f"{base}/ws") as socket:
        for message in ("hello", "žluťoučký kůň 😀", "", b"\x00\xff\x01\xfe", b"", "x" * 70_000):
            await socket.send(message)
            assert await socket.recv() == message


async def test_a_large_message(base: str) -> None:
    """1 MB goes there and back, whole."""
    async with talk(f"{base}/ws") as socket:
        await socket.send(MEGABYTE)
        assert await socket.recv() == MEGABYTE


async def test_fragments(base: str) -> None:
    """A message sent in fragments is put together by the target, not by anybody in between."""
    async with talk(f"{base}/ws") as socket:
        await socket.send([MEGABYTE[at : at + 10_000] for at in range(0, 200_000, 10_000)])
        assert await socket.recv() == MEGABYTE[:200_000]


async def test_compression(base: str) -> None:
    """permessage-deflate is agreed on by the two ends, through Outrider."""
    async with talk(f"{base}/ws", compression="deflate") as socket:
        assert socket.response is not None
        assert "permessage-deflate" in socket.response.headers["Sec-WebSocket-Extensions"]
        await socket.send("again and again " * 1000)
        assert await socket.recv() == "again and again " * 1000


async def test_ping_and_pong(base: str) -> None:
    """Control frames pass, and pass at once."""
    async with talk(f"{base}/ws") as socket:
        waiter = await socket.ping(b"still there?")
        async with asyncio.timeout(PATIENCE):
            assert await waiter < 1


async def test_the_subprotocol(base: str) -> None:
    """What the two ends agree on is theirs."""
    async with talk(f"{base}/ws", subprotocols=["chat.v0", "chat.v2"]) as socket:
        assert socket.subprotocol == "chat.v2"


async def test_the_handshake(base: str) -> None:
    """The target sees the handshake as the app made it, by way of Outrider, with one Connection and one Upgrade."""
    async with talk(f"{base}/ws?room=%C3%BC", additional_headers={"X-MiXeD": "kept"}) as socket:
        await socket.send("headers")
        headers: list[list[str]] = json.loads(await socket.recv())
    assert ["X-MiXeD", "kept"] in headers
    names = [name.lower() for name, _ in headers]
    for name in ("host", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version", "via"):
        assert names.count(name) == 1, name
    assert "transfer-encoding" not in names
    assert "content-length" not in names


async def end_of(socket: ClientConnection) -> tuple[int | None, str | None]:
    """How the connection ended: close code and reason."""
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    return socket.close_code, socket.close_reason


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1001, "restarting"), (1011, "oops"), (4321, "ours")])
async def test_a_close_of_the_target(base: str, code: int, reason: str) -> None:
    """Close code and reason of the target reach the app."""
    async with talk(f"{base}/ws") as socket:
        await socket.send(f"close {code} {reason}")
        assert await end_of(socket) == (code, reason)


async def test_a_close_of_the_app(base: str) -> None:
    """The target hears code and reason of the app's close, and confirms with the same."""
    async with talk(f"{base}/ws") as socket:
        await socket.close(4002, "enough")
        assert (socket.close_code, socket.close_reason) == (4002, "enough")


async def test_a_target_that_breaks_off(base: str) -> None:
    """A connection that breaks without a close is no orderly end for the app either."""
    async with talk(f"{base}/ws") as socket:
        await socket.send("drop")
        with pytest.raises(ConnectionClosedError):
            async with asyncio.timeout(PATIENCE):
                await socket.recv()
        assert socket.close_code == 1006


async def test_an_app_that_breaks_off(base: str, outrider: Outrider) -> None:
    """An app that vanishes takes its connection to the target with it."""
    async with talk(f"{base}/ws") as socket:
        await socket.send("hello")
        await socket.recv()
        socket.transport.abort()
    # That nothing is left is checked by the fixture.


async def test_a_target_that_speaks_first(base: str) -> None:
    """What comes right behind the 101, perhaps in the same segment, is not lost."""
    async with talk(f"{base}/ws-greets") as socket:
        assert [await socket.recv() for _ in range(3)] == ["hello 0", "hello 1", "hello 2"]
        assert await end_of(socket) == (1001, "that was all")


async def test_many_messages_in_a_row(base: str) -> None:
    """A burst of small messages arrives complete and in order."""
    async with talk(f"{base}/ws") as socket:
        await socket.send("count 5000")
        assert [await socket.recv() for _ in range(5000)] == [str(number) for number in range(5000)]


async def test_a_refused_upgrade(base: str) -> None:
    """A target that says no to the upgrade is heard, body and all."""
    with pytest.raises(InvalidStatus) as refusal:
        async with talk(f"{base}/ws-refused"):
            pass
    assert refusal.value.response.status_code == 403
    assert json.loads(refusal.value.response.body) == {"reason": "members only"}


async def test_an_upgrade_at_a_path_without_one(base: str) -> None:
    """An ordinary answer to an upgrade is an ordinary answer."""
    with pytest.raises(InvalidStatus) as refusal:
        async with talk(f"{base}/echo"):
            pass
    assert refusal.value.response.status_code == 200


async def test_fifty_at_once(base: str) -> None:
    """50 connections at once, 20 messages each: every one gets its own back, and ordinary calls go on beside them."""

    async def one(number: int) -> int:
        right = 0
        async with talk(f"{base}/ws") as socket:
            for turn in range(20):
                await socket.send(f"{number}.{turn}")
                right += await socket.recv() == f"{number}.{turn}"
        return right

    async with httpx.AsyncClient(trust_env=False) as client:
        calls = [client.get(base.replace("ws://", "http://") + "/beside") for _ in range(20)]
        rights, answers = await asyncio.gather(
            asyncio.gather(*(one(number) for number in range(50))), asyncio.gather(*calls)
        )
    assert sum(rights) == 1000
    assert {answer.status_code for answer in answers} == {200}


async def test_longer_than_the_timeout_of_a_call(outrider: Outrider) -> None:
    """An open WebSocket is no call under way: the timeout of its route ends with the handshake."""
    base = f"ws://127.0.0.1:{outrider.port}/target"
    async with talk(f"{base}/ws-short") as socket:
        await asyncio.sleep(0.35)  # the route's timeout is 200 ms
        await socket.send("still here")
        assert await socket.recv() == "still here"


# ---------------------------------------------------------------- Node


def scene(name: str, url: str, packages: Path) -> dict[str, Any]:
    """Play a scene with Node's `ws`."""
    result = subprocess.run(
        ["node", str(NODE / "websocket.cjs"), name, url],
        env={**os.environ, "NODE_PATH": str(packages)}, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


def test_node_talks(base: str, node_packages: Path) -> None:
    """Text, binary, 1 MB, a ping, a subprotocol and a close code: all there with Node's `ws`."""
    assert scene("talk", f"{base}/ws", node_packages) == {
        "protocol": "chat.v1",
        "text": "žluťoučký kůň",
        "textIsBinary": False,
        "binary": [0, 255, 1, 254],
        "binaryIsBinary": True,
        "largeIsSame": True,
        "pong": "still there?",
        "end": {"code": 4001, "reason": "enough"},
    }


def test_node_hears_the_end(base: str, node_packages: Path) -> None:
    """Close codes of the target reach Node; a broken connection is 1006."""
    assert scene("closedByTarget", f"{base}/ws", node_packages) == {"code": 4321, "reason": "go away"}
    assert scene("brokenOff", f"{base}/ws", node_packages)["code"] == 1006


def test_node_is_greeted(base: str, node_packages: Path) -> None:
    """A target that speaks first is heard from its first message on."""
    assert scene("greeted", f"{base}/ws-greets", node_packages) == {
        "messages": ["hello 0", "hello 1", "hello 2"],
        "end": {"code": 1001, "reason": "that was all"},
    }


def test_node_is_refused(base: str, node_packages: Path) -> None:
    """A refused upgrade is an answer with status and body for Node, too."""
    seen = scene("refused", f"{base}/ws-refused", node_packages)
    assert (seen["status"], json.loads(seen["body"])) == (403, {"reason": "members only"})


def test_a_crowd_of_node(base: str, node_packages: Path) -> None:
    """50 connections of Node at once, 10 messages each, none mixed up."""
    assert scene("crowd", f"{base}/ws", node_packages) == {"right": 500}
