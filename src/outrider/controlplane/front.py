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
from time import monotonic
from typing import Any, cast

from aiohttp import web

from outrider.config.schema import Config
from outrider.controlplane.admin.orders import CIRCUIT
from outrider.controlplane.admin.server import admin_guard
from outrider.controlplane.faults import FaultOrder
from outrider.controlplane.intercom import ADMIN, ALIVE, BEAT, DRAIN, QUIT, STANDING, STOP, TELEMETRY, Line, Visits
from outrider.controlplane.servers import serve
from outrider.controlplane.telemetry.pages import OPENMETRICS, Pages, merged
from outrider.controlplane.upkeep import Upkeep, repeat

log = logging.getLogger("outrider")

# Seconds for one answer of a worker, and bytes of it.
_PATIENCE = 2.0
# Seconds for a rotation of keys, which asks issuers.
_ROTATION = 20.0
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
        self, kind: str, path: str, *fields: str, method: str = "GET", body: bytes = b"", patience: float = _PATIENCE
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


def telemetry_front(workers: Workers) -> web.Application:
    """`/metrics` of all workers, each series with its `worker`; ready and alive while at least one of them is."""

    async def render(accept: str) -> tuple[bytes, str] | None:
        answers = await workers.ask(TELEMETRY, "/metrics", f"Accept: {OPENMETRICS}")
        texts = {number: one.body.decode() for number, one in answers.items() if one.status == 200}
        return await asyncio.to_thread(merged, texts, accept) if texts else None

    pages = Pages(render)

    async def metrics(request: web.Request) -> web.Response:
        page = await pages.get(request.headers.get("accept", ""))
        if page is None:
            return web.Response(status=503, text="no worker answers\n")
        return web.Response(body=page[0], headers={"content-type": page[1]})

    async def state(request: web.Request) -> web.Response:
        answers = await workers.ask(TELEMETRY, request.path)
        if any(one.status == 200 for one in answers.values()):
            return web.Response(text="ok\n")
        text = next((one.body.decode() for one in answers.values()), "no worker answers\n")
        return web.Response(status=503, text=text)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    for path in ("/healthz", "/-/healthy", "/readyz", "/-/ready", "/ready"):
        app.router.add_get(path, state)
    return app


class AdminFront:
    """What can be looked at, by worker; orders go to all of them, those to end by way of the supervisor."""

    def __init__(self, config: Config, workers: Workers, line: Line) -> None:
        self._workers = workers
        self._line = line
        self.app = web.Application(middlewares=[admin_guard(config)])
        router = self.app.router
        for path in ("/api/v1/status", "/api/v1/circuits", "/api/v1/faults", "/api/v1/keys", "/config"):
            router.add_get(path, self._look)
        router.add_post(CIRCUIT, self._order_circuit)
        router.add_post("/api/v1/keys/rotate", self._rotate)
        router.add_post("/api/v1/faults", self._begin_fault)
        router.add_delete("/api/v1/faults", self._end_faults)
        for path in ("/-/drain", "/-/quit", "/quitquitquit"):
            router.add_post(path, self._end)

    async def _look(self, request: web.Request) -> web.Response:
        answers = await self._workers.ask(ADMIN, request.rel_url.raw_path)
        shown = {str(number): one.json() for number, one in answers.items() if one.status == 200}
        if not shown:
            return _refused(answers)
        if request.path == "/config":
            return web.json_response(next(iter(shown.values())))
        return web.json_response({"workers": shown})

    async def _tell(self, request: web.Request, patience: float = _PATIENCE) -> tuple[web.Response, bool]:
        """Pass an order on to every worker. Returns the answer, and whether at least one of them has taken the order
        and none has refused it. The first refusal stands for all."""
        body = await request.read()
        path = request.rel_url.raw_path_qs
        kind = "Content-Type: application/json"
        answers = await self._workers.ask(ADMIN, path, kind, method=request.method, body=body, patience=patience)
        refusals = {number: one for number, one in answers.items() if one.status >= 400}
        if not answers or refusals:
            return _refused(refusals), False
        return web.json_response({"workers": {str(number): one.json() for number, one in answers.items()}}), True

    async def _rotate(self, request: web.Request) -> web.Response:
        return (await self._tell(request, _ROTATION))[0]

    async def _order_circuit(self, request: web.Request) -> web.Response:
        answer, taken = await self._tell(request)
        if taken:
            self._stand({"circuit": request.match_info["name"], "action": request.match_info["action"]})
        return answer

    async def _begin_fault(self, request: web.Request) -> web.Response:
        answer, taken = await self._tell(request)
        if taken:
            fault = json.loads(await request.read())
            self._stand({"fault": fault, "until": monotonic() + FaultOrder.model_validate(fault).lasts})
        return answer

    async def _end_faults(self, request: web.Request) -> web.Response:
        answer, taken = await self._tell(request)
        if taken:
            self._stand({"cleared": request.query.get("service")})
        return answer

    def _stand(self, order: dict[str, Any]) -> None:
        """An order that holds for workers to come, too: the supervisor keeps it."""
        if not self._line.say(f"{STANDING} {json.dumps(order)}"):
            log.error("an order was given to the workers, but not kept for those to come", extra={"fields": order})

    async def _end(self, request: web.Request) -> web.Response:
        order, text = (DRAIN, "draining\n") if request.path == "/-/drain" else (QUIT, "stopping\n")
        if not self._line.say(order):
            return web.Response(status=503, text="the supervisor does not listen\n")
        return web.Response(status=202, text=text)


def _refused(refusals: dict[int, Answered]) -> web.Response:
    """The first refusal, or that there was no answer at all."""
    for one in refusals.values():
        return web.Response(status=one.status, body=one.body, content_type="application/json")
    return web.json_response({"error": "no worker answers; the order was not taken"}, status=503)


async def serve_front(
    config: Config, telemetry: socket.socket, admin: socket.socket, visits: list[Visits], line: Line
) -> None:
    """Serve both ports until the supervisor says that it is enough, or is gone."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)  # meant for the supervisor

    def hear() -> None:
        lines = line.heard()
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
    servers = []
    for key, app, bound in (
        (TELEMETRY, telemetry_front(workers), telemetry),
        (ADMIN, AdminFront(config, workers, line).app, admin),
    ):
        server = await serve(app, key)
        server.listen(bound)
        servers.append(server)
    await stop.wait()
    await upkeep.stop()
    for server in servers:
        await server.close()
