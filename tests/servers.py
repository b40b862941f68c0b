"""Real servers that some tests need, each a process of its own on a port of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

_PATIENCE = 10.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class RedisServer:
    """A `redis-server` that keeps nothing on disk. `port` stays the same when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Run it, and wait until it answers."""
        program = _redis_program()
        assert program is not None
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        end = monotonic() + _PATIENCE
        while self.ask("PING") != b"+PONG\r\n":
            assert monotonic() < end, "redis-server does not answer"
            sleep(0.02)

    def ask(self, *words: str) -> bytes:
        """What it says to a command; nothing if it is not there."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                sock.sendall(b"*%d\r\n" % len(words))
                sock.sendall(b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words))
                return sock.recv(65536)
        except OSError:
            return b""

    def stop(self) -> None:
        """Kill it; what it knew is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _redis_program() -> str | None:
    return shutil.which("redis-server", path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin") or shutil.which(
        "redis-server"
    )


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A Redis until the block ends; skips the test where it is not installed."""
    pytest.importorskip("redis")
    if _redis_program() is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
