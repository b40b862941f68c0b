"""Host names: one lookup per name at a time, the last answer kept, and no name in another one's way."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any, cast

import pytest

from outrider.dataplane.runtime import names as module
from outrider.dataplane.runtime.names import Names, UnresolvedError, is_address, system_addresses

V4, V6 = socket.AF_INET, socket.AF_INET6
NOT_FOUND = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
BROKEN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
SOON = 5.0  # seconds in which a thread that is not held up has surely answered


class System:
    """The system's resolver, which says what the test wants, after what the test wants. A name without an answer of a
    family has no address of it."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], list[str] | OSError] = {}
        self.held: dict[tuple[str, int], threading.Event] = {}
        self.asked: list[tuple[str, int]] = []

    def look_up(self, host: str, family: int) -> list[str]:
        self.asked.append((host, family))
        if (gate := self.held.get((host, family))) is not None:
            gate.wait(30)
        said = self.answers.get((host, family), NOT_FOUND)
        if isinstance(said, Exception):
            raise said
        return said

    def hold(self, host: str, *families: int) -> None:
        for family in families:
            self.held[host, family] = threading.Event()

    def release(self) -> None:
        for gate in self.held.values():
            gate.set()
        self.held.clear()


class Pool:
    """A pool that remembers which addresses it was left with."""

    def __init__(self) -> None:
        self.open = 1
        self.left_with: list[set[str]] = []

    def retire_all_but(self, addresses: frozenset[str]) -> None:
        self.left_with.append(set(addresses))


@pytest.fixture
def system() -> System:
    return System()


@pytest.fixture
async def names(system: System) -> AsyncIterator[Names]:
    names = Names(system.look_up)
    yield names
    system.release()
    names.close()
    await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in use is looked up again after 20 ms, and no answer is one after 100 ms."""
    monkeypatch.setattr(module, "_EVERY", 0.02)
    monkeypatch.setattr(module, "_AGAIN_FIRST", 0.01)
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)


async def test_an_address_stands_for_itself(names: Names, system: System) -> None:
    """No address is looked up, of whatever family, with or without a zone."""
    for host in ("127.0.0.1", "::1", "fe80::1%eth0"):
        assert is_address(host)
        assert await names.find(host, 80, SOON) == (host,)
    assert not system.asked
    assert not is_address("127.0.0.1.example")


async def test_a_known_name_costs_no_wait(names: Names, system: System) -> None:
    """Once known, addresses are given at once, without a lookup."""
    system.answers["user", V4] = ["10.0.0.1"]
    assert await names.find("user", 80, SOON) == ("10.0.0.1",)
    system.hold("user", V4, V6)
    asked = len(system.asked)
    looking = names.find("user", 80, SOON)
    with pytest.raises(StopIteration) as returned:
        looking.send(None)
    assert returned.value.value == ("10.0.0.1",)
    assert len(system.asked) == asked == 2


async def test_one_lookup_for_all_who_wait(names: Names, system: System) -> None:
    """However many connections wait for a name, it is looked up once per family, with a thread for each."""
    system.answers["user", V4] = ["10.0.0.1"]
    system.hold("user", V4, V6)
    threads = threading.active_count()
    waiting = [asyncio.create_task(names.find("user", 80, SOON)) for _ in range(50)]
    await until(lambda: len(system.asked) == 2)
    assert threading.active_count() <= threads + 2
    system.release()
    assert await asyncio.gather(*waiting) == [("10.0.0.1",)] * 50
    assert len(system.asked) == 2


async def test_a_slow_name_holds_up_no_other(names: Names, system: System) -> None:
    """While one name hangs, others are found at once; who waits for it waits as long as was said, and no longer."""
    system.hold("slow", V4, V6)
    slow = [asyncio.create_task(names.find("slow", 80, 0.3)) for _ in range(20)]
    await until(lambda: len(system.asked) == 2)
    for number in range(20):
        system.answers[f"user{number}", V4] = ["10.0.0.1"]
        assert await names.find(f"user{number}", 80, SOON) == ("10.0.0.1",)
    assert not any(task.done() for task in slow)
    failed = await asyncio.gather(*slow, return_exceptions=True)
    assert {str(one) for one in failed} == {"no answer within 300ms"}
    assert all(isinstance(one, UnresolvedError) for one in failed)


@pytest.mark.parametrize(("good", "bad"), [(V4, V6), (V6, V4)])
async def test_a_family_without_an_answer_does_not_hide_the_other(
    names: Names, system: System, good: int, bad: int
) -> None:
    """Where one family fails, or its lookup hangs, the addresses of the other are used."""
    for host in ("failing", "silent"):
        system.answers[host, good] = ["a"]
    system.answers["failing", bad] = BROKEN
    system.hold("silent", bad)
    started = monotonic()
    assert await names.find("failing", 80, SOON) == ("a",)
    assert await names.find("silent", 80, SOON) == ("a",)
    assert monotonic() - started < 1


async def test_the_families_take_turns(names: Names, system: System) -> None:
    """Addresses are tried in turn, IPv6 first; the one that last took a connection at this port before all."""
    system.answers["user", V6] = ["6a", "6b"]
    system.answers["user", V4] = ["4a", "4b", "4c"]
    assert await names.find("user", 80, SOON) == ("6a", "4a", "6b", "4b", "4c")
    names.connected("user", 80, "4b", cast(Any, Pool()))
    assert await names.find("user", 80, SOON) == ("4b", "6a", "4a", "6b", "4c")
    assert await names.find("user", 81, SOON) == ("6a", "4a", "6b", "4b", "4c")
    names.disappointed("user", 80, "4c")
    assert (await names.find("user", 80, SOON))[0] == "6a"


async def test_no_such_name_holds_for_a_moment(names: Names, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not exist is not asked for again with every call, but soon; the reason is the system's."""
    for _ in range(20):
        with pytest.raises(UnresolvedError, match="not known"):
            await names.find("user", 80, SOON)
    assert len(system.asked) == 2
    monkeypatch.setattr(module, "_REFUSED_FOR", 0.0)
    system.answers["user", V4] = ["10.0.0.1"]
    await until(lambda: names._names["user"].refused_until < monotonic())
    assert await names.find("user", 80, SOON) == ("10.0.0.1",)


async def test_a_resolver_that_breaks_is_asked_again(
    names: Names, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system's resolver does, a later lookup is possible."""
    monkeypatch.setattr(module, "_REFUSED_FOR", 0.0)
    system.answers["user", V4] = system.answers["user", V6] = cast(Any, RuntimeError("out of order"))
    with pytest.raises(UnresolvedError, match="out of order"):
        await names.find("user", 80, SOON)
    system.answers["user", V4] = ["10.0.0.1"]
    assert await names.find("user", 80, SOON) == ("10.0.0.1",)


async def test_out_of_descriptors_is_not_the_names_fault(names: Names, system: System) -> None:
    """A lookup that fails because this machine is short of something says so."""
    system.answers["user", V4] = system.answers["user", V6] = OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(UnresolvedError) as failed:
        await names.find("user", 80, SOON)
    assert failed.value.local


@pytest.mark.usefixtures("quickly")
async def test_a_name_in_use_is_followed(names: Names, system: System) -> None:
    """While there are connections the name is looked up again and again; those to addresses that it no longer has are
    retired."""
    system.answers["user", V4] = ["a", "b"]
    await names.find("user", 80, SOON)
    pool = Pool()
    names.connected("user", 80, "a", cast(Any, pool))
    system.answers["user", V4] = ["b", "c"]
    await until(lambda: pool.left_with)
    assert pool.left_with == [{"b", "c"}]
    assert await names.find("user", 80, SOON) == ("b", "c")


@pytest.mark.usefixtures("quickly")
async def test_the_last_answer_stays(names: Names, system: System, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong later, failure, silence, or no address at all, the last answer is used without waiting, and
    the log says so once."""
    system.answers["user", V4] = ["a"]
    await names.find("user", 80, SOON)
    pool = Pool()
    names.connected("user", 80, "a", cast(Any, pool))
    wrong: tuple[list[str] | OSError, ...] = (BROKEN, NOT_FOUND, [])
    for said in wrong:
        asked = len(system.asked)
        system.answers["user", V4] = said
        await until(lambda: len(system.asked) >= asked + 4)
        assert await names.find("user", 80, SOON) == ("a",)
    system.hold("user", V4, V6)
    asked = len(system.asked)
    await until(lambda: len(system.asked) >= asked + 2)
    await asyncio.sleep(0.15)  # longer than a lookup may take
    assert await names.find("user", 80, SOON) == ("a",)
    assert not pool.left_with
    assert len([record for record in caplog.records if "cannot be resolved" in record.getMessage()]) == 1


@pytest.mark.usefixtures("quickly")
async def test_a_family_that_fails_later_keeps_its_addresses(names: Names, system: System) -> None:
    """A family that fails keeps its last addresses beside the new ones of the other; one that says there is none loses
    them."""
    system.answers["user", V6] = ["6"]
    system.answers["user", V4] = ["4"]
    await names.find("user", 80, SOON)
    pool = Pool()
    names.connected("user", 80, "4", cast(Any, pool))
    system.answers["user", V6] = BROKEN
    system.answers["user", V4] = ["new"]
    await until(lambda: pool.left_with)
    assert await names.find("user", 80, SOON) == ("6", "new")
    system.answers["user", V6] = NOT_FOUND
    await until(lambda: pool.left_with[1:])
    assert pool.left_with[1] == {"new"}


@pytest.mark.usefixtures("quickly")
async def test_an_unused_name_is_left_alone(names: Names, system: System) -> None:
    """A name without connections and calls is not looked up; the first call afterwards gets a fresh answer, or the old
    one when there is none soon."""
    system.answers["user", V4] = ["old"]
    await names.find("user", 80, SOON)
    pool = Pool()
    names.connected("user", 80, "old", cast(Any, pool))
    pool.open = 0
    await until(lambda: names._names["user"].idle)
    asked = len(system.asked)
    await asyncio.sleep(0.1)
    assert len(system.asked) == asked
    system.answers["user", V4] = ["new"]
    assert await names.find("user", 80, SOON) == ("new",)
    await until(lambda: names._names["user"].idle)
    system.hold("user", V4, V6)
    started = monotonic()
    assert await names.find("user", 80, 0.1) == ("new",)
    assert monotonic() - started < 1


def test_the_system_is_asked() -> None:
    """By default, the addresses come from the system's resolver."""
    assert "127.0.0.1" in system_addresses("localhost", V4)
