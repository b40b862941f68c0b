"""The two ports that aiohttp serves, telemetry and admin. Imported late: see `outrider.app.App.start`."""

from __future__ import annotations

import socket

from aiohttp import web

from outrider.controlplane.admin.server import admin_app
from outrider.controlplane.telemetry.server import telemetry_app

__all__ = ["admin_app", "serve", "telemetry_app"]


async def serve(app: web.Application, reserved: socket.socket) -> web.AppRunner:
    """Serve an application on a socket that is already bound."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.SockSite(runner, reserved).start()
    return runner
