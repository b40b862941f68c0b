"""A small name server that does as it is told: it answers each kind of question in its own way, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

# What it may say to a kind of question, beside addresses.
SILENCE, GARBAGE = "silence", "garbage"
# Response codes (RFC 1035 §4.1.1).
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5


class NameServer(asyncio.DatagramProtocol):
    """`says` has, by name and kind of record, a list of records as text, a response code, SILENCE or GARBAGE. What is
    not in it has no record of that kind."""

    def __init__(self) -> None:
        self.says: dict[tuple[str, str], list[str] | int | str] = {}
        self.asked: list[tuple[str, str]] = []
        self.port = 0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        import dns.message
        import dns.rdatatype
        import dns.rrset

        query = dns.message.from_wire(data)
        (question,) = query.question
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        said = self.says.get((name, kind), NOERROR)
        if said == SILENCE:
            return
        if said == GARBAGE:
            self._transport.sendto(data[:2] + b"\xff" * 40, addr)
            return
        answer = dns.message.make_response(query)
        if isinstance(said, list):
            answer.answer.append(dns.rrset.from_text(question.name, 30, "IN", kind, *said))
        else:
            answer.set_rcode(int(said))
        self._transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """A name server on a UDP port of its own."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, ("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()
