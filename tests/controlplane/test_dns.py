"""Name servers: what is answered for one family is used, whatever happens to the question for the other."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from outrider.controlplane import dns
from outrider.controlplane.dns import Resolver, SourceError
from tests.dns_server import GARBAGE, NXDOMAIN, REFUSED, SERVFAIL, SILENCE, NameServer, name_server

pytest.importorskip("dns", reason="dnspython is not installed")

V4, V6 = "10.0.0.1", "fd00::1"
FAULTS: dict[str, int | str] = {
    "servfail": SERVFAIL,
    "refused": REFUSED,
    "silence": SILENCE,
    "garbage": GARBAGE,
    "nxdomain": NXDOMAIN,
}


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    async with name_server() as server:
        yield server


@pytest.fixture
def resolver(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> Resolver:
    monkeypatch.setattr(dns, "_OTHER_FAMILY", 0.1)
    return Resolver([f"127.0.0.1:{server.port}"], timeout=0.3)


async def test_both_families(server: NameServer, resolver: Resolver) -> None:
    """The addresses of both, and for how long they hold."""
    server.says = {("user.test", "A"): [V4, "10.0.0.2"], ("user.test", "AAAA"): [V6]}
    found, ttl = await resolver.addresses("user.test")
    assert (sorted(found), ttl) == ([V4, "10.0.0.2", V6], 30.0)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("good", "bad", "address"), [("A", "AAAA", V4), ("AAAA", "A", V6)])
async def test_one_family_is_enough(
    server: NameServer, resolver: Resolver, good: str, bad: str, address: str, fault: str
) -> None:
    """Where the other one is refused, fails, or is met with silence or nonsense, what was found is used, soon."""
    server.says = {("user.test", good): [address], ("user.test", bad): FAULTS[fault]}
    started = monotonic()
    found, ttl = await resolver.addresses("user.test")
    assert found == [address]
    assert ttl == (30.0 if fault == "nxdomain" else dns.NO_TTL)
    assert monotonic() - started < 1


async def test_a_family_that_fails_later_keeps_its_addresses(server: NameServer, resolver: Resolver) -> None:
    """A failure takes no endpoint away; a clear no does."""
    server.says = {("user.test", "A"): [V4], ("user.test", "AAAA"): [V6]}
    await resolver.addresses("user.test")
    server.says = {("user.test", "A"): ["10.0.0.2"], ("user.test", "AAAA"): SERVFAIL}
    assert sorted((await resolver.addresses("user.test"))[0]) == ["10.0.0.2", V6]
    del server.says["user.test", "AAAA"]
    assert (await resolver.addresses("user.test"))[0] == ["10.0.0.2"]
    server.says["user.test", "AAAA"] = SERVFAIL
    assert (await resolver.addresses("user.test"))[0] == ["10.0.0.2"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_at_all_is_a_failure(server: NameServer, resolver: Resolver, fault: str) -> None:
    """Where neither family has an answer, or one fails and the other has none, the reason is told in time."""
    server.says = {("user.test", "A"): FAULTS[fault], ("user.test", "AAAA"): FAULTS[fault]}
    started = monotonic()
    with pytest.raises(SourceError, match=r"user\.test"):
        await resolver.addresses("user.test")
    del server.says["user.test", "A"]
    with pytest.raises(SourceError, match=r"user\.test"):
        await resolver.addresses("user.test")
    assert monotonic() - started < 2


async def test_srv_records_without_a_port_are_no_endpoints(server: NameServer, resolver: Resolver) -> None:
    """Neither is a target of ".", which means that the service is not there (RFC 2782)."""
    server.says["s.test", "SRV"] = ["0 1 0 a.test.", "0 1 80 b.test.", "0 0 80 ."]
    records, _ = await resolver.services("s.test")
    assert records == [(0, 1, 80, "b.test")]


async def test_the_system_is_asked_for_each_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dnspython, too, one family is enough."""

    def look_up(name: str, family: int) -> list[str]:
        if family == socket.AF_INET6:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [V4]

    resolver = Resolver(timeout=0.5)
    resolver._dns = None
    monkeypatch.setattr(dns, "system_addresses", look_up)
    assert await resolver.addresses("user.test") == ([V4], dns.NO_TTL)
