"""Discovery: what a source says becomes endpoints, and what it fails to say changes nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.config.schema import ClientTls, Target
from outrider.controlplane import discovery, endpoint_list
from outrider.controlplane.discovery import (
    Discovery,
    DnsSource,
    FileSource,
    SrvSource,
    source_for,
)
from outrider.controlplane.dns import Resolver, SourceError, split_port
from outrider.controlplane.endpoints import Discovered, EndpointMaker
from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream.cluster import Cluster, Endpoint
from outrider.model.outcome import FAILURE
from tests.fakes import make_cluster

Record = tuple[int, int, int, str]


class FakeResolver:
    """A name server that says what it is told to; a name that it does not know fails."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.records: dict[str, list[Record]] = {}
        self.ttl = 30.0
        self.asked: list[str] = []

    async def addresses(self, name: str) -> tuple[list[str], float]:
        self.asked.append(name)
        if name not in self.known:
            raise SourceError(f"{name}: no answer")
        return self.known[name], self.ttl

    async def services(self, name: str) -> tuple[list[Record], float]:
        self.asked.append(name)
        if name not in self.records:
            raise SourceError(f"no SRV records for {name}")
        return self.records[name], self.ttl


class Place:
    """A service with these sources, and the name server behind them."""

    def __init__(self, *urls: str, fixed: int = 0, weight: float = 1.0) -> None:
        self.names = FakeResolver()
        self.cluster: Cluster = make_cluster(endpoints=fixed)
        self.maker = EndpointMaker("user", ClientTls(), stats=ClusterStats())
        sources = tuple(Target(url=url, weight=weight) for url in urls)
        self.discovery = Discovery(
            Discovered(self.cluster, self.maker, sources, self.cluster.endpoints), cast(Resolver, self.names)
        )

    @property
    def shown(self) -> list[str]:
        return [endpoint.name for endpoint in self.cluster.endpoints]

    @property
    def by_name(self) -> dict[str, Endpoint]:
        return {endpoint.name: endpoint for endpoint in self.cluster.endpoints}

    async def look(self, number: int = 0) -> float:
        return await self.discovery.look(number)


# ---------------------------------------------------------------- dns+


async def test_every_address_is_an_endpoint() -> None:
    """With the URL's port and path, and the name as Host."""
    place = Place("dns+http://user:3001/api/", weight=2.0)
    place.names.known["user"] = ["10.0.0.1", "fd00::1"]
    await place.look()
    assert set(place.shown) == {"10.0.0.1:3001", "[fd00::1]:3001"}
    for endpoint in place.cluster.endpoints:
        assert (endpoint.authority, endpoint.base_path, endpoint.weight) == (b"user:3001", b"/api", 2.0)


@pytest.mark.parametrize(("url", "port"), [("dns+http://user", 80), ("dns+https://user", 443)])
async def test_the_port_is_the_usual_one(url: str, port: int) -> None:
    """Unless the URL says another."""
    place = Place(url)
    place.names.known["user"] = ["10.0.0.1"]
    await place.look()
    assert [endpoint.port for endpoint in place.cluster.endpoints] == [port]


async def test_fixed_endpoints_stay() -> None:
    """What stands in the configuration is there beside what is found, and never goes."""
    place = Place("dns+http://user:3001", fixed=2)
    fixed = place.cluster.endpoints
    for found in (["10.0.0.1"], ["10.0.0.2", "10.0.0.3"]):
        place.names.known["user"] = found
        await place.look()
        assert place.cluster.endpoints[:2] == fixed
        assert len(place.cluster.endpoints) == 2 + len(found)


async def test_endpoints_that_stay_are_the_same_objects() -> None:
    """With what is known of them: connections, failures, calls in flight."""
    place = Place("dns+http://user:3001")
    place.names.known["user"] = ["10.0.0.1", "10.0.0.2"]
    await place.look()
    first, second = place.by_name["10.0.0.1:3001"], place.by_name["10.0.0.2:3001"]
    place.names.known["user"] = ["10.0.0.3", "10.0.0.1"]
    await place.look()
    assert place.by_name["10.0.0.1:3001"] is first
    assert not first.retired
    assert second.retired
    assert set(place.shown) == {"10.0.0.1:3001", "10.0.0.3:3001"}


async def test_the_order_of_an_answer_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """Name servers turn their answers round and round; nobody is told each time."""
    caplog.set_level(logging.INFO, "outrider")
    place = Place("dns+http://user:3001")
    for found in (["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.1"], ["10.0.0.1", "10.0.0.2"]):
        place.names.known["user"] = found
        await place.look()
    assert len(caplog.records) == 1


async def test_new_endpoints_beside_others_start_slowly() -> None:
    """The first ones do not: there is nobody else."""
    place = Place("dns+http://user:3001")
    place.names.known["user"] = ["10.0.0.1"]
    await place.look()
    place.names.known["user"] = ["10.0.0.1", "10.0.0.2"]
    await place.look()
    first, second = place.by_name["10.0.0.1:3001"], place.by_name["10.0.0.2:3001"]
    assert first.share(second.since) == 1.0
    assert second.share(second.since) == pytest.approx(0.1)


async def test_flips() -> None:
    """A source that changes its mind leaves no trace behind: new endpoints each time, and no trouble from the old."""
    place = Place("dns+http://user:3001")
    seen: set[Endpoint] = set()
    for step in range(20):
        place.names.known["user"] = ["10.0.0.1", "10.0.0.2"] if step % 2 else ["10.0.0.3", "10.0.0.4"]
        await place.look()
        assert not seen & set(place.cluster.endpoints)
        assert all(endpoint.retired for endpoint in seen)
        seen |= set(place.cluster.endpoints)
        place.cluster.observe(place.cluster.endpoints[0], FAILURE, 999.99, 0.01, 1000.0)
    assert len(place.discovery._endpoints) == 2
    assert place.cluster.stats.unhealthy == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.sets(st.integers(1, 5), max_size=4)), max_size=15))
async def test_the_endpoints_are_what_was_said_last(answers: list[set[int] | None]) -> None:
    """Whatever a source says, the last answer with anything in it holds, through failures and empty ones."""
    place = Place("dns+http://user:3001")
    good: set[str] = set()
    for answer in answers:
        before = place.by_name
        if answer is None:
            place.names.known.pop("user", None)
        else:
            place.names.known["user"] = [f"10.0.0.{number}" for number in answer]
            good = {f"10.0.0.{number}:3001" for number in answer} or good
        await place.look()
        assert set(place.shown) == good
        assert all(before[name] is endpoint for name, endpoint in place.by_name.items() if name in before)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("fault", ["no answer", "no endpoints"])
async def test_the_last_good_answer_stays(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """A source that fails or lists nobody is far more often broken than right; that is said once."""
    place = Place("dns+http://user:3001")
    place.names.known["user"] = ["10.0.0.1", "10.0.0.2"]
    await place.look()
    before = place.cluster.endpoints
    for _ in range(3):
        if fault == "no answer":
            place.names.known.clear()
        else:
            place.names.known["user"] = []
        await place.look()
    assert place.cluster.endpoints == before
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "2 stay as they were" in record.getMessage()
    assert "user" in record.getMessage()


async def test_a_first_answer_without_endpoints_is_said() -> None:
    """A name that leads nowhere from the beginning is a failure too, and not silence."""
    place = Place("dns+http://user:3001")
    place.names.known["user"] = []
    assert await place.look() == 0.5
    assert place.shown == []


@pytest.mark.parametrize("before", [[], ["10.0.0.1"]], ids=["first", "later"])
async def test_an_empty_answer_is_logged(before: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """It says which source lists nobody, and whether it ever did."""
    place = Place("dns+http://user:3001")
    if before:
        place.names.known["user"] = before
        await place.look()
    place.names.known["user"] = []
    await place.look()
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "lists no endpoint" in record.getMessage()
    assert ("any more" in record.getMessage()) == bool(before)
    assert f"{len(before)} stay as they were" in record.getMessage()


async def test_after_a_failure_it_is_asked_again_soon_then_later() -> None:
    """Half a second, doubling up to fifteen; a good answer starts that anew."""
    place = Place("dns+http://user:3001")
    assert [await place.look() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    place.names.known["user"] = ["10.0.0.1"]
    assert await place.look() == 30.0
    place.names.known.clear()
    assert await place.look() == 0.5


async def test_an_outage_of_years_does_not_overflow() -> None:
    """The pause stays at its cap."""
    place = Place("dns+http://user:3001")
    place.discovery._failures[0] = 10**6
    assert await place.look() == 15.0


async def test_what_a_name_server_can_think_of_does_not_end_the_watch() -> None:
    """An answer that cannot be used is a failure like any other, and what was good stays."""
    place = Place("dns+http://user:3001")
    place.names.known["user"] = ["10.0.0.1"]
    await place.look()
    place.names.known["user"] = cast(Any, [None, 5])
    assert await place.look() == 0.5
    assert place.shown == ["10.0.0.1:3001"]


@pytest.mark.parametrize(("ttl", "pause"), [(0.0, 1.0), (0.5, 1.0), (5.0, 5.0), (60.0, 60.0), (86400.0, 60.0)])
async def test_an_answer_holds_for_its_ttl_within_bounds(ttl: float, pause: float) -> None:
    """Not less than a second, not more than a minute."""
    place = Place("dns+http://user:3001")
    place.names.known["user"] = ["10.0.0.1"]
    place.names.ttl = ttl
    assert await place.look() == pause


async def test_each_source_fails_for_itself() -> None:
    """One that is broken does not take the other's endpoints, whichever is asked first."""
    place = Place("dns+http://a:1", "dns+http://b:2")
    place.names.known = {"a": ["10.0.0.1"], "b": ["10.0.0.2"]}
    await place.discovery.first()
    del place.names.known["a"]
    place.names.known["b"] = ["10.0.0.3"]
    await place.discovery.first()
    assert set(place.shown) == {"10.0.0.1:1", "10.0.0.3:2"}


async def test_the_same_place_from_two_sources_is_one_endpoint() -> None:
    """It is not called twice as often, and goes only when both have let go of it."""
    place = Place("dns+http://user:1", "dns+http://user:1")
    place.names.known["user"] = ["10.0.0.1"]
    await place.discovery.first()
    assert place.shown == ["10.0.0.1:1"]


async def test_no_more_than_are_good_for_anybody() -> None:
    """A source gone wild does not make thousands of endpoints."""
    place = Place("dns+http://user:1")
    place.names.known["user"] = [f"10.0.{number // 250}.{number % 250}" for number in range(1000)]
    await place.look()
    assert len(place.cluster.endpoints) == 256


# ---------------------------------------------------------------- dnssrv+


def srv(*records: Record) -> Place:
    place = Place("dnssrv+http://_http._tcp.user/api")
    place.names.records["_http._tcp.user"] = list(records)
    place.names.known = {"a": ["10.0.0.1"], "b": ["10.0.0.2"], "c": ["10.0.0.3", "10.0.0.4"]}
    return place


async def test_every_record_is_its_addresses_with_its_port() -> None:
    """Host is the target and port of the record; the path is the URL's."""
    place = srv((0, 10, 3001, "a"), (0, 10, 3002, "c"))
    await place.look()
    assert set(place.shown) == {"10.0.0.1:3001", "10.0.0.3:3002", "10.0.0.4:3002"}
    assert {endpoint.authority for endpoint in place.cluster.endpoints} == {b"a:3001", b"c:3002"}
    assert {endpoint.base_path for endpoint in place.cluster.endpoints} == {b"/api"}


async def test_weights_are_those_of_the_records() -> None:
    """From 0 to 65535; one of 0 beside others gets hardly anything, but something (RFC 2782)."""
    place = srv((0, 65535, 1, "a"), (0, 0, 1, "b"))
    await place.look()
    assert place.by_name["10.0.0.1:1"].weight == 65535.0
    assert place.by_name["10.0.0.2:1"].weight == 0.01
    place = srv((0, 10, 1, "a"), (0, 40, 1, "b"))
    await place.look()
    assert place.by_name["10.0.0.1:1"].weight / place.by_name["10.0.0.2:1"].weight == pytest.approx(0.25)


async def test_a_weight_that_changes_leaves_the_others_alone() -> None:
    """Endpoints whose records stay as they were are the same objects, even if the greatest weight is another."""
    place = srv((0, 10, 1, "a"), (0, 20, 1, "b"))
    await place.look()
    before = place.by_name
    place.names.records["_http._tcp.user"] = [(0, 10, 1, "a"), (0, 500, 1, "b")]
    await place.look()
    assert place.by_name["10.0.0.1:1"] is before["10.0.0.1:1"]
    assert place.by_name["10.0.0.2:1"] is not before["10.0.0.2:1"]


async def test_no_weights_at_all_are_equal_ones() -> None:
    """Where all are 0 nothing is said about shares."""
    place = srv((0, 0, 1, "a"), (0, 0, 1, "b"))
    await place.look()
    assert {endpoint.weight for endpoint in place.cluster.endpoints} == {1.0}


async def test_priorities_are_tiers() -> None:
    """The lowest number first, however the numbers are chosen."""
    place = srv((50, 1, 1, "b"), (10, 1, 1, "a"), (65535, 1, 1, "c"))
    await place.look()
    tiers = {name: endpoint.tier for name, endpoint in place.by_name.items()}
    assert tiers == {"10.0.0.1:1": 0, "10.0.0.2:1": 1, "10.0.0.3:1": 2, "10.0.0.4:1": 2}
    assert place.cluster.tiered


async def test_a_target_that_cannot_be_resolved_any_more_keeps_its_addresses() -> None:
    """A fault of the name server does not take an endpoint away; one that was never known is left out."""
    place = srv((0, 1, 1, "a"), (0, 1, 1, "b"), (0, 1, 1, "unknown"))
    await place.look()
    before = place.by_name
    del place.names.known["a"]
    pause = await place.look()
    assert place.by_name == before
    assert pause == 1.0


async def test_many_dead_targets_never_keep_a_live_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names are met with silence, and wherever a live one stands among them, it is found after a few
    rounds, and each round ends in time."""
    monkeypatch.setattr(discovery, "_AT_A_TIME", 4)
    monkeypatch.setattr(discovery, "_ALL_WITHIN", 0.05)
    place = srv(*((0, 1, 1, f"dead{number:02}") for number in range(30)), (0, 1, 1, "a"))
    known = place.names.addresses

    async def addresses(name: str) -> tuple[list[str], float]:
        if name.startswith("dead"):
            await asyncio.sleep(0.02)
        return await known(name)

    monkeypatch.setattr(place.names, "addresses", addresses)
    began = monotonic()
    rounds = 0
    while place.shown != ["10.0.0.1:1"]:
        rounds += 1
        assert rounds < 20
        await place.look()
    for _ in range(3):
        await place.look()
        assert place.shown == ["10.0.0.1:1"]
    assert monotonic() - began < 3


async def test_no_target_that_can_be_resolved_is_a_failure() -> None:
    """The records alone are not endpoints."""
    place = srv((0, 1, 1, "unknown"))
    assert await place.look() == 0.5
    assert place.shown == []


async def test_the_shortest_ttl_holds() -> None:
    """Of the records and of all their targets."""
    place = srv((0, 1, 1, "a"))
    place.names.ttl = 7.0
    assert await place.look() == 7.0


async def test_a_record_that_comes_and_goes() -> None:
    """The others stay the same objects, whatever the order of the answer."""
    place = srv((0, 1, 1, "a"), (0, 1, 1, "b"))
    await place.look()
    before = place.by_name
    place.names.records["_http._tcp.user"] = [(0, 1, 1, "c"), (0, 1, 1, "b"), (0, 1, 1, "a")]
    await place.look()
    assert all(place.by_name[name] is endpoint for name, endpoint in before.items())
    assert len(place.cluster.endpoints) == 4


# ---------------------------------------------------------------- file+


Write = Callable[[str], None]


@pytest.fixture
def listed(tmp_path: Path) -> tuple[Place, Write]:
    path = tmp_path / "endpoints.yaml"
    return Place(f"file+{path}"), lambda text: cast(None, path.write_text(text))


async def test_a_list_of_urls(listed: tuple[Place, Write]) -> None:
    """Plain, or with a weight; YAML, or JSON, which is YAML."""
    place, write = listed
    write("- http://10.0.0.1:3001/api\n- {url: 'https://user.example', weight: 3}\n")
    assert await place.look() == 1.0 or await place.look() == 0.5
    assert place.shown == ["10.0.0.1:3001", "user.example:443"]
    first, second = place.cluster.endpoints
    assert (first.base_path, first.weight, first.origin) == (b"/api", 1.0, b"http://10.0.0.1:3001")
    assert (second.weight, second.origin) == (3.0, b"https://user.example")
    write(json.dumps(["http://10.0.0.1:3001/api"]))
    await place.look()
    assert place.cluster.endpoints == (first,)


BROKEN = {
    "gone": (None, "No such file"),
    "no YAML": ("- [", "is not YAML"),
    "no text": (b"\xff\xfe\x00", "is not YAML"),
    "no list": ("url: http://a", "expected a list of URLs"),
    "a word": ("http://a", "expected a list of URLs"),
    "no URL": ("- user:3001", "expected a URL"),
    "unknown key": ("- {url: http://a, wight: 2}", ""),
    "weight": ("- {url: http://a, weight: 0}", "greater than 0"),
    "another source": ("- dns+http://a", "only http:// and https://"),
    "port": ("- http://a:99999", ""),
    "huge": ("# " + "x" * (1 << 20), "larger than"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_list_changes_nothing_and_is_named(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The complaint says which file, and what is wrong; it is read again, and a good one is used at once."""
    path = tmp_path / "endpoints.yaml"
    path.write_text("- http://10.0.0.1:3001")
    place = Place(f"file+{path}")
    await place.look()
    before = place.cluster.endpoints
    text, words = BROKEN[what]
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert await place.look() == 0.5
    assert place.cluster.endpoints == before
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    message = record.getMessage()
    assert words in message
    assert str(path) in message or what == "port"
    assert record.exc_info is None
    path.write_text("- http://10.0.0.2:3001")
    await place.look()
    assert place.shown == ["10.0.0.2:3001"]


async def test_an_empty_list_is_not_believed(listed: tuple[Place, Write]) -> None:
    """A file that is just being written is empty for a moment."""
    place, write = listed
    write("- http://a:1")
    await place.look()
    for text in ("[]", ""):
        write(text)
        await place.look()
        assert place.shown == ["a:1"]


async def test_a_file_that_has_not_changed_is_not_read_again(
    listed: tuple[Place, Write], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its bytes are looked at twice a second, not what they mean."""
    place, write = listed
    write("- http://a:1")
    await place.look()
    monkeypatch.setattr(endpoint_list, "parse", None)
    await place.look()
    assert place.shown == ["a:1"]


# ---------------------------------------------------------------- names and numbers


def test_the_url_names_the_source() -> None:
    """`dns+`, `dnssrv+` and `file+`."""
    names = cast(Resolver, FakeResolver())
    kinds = {url: type(source_for(Target(url=url), names)) for url in ("dns+http://a", "dnssrv+http://a", "file+/a")}
    assert kinds == {"dns+http://a": DnsSource, "dnssrv+http://a": SrvSource, "file+/a": FileSource}


@pytest.mark.parametrize(
    ("server", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 53),
        ("192.0.2.1:5353", "192.0.2.1", 5353),
        ("2001:db8::1", "2001:db8::1", 53),
        ("::1", "::1", 53),
        ("fe80::1:2", "fe80::1:2", 53),
        ("[::1]", "::1", 53),
        ("[2001:db8::1]:5353", "2001:db8::1", 5353),
    ],
)
def test_split_port(server: str, address: str, port: int) -> None:
    """The port of a DNS server is 53; an IPv6 address with another one is in brackets."""
    assert split_port(server) == (address, port)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
async def test_an_address_is_not_asked_for(address: str) -> None:
    """A name that is an address already needs no name server."""
    assert await Resolver(["192.0.2.53"]).addresses(address) == ([address], 60.0)


def test_each_server_has_its_own_port() -> None:
    """Two servers on different ports are each asked where they are."""
    resolver = Resolver(["192.0.2.1:5353", "192.0.2.2", "[::1]:54"], timeout=0.5)
    asked = resolver._dns
    if asked is None:
        pytest.skip("dnspython is not installed")
    assert list(asked.nameservers) == ["192.0.2.1", "192.0.2.2", "::1"]
    assert [asked.nameserver_ports.get(one, asked.port) for one in asked.nameservers] == [5353, 53, 54]
    assert asked.lifetime == 0.5
