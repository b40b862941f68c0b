"""The fault lab: make a service fail on purpose, to see what becomes of its callers.

While a service has faults, connections to its endpoints make a detour through a relay in this process, which does to
their bytes what a broken network or target would do. So everything behind it is real: the path of a call knows nothing
of faults, and costs nothing without them. Outrider never pipelines, so the first bytes after an answer begin a request,
and for every request the dice are thrown anew. After Toxiproxy (Shopify), which does this per connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import randbytes, random
from time import monotonic
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from outrider.config.checks import Status
from outrider.config.scalars import Duration, Share, Size
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.upstream.cluster import Cluster, Endpoint

log = logging.getLogger("outrider")

_LONGEST = 3600.0
_PIECE = 64 * 1024
# Bandwidth is dealt out in portions of so many seconds.
_PORTION = 0.05
_UPKEEP = 0.1


def _within_an_hour(value: float) -> float:
    if not 0 < value <= _LONGEST:
        raise ValueError("a fault lasts for up to one hour")
    return value


class FaultOrder(BaseModel):
    """What `POST /api/v1/faults` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    service: str
    kind: Literal["latency", "reset", "hang", "truncate", "bandwidth", "status", "garbage"]
    probability: Share = 1.0
    lasts: Annotated[Duration, Field(alias="for")] = 60.0
    delay: Duration = 1.0
    """latency: how much is added."""
    status: Status = 503
    """status: what is answered."""
    rate: Size = 10 * 1024
    """bandwidth: bytes per second of an answer."""


@dataclass(slots=True)
class Fault:
    """One fault under way, until `until` (monotonic seconds); `met` counts the requests it has hit."""

    number: int
    order: FaultOrder
    until: float
    met: int = 0

    def strikes(self, now: float) -> bool:
        """Whether it hits this request."""
        if now >= self.until or random() >= self.order.probability:
            return False
        self.met += 1
        return True

    def shown(self) -> dict[str, object]:
        """As the admin port shows it."""
        order = self.order
        shown: dict[str, object] = {
            "id": self.number,
            "service": order.service,
            "kind": order.kind,
            "probability": f"{order.probability:.0%}",
            "seconds_left": round(max(0.0, self.until - monotonic()), 1),
            "met": self.met,
        }
        if order.kind == "latency":
            shown["delay_seconds"] = order.delay
        elif order.kind == "status":
            shown["status"] = order.status
        elif order.kind == "bandwidth":
            shown["bytes_per_second"] = order.rate
        return shown


class FaultError(ValueError):
    """An order that cannot be carried out; the message says why."""


@dataclass(slots=True)
class FaultLab:
    """All faults of this process, by service."""

    clusters: dict[str, Cluster]
    faults: list[Fault] = field(default_factory=list)
    _relays: dict[Endpoint, Relay] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=lambda: count(1))
    _upkeep: asyncio.Task[None] | None = None

    async def add(self, order: FaultOrder) -> Fault:
        """Begin a fault. Raises FaultError."""
        cluster = self.clusters.get(order.service)
        if cluster is None:
            raise FaultError(f'no service "{order.service}"; there are {", ".join(sorted(self.clusters))}')
        if order.kind in ("status", "garbage") and any(one.tls is not None for one in cluster.endpoints):
            raise FaultError(
                f"{order.kind} cannot be forged inside TLS; use reset, hang, latency, truncate or bandwidth"
            )
        _within_an_hour(order.lasts)
        fault = Fault(next(self._numbers), order, monotonic() + order.lasts)
        self.faults.append(fault)
        log.warning("fault %d begins: %s on %s", fault.number, order.kind, order.service)
        if self._upkeep is None:
            self._upkeep = asyncio.create_task(repeat("faults", self._keep_up, _UPKEEP))
        try:
            await self._arrange()
        except OSError as error:
            self.faults.remove(fault)
            raise FaultError(f"no relay can be opened in front of it: {error.strerror}") from None
        return fault

    async def begin(self, order: Any) -> Fault:
        """Begin a fault by an order as JSON has it. Raises FaultError, and pydantic's ValidationError."""
        return await self.add(FaultOrder.model_validate(order))

    async def clear(self, service: str | None = None) -> int:
        """End all faults, or those of one service; how many there were."""
        ended = [fault for fault in self.faults if service in (None, fault.order.service)]
        self.faults = [fault for fault in self.faults if fault not in ended]
        await self._arrange()
        return len(ended)

    async def close(self) -> None:
        """End everything."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            self._upkeep = None
        await self.clear()

    def of(self, service: str) -> list[Fault]:
        """The faults of a service that have not ended."""
        now = monotonic()
        return [fault for fault in self.faults if fault.order.service == service and now < fault.until]

    async def _keep_up(self) -> float:
        """End what has lasted long enough, and follow endpoints that come and go."""
        now = monotonic()
        for fault in [fault for fault in self.faults if now >= fault.until]:
            self.faults.remove(fault)
            log.warning("fault %d on %s is over; it met %d requests", fault.number, fault.order.service, fault.met)
        await self._arrange()
        return _UPKEEP

    async def _arrange(self) -> None:
        """A relay in front of every endpoint of a service with faults, and of no other."""
        wanted: dict[Endpoint, str] = {}
        for fault in self.faults:
            for endpoint in self.clusters[fault.order.service].endpoints:
                wanted[endpoint] = fault.order.service
        for endpoint in [one for one in self._relays if one not in wanted]:
            self._relays.pop(endpoint).close()
        for endpoint, service in wanted.items():
            if endpoint not in self._relays:
                relay = self._relays[endpoint] = Relay(endpoint, partial(self.of, service))
                try:
                    await relay.start()
                except OSError:
                    del self._relays[endpoint]
                    raise


class Relay:
    """Stands between us and one endpoint."""

    def __init__(self, endpoint: Endpoint, faults: Callable[[], list[Fault]]) -> None:
        self._endpoint = endpoint
        self._faults = faults
        self._server: asyncio.Server | None = None
        self._passages: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, and lead connections this way. Those that are idle now would pass by, so they are closed."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self._endpoint.detour = (str(host), int(port))
        self._endpoint.pool.close()

    def close(self) -> None:
        """Let connections go straight again."""
        self._endpoint.detour = None
        self._endpoint.pool.close()
        if self._server is not None:
            self._server.close()
        for passage in self._passages:
            passage.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passages.add(task)
        try:
            await Passage(reader, writer, self._endpoint, self._faults).run()
        except asyncio.CancelledError:
            pass  # the relay has been taken away
        finally:
            self._passages.discard(task)
            _reset(writer)


class Passage:
    """One connection through a relay. `struck` are the faults of the request under way."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        endpoint: Endpoint,
        faults: Callable[[], list[Fault]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._endpoint = endpoint
        self._faults = faults
        self._answering = True  # what comes next from our side begins a request
        self._struck: dict[str, FaultOrder] = {}

    async def run(self) -> None:
        """Pass bytes both ways until either side ends."""
        try:
            target_reader, target_writer = await asyncio.open_connection(self._endpoint.host, self._endpoint.port)
        except OSError:
            return  # as it would be without us, but for the kind of refusal
        ways = [
            asyncio.ensure_future(self._requests(target_writer)),
            asyncio.ensure_future(self._answers(target_reader)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            with suppress(OSError, asyncio.CancelledError):
                await asyncio.gather(*ways, return_exceptions=True)
            _reset(target_writer)

    async def _requests(self, target: asyncio.StreamWriter) -> None:
        while piece := await self._reader.read(_PIECE):
            if self._answering:
                self._answering = False
                now = monotonic()
                self._struck = {fault.order.kind: fault.order for fault in self._faults() if fault.strikes(now)}
                if not await self._strike():
                    return
            target.write(piece)
            await target.drain()

    async def _strike(self) -> bool:
        """What happens to a request as it comes; False when that is its end."""
        struck = self._struck
        if "latency" in struck:
            await asyncio.sleep(struck["latency"].delay)
        if "hang" in struck:
            await asyncio.sleep(_LONGEST)
        if "reset" in struck:
            return False
        if "garbage" in struck:
            self._writer.write(randbytes(200))
        elif "status" in struck:
            status = struck["status"].status
            body = b'{"error":"FAULT","message":"made by outrider fault"}\n'
            fields = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close" % len(body)
            head = b"HTTP/1.1 %d Fault\r\n%b\r\n\r\n" % (status, fields)
            self._writer.write(head if status in (204, 304) else head + body)
        else:
            return True
        await self._writer.drain()
        await self._reader.read(_PIECE)  # until it has been taken
        return False

    async def _answers(self, target: asyncio.StreamReader) -> None:
        while piece := await target.read(_PIECE):
            struck = self._struck
            self._answering = True
            if "truncate" in struck:
                head = piece.find(b"\r\n\r\n") + 4
                cut = head + (len(piece) - head) // 2 if 4 <= head < len(piece) else len(piece) // 2
                self._writer.write(piece[:cut])
                await self._writer.drain()
                await asyncio.sleep(_PORTION)  # a reset would overtake what has just been written
                return
            if "bandwidth" in struck:
                await self._slowly(piece, max(1, int(struck["bandwidth"].rate * _PORTION)))
            else:
                self._writer.write(piece)
                await self._writer.drain()

    async def _slowly(self, piece: bytes, portion: int) -> None:
        for start in range(0, len(piece), portion):
            self._writer.write(piece[start : start + portion])
            await self._writer.drain()
            await asyncio.sleep(_PORTION)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
