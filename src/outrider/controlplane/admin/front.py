"""The admin port of a sidecar with several workers."""

from __future__ import annotations

import json
import logging
from time import monotonic
from typing import Any

from aiohttp import web

from outrider.config.schema import Config
from outrider.controlplane.admin.orders import CIRCUIT
from outrider.controlplane.admin.server import admin_guard
from outrider.controlplane.faults import FaultOrder
from outrider.controlplane.front import PATIENCE, Answered, Workers
from outrider.controlplane.intercom import ADMIN, DRAIN, QUIT, STANDING, Line

log = logging.getLogger("outrider")

# Seconds for a rotation of keys, which asks issuers.
_ROTATION = 20.0


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

    async def _tell(self, request: web.Request, patience: float = PATIENCE) -> tuple[web.Response, bool]:
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
