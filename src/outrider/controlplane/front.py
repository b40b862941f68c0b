"""The telemetry and admin ports of a sidecar with several workers: asks each of them, and answers for all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from outrider.config.schema import Config
from outrider.controlplane.admin.server import admin_guard
from outrider.controlplane.servers import serve

_PATIENCE = aiohttp.ClientTimeout(total=2.0)


class Workers:
    """The control sockets of all workers, `0.telemetry` and `0.admin` and so on in one folder."""

    def __init__(self, folder: Path, count: int, token: str | None) -> None:
        self._folder = folder
        self._count = count
        self._headers = {"host": "localhost", "x-outrider": "1"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"

    async def ask(
        self, kind: str, path: str, method: str = "GET", body: str | None = None
    ) -> dict[int, tuple[int, str]]:
        """`(status, text)` by worker, for those that answer; `kind` is telemetry or admin."""
        numbers = range(self._count)
        answers = await asyncio.gather(*(self._one(number, kind, path, method, body) for number in numbers))
        return {number: answer for number, answer in zip(numbers, answers, strict=True) if answer is not None}

    async def _one(self, number: int, kind: str, path: str, method: str, body: str | None) -> tuple[int, str] | None:
        connector = aiohttp.UnixConnector(path=str(self._folder / f"{number}.{kind}"))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=_PATIENCE) as session,
                session.request(
                    method, URL(f"http://localhost{path}", encoded=True), headers=self._headers, data=body
                ) as response,
            ):
                return response.status, await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None  # it is away, and about to be started again


def telemetry_front(workers: Workers) -> web.Application:
    """`/metrics` of all workers, each series with its `worker`; ready and alive while at least one of them is."""

    async def metrics(request: web.Request) -> web.Response:
        pages = await workers.ask("telemetry", "/metrics")
        body = merged({number: text for number, (status, text) in pages.items() if status == 200})
        return web.Response(text=body, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    async def state(request: web.Request) -> web.Response:
        answers = await workers.ask("telemetry", request.path)
        if any(status == 200 for status, _ in answers.values()):
            return web.Response(text="ok\n")
        return web.Response(status=503, text=next((text for _, text in answers.values()), "no worker answers\n"))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    for path in ("/healthz", "/-/healthy", "/readyz", "/-/ready", "/ready"):
        app.router.add_get(path, state)
    return app


def merged(pages: dict[int, str]) -> str:
    """Several pages of metrics as one, every series labelled with its worker."""
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, list[str]] = {}
    for number, text in pages.items():
        for family in text_string_to_metric_families(text):
            lines = families.setdefault(
                family.name, [f"# HELP {family.name} {family.documentation}", f"# TYPE {family.name} {family.type}"]
            )
            for sample in family.samples:
                labels = {"worker": str(number), **sample.labels}
                shown = ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels.items())
                lines.append(f"{sample.name}{{{shown}}} {sample.value}")
    return "\n".join(line for lines in families.values() for line in lines) + "\n"


def admin_front(config: Config, workers: Workers) -> web.Application:
    """What can be looked at, by worker; orders go to the supervisor, which passes them on."""

    async def look(request: web.Request) -> web.Response:
        answers = await workers.ask("admin", request.path)
        shown: dict[str, Any] = {str(n): json.loads(text) for n, (status, text) in answers.items() if status == 200}
        if request.path == "/config":
            return web.json_response(next(iter(shown.values()), {}))
        return web.json_response({"workers": shown})

    async def order(request: web.Request) -> web.Response:
        """What every worker is told. The first refusal stands for all."""
        answers = await workers.ask("admin", request.path_qs, request.method, await request.text())
        refusals = [(status, text) for status, text in answers.values() if status >= 400]
        if refusals:
            return web.Response(status=refusals[0][0], text=refusals[0][1], content_type="application/json")
        return web.json_response({"workers": {str(number): json.loads(text) for number, (_, text) in answers.items()}})

    async def stop(request: web.Request) -> web.Response:
        number = signal.SIGTERM if request.path == "/-/drain" else signal.SIGINT
        os.kill(os.getppid(), number)
        return web.Response(status=202, text="draining\n" if number is signal.SIGTERM else "stopping\n")

    app = web.Application(middlewares=[admin_guard(config)])
    for path in ("/api/v1/status", "/api/v1/circuits", "/api/v1/faults", "/api/v1/keys", "/config"):
        app.router.add_get(path, look)
    app.router.add_post("/api/v1/circuits/{name}/{action}", order)
    app.router.add_post("/api/v1/keys/rotate", order)
    app.router.add_post("/api/v1/faults", order)
    app.router.add_delete("/api/v1/faults", order)
    for path in ("/-/drain", "/-/quit", "/quitquitquit"):
        app.router.add_post(path, stop)
    return app


async def serve_front(config: Config, telemetry: socket.socket, admin: socket.socket, folder: Path, alive: int) -> None:
    """Serve both ports until SIGTERM, or until the supervisor is gone, which ends the pipe `alive`."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # of a terminal, and meant for the supervisor
    loop.add_reader(alive, stop.set)
    workers = Workers(folder, config.workers, config.admin.token)
    runners = [
        await serve(telemetry_front(workers), telemetry),
        await serve(admin_front(config, workers), admin),
    ]
    await stop.wait()
    loop.remove_reader(alive)
    for runner in runners:
        await runner.cleanup()
