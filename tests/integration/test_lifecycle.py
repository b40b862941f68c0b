"""The process: it starts quickly, drains on the first signal, and stops on the second."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from time import monotonic

import pytest

from tests.integration.harness import (
    BrokenError,
    Client,
    Exchange,
    Target,
    eventually,
    exchange,
    get,
    plain,
    request,
    response,
    sidecar,
    slow,
    whole_config,
)
from tests.integration.processes import PROCESS_PATIENCE, SOURCE, Process, running


class Held:
    """A target script that answers when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, one: Exchange) -> None:
        await one.body()
        await self.go.wait()
        await one.send(response(200, b"done"))


async def status_of(port: int, path: str) -> int:
    return (await exchange(port, get(path, "Connection: close", host="127.0.0.1"))).status


async def test_it_starts_about_as_fast_as_its_libraries_are_imported(tmp_path: Path) -> None:
    """Everything stands before four times the time has passed that importing its libraries takes. Best of
    three, side by side; the bench measures the cold start in milliseconds."""
    times, imports = [], []
    for _ in range(3):
        began = monotonic()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import asyncio, pydantic.main, yaml, click"
        )
        await process.wait()
        imports.append(monotonic() - began)
        async with running(tmp_path, "services: { user: 'http://127.0.0.1:9' }") as one:
            times.append(one.started_in)
            assert await status_of(one.telemetry, "/readyz") == 200
    assert min(times) < 4 * min(imports)


def libraries(one: Process) -> str:
    """What is mapped into its memory."""
    return Path(f"/proc/{one.process.pid}/maps").read_text()


async def test_the_library_of_the_admin_port_is_loaded_when_it_is_used(tmp_path: Path) -> None:
    """Probes and scrapes do without aiohttp; the first look at the admin port gets its answer with it."""
    async with running(tmp_path, "services: { user: 'http://127.0.0.1:9' }") as one:
        assert await status_of(one.telemetry, "/readyz") == 200
        assert await status_of(one.telemetry, "/metrics") == 200
        assert "aiohttp" not in libraries(one)
        looks = [exchange(one.admin, get("/api/v1/status", "Connection: close", host="localhost")) for _ in range(5)]
        assert {answer.status for answer in await asyncio.gather(*looks)} == {200}
        assert "aiohttp" in libraries(one)


async def test_sigterm_lets_calls_end(tmp_path: Path) -> None:
    """A call in flight is carried to its end, readiness says no, new calls are still taken, and the exit is clean."""
    held = Held()
    async with Target([held, plain()]) as target, running(tmp_path, f"services: {{ user: '{target.url}' }}") as one:
        async with Client(one.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: target.busy, "the call at the target")
            one.signal(signal.SIGTERM)
            await eventually(lambda: one.said("draining"), "draining")
            assert await status_of(one.telemetry, "/readyz") == 503
            assert await status_of(one.telemetry, "/healthz") == 200
            assert (await exchange(one.port, get("/user/y"))).status == 200
            held.go.set()
            answer = await client.answer()
            assert (answer.status, answer.body, answer.get("connection")) == (200, b"done", "close")
        assert await one.exit() == 0
        assert one.said("stopped")
    assert len(target.seen) == 2


async def test_sigterm_without_calls_ends_soon(tmp_path: Path) -> None:
    """When the app has already gone, nobody is waited for."""
    async with running(tmp_path, "services: { user: 'http://127.0.0.1:9' }") as one:
        began = monotonic()
        one.signal(signal.SIGTERM)
        assert await one.exit() == 0
        assert monotonic() - began < 2.5


async def test_sigint_ends_when_no_call_is_in_flight(tmp_path: Path) -> None:
    """Ctrl-C does not wait for idle connections."""
    async with Target(plain()) as target, running(tmp_path, f"services: {{ user: '{target.url}' }}") as one:
        async with Client(one.port) as client:
            await client.call(get("/user/x"))
            one.signal(signal.SIGINT)
            assert await one.exit() == 0


async def test_draining_ends_at_its_limit(tmp_path: Path) -> None:
    """A call that does not end is cut off visibly, and the exit code says that it was not clean."""
    text = "shutdown: {{ drain: 300ms }}\nservices: {{ user: '{}' }}"
    async with Target(Held()) as target, running(tmp_path, text.format(target.url)) as one, Client(one.port) as client:
        await client.send(get("/user/x"))
        await eventually(lambda: target.busy, "the call at the target")
        one.signal(signal.SIGTERM)
        assert await one.exit() == 1
        with pytest.raises(BrokenError):
            await client.answer()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_stops_at_once(tmp_path: Path, second: signal.Signals) -> None:
    """Whoever asks twice does not want to wait."""
    async with Target(Held()) as target, running(tmp_path, f"services: {{ user: '{target.url}' }}") as one:
        async with Client(one.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: target.busy, "the call at the target")
            one.signal(signal.SIGTERM)
            await eventually(lambda: one.said("draining"), "draining")
            began = monotonic()
            one.signal(second)
            assert await one.exit() == 1
            assert monotonic() - began < 1
            with pytest.raises(BrokenError):
                await client.answer()
    assert one.said("stopped by a second signal")
    (line,) = (line for line in one.lines if line["msg"] == "call")
    assert (line["outcome"], line["attempts"]) == ("cancelled", 1)
    assert line["why"] == ["cut off: Outrider was stopped"]


async def ordered(one: Process, path: str) -> int:
    order = request("POST", path, b"", "X-Outrider: 1", "Connection: close", host="localhost")
    return (await exchange(one.admin, order)).status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("path", ["/-/drain", "/-/quit"])
async def test_an_order_is_no_signal(tmp_path: Path, path: str, number: signal.Signals) -> None:
    """Told to drain, then sent SIGTERM, as a preStop hook and the kubelet do: calls in flight end well. Orders may be
    given again; a second signal stops."""
    held = Held()
    async with Target(held) as target, running(tmp_path, f"services: {{ user: '{target.url}' }}") as one:
        async with Client(one.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: target.busy, "the call at the target")
            assert await ordered(one, path) == 202
            await eventually(lambda: one.said("draining"), "draining")
            one.signal(number)
            assert await ordered(one, "/-/drain") == 202
            await asyncio.sleep(0.1)
            held.go.set()
            assert (await client.answer()).body == b"done"
        assert await one.exit() == 0


async def test_a_second_signal_stops_after_an_order(tmp_path: Path) -> None:
    """An order and two signals: the second signal does not wait."""
    async with Target(Held()) as target, running(tmp_path, f"services: {{ user: '{target.url}' }}") as one:
        async with Client(one.port) as client:
            await client.send(get("/user/x"))
            await eventually(lambda: target.busy, "the call at the target")
            assert await ordered(one, "/-/drain") == 202
            one.signal(signal.SIGTERM)
            one.signal(signal.SIGINT)
            assert await one.exit() == 1


async def test_an_order_to_quit_shortens_a_drain(tmp_path: Path) -> None:
    """While it waits for the app's idle connections to go, `/-/quit` ends it."""
    async with Target(plain()) as target, running(tmp_path, f"services: {{ user: '{target.url}' }}") as one:
        async with Client(one.port) as client:
            assert (await client.call(get("/user/x"))).status == 200
            one.signal(signal.SIGTERM)
            await eventually(lambda: one.said("draining"), "draining")
            assert await ordered(one, "/-/quit") == 202
            assert await one.exit() == 0


async def silent_issuer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


OAUTH2 = """
services: {{ user: {{ url: 'http://127.0.0.1:9', auth: token }} }}
credentials: {{ token: {{ oauth2: {{ token_url: 'http://127.0.0.1:{}/t', client_id: a, client_secret: b }} }} }}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_the_start_is_obeyed(tmp_path: Path, number: signal.Signals) -> None:
    """While it still waits for an issuer that does not answer, one SIGTERM ends it, cleanly."""
    asked = asyncio.Event()

    async def issuer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await silent_issuer(reader, writer)

    async with await asyncio.start_server(issuer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with running(tmp_path, OAUTH2.format(port), wait=False) as one:
            async with asyncio.timeout(PROCESS_PATIENCE):
                await asked.wait()
            began = monotonic()
            one.signal(number)
            assert await one.exit() == 0
            assert monotonic() - began < 3
        assert not one.said("ready")


async def test_a_start_does_not_wait_for_an_issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls and health are answered although the issuer does not answer; `/readyz` says what is missing."""
    monkeypatch.setattr("outrider.app._PATIENCE", 0.2)
    async with await asyncio.start_server(silent_issuer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        began = monotonic()
        async with sidecar(tmp_path, OAUTH2.format(port)) as proxy:
            assert monotonic() - began < 3
            assert await status_of(proxy.telemetry, "/healthz") == 200
            answer = await exchange(proxy.telemetry, get("/readyz", "Connection: close", host="127.0.0.1"))
            assert (answer.status, answer.body) == (503, b"no value yet for the credentials: token\n")


async def test_a_signal_before_anything_is_open_ends_it(tmp_path: Path) -> None:
    """A signal that comes while the program is still being loaded is not lost, although process 1 of a container has no
    default for it: the program takes it from its first line on."""
    shown = "import os, signal; from outrider.__main__ import hear_early; hear_early();"
    shown += "os.kill(os.getpid(), signal.SIGTERM); print('it went on')"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", shown, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    async with asyncio.timeout(PROCESS_PATIENCE):
        text, _ = await process.communicate()
    assert (process.returncode, text) == (0, b"")


GUARDED = "services: {{ user: 'http://127.0.0.1:9' }}\ninbound: {{ listen: '127.0.0.1:0', app: '{}', protect: [] }}"


async def test_idle_callers_do_not_hold_a_drain(tmp_path: Path) -> None:
    """Connections of callers from outside that are idle for a second are closed in an orderly way; one that is used
    meanwhile gets its answer, with `Connection: close`. The drain ends long before its limit."""
    async with Target(slow(0.3)) as app, sidecar(tmp_path, GUARDED.format(app.url)) as proxy:
        port = proxy.app.ports["inbound.listen"]
        async with Client(port) as idle, Client(port) as silent, Client(port) as used:
            assert (await idle.call(get("/x"))).status == 200
            began = monotonic()
            draining = asyncio.create_task(proxy.app.listener.drain(20.0))
            await asyncio.sleep(0.3)
            answer = await used.call(get("/y"))
            assert (answer.status, answer.get("connection")) == (200, "close")
            assert [await one.end() for one in (idle, silent, used)] == ["eof"] * 3
            assert await draining
            assert 1 <= monotonic() - began < 5


async def test_the_apps_idle_connections_are_kept_through_a_drain(tmp_path: Path) -> None:
    """The app may still need us for its last answers: its connections stay open for as long as the drain may last."""
    async with Target(plain()) as target, sidecar(tmp_path, f"services: {{ user: '{target.url}' }}") as proxy:
        async with Client(proxy.port) as client:
            assert (await client.call(get("/user/x"))).status == 200
            draining = asyncio.create_task(proxy.app.listener.drain(1.5))
            await asyncio.sleep(1.3)
            assert (await client.call(get("/user/y"))).get("connection") == "close"
            assert await draining


async def test_what_is_idle_at_the_end_is_not_reset(tmp_path: Path) -> None:
    """At the limit of a drain, a connection on which nothing is under way ends in an orderly way."""
    async with Target(plain()) as target, sidecar(tmp_path, f"services: {{ user: '{target.url}' }}") as proxy:
        async with Client(proxy.port) as client:
            assert (await client.call(get("/user/x"))).status == 200
            assert await proxy.app.listener.drain(0.05)
            proxy.app.listener.close()
            assert await client.end() == "eof"


async def test_too_few_descriptors_are_an_error(tmp_path: Path) -> None:
    """With a limit of open files that leaves nothing for calls, it does not start, and says which limit it needs."""
    file = tmp_path / "outrider.yaml"
    file.write_text(whole_config("services: { user: 'http://127.0.0.1:9' }"))
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f"ulimit -n 64; exec '{sys.executable}' -m outrider run -c '{file}'",
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    async with asyncio.timeout(PROCESS_PATIENCE):
        _, text = await process.communicate()
    assert process.returncode == 1
    assert b"the limit of open files (ulimit -n 64) is too low" in text
    assert b"at least 1" in text


async def test_sighup_does_not_end_it(tmp_path: Path) -> None:
    """Whatever becomes of the configuration, calls go on."""
    async with Target(plain()) as target, running(tmp_path, f"services: {{ user: '{target.url}' }}") as one:
        async with Client(one.port) as client:
            for _ in range(3):
                one.signal(signal.SIGHUP)
                assert (await client.call(get("/user/x"))).status == 200
        assert one.process.returncode is None
        assert await status_of(one.telemetry, "/readyz") == 200


async def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    """A start that fails names the key and the reason, and exits 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "outrider.yaml"
        file.write_text(whole_config(f"listen: 127.0.0.1:{port}\nservices: {{ user: 'http://127.0.0.1:9' }}"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "outrider", "run", "-c", str(file),
            stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        async with asyncio.timeout(PROCESS_PATIENCE):
            _, text = await process.communicate()
    assert process.returncode == 1
    assert text.decode() == f"outrider: listen: 127.0.0.1:{port} is already in use by another process\n"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_every_address_is_both_families(tmp_path: Path) -> None:
    """`[::]` is reached over IPv4 as well, as is usual."""
    async with Target(plain()) as target:
        text = f"listen: '[::]:0'\nservices: {{ user: '{target.url}' }}"
        async with sidecar(tmp_path, text) as proxy:
            assert (await exchange(proxy.port, get("/user/x", "Connection: close"))).status == 200
