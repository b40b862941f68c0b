"""The telemetry and admin ports beside strangers: they answer those who ask, and keep nothing for those who do not."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from outrider.controlplane import servers
from tests.integration.harness import Client, eventually, exchange, get, sidecar

CONFIG = "services: { user: 'http://127.0.0.1:9' }"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def strangers(port: int, count: int, says: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that say this, and then nothing."""
    found = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    try:
        for one in found:
            if says:
                one.send(says)
        yield found
    finally:
        for one in found:
            one.close()


async def healthy(port: int) -> bool:
    async with asyncio.timeout(2):
        return (await exchange(port, get("/healthz", "Connection: close", host="127.0.0.1"))).status == 200


@pytest.mark.parametrize("says", [b"", b"GET /healthz HTTP/1.1\r\nHost:"], ids=["silent", "half a head"])
async def test_strangers_do_not_keep_the_telemetry_port_from_answering(tmp_path: Path, says: bytes) -> None:
    """Hundreds of connections without a request: /healthz is answered at once, and few descriptors are used."""
    async with sidecar(tmp_path, CONFIG) as proxy:
        before = descriptors()
        with strangers(proxy.telemetry, 300, says) as all_of_them:
            for _ in range(3):
                assert await healthy(proxy.telemetry)
            await eventually(lambda: descriptors() - before - len(all_of_them) <= 40, "the strangers are turned away")
            assert await healthy(proxy.telemetry)


async def test_a_probe_does_not_wait_for_a_queue_of_strangers(tmp_path: Path) -> None:
    """Those that have been silent in the kernel's queue are not given another chance here, one after the other: a
    kubelet waits a second for its probe."""
    async with sidecar(tmp_path, CONFIG) as proxy:
        with strangers(proxy.telemetry, 64):
            assert await healthy(proxy.telemetry)  # from now on, the port is full
            with strangers(proxy.telemetry, 900):
                await asyncio.sleep(0)
                time.sleep(0.05)  # the loop has something else to do, and they wait
                began = monotonic()
                assert await healthy(proxy.telemetry)
                assert monotonic() - began < 0.3, "it takes 0.56 s to give 900 a chance"


async def test_strangers_on_the_admin_port(tmp_path: Path) -> None:
    """The admin port has its own, smaller number."""
    async with sidecar(tmp_path, CONFIG) as proxy:
        before = descriptors()
        with strangers(proxy.admin, 100) as all_of_them:
            answer = await exchange(proxy.admin, get("/api/v1/status", "Connection: close", host="localhost"))
            assert answer.status == 200
            await eventually(lambda: descriptors() - before - len(all_of_them) <= 20, "the strangers are turned away")


async def test_a_silent_visitor_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a whole request within seconds, before the first or after any answer, a connection ends."""
    monkeypatch.setattr(servers, "_SILENCE", 0.05)
    monkeypatch.setattr(servers, "_SWEEP_EVERY", 0.05)
    async with sidecar(tmp_path, CONFIG) as proxy:
        silent, served = Client(proxy.telemetry), Client(proxy.telemetry)
        async with silent, served:
            assert (await served.call(get("/healthz", host="127.0.0.1"))).status == 200
            async with asyncio.timeout(3):
                assert await silent.end()
                assert await served.end()


async def test_a_visitor_that_is_answered_makes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who are being answered stay; a new one that finds no silent one is refused."""
    monkeypatch.setitem(servers._MOST, "telemetry.listen", 1)
    async with sidecar(tmp_path, CONFIG) as proxy:
        server = proxy.app._servers["telemetry.listen"]
        async with Client(proxy.telemetry) as first:
            assert (await first.call(get("/healthz", host="127.0.0.1"))).status == 200
            (visitor,) = server.visitors
            visitor.busy = True
            async with Client(proxy.telemetry) as second:
                assert await second.end()
            visitor.busy = False
            assert await healthy(proxy.telemetry)  # in the place of the first
            assert await first.end()


async def test_an_idle_visitor_stays_while_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full port with nobody waiting keeps the connections it has: a scraper is not cut off for nothing."""
    monkeypatch.setitem(servers._MOST, "telemetry.listen", 2)
    async with sidecar(tmp_path, CONFIG) as proxy:
        async with Client(proxy.telemetry) as first, Client(proxy.telemetry) as second:
            for _ in range(3):
                for client in (first, second):
                    assert (await client.call(get("/healthz", host="127.0.0.1"))).status == 200
                    await asyncio.sleep(0.03)


async def test_an_answer_takes_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order whose body does not come is ended, so that it does not hold its place for ever."""
    monkeypatch.setattr(servers, "_WORK", 0.05)
    async with sidecar(tmp_path, CONFIG + "\nadmin: { listen: '127.0.0.1:0', allow_faults: true }") as proxy:
        async with Client(proxy.admin) as client:
            await client.send(
                b"POST /api/v1/faults HTTP/1.1\r\nHost: localhost\r\nX-Outrider: 1\r\nContent-Length: 9\r\n\r\n"
            )
            assert (await client.answer()).status == 408
