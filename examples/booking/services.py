"""The booking system: eight small services on loopback, in one process.

    python services.py        prints {"user": "http://127.0.0.1:40001", ...} and serves until it is stopped

booking-service runs twice with the same code: `booking` calls the others directly, as its platform does today, and
`booking-outrider` calls them at the addresses it is told by `POST /_targets`. Every service can be made to fail:

    POST /_fault   {"share": 0.3, "status": 503}     answer this share of requests with that status
    POST /_fault   {"delay": 3.0}                    take so many seconds over every answer
    POST /_fault   {}                                heal
    GET  /_seen                                      what was received: counts, and the headers of the latest request
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import sys
import uuid
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web

NAMES = ("auth", "user", "workspace", "payment", "notification", "reporting", "admin", "booking", "booking-outrider")
# What the app itself is willing to wait for any one call.
CLIENT_TIMEOUT = 2.0


class Service:
    """What all services have in common: faults, and a memory of what they received."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fault: dict[str, float] = {}
        self.count = 0
        self.failed = 0
        self.latest: dict[str, str] = {}
        self.random = random.Random(name)  # the same story on every run
        self.app = web.Application(middlewares=[self.observe])
        self.app.router.add_post("/_fault", self.set_fault)
        self.app.router.add_get("/_seen", self.seen)
        self.app.router.add_get("/health", self.health)

    @property
    def observe(self) -> Any:
        @web.middleware
        async def observe(request: web.Request, handler: Any) -> web.StreamResponse:
            if request.path.startswith("/_") or request.path == "/health":
                return await handler(request)
            await request.read()
            self.count += 1
            self.latest = {name.lower(): value for name, value in request.headers.items()}
            if "delay" in self.fault:
                await asyncio.sleep(self.fault["delay"])
            if self.random.random() < self.fault.get("share", 0.0):
                self.failed += 1
                return web.json_response({"error": "UNAVAILABLE"}, status=int(self.fault.get("status", 503)))
            return await handler(request)

        return observe

    async def set_fault(self, request: web.Request) -> web.Response:
        self.fault = await request.json()
        return web.json_response(self.fault)

    async def seen(self, _: web.Request) -> web.Response:
        return web.json_response({"count": self.count, "failed": self.failed, "headers": self.latest, **self.more()})

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"service": self.name, "status": "ok"})

    def more(self) -> dict[str, Any]:
        return {}


class Lookup(Service):
    """auth, user and workspace: read something by id."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.app.router.add_get(path, self.find)

    async def find(self, request: web.Request) -> web.Response:
        return web.json_response({"id": request.match_info["id"], "kind": self.name})


class Payment(Service):
    """Charges. Repeating a charge with the same Idempotency-Key charges nothing again."""

    def __init__(self) -> None:
        super().__init__("payment")
        self.charges: dict[str, int] = {}
        self.app.router.add_post("/payments", self.charge)

    async def charge(self, request: web.Request) -> web.Response:
        body = await request.json()
        key = str(body["booking"])
        self.charges[key] = self.charges.get(key, 0) + 1
        return web.json_response({"payment": str(uuid.uuid4()), "booking": key}, status=201)

    def more(self) -> dict[str, Any]:
        return {"charges": len(self.charges), "charged_twice": sum(times > 1 for times in self.charges.values())}


class Sink(Service):
    """notification and reporting: take what comes."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.app.router.add_post(path, self.take)

    async def take(self, _: web.Request) -> web.Response:
        return web.json_response({"accepted": True}, status=202)


class Admin(Service):
    """Asks every other service how it is."""

    def __init__(self, urls: dict[str, str]) -> None:
        super().__init__("admin")
        self.urls = urls
        self.app.router.add_get("/admin/overview", self.overview)

    async def overview(self, _: web.Request) -> web.Response:
        found = {}
        async with ClientSession(timeout=ClientTimeout(total=CLIENT_TIMEOUT)) as session:
            for name, url in self.urls.items():
                async with session.get(f"{url}/health") as answer:
                    found[name] = answer.status
        return web.json_response(found)


class Booking(Service):
    """The service that depends on all the others. Plain client code: no retries, no breaker, no keys."""

    def __init__(self, name: str, targets: dict[str, str]) -> None:
        super().__init__(name)
        self.targets = targets
        self.session: ClientSession | None = None
        self.app.router.add_post("/bookings", self.create)
        self.app.router.add_post("/_targets", self.set_targets)
        self.app.on_cleanup.append(self.close)

    async def set_targets(self, request: web.Request) -> web.Response:
        self.targets = await request.json()
        return web.json_response(self.targets)

    async def create(self, request: web.Request) -> web.Response:
        """Check session, user and workspace, charge, then tell notification and reporting."""
        wanted = await request.json()
        context = {name: request.headers[name] for name in ("x-correlation-id", "x-user-id") if name in request.headers}
        booking = str(uuid.uuid4())
        steps: list[tuple[str, str, str, bool]] = [
            ("auth", "GET", "/auth/session", True),
            ("user", "GET", f"/user/{wanted['user']}", True),
            ("workspace", "GET", f"/workspace/{wanted['workspace']}", True),
            ("payment", "POST", "/payments", True),
            ("notification", "POST", "/notifications/email", False),
            ("reporting", "POST", "/reports/bookings", False),
        ]
        for service, method, path, critical in steps:
            problem = await self.ask(service, method, path, context, {"booking": booking})
            if problem is not None and critical:
                return web.json_response({"error": "DEPENDENCY_FAILED", "service": service, "why": problem}, status=502)
        return web.json_response({"booking": booking}, status=201)

    async def ask(self, service: str, method: str, path: str, context: dict[str, str], body: Any) -> str | None:
        """One call to another service; what went wrong, or None."""
        if self.session is None:
            self.session = ClientSession(timeout=ClientTimeout(total=CLIENT_TIMEOUT))
        json_body = body if method == "POST" else None
        try:
            async with self.session.request(
                method, self.targets[service] + path, json=json_body, headers=context
            ) as answer:
                await answer.read()
                return None if answer.status < 400 else f"{answer.status}"
        except (ClientError, TimeoutError) as error:
            return type(error).__name__

    async def close(self, _: web.Application) -> None:
        if self.session is not None:
            await self.session.close()


async def main() -> None:
    """Start everything on free ports, say where, and wait."""
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # callers that hang up are part of the story
    urls: dict[str, str] = {}
    services: list[Service] = [
        Lookup("auth", "/auth/{id}"),
        Lookup("user", "/user/{id}"),
        Lookup("workspace", "/workspace/{id}"),
        Payment(),
        Sink("notification", "/notifications/{kind}"),
        Sink("reporting", "/reports/{kind}"),
        Admin(urls),
        Booking("booking", urls),
        Booking("booking-outrider", urls),
    ]
    runners = []
    for service in services:
        runner = web.AppRunner(service.app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        urls[service.name] = f"http://127.0.0.1:{runner.addresses[0][1]}"
        runners.append(runner)
    sys.stdout.write(json.dumps(urls) + "\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    for runner in runners:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
