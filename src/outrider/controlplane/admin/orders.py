"""What changes something: circuits held open or closed, keys read again, faults made on purpose."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import ValidationError

from outrider.controlplane.circuits import ACTIONS, order
from outrider.controlplane.faults import FaultError
from outrider.dataplane.policies.deciders.breaker import Breaker

if TYPE_CHECKING:
    from outrider.controlplane.runtime import Runtime

# The name of a circuit may hold what is special elsewhere: `payment GET /payments/{id}`, its slashes written as %2F.
CIRCUIT = f"/api/v1/circuits/{{name:[^/]+}}/{{action:{'|'.join(ACTIONS)}}}"


def add_orders(app: web.Application, runtime: Runtime) -> None:
    """Add all of them."""
    _add_faults(app, runtime)

    async def circuits(request: web.Request) -> web.Response:
        return web.json_response({"circuits": {one.name: shown(one) for one in runtime.compiled.breakers}})

    async def order_circuit(request: web.Request) -> web.Response:
        name, action = request.match_info["name"], request.match_info["action"]
        breaker = order(runtime.compiled.breakers, name, action)
        if breaker is None:
            known = ", ".join(one.name for one in runtime.compiled.breakers) or "none"
            return _refused(404, f'there is no circuit "{name}"; there are {known}')
        return web.json_response({"circuits": {breaker.name: shown(breaker)}})

    async def keys(request: web.Request) -> web.Response:
        if request.method == "POST":
            await runtime.secrets.rotate()
        return web.json_response({"keys": runtime.secrets.shown()})

    app.router.add_get("/api/v1/circuits", circuits)
    app.router.add_post(CIRCUIT, order_circuit)
    app.router.add_get("/api/v1/keys", keys)
    app.router.add_post("/api/v1/keys/rotate", keys)


def _add_faults(app: web.Application, runtime: Runtime) -> None:
    """The fault lab."""

    async def faults(request: web.Request) -> web.Response:
        return web.json_response({"faults": [fault.shown() for fault in runtime.fault_lab.faults]})

    async def begin_fault(request: web.Request) -> web.Response:
        if not runtime.resolved.config.admin.allow_faults:
            return _refused(403, "faults are not allowed here; set admin.allow_faults: true where they may do no harm")
        try:
            fault = await runtime.fault_lab.begin(json.loads(await request.text()))
        except ValidationError as error:
            first = error.errors()[0]
            return _refused(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        except ValueError as error:
            return _refused(400, str(error) if isinstance(error, FaultError) else f"not a fault: {error}")
        return web.json_response(fault.shown(), status=201)

    async def end_faults(request: web.Request) -> web.Response:
        return web.json_response({"ended": await runtime.fault_lab.clear(request.query.get("service"))})

    app.router.add_get("/api/v1/faults", faults)
    app.router.add_post("/api/v1/faults", begin_fault)
    app.router.add_delete("/api/v1/faults", end_faults)


def shown(breaker: Breaker) -> dict[str, Any]:
    """One circuit as it stands."""
    left = breaker.until_probe() if not breaker.held else 0.0
    return {
        "state": breaker.state,
        **({"held": breaker.held} if breaker.held else {}),
        **({"probe_in_seconds": round(left, 3)} if left else {}),
        "failures_in_window": breaker.failures,
        "failures_in_a_row": breaker.in_a_row,
    }


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
