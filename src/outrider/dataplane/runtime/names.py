"""The addresses of the host names of targets, looked up beside the calls.

The system is asked (its hosts file and whatever else it consults count, not DNS alone), which may take as long as it
likes and cannot be stopped. So every name has at most two threads of its own, one for each family of addresses, and a
slow name holds up no other. While a name is in use it is looked up again every 30 seconds, since the system does not
say for how long an answer holds. The last answer is kept and used meanwhile, and for as long as there is no new one.
A family for which no answer comes does not hold up the other one (RFC 8305 §3).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio import Task, TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from random import uniform
from time import monotonic
from typing import Final, Protocol

from outrider.blocking import run_apart
from outrider.model.failure import LOCAL_ERRORS
from outrider.model.units import format_duration

log = logging.getLogger("outrider")

# Returns the addresses of a name in one family. It runs in a thread and may block; raises OSError.
LookUp = Callable[[str, int], list[str]]

# In the order in which their addresses are tried.
_FAMILIES: Final = (socket.AF_INET6, socket.AF_INET)
# Seconds between two lookups of a name in use, and after the first of several that fail; the pause doubles.
_EVERY: Final = 30.0
_AGAIN_FIRST: Final = 1.0
# Seconds for which "no such name" holds for a name that has never been resolved.
_REFUSED_FOR: Final = 1.0
# Seconds after which a lookup has failed. Its thread stays until the system lets go of it.
_TIMEOUT: Final = 10.0
# Seconds that the answer for one family waits for the other's.
_OTHER_FAMILY: Final = 0.05
# Seconds that a new connection waits for a fresh answer, when the last one comes from before a pause in calls.
_FRESH_WITHIN: Final = 0.5
# The system's words for a clear no, as opposed to a lookup that has failed.
_NO_ADDRESS: Final = frozenset(
    getattr(socket, code) for code in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, code)
)


class Pool(Protocol):
    """The connections to one endpoint. `open` is how many there are."""

    open: int

    def retire_all_but(self, addresses: frozenset[str]) -> None:
        """Let go of the connections to any other address."""


class UnresolvedError(Exception):
    """The addresses of a name are not known; the message says why. `local`: because this machine is short of something,
    which says nothing about the name."""

    def __init__(self, why: str, local: bool = False) -> None:
        super().__init__(why)
        self.local = local


@dataclass(slots=True, frozen=True)
class _Said:
    """The system's answer for one family: addresses, or why there are none, and whether that is a failure or a
    clear no. `local`: this machine is short of something."""

    addresses: tuple[str, ...] = ()
    why: str = ""
    failed: bool = False
    local: bool = False


class _Name:
    """One name: its last answer, and the lookup under way."""

    __slots__ = (
        "addresses",
        "asked_at",
        "failed",
        "failures",
        "families",
        "host",
        "idle",
        "looking",
        "news",
        "pools",
        "preferred",
        "refused_until",
        "timer",
        "used",
    )

    def __init__(self, host: str) -> None:
        self.host = host
        self.families: dict[int, tuple[str, ...]] = {}
        self.addresses: tuple[str, ...] = ()  # of all families, in turn
        self.preferred: dict[int, str] = {}  # by port: the address to try first
        self.pools: set[Pool] = set()  # with connections to these addresses
        self.used = False  # a connection was wanted since the last lookup
        self.idle = False  # it is not looked up any more, as it is not used: the answer may be old
        self.looking: Task[None] | None = None
        self.asked_at = 0.0
        self.news = asyncio.Event()  # an answer or a failure has come since `asked_at`
        self.failed = _Said()  # why there is no answer, if there is none
        self.failures = 0
        self.refused_until = 0.0
        self.timer: TimerHandle | None = None

    def in_order(self, port: int) -> tuple[str, ...]:
        """The addresses, the one to try first at the front."""
        first = self.preferred.get(port)
        if first not in self.addresses:
            return self.addresses
        return (first, *(one for one in self.addresses if one != first))


class Names:
    """All host names that connections are made to. `look_up` asks the system."""

    def __init__(self, look_up: LookUp | None = None) -> None:
        self.look_up = look_up or system_addresses
        self._names: dict[str, _Name] = {}

    async def find(self, host: str, port: int, timeout: float) -> tuple[str, ...]:
        """The addresses of a host, in the order in which to try them. Returns at once when they are known; waits at
        most `timeout` seconds for the first answer. An address stands for itself. Raises UnresolvedError."""
        if is_address(host):
            return (host,)
        name = self._names.get(host)
        if name is None:
            name = self._names[host] = _Name(host)
        name.used = True
        if name.idle or not name.addresses:
            await self._wait(name, timeout)
        return name.in_order(port)

    def connected(self, host: str, port: int, address: str, pool: Pool) -> None:
        """A connection was made to this address: the next one tries it first. `pool` has the connection; it is told
        when the name no longer has this address."""
        name = self._names.get(host)
        if name is not None:
            name.preferred[port] = address
            name.pools.add(pool)

    def disappointed(self, host: str, port: int, address: str) -> None:
        """The address takes connections but no TLS session came about: the next connection tries another one first."""
        name = self._names.get(host)
        if name is not None and address in name.addresses:
            at = name.addresses.index(address) + 1
            name.preferred[port] = name.addresses[at % len(name.addresses)]

    def close(self) -> None:
        """Look nothing up any more."""
        for name in self._names.values():
            if name.timer is not None:
                name.timer.cancel()
            if name.looking is not None:
                name.looking.cancel()

    async def _wait(self, name: _Name, timeout: float) -> None:
        """Have the name looked up, if that is not under way. Returns with addresses, raises UnresolvedError without."""
        now = monotonic()
        if not name.addresses and now < name.refused_until:
            raise UnresolvedError(name.failed.why, name.failed.local)
        if name.looking is None:
            self._begin(name)
        # An old answer is better than none, but may lead to a stranger by now.
        wait = min(timeout / 2, name.asked_at + _FRESH_WITHIN - now) if name.addresses else timeout
        if wait > 0:
            try:
                async with asyncio.timeout(wait):
                    await name.news.wait()
            except TimeoutError:
                pass
        if not name.addresses:
            failed = name.failed if name.news.is_set() else _Said(why=f"no answer within {format_duration(timeout)}")
            raise UnresolvedError(failed.why, failed.local)

    def _begin(self, name: _Name) -> None:
        name.asked_at = monotonic()
        name.news.clear()
        name.looking = asyncio.get_running_loop().create_task(self._look_up(name))

    async def _look_up(self, name: _Name) -> None:
        loop = asyncio.get_running_loop()
        asking = {family: loop.create_task(self._ask(name.host, family)) for family in _FAMILIES}
        tasks = asking.values()
        try:
            done, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if late and any(task.result().addresses for task in done):
                done, late = await asyncio.wait(tasks, timeout=_OTHER_FAMILY)
                if late:
                    self._take(name, {family: task.result() for family, task in asking.items() if task in done})
                    name.news.set()
            if late:
                await asyncio.wait(late)
            self._end(name, {family: task.result() for family, task in asking.items()})
        finally:
            for task in tasks:
                task.cancel()

    async def _ask(self, host: str, family: int) -> _Said:
        try:
            found = await run_apart(("name", host, family), lambda: self.look_up(host, family), _TIMEOUT)
        except TimeoutError:
            return _Said(why=f"no answer within {format_duration(_TIMEOUT)}", failed=True)
        except socket.gaierror as error:
            return _Said(why=error.strerror or str(error), failed=error.errno not in _NO_ADDRESS)
        except Exception as error:  # whatever it is, the name must be looked up again later
            local = isinstance(error, OSError) and error.errno in LOCAL_ERRORS
            return _Said(why=str(error), failed=True, local=local)
        return _Said(tuple(found), "" if found else "it has no address")

    def _take(self, name: _Name, said: dict[int, _Said]) -> None:
        """Use what has been found. A family whose lookup has failed keeps its last addresses; all of them stay when
        nothing at all was found."""
        if not any(one.addresses for one in said.values()):
            return
        for family, one in said.items():
            if not one.failed:
                name.families[family] = one.addresses
        before = name.addresses
        name.addresses = _in_turn([name.families.get(family, ()) for family in _FAMILIES])
        name.idle = False
        if set(before) - set(name.addresses):
            log.info("addresses of %s: %s; connections to others are retired", name.host, ", ".join(name.addresses))
            for pool in name.pools:
                pool.retire_all_but(frozenset(name.addresses))

    def _end(self, name: _Name, said: dict[int, _Said]) -> None:
        """The lookup is over: take its answer, and see to the next one."""
        self._take(name, said)
        name.looking = None
        name.idle = False
        if any(one.addresses for one in said.values()):
            name.failures = 0
            pause = _EVERY
        else:
            # A family that failed is the reason rather than one that does not exist.
            name.failed = min(said.values(), key=lambda one: not one.failed)
            name.failures += 1
            pause = min(_EVERY, _AGAIN_FIRST * 2.0 ** min(name.failures - 1, 10))
            name.refused_until = monotonic() + _REFUSED_FOR
            if name.addresses and name.failures == 1:
                log.warning("%s cannot be resolved: %s; its last addresses stay", name.host, name.failed.why)
        name.news.set()
        if name.addresses:
            pause *= uniform(0.9, 1.1)
            name.timer = asyncio.get_running_loop().call_later(pause, self._again, name)

    def _again(self, name: _Name) -> None:
        """It is time for the next lookup, if the name is in use."""
        name.timer = None
        name.pools = {pool for pool in name.pools if pool.open}
        if name.used or name.pools:
            name.used = False
            self._begin(name)
        else:
            name.idle = True


def is_address(host: str) -> bool:
    """Whether a host is an IP address, with or without a zone."""
    if ":" in host:
        return True
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return False
    return True


def system_addresses(host: str, family: int) -> list[str]:
    """The addresses of one family that the system's resolver finds, best first (RFC 6724). Blocks; raises OSError."""
    found = socket.getaddrinfo(host, None, family=family, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(_with_zone(entry[4]) for entry in found))


def _with_zone(place: tuple[object, ...]) -> str:
    """The address in a socket address; a link-local one has its zone as a number."""
    return f"{place[0]}%{place[3]}" if len(place) > 3 and place[3] else str(place[0])


def _in_turn(families: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The addresses of several families, one of each in turn (RFC 8305 §4)."""
    return tuple(address for turn in zip_longest(*families) for address in turn if address is not None)
