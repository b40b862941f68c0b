"""The two ports that aiohttp serves, telemetry and admin. Imported late: see `outrider.app.App.start`."""

from __future__ import annotations

import socket

from aiohttp import web

from outrider.controlplane.admin.server import admin_app
from outrider.controlplane.telemetry.server import telemetry_app

__all__ = ["admin_app", "serve", "telemetry_app"]


async def serve(app: web.Application, where: socket.socket | str) -> web.AppRunner:
    """Serve an application on a socket that is already bound, or at the path of a Unix socket."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.UnixSite(runner, where) if isinstance(where, str) else web.SockSite(runner, where)
    await site.start()
    return runner
