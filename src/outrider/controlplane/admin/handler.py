"""Serves the admin port with aiohttp, which is imported when somebody connects for the first time: that takes half as
long as everything that a start needs, and 12 MiB."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider.controlplane.late import Late

if TYPE_CHECKING:
    from aiohttp import web

    from outrider.controlplane.servers import Visitor

# Finds the visitor that belongs to a protocol of aiohttp.
VisitorOf = Callable[[object], "Visitor | None"]


class AdminHandler:
    """Serves an application that is made for the first visitor."""

    def __init__(self, load: Callable[[VisitorOf], web.AppRunner]) -> None:
        """`load` imports aiohttp and makes the application. It runs in a thread."""
        self._visitors: dict[object, Visitor] = {}  # by aiohttp's protocol
        self._runner = Late(lambda: load(self._visitors.get))
        self._starting: asyncio.Task[web.AppRunner] | None = None

    async def serve(self, accepted: socket.socket, visitor: Visitor) -> None:
        """Let aiohttp serve a connection; returns once it has it."""
        if self._starting is None or (self._starting.done() and self._starting.exception() is not None):
            self._starting = asyncio.create_task(self._start())
        runner = await asyncio.shield(self._starting)  # several may wait for it
        assert runner.server is not None
        protocol = runner.server()
        for known in [known for known, one in self._visitors.items() if one.gone]:
            del self._visitors[known]
        self._visitors[protocol] = visitor
        loop = asyncio.get_running_loop()
        visitor.transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted)

    async def close(self) -> None:
        """Give answers under way a moment, and end all connections."""
        if self._starting is not None:
            await asyncio.wait((self._starting,))
            if self._starting.exception() is None:
                await self._starting.result().cleanup()

    async def _start(self) -> web.AppRunner:
        runner = await self._runner.get()
        await runner.setup()
        return runner
