"""Outrider as a process of its own, as it is run in production."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from tests.integration.harness import whole_config

SOURCE = Path(os.environ.get("OUTRIDER_COMPILED") or Path(__file__).parents[2] / "src")

# Seconds that a process may take to start or to end, also on a machine that is busy with other things.
PROCESS_PATIENCE = 20.0


class Process:
    """`python -m outrider run`, its ports and its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.port = self.telemetry = self.admin = 0
        self.started_in = 0.0
        self.reading: asyncio.Task[None] | None = None

    async def ready(self, began: float) -> None:
        """Wait for the line that says so."""
        while not self.port:
            line = await self._line()
            assert line is not None, f"it ended: {self.lines}"
            if line["msg"] == "ready":
                self.started_in = monotonic() - began
                self.port, self.telemetry = line["ports"]["listen"], line["ports"]["telemetry.listen"]
                self.admin = line["ports"]["admin.listen"]
        self.reading = asyncio.create_task(self.rest())

    async def _line(self) -> dict[str, Any] | None:
        assert self.process.stderr is not None
        text = await self.process.stderr.readline()
        if not text:
            return None
        self.lines.append(json.loads(text))
        return self.lines[-1]

    async def rest(self) -> None:
        """Read the log to its end."""
        while await self._line() is not None:
            pass

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        """To all of its processes at once, as a terminal and systemd do; it must have been started as a group."""
        os.killpg(self.process.pid, number)

    async def exit(self) -> int:
        """Wait for the end; the exit code."""
        async with asyncio.timeout(PROCESS_PATIENCE):
            code = await self.process.wait()
            assert self.reading is not None
            await self.reading
        return code

    def said(self, message: str) -> bool:
        return any(line["msg"] == message for line in self.lines)


@asynccontextmanager
async def running(
    folder: Path,
    text: str,
    *,
    group: bool = False,
    environment: dict[str, str] | None = None,
    wait: bool = True,
    code: str = "",
) -> AsyncIterator[Process]:
    """Run the program until the block ends. With `group`, it has a process group of its own; without `wait`, it may not
    be ready yet. `code` is run instead of the program, and has to start it."""
    file = folder / "outrider.yaml"
    file.write_text(whole_config(text))
    began = monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *(["-c", code] if code else ["-m", "outrider"]), "run", "-c", str(file),
        stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **(environment or {})}, start_new_session=group,
    )  # fmt: skip
    one = Process(process)
    try:
        if wait:
            async with asyncio.timeout(PROCESS_PATIENCE):
                await one.ready(began)
        else:
            one.reading = asyncio.create_task(one.rest())
        yield one
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if one.reading is not None:
            await one.reading
