"""Targets with host names: slow ones, ones with a dead address, and ones that move."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import monotonic

import pytest
import trustme

from outrider.dataplane.runtime import names
from tests.integration.conftest import Outrider
from tests.integration.harness import (
    Client,
    Exchange,
    Sidecar,
    Target,
    eventually,
    exchange,
    get,
    plain,
    request,
    response,
)

V4 = socket.AF_INET
# Loopback addresses other than 127.0.0.1, so that several targets can share a port.
FIRST, SECOND, THIRD = "127.0.0.31", "127.0.0.32", "127.0.0.33"


class System:
    """The system's resolver for names under .test; `held` names get no answer while the test runs."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.held: set[str] = set()
        self.asked: list[str] = []
        self._over = threading.Event()

    def look_up(self, host: str, family: int) -> list[str]:
        if family != V4:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.asked.append(host)
        if host in self.held:
            self._over.wait(30)
        return self.addresses[host]

    def let_go(self) -> None:
        self._over.set()


@pytest.fixture
def system() -> Iterator[System]:
    system = System()
    yield system
    system.let_go()


@asynccontextmanager
async def resolving(outrider: Outrider, system: System, text: str) -> AsyncIterator[Sidecar]:
    """A sidecar whose system knows these names."""
    async with outrider(text) as proxy:
        proxy.app.runtime.proxy.names.look_up = system.look_up
        yield proxy


@contextmanager
def swallowing(host: str, port: int) -> Iterator[None]:
    """An address that neither takes nor refuses connections: the queue of its socket is full."""
    with socket.socket() as deaf:
        deaf.bind((host, port))
        deaf.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex((host, port))
            yield
        finally:
            for filler in fillers:
                filler.close()


async def timed(port: int, call: bytes) -> tuple[int, float]:
    """The status of an answer, and the seconds it took."""
    started = monotonic()
    answer = await exchange(port, call)
    return answer.status, monotonic() - started


# ---------------------------------------------------------------- slow names


async def test_a_slow_name_harms_no_other_service(outrider: Outrider, system: System) -> None:
    """While one name hangs, calls to another service that need new connections all succeed, without delay; the call to
    the slow one is refused with the reason, after its connect_timeout."""
    system.held.add("slow.test")
    async with Target(plain()) as target:
        system.addresses["good.test"] = ["127.0.0.1"]
        text = (
            "services:\n  slow: { url: 'http://slow.test:80', connect_timeout: 300ms, retry: false }\n"
            f"  good: {{ url: 'http://good.test:{target.port}', idle_timeout: 1ms, retry: false }}"
        )
        async with resolving(outrider, system, text) as proxy:
            slow = [asyncio.create_task(exchange(proxy.port, get("/slow/x"))) for _ in range(20)]
            await eventually(lambda: "slow.test" in system.asked, "the slow name is being looked up")
            for _ in range(20):
                status, seconds = await timed(proxy.port, get("/good/x"))
                assert (status, seconds < 0.25) == (200, True)
                await asyncio.sleep(0.003)  # longer than a connection is kept
            assert target.connections > 5
            refused = await asyncio.gather(*slow)
            assert {answer.status for answer in refused} == {502}
            assert b"slow.test:80 could not be resolved: no answer within 300ms" in refused[0].body
    assert (system.asked.count("slow.test"), system.asked.count("good.test")) == (1, 1)


async def test_no_lookup_keeps_the_sidecar_from_ending(outrider: Outrider, system: System) -> None:
    """A lookup that hangs delays neither the end of the sidecar nor that of its loop."""
    system.held.add("slow.test")
    text = "services: { slow: { url: 'http://slow.test:80', connect_timeout: 50ms, retry: false } }"
    started = monotonic()
    async with resolving(outrider, system, text) as proxy:
        assert (await exchange(proxy.port, get("/slow/x"))).status == 502
    assert monotonic() - started < 3


# ---------------------------------------------------------------- several addresses


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_dead_first_address_hides_nothing(
    outrider: Outrider, system: System, tmp_path: Path, secure: bool
) -> None:
    """Where the first address swallows what is sent to it, the second is reached within 400 ms, and at once from then
    on."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = None
    if secure:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("user.test").configure_cert(context)
    async with Target(plain(), host=SECOND, tls=context) as target:
        with swallowing(FIRST, target.port):
            system.addresses["user.test"] = [FIRST, SECOND]
            scheme = "https" if secure else "http"
            text = f"""
services:
  user:
    url: '{scheme}://user.test:{target.port}'
    idle_timeout: 1ms
    retry: false
    tls: {{ ca: '{tmp_path}/ca.pem' }}
"""
            async with resolving(outrider, system, text) as proxy:
                status, seconds = await timed(proxy.port, request("POST", "/user/x", b"charge"))
                assert status == 200
                assert 0.2 < seconds < 0.4
                for _ in range(3):
                    await asyncio.sleep(0.01)
                    status, seconds = await timed(proxy.port, request("POST", "/user/x", b"charge"))
                    assert status == 200
                    assert seconds < 0.2
                assert target.connections == 4


async def test_little_time_is_shared_among_the_addresses(outrider: Outrider, system: System) -> None:
    """A connect_timeout below a quarter of a second still reaches the second address."""
    async with Target(plain(), host=SECOND) as target:
        with swallowing(FIRST, target.port):
            system.addresses["user.test"] = [FIRST, SECOND]
            more = "connect_timeout: 200ms, retry: false"
            text = f"services: {{ user: {{ url: 'http://user.test:{target.port}', {more} }} }}"
            async with resolving(outrider, system, text) as proxy:
                assert (await exchange(proxy.port, get("/user/x"))).status == 200


async def test_a_refused_first_address_costs_no_time(outrider: Outrider, system: System) -> None:
    """Where an address refuses, the next one is tried at once; all of it takes no longer than connect_timeout."""
    async with Target(plain(), host=THIRD) as target:
        system.addresses["user.test"] = [FIRST, SECOND, THIRD]
        text = f"services: {{ user: {{ url: 'http://user.test:{target.port}', retry: false }} }}"
        async with resolving(outrider, system, text) as proxy:
            status, seconds = await timed(proxy.port, get("/user/x"))
            assert (status, seconds < 0.2) == (200, True)


async def test_all_addresses_dead(outrider: Outrider, system: System) -> None:
    """Where no address answers, the call ends with its connect_timeout, however many there are; where all refuse, that
    is the reason."""
    with socket.create_server((FIRST, 0)) as free:
        port = free.getsockname()[1]
    system.addresses["user.test"] = [FIRST, SECOND, THIRD]
    more = "connect_timeout: 600ms, retry: false, circuit_breaker: false"
    text = f"services: {{ user: {{ url: 'http://user.test:{port}', {more} }} }}"
    async with resolving(outrider, system, text) as proxy:
        answer = await exchange(proxy.port, get("/user/x"))
        assert answer.status == 502
        assert b"refused the connection" in answer.body
        with swallowing(FIRST, port), swallowing(SECOND, port), swallowing(THIRD, port):
            status, seconds = await timed(proxy.port, get("/user/x"))
            assert status == 504
            assert 0.5 < seconds < 1.5


async def test_tls_that_does_not_come_about_at_one_address(outrider: Outrider, system: System, tmp_path: Path) -> None:
    """An address that takes connections but says nothing costs one call its connect_timeout; the next call tries
    another address first."""
    import ssl

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("user.test").configure_cert(context)
    async with Target(plain(), host=SECOND, tls=context) as target:
        with socket.create_server((FIRST, target.port)):
            system.addresses["user.test"] = [FIRST, SECOND]
            url = f"https://user.test:{target.port}"
            more = f"connect_timeout: 300ms, retry: false, tls: {{ ca: '{tmp_path}/ca.pem' }}"
            text = f"services: {{ user: {{ url: '{url}', {more} }} }}"
            async with resolving(outrider, system, text) as proxy:
                assert [(await exchange(proxy.port, get("/user/x"))).status for _ in range(2)] == [504, 200]


# ---------------------------------------------------------------- names that move


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in use is looked up again after 50 ms."""
    monkeypatch.setattr(names, "_EVERY", 0.05)


@pytest.mark.usefixtures("quickly")
async def test_a_name_that_moves_is_followed_under_steady_traffic(outrider: Outrider, system: System) -> None:
    """Kept connections to an address that the name no longer has are not used again: no call goes to the old address
    once it is known, none is cut, and none fails."""
    gate = asyncio.Event()

    async def slow(one: Exchange) -> None:
        await one.body()
        if one.request.path == "/slow":
            await gate.wait()
        await one.send(response(200, b"old"))

    async with Target(slow, host=FIRST) as old, Target(plain(200, b"new"), old.port, host=SECOND) as new:
        system.addresses["user.test"] = [FIRST]
        text = f"services: {{ user: {{ url: 'http://user.test:{old.port}', retry: false }} }}"
        async with resolving(outrider, system, text) as proxy, Client(proxy.port) as client:
            under_way = asyncio.create_task(exchange(proxy.port, get("/user/slow")))
            await eventually(lambda: old.busy, "a call under way")
            for _ in range(5):
                assert (await client.call(get("/user/x"))).body == b"old"
            system.addresses["user.test"] = [SECOND]
            bodies = [b"old"]
            async with asyncio.timeout(5):
                while bodies[-1] != b"new":
                    bodies.append((await client.call(get("/user/x"))).body)
                    await asyncio.sleep(0.002)
            for _ in range(5):
                assert (await client.call(get("/user/x"))).body == b"new"
            assert not under_way.done()
            gate.set()
            assert (await under_way).body == b"old"
            await eventually(lambda: old.closed == old.connections, "every connection to the old address closed")
            assert new.connections == 1


@pytest.mark.usefixtures("quickly")
async def test_an_address_that_stays_keeps_its_connections(outrider: Outrider, system: System) -> None:
    """A new answer that still has the address changes nothing, and neither does an address without a name."""
    async with Target(plain(), host=FIRST) as target:
        system.addresses["user.test"] = [FIRST]
        text = (
            f"services: {{ user: {{ url: 'http://user.test:{target.port}' }}, "
            f"literal: {{ url: 'http://{FIRST}:{target.port}' }} }}"
        )
        async with resolving(outrider, system, text) as proxy, Client(proxy.port) as client:
            for service in ("user", "literal"):
                assert (await client.call(get(f"/{service}/x"))).status == 200
            system.addresses["user.test"] = [SECOND, FIRST]
            asked = len(system.asked)
            await eventually(lambda: len(system.asked) >= asked + 3, "it is looked up again")
            for service in ("user", "literal"):
                assert (await client.call(get(f"/{service}/x"))).status == 200
            assert target.connections == 2


async def test_health_checks_ask_where_calls_go(outrider: Outrider, system: System) -> None:
    """A checked service is asked at the addresses that its calls use, which are looked up once for both."""
    async with Target(plain(), host=FIRST) as target:
        check = "health_check: { path: /ok, every: 20ms }"
        text = f"services: {{ user: {{ url: 'http://user.test:{target.port}', {check} }} }}"
        system.addresses["user.test"] = [FIRST]
        async with resolving(outrider, system, text) as proxy:
            await eventually(lambda: any(one.path == "/ok" for one in target.seen), "a check")
            assert (await exchange(proxy.port, get("/user/x"))).status == 200
            assert system.asked.count("user.test") == 1
