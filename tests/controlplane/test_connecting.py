"""How the control plane's own requests find addresses: no slow name holds up another one."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Iterator
from time import monotonic

import pytest
from aiohttp import web

from outrider.controlplane.connecting import NamesResolver
from outrider.controlplane.fetch import FetchError, fetch
from outrider.controlplane.upkeep import is_own
from outrider.dataplane.runtime import names
from outrider.dataplane.runtime.names import Names

V4 = socket.AF_INET


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system that knows good.test, knows of no other name, and is silent about slow.test."""
    over = threading.Event()

    def look_up(host: str, family: int) -> list[str]:
        if host == "slow.test":
            over.wait(30)
        if host == "good.test" and family == V4:
            return ["127.0.0.1"]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(names, "system_addresses", look_up)
    yield
    over.set()


@pytest.mark.usefixtures("system")
async def test_a_slow_name_holds_up_no_other() -> None:
    """With many requests to a name that hangs under way, another name is fetched from at once; the slow ones end in
    time, and a name that does not exist is told as such."""

    async def hello(request: web.BaseRequest) -> web.Response:
        return web.Response(text=request.host)

    server = web.Server(hello)
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        slow = [asyncio.create_task(fetch("http://slow.test", timeout=0.5, limit=10)) for _ in range(40)]
        await asyncio.sleep(0.02)
        started = monotonic()
        for _ in range(5):
            answer = await fetch(f"http://good.test:{port}", timeout=5, limit=100)
            assert answer.body == f"good.test:{port}".encode()
        assert monotonic() - started < 0.4
        failed = await asyncio.gather(*slow, return_exceptions=True)
        assert {str(one) for one in failed} == {"http://slow.test did not answer within 0.5 s"}
        with pytest.raises(FetchError, match="Name or service not known"):
            await fetch("http://none.test", timeout=5, limit=10)
    finally:
        await runner.cleanup()


async def test_out_of_descriptors_is_not_the_names_fault() -> None:
    """A lookup that fails because this machine is short of something says so."""

    def look_up(host: str, family: int) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    resolver = NamesResolver(Names(look_up))
    with pytest.raises(OSError, match="Too many") as failed:
        await resolver.resolve("user.test", 80)
    assert is_own(failed.value)
    await resolver.close()


async def test_one_family_can_be_asked_for() -> None:
    """With the port and the name that were asked for."""
    resolver = NamesResolver(Names(lambda host, family: ["127.0.0.1"] if family == V4 else ["::1"]))
    assert [one["host"] for one in await resolver.resolve("user.test", 80)] == ["::1", "127.0.0.1"]
    (one,) = await resolver.resolve("user.test", 80, V4)
    assert (one["hostname"], one["host"], one["port"], one["family"]) == ("user.test", "127.0.0.1", 80, V4)
    await resolver.close()
