"""Commands whose output is a secret: run beside the event loop, bounded in time and output, and ended with everything
that they have started."""

from __future__ import annotations

import asyncio
import os
import select
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from time import monotonic, sleep
from typing import IO

from outrider.blocking import run_apart
from outrider.controlplane.fetch import FetchError
from outrider.files import READ_TIMEOUT

_PIECE = 65536
# Seconds between two looks whether the command has ended, while something else holds its output open.
_LOOK = 0.2
_REAPED_WITHIN = 1.0  # seconds from SIGKILL


async def run_command(command: Sequence[str], timeout: float, limit: int) -> bytes:
    """What a command prints, which is at most `limit` bytes within `timeout` seconds. Raises FetchError, which
    names the program alone. A cancelled one is ended.

    Starting a process takes ten milliseconds and more on an event loop; so it is started and read by a thread of its
    own, which nothing waits for at the end. The thread holds the interpreter until the program has been loaded: whether
    its file system answers is found out before that.
    """
    shown = shlex.join(command[:1])
    try:
        await run_apart(("program", command[0]), lambda: shutil.which(command[0]), READ_TIMEOUT)
    except TimeoutError:
        raise FetchError(f"{shown} could not be found in time; is its file system there?") from None
    loop = asyncio.get_running_loop()
    result: asyncio.Future[bytes] = loop.create_future()
    run = _Run(command, timeout, limit)

    def settle(output: bytes, error: Exception | None) -> None:
        if not result.done():
            if error is None:
                result.set_result(output)
            else:
                result.set_exception(error)

    def work() -> None:
        output, error = b"", None
        try:
            output = run.output()
        except Exception as failure:
            error = failure
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, output, error)

    Thread(target=work, name="command", daemon=True).start()
    try:
        return await result
    finally:
        run.stop()


class _Run:
    """One run of a command."""

    def __init__(self, command: Sequence[str], timeout: float, limit: int) -> None:
        self._command = command
        self._shown = shlex.join(command[:1])
        self._timeout = timeout
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def output(self) -> bytes:
        """Start it, and wait for its end. Raises FetchError."""
        end = monotonic() + self._timeout
        try:
            process = self._process = subprocess.Popen(  # noqa: S603 # the configuration says what to run
                list(self._command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that it can be ended with all that it has started
            )
        except OSError as error:
            raise FetchError(f"{self._shown}: {error.strerror}") from None
        except ValueError as error:  # a NUL in an argument
            raise FetchError(f"{self._shown}: {error}") from None
        assert process.stdout is not None
        try:
            with process.stdout as stream:
                output = self._read(process, stream, end)
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - monotonic()))
            if process.returncode is None:
                raise FetchError(f"{self._shown} did not end in time")
        finally:
            _end_group(process)
        if process.returncode:
            raise FetchError(f"{self._shown} failed with exit code {process.returncode}")
        return output

    def stop(self) -> None:
        """End it now, if it still runs."""
        self._stopped = True
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, process: subprocess.Popen[bytes], stream: IO[bytes], end: float) -> bytes:
        """Its output up to its end. What it has started in the background may hold the output open longer than it
        lives, and is not waited for."""
        output = bytearray()
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        while True:
            left = end - monotonic()
            if left <= 0 or self._stopped:
                raise FetchError(f"{self._shown} did not end in time")
            if poll.poll(min(left, _LOOK) * 1000):
                piece = os.read(stream.fileno(), _PIECE)
                if not piece:
                    return bytes(output)
                output += piece
                if len(output) > self._limit:
                    raise FetchError(f"{self._shown} printed more than {self._limit} bytes")
            elif process.poll() is not None:
                return bytes(output)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and everything of its group, and leave no zombie: where we are the first process of a container,
    what it has started has become our child."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_REAPED_WITHIN)
    end = monotonic() + _REAPED_WITHIN
    with suppress(ChildProcessError):  # no child of this group is left
        while monotonic() < end:
            if os.waitpid(-process.pid, os.WNOHANG)[0] == 0:
                sleep(0.01)
