"""DNS for discovery: with dnspython, which tells for how long an answer holds; without it, as the system does.

Addresses have two families, and each is a question of its own: one that is refused, fails or is met with silence does
not hide the answer to the other. A family that fails keeps its last addresses.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, Final

from outrider.blocking import run_apart
from outrider.dataplane.runtime.names import is_address, system_addresses

# Seconds for which an address that needs no name server holds, and an answer without a TTL, as the system's have none.
FOREVER: Final = 60.0
NO_TTL: Final = 5.0
_DNS_PORT: Final = 53
# Seconds that the answer of one family waits for the other's. In the background there is more time than in a call.
_OTHER_FAMILY: Final = 0.5
# Families whose last addresses are kept, of all names together.
_MOST_KEPT: Final = 2048


class SourceError(Exception):
    """A source of endpoints could not say anything; the message tells why."""


class Resolver:
    """Looks up addresses and SRV records."""

    def __init__(self, servers: Sequence[str] = (), timeout: float = 2.0) -> None:
        """`servers` are `ADDRESS` or `ADDRESS:PORT`; none: those of the system. `timeout` is for one name."""
        self._own_servers = bool(servers)
        self._timeout = timeout
        self._last: dict[tuple[str, str], list[str]] = {}
        self._dns: Any = None
        try:
            import dns.asyncresolver
            import dns.resolver
        except ImportError:
            return
        try:
            self._dns = dns.asyncresolver.Resolver(configure=not servers)
        except dns.resolver.NoResolverConfiguration:
            return  # the system has its own ways
        if servers:
            addresses = [split_port(server) for server in servers]
            self._dns.nameserver_ports = dict(addresses)
            self._dns.nameservers = [address for address, _ in addresses]
        self._dns.lifetime = timeout
        self._dns.cache = None

    async def addresses(self, name: str) -> tuple[list[str], float]:
        """The addresses of a name, and for how many seconds they hold. Raises SourceError."""
        if is_address(name):
            return [name], FOREVER
        if self._dns is not None:
            found, ttl, error = await self._both(name)
            if found:
                return found, ttl
            if self._own_servers:
                raise SourceError(error or f"{name} has no address")
        return await self._from_the_system(name), NO_TTL

    async def services(self, name: str) -> tuple[list[tuple[int, int, int, str]], float]:
        """The SRV records of a name as `(priority, weight, port, target)`, and for how long they hold. Raises
        SourceError."""
        if self._dns is None:
            raise SourceError("dnssrv+ needs dnspython: pip install 'outrider[dns]'")
        import dns.exception

        try:
            answer = await self._dns.resolve(name, "SRV", search=True)
        except (dns.exception.DNSException, OSError) as error:
            raise SourceError(f"no SRV records for {name}: {_said(error)}") from None
        records = [
            (record.priority, record.weight, record.port, record.target.to_text(omit_final_dot=True))
            for record in answer
        ]
        return [one for one in records if one[3] != "." and one[2]], float(answer.rrset.ttl)

    async def _both(self, name: str) -> tuple[list[str], float, str]:
        """What the name server says about both families: addresses, seconds, and why there is none. Raises SourceError
        where a family has failed and the other has no address."""
        asking = {kind: asyncio.create_task(self._one(name, kind)) for kind in ("A", "AAAA")}
        tasks = asking.values()
        try:
            done, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if late and any(isinstance(task.result(), tuple) for task in done):
                done, late = await asyncio.wait(tasks, timeout=_OTHER_FAMILY)
            elif late:
                await asyncio.wait(late)
                late = set()
        finally:
            for task in tasks:
                task.cancel()
        said = {kind: "no answer in time" if task in late else task.result() for kind, task in asking.items()}
        return self._merge(name, said)

    def _merge(self, name: str, said: dict[str, tuple[list[str], float] | str | None]) -> tuple[list[str], float, str]:
        if not any(isinstance(one, tuple) for one in said.values()):
            failed = next((one for one in said.values() if isinstance(one, str)), None)
            if failed is not None:
                raise SourceError(f"{name}: {failed}")
            return [], NO_TTL, f"{name} has no address"
        found: list[str] = []
        ttl = FOREVER
        for kind, one in said.items():
            if isinstance(one, tuple):
                self._keep((name, kind), one[0])
                found += one[0]
                ttl = min(ttl, one[1])
            elif one is None:
                self._last.pop((name, kind), None)
            else:
                found += self._last.get((name, kind), [])
                ttl = min(ttl, NO_TTL)
        return found, ttl, ""

    async def _one(self, name: str, kind: str) -> tuple[list[str], float] | str | None:
        """The addresses of one family and for how long they hold; None if there is clearly none, or why the question
        has failed."""
        import dns.resolver

        try:
            answer = await self._dns.resolve(name, kind, search=True)
        except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
            return None
        except Exception as error:  # whatever a name server can think of must not hide the other family
            return _said(error)
        return [record.address for record in answer], float(answer.rrset.ttl)

    def _keep(self, what: tuple[str, str], addresses: list[str]) -> None:
        self._last.pop(what, None)
        self._last[what] = addresses
        if len(self._last) > _MOST_KEPT:
            del self._last[next(iter(self._last))]

    async def _from_the_system(self, name: str) -> list[str]:
        families = (socket.AF_INET, socket.AF_INET6)
        answers = await asyncio.gather(*(self._ask_the_system(name, family) for family in families))
        found = [address for answer in answers if not isinstance(answer, str) for address in answer]
        if not found:
            raise SourceError(f"{name}: {next((one for one in answers if isinstance(one, str)), 'it has no address')}")
        return found

    async def _ask_the_system(self, name: str, family: int) -> list[str] | str:
        try:
            return await run_apart(("name", name, family), lambda: system_addresses(name, family), self._timeout)
        except TimeoutError:
            return "no answer in time"
        except (OSError, UnicodeError) as error:
            return getattr(error, "strerror", None) or str(error)


def split_port(server: str) -> tuple[str, int]:
    """The address and port of a DNS server: `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:5353`."""
    if server.startswith("["):
        address, _, port = server[1:].partition("]")
        return address, int(port.removeprefix(":") or _DNS_PORT)
    if server.count(":") == 1:
        address, _, port = server.partition(":")
        return address, int(port)
    return server, _DNS_PORT


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
