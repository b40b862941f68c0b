"""When descriptors run out, connections wait to be accepted, and everything recovers."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outrider.app import allow_descriptors
from outrider.dataplane.downstream.proxy import OTHER_DESCRIPTORS
from tests.integration.conftest import Outrider
from tests.integration.harness import Client, Target, eventually, exchange, get, plain


def config(target: Target) -> str:
    return f"services: {{ user: {{ url: '{target.url}', retry: false }} }}"


@contextmanager
def one_descriptor_left() -> Iterator[None]:
    """All descriptors of this process but one are taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, hard))  # so that there is one to take and to give back
    held: list[int] = []
    try:
        while True:
            try:
                held.append(os.dup(0))
            except OSError:
                break
        os.close(held.pop())
        yield
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_connections_wait_when_descriptors_run_out(outrider: Outrider) -> None:
    """Nobody is reset: who cannot be accepted waits in the kernel's queue, and is served when there is room."""
    async with Target(plain()) as target, outrider(config(target)) as proxy:
        assert (await exchange(proxy.port, get("/user/warm"))).status == 200
        waiting = [Client(proxy.port) for _ in range(8)]
        for client in waiting:
            await client.__aenter__()
        await eventually(lambda: len(proxy.app.runtime.proxy.connections) >= 8, "all accepted")
        late = Client(proxy.port)
        await late.__aenter__()  # its own descriptor is taken before the limit comes down
        stats = proxy.app.runtime.proxy.stats
        await eventually(lambda: len(proxy.app.runtime.proxy.connections) == 9, "the late one, too")
        last = Client(proxy.port)
        shared = proxy.app.runtime.proxy
        shared.descriptors = 9 + OTHER_DESCRIPTORS + 1  # connections of the app, the reserve, and those to the target
        await last.__aenter__()
        await last.send(get("/user/last"))
        await eventually(lambda: stats.accept_pauses > 0, "accepting has paused")
        assert (await late.call(get("/user/late"))).status == 200, "the others are served meanwhile"
        await waiting.pop().__aexit__()
        assert (await last.answer()).status == 200
        for client in (*waiting, late, last):
            await client.__aexit__()


async def test_running_out_entirely_is_survived(outrider: Outrider) -> None:
    """With no descriptor at all, accepting pauses; with descriptors again, the connection that waited is served."""
    async with Target(plain()) as target, outrider(config(target)) as proxy:
        assert (await exchange(proxy.port, get("/user/warm"))).status == 200
        client = Client(proxy.port)
        with one_descriptor_left():  # which this client takes: the sidecar is in the same process
            await client.__aenter__()
            await client.send(get("/user/x"))
            await eventually(lambda: proxy.app.runtime.proxy.stats.accept_pauses > 0, "accepting has paused")
        assert (await client.answer()).status == 200
        await client.__aexit__()


async def test_running_out_is_not_the_targets_fault(outrider: Outrider) -> None:
    """Without a descriptor for a connection to the target calls are refused as such, and neither circuit nor endpoint
    is blamed: with descriptors again, the next call passes."""
    text = (
        "services: {{ user: {{ url: ['{0}', '{0}/'], retry: false, circuit_breaker: {{ consecutive_failures: 2 }} }} }}"
    )
    async with Target(plain()) as target, outrider(text.format(target.url)) as proxy, Client(proxy.port) as client:
        await client.send(b"")
        await eventually(lambda: proxy.app.runtime.proxy.connections, "accepted")
        with one_descriptor_left():
            last = os.dup(0)
            try:
                for _ in range(5):
                    answer = await client.call(get("/user/x"))
                    assert answer.status == 503
                    assert b'"error": "LOCAL_FAULT"' in answer.body
                    assert b'"origin": "proxy"' in answer.body
            finally:
                os.close(last)
        assert (await client.call(get("/user/x"))).status == 200
        assert not proxy.app.runtime.transitions
        cluster = proxy.app.runtime.compiled.clusters[0]
        assert [endpoint.standing for endpoint in cluster.endpoints] == ["ready", "ready"]


def test_the_limit_of_open_files_is_raised_as_needed(caplog: pytest.LogCaptureFixture) -> None:
    """As far as the system allows; where that is not enough, the log says so and names both settings."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert allow_descriptors(400) == 800 + OTHER_DESCRIPTORS
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 800 + OTHER_DESCRIPTORS
        assert not caplog.records
        assert allow_descriptors(hard) == hard
        assert "limits.downstream_connections" in caplog.text
        assert "ulimit -n" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
