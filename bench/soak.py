"""A soak: a million calls with faults on both sides, and in the end nothing may have been kept.

    python bench/soak.py [--calls 1000000] [--connections 64] [--growth-mb 12]

Outrider, a target that misbehaves when asked to, and this load generator run as three processes on this machine. The
generator keeps a fixed number of connections busy, one call at a time on each, and checks every answer against what
its kind of call may get. Exits 1 if an answer was wrong, if memory grows after the warm-up by more than allowed, or if
open files or connections do not return to where they were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import IO, cast

import uvloop

SOURCE = Path(__file__).resolve().parents[1] / "src"
WARM_UP = 0.3  # of all calls
STUCK = 5.0  # seconds after which a call counts as lost
LINGER = 15.0  # seconds in which connections and files must return to where they were

CONFIG = """
service: soak
instance: soak-1
listen: 127.0.0.1:0
admin: {{ listen: 127.0.0.1:0 }}
telemetry: {{ listen: 127.0.0.1:0 }}
defaults: {{ timeout: 400ms, attempt_timeout: 150ms, idle_timeout: 2s }}
services:
  fine:   {{ url: "http://127.0.0.1:{port}", timeout: 4s, attempt_timeout: 3s }}
  faulty: {{ url: "http://127.0.0.1:{port}", circuit_breaker: false, retry: {{ backoff: 1ms..5ms }} }}
  broken: {{ url: "http://127.0.0.1:{port}", circuit_breaker: {{ open_for: 100ms..200ms }} }}
"""

# ---------------------------------------------------------------- the target


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nContent-Type: text/plain\r\n\r\n%b" % (status, len(body), body)


SMALL = answer(b'{"id": 42, "name": "somebody"}')
LARGE = answer(bytes(64 * 1024))
HUGE = answer(bytes(1024 * 1024))
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + bytes(4096) + b"\r\n") * 8 + b"0\r\n\r\n"
)
ERROR = answer(b"broken", b"500 Internal Server Error")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class Target(asyncio.Protocol):
    """Answers, right or wrong, as the path says."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.data = b""
        self.tunnel = False

    def data_received(self, data: bytes) -> None:
        if self.tunnel:
            self.transport.write(data)
            return
        self.data += data
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"POST"):
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if len(rest) < int(length[1]) if length else not rest.endswith(b"0\r\n\r\n"):
                return
        self.data = b""
        self.act(head.split(b" ", 2)[1])

    def act(self, path: bytes) -> None:
        """Do what the path says."""
        transport = self.transport
        if path in PLAIN:
            transport.write(PLAIN[path])
        elif path == b"/reset":
            transport.abort()
        elif path == b"/close":
            transport.close()
        elif path == b"/truncated":
            transport.write(HUGE[:100_000])
            transport.close()
        elif path == b"/slow":
            asyncio.get_running_loop().call_later(0.05, transport.write, SMALL)
        elif path == b"/switch":
            self.tunnel = True
            transport.write(SWITCH)
        # and /hang: nothing


PLAIN = {
    b"/small": SMALL,
    b"/large": LARGE,
    b"/huge": HUGE,
    b"/chunked": CHUNKED,
    b"/error": ERROR,
    b"/garbage": b"SMTP/1.1 hello\r\n\r\n",
}


async def serve() -> None:
    """Run the target until the process is told to stop; print its port first."""
    server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


# ---------------------------------------------------------------- kinds of calls


@dataclass(frozen=True)
class Kind:
    """A kind of call: what is sent, and what may come back.

    `behaviour` of the client: None, or abort (hang up at the first byte), half (close its side after the request),
    later (send `rest` a moment later) or tunnel (leave HTTP). `breaks` says that the connection may break instead.
    """

    name: str
    weight: int
    data: bytes
    statuses: tuple[int, ...] = (200,)
    size: int | None = None
    behaviour: str | None = None
    rest: bytes = b""
    breaks: bool = False


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:4100\r\nAccept: application/json\r\n\r\n".encode()


def post(path: str, framing: str, body: bytes = b"") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:4100\r\n{framing}\r\n\r\n".encode() + body


UPLOAD = (b"2000\r\n" + bytes(8192) + b"\r\n") * 4 + b"0\r\n\r\n"
HANDSHAKE = (
    b"GET /fine/switch HTTP/1.1\r\nHost: 127.0.0.1:4100\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
FRAME = bytes([0x81, 0x85, 1, 2, 3, 4]) + bytes(a ^ b for a, b in zip(b"hello", [1, 2, 3, 4, 1], strict=True))

KINDS = [
    Kind("small", 700, get("/fine/small"), size=30),
    Kind("post", 90, post("/fine/small", "Content-Length: 20", bytes(20)), size=30),
    Kind("large", 30, get("/fine/large"), size=65536),
    Kind("chunked", 30, get("/fine/chunked"), size=32768),
    Kind("upload", 15, post("/fine/small", "Transfer-Encoding: chunked"), size=30, behaviour="later", rest=UPLOAD),
    Kind("slow", 10, get("/faulty/slow")),
    Kind("error", 15, get("/faulty/error"), (500,)),
    Kind("reset", 15, get("/faulty/reset"), (502,)),
    Kind("closed", 10, get("/faulty/close"), (502,)),
    Kind("hang", 4, get("/faulty/hang"), (504,)),
    Kind("truncated", 10, get("/faulty/truncated"), (502,), breaks=True),
    Kind("garbage answer", 10, get("/faulty/garbage"), (502,)),
    Kind("circuit", 10, get("/broken/reset"), (502, 503)),
    Kind("unknown", 5, get("/nobody/x"), (502,)),
    Kind("client aborts", 15, get("/fine/huge"), behaviour="abort"),
    Kind("client half-closes", 8, get("/fine/small"), behaviour="half", breaks=True),
    Kind("client leaves a hang", 3, get("/faulty/hang"), (504,), behaviour="leave", breaks=True),
    Kind("garbage request", 5, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", (400,)),
    Kind("upload breaks off", 5, post("/fine/small", "Content-Length: 9999", bytes(99)), (), 0, "leave", breaks=True),
    Kind("tunnel", 10, HANDSHAKE, (101,), behaviour="tunnel"),
]

# ---------------------------------------------------------------- the load

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")


class Load:
    """Keeps connections busy until enough calls were made."""

    def __init__(self, port: int, calls: int, connections: int) -> None:
        self.port = port
        self.left = calls
        self.done = 0
        self.opened = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.connections: set[Connection] = set()
        self._width = connections
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        # A shuffled list that is gone through again and again costs less than drawing lots for every call.
        mix = [kind for kind in KINDS for _ in range(kind.weight)]
        self._mix = random.Random(1).choices(mix, k=50_000)
        self._at = 0

    def next(self) -> Kind | None:
        """What to do next, or None at the end."""
        if self.left <= 0:
            return None
        self.left -= 1
        self._at = (self._at + 1) % len(self._mix)
        return self._mix[self._at]

    def open(self) -> None:
        """One more connection."""
        self.opened += 1
        task = self._loop.create_task(self._loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port))
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[object]) -> None:
        self._opening.discard(task)
        if task.exception() is not None:
            self.wrong.append(f"cannot connect: {task.exception()}")
            self.left = 0

    async def run(self, every: float, look: Callable[[Load], None]) -> None:
        """Make all calls, and look after what happens at every so many seconds."""
        for _ in range(self._width):
            self.open()
        due = monotonic() + every
        while self.connections or self._opening:
            await asyncio.sleep(0.1)
            now = monotonic()
            for connection in list(self.connections):
                connection.check(now)
            if now >= due:
                look(self)
                due += every
            if len(self.wrong) > 100:
                self.left = 0


class Connection(asyncio.Protocol):
    """One call after the other. Whoever is at odds with a connection opens another one."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.kind: Kind | None = None
        self.data = b""
        self.missing = -1
        self.since = 0.0
        self.talking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.load.connections.add(self)
        self.begin()

    def begin(self) -> None:
        """The next call."""
        kind = self.kind = self.load.next()
        if kind is None:
            self.transport.close()
            return
        self.since = monotonic()
        self.data = b""
        self.missing = -1
        self.transport.write(kind.data)
        if kind.behaviour is not None:
            self.behave(kind)

    def behave(self, kind: Kind) -> None:
        """What this client does besides waiting."""
        loop = asyncio.get_running_loop()
        if kind.behaviour == "half":
            self.transport.write_eof()
        elif kind.behaviour == "later":
            loop.call_later(0.002, self.transport.write, kind.rest)
        elif kind.behaviour == "leave":
            loop.call_later(0.01, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        kind = self.kind
        if kind is None:
            return
        if kind.behaviour == "abort":
            self.finish("aborted")
            self.transport.abort()
            return
        self.data = data = self.data + data if self.data else data
        if self.missing < 0:
            self.missing = self.expected(data)
        if self.missing >= 0:
            if len(data) >= self.missing:
                self.whole(kind, data)
        elif self.missing == -2 and data.endswith(b"0\r\n\r\n"):
            self.whole(kind, data)

    def expected(self, data: bytes) -> int:
        """How many bytes the answer has: -1 if that is not known yet, -2 if it is chunked."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return -1
        if data.startswith(b"HTTP/1.1 101"):
            return end + 4
        length = _LENGTH.search(data, 0, end)
        return end + 4 + int(length[1]) if length else -2

    def whole(self, kind: Kind, data: bytes) -> None:
        """An answer has come: is it one that this kind of call may get?"""
        match = _STATUS.match(data)
        status = int(match[1]) if match else 0
        if status == 101 and kind.behaviour == "tunnel":
            self.talk(kind, data)
            return
        head = data.partition(b"\r\n\r\n")[0]
        if status not in kind.statuses:
            self.load.wrong.append(f"{kind.name}: {data[:300]!r}")
        elif kind.size is not None and self.missing >= 0 and self.missing - len(head) - 4 != kind.size:
            self.load.wrong.append(f"{kind.name}: {self.missing - len(head) - 4} bytes of body")
        self.finish(str(status))
        if b"\r\nconnection: close" in head or kind.behaviour is not None:
            self.transport.close()
        else:
            self.begin()

    def talk(self, kind: Kind, data: bytes) -> None:
        """A tunnel is open: what goes in comes back."""
        if not self.talking:
            self.talking = True
            self.missing += len(FRAME)
            self.transport.write(FRAME)
            return
        if not data.endswith(FRAME):
            self.load.wrong.append(f"{kind.name}: {data[-50:]!r}")
        self.finish("101")
        self.transport.close()

    def finish(self, how: str) -> None:
        """The call is over."""
        assert self.kind is not None
        self.load.counts[self.kind.name, how] += 1
        self.load.done += 1
        self.kind = None

    def check(self, now: float) -> None:
        """A call that takes this long is lost."""
        if self.kind is not None and now - self.since > STUCK:
            self.load.wrong.append(f"{self.kind.name}: no answer")
            self.finish("stuck")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        kind = self.kind
        if kind is not None:
            if not kind.breaks and kind.behaviour != "abort":
                self.load.wrong.append(f"{kind.name}: the connection broke after {len(self.data)} bytes")
            self.finish("broke")
        self.load.connections.discard(self)
        if self.load.left > 0:
            self.load.open()


# ---------------------------------------------------------------- what is watched


@dataclass(frozen=True)
class Sample:
    """Outrider at one moment."""

    seconds: float
    calls: int
    memory: float
    files: int
    metrics: dict[str, float]

    @property
    def down(self) -> float:
        return self.metrics.get("outrider_downstream_connections", -1)

    def row(self) -> str:
        """One line of the table; what this version does not tell is a dash."""

        def told(name: str) -> str:
            return f"{self.metrics[name]:9.0f}" if name in self.metrics else "        -"

        names = ("outrider_downstream_connections", "outrider_upstream_connections", "outrider_in_flight_requests")
        rest = "".join(map(told, (*names, "outrider_asyncio_tasks", "outrider_gc_objects")))
        return f"{self.seconds:8.1f}{self.calls:10d}{self.memory:9.1f}{self.files:7d}{rest}"


HEADER = " seconds     calls   RSS MB  files     down       up   active    tasks  objects"


class Watch:
    """Looks at the process of Outrider and at what it says of itself."""

    def __init__(self, pid: int, telemetry: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._url = f"http://127.0.0.1:{telemetry}/metrics"
        self._began = monotonic()
        self.samples: list[Sample] = []

    def look(self, calls: int) -> Sample:
        """Take a sample, and print it."""
        pages = int((self._proc / "statm").read_text().split()[1])
        files = len(os.listdir(self._proc / "fd"))
        metrics: dict[str, float] = {}
        with urllib.request.urlopen(self._url, timeout=10) as page:
            for line in page.read().decode().splitlines():
                if line.startswith("outrider_") and "_bucket{" not in line:
                    name, _, value = line.rpartition(" ")
                    name = name.partition("{")[0]
                    metrics[name] = metrics.get(name, 0) + float(value)
        memory = pages * resource.getpagesize() / 1e6
        sample = Sample(monotonic() - self._began, calls, memory, files, metrics)
        self.samples.append(sample)
        print(sample.row(), flush=True)
        return sample


# ---------------------------------------------------------------- putting it together


def started(command: list[str], **options: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH") or str(SOURCE)}
    return subprocess.Popen([sys.executable, *command], env=environment, **options)


def ports_of(log: IO[bytes]) -> dict[str, int]:
    """Wait for Outrider to say where it listens."""
    end = monotonic() + 15
    while monotonic() < end:
        log.seek(0)
        for line in log:
            if line.endswith(b"\n") and b'"ready"' in line:
                return cast(dict[str, int], json.loads(line)["ports"])
        sleep(0.02)
    log.seek(0)
    raise SystemExit(f"Outrider did not start: {log.read().decode()}")


def verdict(load: Load, watch: Watch, first: Sample, growth_mb: float) -> list[str]:
    """What is wrong, in sentences."""
    problems = load.wrong[:10]
    busy = [sample for sample in watch.samples[1:-1] if sample.calls >= WARM_UP * load.done]
    if len(busy) < 6:
        problems.append("too few samples after the warm-up to say anything: more calls, please, or a smaller --every")
    else:
        third = len(busy) // 3
        early, late = (median(sample.memory for sample in part) for part in (busy[:third], busy[-third:]))
        print(f"memory: {early:.1f} MB after the warm-up, {late:.1f} MB at the end ({late - early:+.1f} MB)")
        if late - early > growth_mb:
            problems.append(f"memory grew by {late - early:.1f} MB, more than {growth_mb:g}")
    last = watch.samples[-1]
    print(f"files: {first.files} before, {last.files} after; connections of the app after: {last.down:.0f}")
    if last.files > first.files + 2:
        problems.append(f"{last.files} files are open, {first.files} were before")
    for name in ("outrider_downstream_connections", "outrider_in_flight_requests", "outrider_tunnels"):
        if last.metrics.get(name, 0):
            problems.append(f"{name} is {last.metrics[name]:.0f}, with nobody there")
    if last.metrics.get("outrider_internal_errors_total", 0):
        problems.append("Outrider had internal errors")
    return problems


async def soak(port: int, watch: Watch, options: argparse.Namespace) -> list[str]:
    """Warm up, load, let go, judge."""
    print(HEADER)
    first = watch.look(0)
    load = Load(port, options.calls, options.connections)

    def look(load: Load) -> None:
        watch.look(load.done)

    began = monotonic()
    await load.run(options.every, look)
    seconds = monotonic() - began
    end = monotonic() + LINGER
    while (last := watch.look(load.done)).files > first.files + 2 or last.down:
        if monotonic() > end:
            break
        await asyncio.sleep(1)
    for (name, how), count in sorted(load.counts.items()):
        print(f"{count:10d}  {name}: {how}")
    print(f"{load.done} calls on {load.opened} connections in {seconds:.1f} s, {load.done / seconds:.0f} calls/s")
    return verdict(load, watch, first, options.growth_mb)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Soak Outrider with calls and faults.")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--growth-mb", type=float, default=12.0, help="how much memory may grow after the warm-up")
    parser.add_argument("--target", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.target:
        uvloop.run(serve())
        return 0
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        target = started([__file__, "--target"], stdout=subprocess.PIPE)
        assert target.stdout is not None
        file = Path(folder) / "outrider.yaml"
        file.write_text(CONFIG.format(port=int(target.stdout.readline())))
        outrider = started(["-m", "outrider", "run", "-c", str(file)], stderr=log)
        try:
            ports = ports_of(log)
            watch = Watch(outrider.pid, ports["telemetry.listen"])
            problems = uvloop.run(soak(ports["listen"], watch, options))
            outrider.terminate()
            if outrider.wait(10):
                problems.append(f"Outrider exited with {outrider.returncode}")
        finally:
            for process in (outrider, target):
                process.kill()
                process.communicate()
    for problem in problems:
        print(f"FAILED: {problem}")
    print("failed" if problems else "passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
