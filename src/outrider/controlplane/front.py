"""The telemetry and admin ports of a sidecar with several workers: asks each of them, and answers for all."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import socket
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any, cast

from outrider.config.schema import Config
from outrider.controlplane.admin.handler import AdminHandler, VisitorOf
from outrider.controlplane.intercom import ADMIN, ALIVE, BEAT, DROPPED, STOP, TELEMETRY, Line, Visits
from outrider.controlplane.servers import ControlServer
from outrider.controlplane.telemetry.http import Asked, PlainHandler, Reply
from outrider.controlplane.telemetry.pages import DROPPED_LINES, OPENMETRICS, Pages, counter_page, merged
from outrider.controlplane.telemetry.server import by_path, metrics_page
from outrider.controlplane.upkeep import Upkeep, repeat

if TYPE_CHECKING:
    from aiohttp import web

    from outrider.controlplane.telemetry.logs import Logs

log = logging.getLogger("outrider")

# Seconds for one answer of a worker, and bytes of it.
PATIENCE = 2.0
_LARGEST = 16 << 20


@dataclass(frozen=True, slots=True)
class Answered:
    """What one worker has answered."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body, which is JSON unless something has gone wrong."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {"error": self.body.decode("utf-8", "replace").strip()}


class Workers:
    """All workers, as the front asks them."""

    def __init__(self, visits: list[Visits], token: str | None) -> None:
        self._visits = visits
        self._fields = ["Host: localhost", "X-Outrider: 1", "Connection: close"]
        if token is not None:
            self._fields.append(f"Authorization: Bearer {token}")

    async def ask(
        self, kind: str, path: str, *fields: str, method: str = "GET", body: bytes = b"", patience: float = PATIENCE
    ) -> dict[int, Answered]:
        """The answers by worker, of those that answer within `patience` seconds. `kind` is the key of the port that is
        asked, `path` as it goes on the wire."""
        lines = [f"{method} {path} HTTP/1.1", *self._fields, *fields]
        if method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        request = "\r\n".join([*lines, "", ""]).encode("utf-8") + body
        answers = await asyncio.gather(*(self._one(one, kind, request, patience) for one in self._visits))
        return {number: answer for number, answer in enumerate(answers) if answer is not None}

    async def _one(self, visits: Visits, kind: str, request: bytes, patience: float) -> Answered | None:
        writer = None
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_unix_connection(sock=visits.visit(kind))
                writer.write(request)
                return _understood(await _to_the_end(reader))
        except (OSError, TimeoutError, HTTPException):
            return None  # it is away, and about to be started again
        finally:
            if writer is not None:
                writer.close()


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    size = 0
    while piece := await reader.read(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > _LARGEST:
            raise HTTPException("an answer that is too large")
    return b"".join(pieces)


class _Bytes:
    """Stands for the socket that http.client wants to read from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _understood(data: bytes) -> Answered:
    response = HTTPResponse(cast(socket.socket, _Bytes(data)))
    response.begin()
    return Answered(response.status, response.read())


class Dropped:
    """How many log lines of the processes beside the workers were not taken in time."""

    def __init__(self, logs: Logs) -> None:
        """`logs` are those of this process."""
        self._logs = logs
        self.supervisor = 0

    def note(self, lines: list[str]) -> None:
        """Take the number out of what the supervisor has sent, if it is there."""
        for word, _, number in (line.partition(" ") for line in lines):
            if word == DROPPED and number.isdigit():
                self.supervisor = int(number)

    def pages(self) -> dict[str, str]:
        """A page of metrics for each of them, in OpenMetrics format."""
        counts = {"supervisor": self.supervisor, "front": self._logs.dropped}
        return {name: counter_page(*DROPPED_LINES, count) for name, count in counts.items()}


def telemetry_front(workers: Workers, dropped: Dropped) -> PlainHandler:
    """`/metrics` of all workers, each series with its `worker`; ready and alive while at least one of them is."""

    async def page(accept: str) -> tuple[bytes, str] | None:
        answers = await workers.ask(TELEMETRY, "/metrics", f"Accept: {OPENMETRICS}")
        texts = {str(number): one.body.decode() for number, one in answers.items() if one.status == 200}
        return await asyncio.to_thread(merged, texts | dropped.pages(), accept) if texts else None

    async def state(asked: Asked) -> Reply:
        answers = await workers.ask(TELEMETRY, asked.path)
        if any(one.status == 200 for one in answers.values()):
            return Reply(200, b"ok\n")
        return Reply(503, next((one.body for one in answers.values()), b"no worker answers\n"))

    return PlainHandler(by_path(metrics_page(Pages(page)), state, state))


async def serve_front(
    config: Config, telemetry: socket.socket, admin: socket.socket, visits: list[Visits], line: Line, logs: Logs
) -> None:
    """Serve both ports until the supervisor says that it is enough, or is gone. `logs` are those of this process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)  # meant for the supervisor

    dropped = Dropped(logs)

    def hear() -> None:
        lines = line.heard()
        dropped.note(lines or [])
        if lines is None or STOP in lines:
            loop.remove_reader(line)
            stop.set()

    async def beat() -> float:
        line.say(ALIVE)
        return BEAT

    loop.add_reader(line, hear)
    upkeep = Upkeep()
    upkeep.go_on(repeat("signs of life", beat))
    workers = Workers(visits, config.admin.token)

    def load(visitor_of: VisitorOf) -> web.AppRunner:
        from outrider.controlplane.admin.front import AdminFront
        from outrider.controlplane.admin.server import runner

        return runner(AdminFront(config, workers, line).app, visitor_of)

    servers = [ControlServer(TELEMETRY, telemetry_front(workers, dropped)), ControlServer(ADMIN, AdminHandler(load))]
    servers[0].listen(telemetry)
    servers[1].listen(admin)
    await stop.wait()
    await upkeep.stop()
    for server in servers:
        await server.close()
