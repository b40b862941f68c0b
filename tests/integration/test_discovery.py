"""Endpoints that come and go: in a file, and in a real name server."""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
import os
import random
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from tests.dns_server import REFUSED, SERVFAIL, SILENCE
from tests.dns_server import NameServer as ScriptedServer
from tests.dns_server import name_server as scripted_server
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
    silent,
    slow,
)
from tests.integration.load import in_turn, under_load

DNSMASQ = shutil.which("dnsmasq") or shutil.which("dnsmasq", path="/usr/sbin:/usr/local/sbin")
needs_dns = pytest.mark.skipif(DNSMASQ is None, reason="dnsmasq is not installed (Debian package dnsmasq-base)")
# Loopback addresses other than 127.0.0.1, so that several endpoints can share a port.
HOSTS = [f"127.0.0.{number}" for number in range(21, 27)]


def names(proxy: Sidecar, cluster: int = 0) -> set[str]:
    """The endpoints as `host:port`."""
    return {endpoint.name for endpoint in proxy.app.runtime.compiled.clusters[cluster].endpoints}


def name(target: Target) -> str:
    return f"{target.host}:{target.port}"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING and one.name == "outrider"]


def get_and_post(number: int) -> bytes:
    return request("POST", "/user/x", b"charge %d" % number) if number % 2 else get(f"/user/{number}")


# ---------------------------------------------------------------- files


def write(file: Path, content: object) -> None:
    """Put a new list in place, whole at any moment."""
    new = file.with_suffix(".new")
    new.write_text(content if isinstance(content, str) else json.dumps(content))
    os.replace(new, file)


def from_file(file: Path, more: str = "") -> str:
    return f"services:\n  user:\n    url: 'file+{file}'\n    balance: round-robin\n    " + more


async def test_endpoints_of_a_file_come_and_go(outrider: Outrider, tmp_path: Path) -> None:
    """A list is read again when it changes: endpoints are added and removed while calls pass."""
    file = tmp_path / "users.yaml"
    async with Target(plain()) as one, Target(plain()) as two, Target(plain()) as three:
        write(file, f"- {one.url}\n- url: {two.url}\n  weight: 3\n")
        async with outrider(from_file(file)) as proxy:
            assert names(proxy) == {name(one), name(two)}
            tally = await in_turn(proxy.port, 1, 40, get_and_post)
            assert (tally.good, len(one.seen), len(two.seen)) == (40, 10, 30)

            write(file, [two.url, three.url])
            await eventually(lambda: names(proxy) == {name(two), name(three)}, "one added, one removed")
            tally = await in_turn(proxy.port, 1, 40, get_and_post)
            assert tally.good == 40
            assert (len(one.seen), len(two.seen) > 30, len(three.seen) > 0) == (10, True, True)


UNUSABLE: dict[str, tuple[str | None, str]] = {
    "not-yaml": ("- [unclosed", "is not YAML"),
    "not-a-list": ("{}", "expected a list"),
    "empty": ("[]", "no endpoint"),
    "not-a-url": ("- ftp://user", "not a scheme"),
    "weight": ("- {url: 'http://127.0.0.1:1', weight: -1}", "greater than 0"),
    "discovery": ("- dns+http://user:80", "only http:// and https://"),
    "gone": (None, "No such file"),
}


async def test_a_broken_file_changes_nothing(
    outrider: Outrider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be used leaves the endpoints as they were, is said once with the name of the file, and is over with
    the next good list."""
    files = {case: tmp_path / f"{case}.yaml" for case in UNUSABLE}
    text = "services:\n" + "".join(f"  {case}: 'file+{file}'\n" for case, file in files.items())
    async with Target(plain()) as one, Target(plain()) as two:
        for file in files.values():
            write(file, [one.url])
        async with outrider(text) as proxy, Client(proxy.port) as client:
            for case, (content, _) in UNUSABLE.items():
                if content is None:
                    files[case].unlink()
                else:
                    write(files[case], content)
            await eventually(lambda: len(warnings(caplog)) == len(files), "a complaint about each")
            for number, case in enumerate(files):
                assert names(proxy, number) == {name(one)}, case
                assert (await client.call(get(f"/{case}/x"))).status == 200
            for file in files.values():
                write(file, [two.url])
            for number, case in enumerate(files):
                await eventually(lambda: names(proxy, number) == {name(two)}, f"the next list of {case}")
    assert len(warnings(caplog)) == len(files)
    for case, (_, complaint) in UNUSABLE.items():
        (said,) = (line for line in warnings(caplog) if line.startswith(f"endpoints of {case}: "))
        assert complaint in said
        assert "1 stay as they were" in said
        assert str(files[case]) in said


async def test_a_file_that_comes_later(outrider: Outrider, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without any endpoint calls are refused as such, nothing is sent anywhere, and the first list ends it."""
    file = tmp_path / "users.yaml"
    async with Target(plain()) as target, outrider(from_file(file)) as proxy:
        answer = await exchange(proxy.port, request("POST", "/user/x", b"charge"))
        assert answer.status == 503
        assert b'"error": "NO_ENDPOINT"' in answer.body
        assert str(file) in warnings(caplog)[0]
        write(file, [target.url])
        await eventually(lambda: names(proxy), "an endpoint")
        assert (await exchange(proxy.port, request("POST", "/user/x", b"charge"))).status == 200
    assert target.bodies() == [b"charge"]


async def test_a_call_under_way_outlives_its_endpoint(outrider: Outrider, tmp_path: Path) -> None:
    """A call at an endpoint that is taken off the list is finished there, and its connection is not kept."""
    file = tmp_path / "users.yaml"
    gate = asyncio.Event()

    async def held(one: Exchange) -> None:
        await one.body()
        await gate.wait()
        await one.send(response(200, b"old"))

    async with Target(held) as old, Target(plain(200, b"new")) as new:
        write(file, [old.url])
        async with outrider(from_file(file)) as proxy:
            pending = asyncio.create_task(exchange(proxy.port, request("POST", "/user/x", b"charge")))
            await eventually(lambda: old.busy, "a call under way")
            write(file, [new.url])
            await eventually(lambda: names(proxy) == {name(new)}, "the new one")
            assert (await exchange(proxy.port, get("/user/x"))).body == b"new"
            assert not pending.done()
            gate.set()
            assert (await pending).body == b"old"
            await eventually(lambda: old.closed == 1, "the connection closed")


async def test_an_endpoint_that_was_alone_for_a_while_is_not_forgotten(outrider: Outrider, tmp_path: Path) -> None:
    """A suspect that is being probed while the others leave the list gets calls again when they are back."""
    file = tmp_path / "users.yaml"
    script = [plain(500), silent, plain()]
    async with Target(plain()) as good, Target(script) as suspect:
        write(file, [good.url, suspect.url])
        more = "attempt_timeout: 1500ms\n    ejection: { base: 50ms, max: 50ms }\n    retry: { budget: 100% }"
        async with outrider(from_file(file, more)) as proxy, Client(proxy.port) as client:
            while not suspect.seen:
                assert (await client.call(get("/user/x"))).status == 200
            await asyncio.sleep(0.06)
            probe = asyncio.create_task(_until(proxy.port, suspect, 2))
            await eventually(lambda: len(suspect.seen) == 2, "a probe")
            write(file, [suspect.url])
            await eventually(lambda: names(proxy) == {name(suspect)}, "alone")
            assert await probe == 200  # tried again there
            write(file, [good.url, suspect.url])
            await eventually(lambda: len(names(proxy)) == 2, "both")
            before = len(suspect.seen)
            async with asyncio.timeout(3):
                while len(suspect.seen) < before + 3:
                    assert (await client.call(get("/user/x"))).status == 200
                    await asyncio.sleep(0.005)


async def _until(port: int, target: Target, seen: int) -> int:
    """GETs until one of them has been the `seen`-th at the target; its status."""
    while True:
        answer = await exchange(port, get("/user/x"))
        if len(target.seen) >= seen:
            return answer.status


async def test_a_file_replaces_all_endpoints_under_load(outrider: Outrider, tmp_path: Path) -> None:
    """A rolling replacement of every endpoint loses no call, whatever its method."""
    file = tmp_path / "users.yaml"
    async with AsyncExitStack() as stack:
        old = [await stack.enter_async_context(Target(slow(0.003))) for _ in range(2)]
        new = [await stack.enter_async_context(Target(slow(0.003))) for _ in range(2)]
        write(file, [target.url for target in old])
        async with outrider(
            from_file(file, "balance: least-latency").replace("balance: round-robin\n    ", "")
        ) as proxy:
            async with under_load(proxy.port, 6, get_and_post) as tally:
                current = list(old)
                for leaving, coming in zip(old, new, strict=True):
                    current.append(coming)
                    current.remove(leaving)
                    write(file, [target.url for target in current])
                    await eventually(lambda: name(leaving) not in names(proxy), "one replaced")
                    await eventually(lambda: not leaving.busy, "its last call")
                    await leaving.stop()
                    await eventually(lambda: coming.seen, "calls at the new one")
            assert names(proxy) == {name(target) for target in new}
    assert tally.count > 100
    assert tally.failed == 0, tally.statuses()


# ---------------------------------------------------------------- names


class NameServer:
    """A dnsmasq on a port of its own. Knows what stands in `records` (options of dnsmasq) and in its hosts file."""

    def __init__(self, folder: Path) -> None:
        self._hosts = folder / "hosts"
        self._process: asyncio.subprocess.Process | None = None
        self.port = _free_port()

    def hosts(self, **addresses: list[str]) -> None:
        """From now on these names, under .test, have these addresses, with a TTL of one second."""
        lines = [f"{address} {name}.test\n" for name, found in addresses.items() for address in found]
        self._hosts.write_text("".join(lines))
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    async def start(self, *records: str) -> None:
        """Serve until stopped."""
        assert DNSMASQ is not None
        self._hosts.touch()
        self._process = await asyncio.create_subprocess_exec(
            DNSMASQ, "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", f"--user={getpass.getuser()}",
            "--no-resolv", "--no-hosts", "--local=/test/", "--local-ttl=1", f"--addn-hosts={self._hosts}",
            "--listen-address=127.0.0.1", "--bind-interfaces", f"--port={self.port}", *records,
            stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await eventually(self._listening, "dnsmasq listens")

    def _listening(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, "dnsmasq has ended"
        with socket.socket() as sock:  # it listens on TCP after UDP
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    async def stop(self) -> None:
        """Answer nothing any more."""
        if self._process is not None:
            self._process.terminate()
            await self._process.wait()
            self._process = None

    async def restart(self, *records: str) -> None:
        """The same with other records."""
        await self.stop()
        await self.start(*records)


def _free_port() -> int:
    """A port for UDP and TCP that nobody gets by chance while the server is restarted."""
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            with socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
                udp.bind(("127.0.0.1", port))
                tcp.bind(("127.0.0.1", port))
            return port
        except OSError:
            continue


@asynccontextmanager
async def name_server(folder: Path, *records: str, **addresses: list[str]) -> AsyncIterator[NameServer]:
    """A name server that knows these addresses and records."""
    folder.mkdir(exist_ok=True)
    server = NameServer(folder)
    server.hosts(**addresses)
    await server.start(*records)
    try:
        yield server
    finally:
        await server.stop()


async def same_port(stack: AsyncExitStack, count: int) -> list[Target]:
    """Targets on several addresses that share a port."""
    first = await stack.enter_async_context(Target(slow(0.002), host=HOSTS[0]))
    rest = [await stack.enter_async_context(Target(slow(0.002), first.port, host=host)) for host in HOSTS[1:count]]
    return [first, *rest]


def from_dns(server: NameServer, url: str, more: str = "balance: round-robin") -> str:
    return f"""
dns: {{ servers: ["127.0.0.1:{server.port}"], timeout: 500ms }}
services:
  user:
    url: '{url}'
    {more}
"""


@needs_dns
async def test_every_address_is_an_endpoint(
    outrider: Outrider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All addresses of a name share the calls, and are asked for by that name; that a name server turns their order
    is no change."""
    caplog.set_level(logging.INFO, "outrider")
    async with AsyncExitStack() as stack:
        targets = await same_port(stack, 3)
        port = targets[0].port
        async with name_server(tmp_path / "dns", user=HOSTS[:3]) as server:
            async with outrider(from_dns(server, f"dns+http://user.test:{port}/base")) as proxy:
                assert names(proxy) == {f"{host}:{port}" for host in HOSTS[:3]}
                tally = await in_turn(proxy.port, 2, 60, get_and_post)
                assert tally.good == 60
                assert [len(target.seen) for target in targets] == [20, 20, 20]
                assert {seen.get("host") for target in targets for seen in target.seen} == {f"user.test:{port}"}
                assert all(seen.path.startswith("/base/") for target in targets for seen in target.seen)
                await asyncio.sleep(1.3)
    lines = [one.getMessage() for one in caplog.records if one.getMessage().startswith("endpoints of user")]
    assert len(lines) == 1, lines


@needs_dns
async def test_an_answer_holds_for_its_ttl(outrider: Outrider, tmp_path: Path) -> None:
    """A name with a TTL of one second is followed at once, one with a TTL of half a minute is not asked for again
    before that, and a name that flips is followed as often as it does."""
    async with AsyncExitStack() as stack:
        targets = await same_port(stack, 2)
        port = targets[0].port

        def records(at: int) -> list[str]:
            return [f"--host-record=quick.test,{HOSTS[at]},1", f"--host-record=lasting.test,{HOSTS[at]},30"]

        async with name_server(tmp_path / "dns", *records(0)) as server:
            text = from_dns(server, f"dns+http://quick.test:{port}") + f"  lasting: 'dns+http://lasting.test:{port}'\n"
            async with outrider(text) as proxy:
                for at in (1, 0):
                    await server.restart(*records(at))
                    await eventually(lambda: names(proxy) == {name(targets[at])}, "the other address")
                    before = len(targets[at].seen)
                    assert (await exchange(proxy.port, request("POST", "/user/x", b"charge"))).status == 200
                    assert len(targets[at].seen) == before + 1
                    assert names(proxy, 1) == {name(targets[0])}


@needs_dns
async def test_without_an_answer_the_last_one_holds(
    outrider: Outrider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A name server that is silent, or that suddenly knows no address, changes nothing, and says so once."""
    async with AsyncExitStack() as stack:
        targets = await same_port(stack, 2)
        port = targets[0].port
        async with name_server(tmp_path / "dns", user=HOSTS[:2]) as server:
            async with outrider(from_dns(server, f"dns+http://user.test:{port}")) as proxy:
                both = {name(target) for target in targets}
                await server.stop()
                await eventually(lambda: len(warnings(caplog)) == 1, "a complaint")
                tally = await in_turn(proxy.port, 2, 20, get_and_post)
                assert (tally.good, names(proxy)) == (20, both)

                server.hosts(user=HOSTS[:1])
                await server.start()
                await eventually(lambda: names(proxy) == {name(targets[0])}, "an answer again")

                server.hosts()
                await eventually(lambda: len(warnings(caplog)) == 2, "another complaint")
                tally = await in_turn(proxy.port, 2, 20, get_and_post)
                assert (tally.good, names(proxy)) == (20, {name(targets[0])})
    assert all("user.test" in line for line in warnings(caplog))


@needs_dns
async def test_dns_replaces_all_endpoints_under_load(outrider: Outrider, tmp_path: Path) -> None:
    """A rolling replacement of every endpoint, found by DNS alone, loses no call, whatever its method."""
    async with AsyncExitStack() as stack:
        targets = await same_port(stack, 4)
        port = targets[0].port
        async with name_server(tmp_path / "dns", user=HOSTS[:2]) as server:
            text = from_dns(server, f"dns+http://user.test:{port}", "balance: least-latency")
            async with outrider(text) as proxy, under_load(proxy.port, 6, get_and_post) as tally:
                for wanted in (HOSTS[:4], HOSTS[2:4]):
                    server.hosts(user=wanted)
                    expected = {f"{host}:{port}" for host in wanted}
                    await eventually(lambda: names(proxy) == expected, "the new addresses")
                for target in targets[:2]:
                    await eventually(lambda: not target.busy, "the last call")
                    await target.stop()
                so_far = tally.count
                await eventually(lambda: tally.count > so_far + 60, "calls at the new ones")
    assert all(len(target.seen) > 10 for target in targets)
    assert tally.failed == 0, tally.statuses()


# ---------------------------------------------------------------- SRV records


def srv(target: str, port: int, priority: int, weight: int) -> str:
    return f"--srv-host=_http._tcp.user.test,{target}.test,{port},{priority},{weight}"


@needs_dns
async def test_srv_weights(outrider: Outrider, tmp_path: Path) -> None:
    """Each record brings its own port and share; a weight of 0 beside the greatest there is means hardly ever."""
    async with Target(slow(0.003)) as much, Target(slow(0.003)) as little, Target(slow(0.003)) as none:
        records = [
            srv("a", much.port, 0, 65535),
            srv("a", little.port, 0, 21845),
            srv("b", none.port, 0, 0),
        ]
        async with name_server(tmp_path / "dns", *records, a=["127.0.0.1"], b=["127.0.0.1"]) as server:
            async with outrider(from_dns(server, "dnssrv+http://_http._tcp.user.test")) as proxy:
                assert names(proxy) == {name(target) for target in (much, little, none)}
                tally = await in_turn(proxy.port, 4, 240, get_and_post)
    assert tally.failed == 0
    assert len(much.seen) == pytest.approx(180, abs=4)
    assert len(little.seen) == pytest.approx(60, abs=4)
    assert len(none.seen) <= 1
    assert {seen.get("host") for seen in much.seen} == {f"a.test:{much.port}"}


@needs_dns
async def test_srv_records_that_all_weigh_nothing_share(outrider: Outrider, tmp_path: Path) -> None:
    """Weights of 0 throughout mean that there is nothing to choose between them."""
    async with Target(plain()) as one, Target(plain()) as two:
        records = [srv("a", one.port, 5, 0), srv("a", two.port, 5, 0)]
        async with name_server(tmp_path / "dns", *records, a=["127.0.0.1"]) as server:
            async with outrider(from_dns(server, "dnssrv+http://_http._tcp.user.test")) as proxy:
                await in_turn(proxy.port, 1, 40, get_and_post)
    assert (len(one.seen), len(two.seen)) == (20, 20)


@needs_dns
async def test_srv_priorities(outrider: Outrider, tmp_path: Path) -> None:
    """Records of a lower priority stand by: they get calls when the others cannot be reached, without one being lost,
    and none any more when those are back."""
    async with Target(plain()) as first, Target(plain()) as standby:
        records = [srv("a", first.port, 0, 10), srv("a", standby.port, 10, 65535)]
        async with name_server(tmp_path / "dns", *records, a=["127.0.0.1"]) as server:
            more = "ejection: { base: 50ms, max: 50ms }\n    retry: { budget: 100% }"
            async with outrider(from_dns(server, "dnssrv+http://_http._tcp.user.test", more)) as proxy:
                assert (await in_turn(proxy.port, 4, 60, get_and_post)).good == 60
                assert (len(first.seen), len(standby.seen)) == (60, 0)
                await first.stop()
                tally = await in_turn(proxy.port, 4, 60, get_and_post)
                assert (tally.good, len(standby.seen)) == (60, 60)

                async with Target(plain(), first.port) as again:
                    async with asyncio.timeout(4):
                        while any(one.out or one.run for one in proxy.app.runtime.compiled.clusters[0].endpoints):
                            assert (await exchange(proxy.port, get("/user/x"))).status == 200
                            await asyncio.sleep(0.01)
                    before = len(standby.seen)
                    assert (await in_turn(proxy.port, 4, 40, get_and_post)).good == 40
                    assert (len(again.seen) > 40, len(standby.seen)) == (True, before)


# ---------------------------------------------------------------- name servers that answer in part


def one_address(dns: ScriptedServer, target: Target) -> str:
    """A configuration whose name server says whatever the test makes it say."""
    return (
        f"dns: {{ servers: ['127.0.0.1:{dns.port}'], timeout: 400ms }}\n"
        f"services: {{ user: 'dns+http://user.test:{target.port}' }}"
    )


@pytest.mark.parametrize("fault", [SERVFAIL, REFUSED, SILENCE], ids=["servfail", "refused", "silence"])
async def test_one_family_without_an_answer_hides_no_endpoint(outrider: Outrider, fault: int | str) -> None:
    """A name whose A records are known is reached, whatever happens to the question for AAAA."""
    pytest.importorskip("dns")
    async with Target(plain()) as target, scripted_server() as dns:
        dns.says = {("user.test", "A"): [target.host], ("user.test", "AAAA"): fault}
        async with outrider(one_address(dns, target)) as proxy:
            assert names(proxy) == {name(target)}
            assert (await exchange(proxy.port, get("/user/x"))).status == 200


async def test_dead_targets_of_srv_records_hold_nothing_up(outrider: Outrider) -> None:
    """With 40 records whose targets cannot be resolved, and one that can, that one is used within two rounds of
    lookups, and the sidecar is ready."""
    pytest.importorskip("dns")
    async with Target(plain()) as target, scripted_server() as dns:
        dns.says["s.test", "SRV"] = [f"0 1 80 dead{number}.test." for number in range(40)] + [
            f"0 1 {target.port} ok.test."
        ]
        dns.says |= {(f"dead{number}.test", kind): SILENCE for number in range(40) for kind in ("A", "AAAA")}
        dns.says["ok.test", "A"] = [target.host]
        text = f"dns: {{ servers: ['127.0.0.1:{dns.port}'], timeout: 300ms }}\n"
        text += "services: { user: 'dnssrv+http://s.test' }"
        started = monotonic()
        async with outrider(text) as proxy:
            assert monotonic() - started < 3
            assert names(proxy) == {name(target)}
            assert (await exchange(proxy.port, get("/user/x"))).status == 200
            assert proxy.app.runtime.ready


async def test_a_fifo_in_place_of_a_list_stops_nothing(
    outrider: Outrider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls to other services pass, the reason is logged, and a list that takes its place is used."""
    file = tmp_path / "users.yaml"
    os.mkfifo(file)
    async with Target(plain()) as target:
        text = f"services: {{ user: 'file+{file}', other: {{ url: '{target.url}' }} }}"
        async with outrider(text) as proxy:
            assert (await exchange(proxy.port, get("/other/x"))).status == 200
            assert any("is not a regular file" in line for line in warnings(caplog))
            write(file, [target.url])
            await eventually(lambda: names(proxy) == {name(target)}, "the list")
