"""A data plane between an app and a target that are both strict, all on real sockets, and the verdict on one case.

Every slot has a sidecar of its own, so that whatever goes wrong is known to belong to the case that is running there;
many slots share one event loop, so that waiting for time limits costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fuzz.mutate import Case, Script
from fuzz.oracle import CANARY_ANSWER, CANARY_REQUEST, SECRET, Answered, Seen, judge, together
from fuzz.strict import Message, Reader
from outrider.config.load import load
from outrider.controlplane.runtime import Runtime
from outrider.dataplane.downstream.listener import Listener

# A message must have been answered or its connection closed within this time, in seconds.
PATIENCE = 1.0
_TICK = 0.01
_SHORT_TICK = 0.001  # when nothing else is going on
_LONGER_THAN_ANY_TIMEOUT = 0.4  # of those that may strike at a connection between two requests
_DEFAULT = Script((CANARY_ANSWER,))

# What the target received and what the app received.
Exchanged = tuple[list[Message], list[Message]]

_CONFIG = """
service: fuzz
listen: 127.0.0.1:0
credentials: {{ key: {{ header: x-api-key, value: "${{KEY}}" }} }}
defaults: {{ auth: key, timeout: 750ms, attempt_timeout: 600ms, connect_timeout: 300ms, circuit_breaker: false }}
limits:
  header_bytes: 4KiB
  headers: 40
  body_bytes: 32KiB
  replay_bytes: 2KiB
  header_timeout: 300ms
  body_idle_timeout: 300ms
observability: {{ log: {{ access: errors, query: true }} }}
services:
  user: {{ url: "http://127.0.0.1:{port}", {policy} }}
"""
_PROFILES = {
    "plain": "retry: false",
    "retry": "retry: { max_retries: 2, on_status: [500, 502, 503, 504], backoff: 1ms..2ms }",
}


class Clock:
    """Counts ticks of the event loop. A machine that stands still does not make time pass here, so a time limit
    that is missed was missed by the program."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tick: float) -> None:
        self._loop = loop
        self._length = tick
        self._waiting: dict[asyncio.Future[bool], tuple[Callable[[], bool], int]] = {}
        self._now = 0
        self._handle = loop.call_later(tick, self._tick)

    async def until(self, condition: Callable[[], bool], within: float = PATIENCE) -> bool:
        """Wait for the condition; False if it did not come about in time."""
        for _ in range(3):
            if condition():
                return True
            await asyncio.sleep(0)
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiting[future] = (condition, self._now + round(within / self._length))
        return await future

    def close(self) -> None:
        """Stop ticking."""
        self._handle.cancel()

    def _tick(self) -> None:
        self._now += 1
        for future, (condition, end) in list(self._waiting.items()):
            if future.done():
                del self._waiting[future]
            elif condition():
                del self._waiting[future]
                future.set_result(True)
            elif self._now > end:
                del self._waiting[future]
                future.set_result(False)
        self._handle = self._loop.call_later(self._length, self._tick)


class App(asyncio.Protocol):
    """The app's end of a connection."""

    def __init__(self, methods: Sequence[bytes]) -> None:
        self.reader = Reader(responses=True, methods=methods)
        self.raw = bytearray()
        self.ended = ""
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.raw += data
        self.reader.feed(data)

    def eof_received(self) -> bool:
        self.ended = self.ended or "eof"
        self.reader.end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.ended or ("reset" if exc is not None else "closed")

    def finals(self) -> int:
        """Whole answers so far."""
        return sum(message.complete and message.status >= 200 for message in self.reader.messages)

    def hang_up(self, *, reset: bool) -> None:
        """End the connection."""
        if reset:
            _reset(self.transport)
        else:
            self.transport.close()


def _reset(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Target(asyncio.Protocol):
    """The target's end of a connection: reads strictly, and answers by the book of the case."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.reader = Reader()
        self._served = 0
        self._tunnelled: bytearray | None = None  # what comes after we have answered 101
        self._serving = False
        self._pending: list[bytes] = []
        self._script = _DEFAULT
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._slot.targets.append(self)
        self._slot.open_targets += 1

    def data_received(self, data: bytes) -> None:
        if self._tunnelled is not None:
            self._tunnelled += data
            return
        self.reader.feed(data)
        self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        self._slot.open_targets -= 1

    def _serve(self) -> None:
        """Answer the next request, if it is there and the one before has been answered."""
        messages = self.reader.messages
        if self._serving or self._served >= len(messages):
            return
        message = messages[self._served]
        canary = message.target == b"/canary"
        script = _DEFAULT if canary else self._slot.next_script()
        if not message.complete and not script.early:
            self._slot.put_back(script)
            return
        self._served += 1
        seen = Seen(message, script)
        if message.get_all(b"upgrade") and script.switches:
            seen.tunnelled = self._tunnelled = bytearray()
        self._slot.seen.append(seen)
        self._serving = True
        self._script = script
        self._pending = together(message, script)
        self._step()

    def _step(self) -> None:
        """One segment in each turn of the loop, so that each is a read of its own at the other end."""
        if self.transport.is_closing():
            return
        if self._pending:
            self.transport.write(self._pending.pop(0))
            self._slot.loop.call_soon(self._step)
        elif self._script.then == "close":
            self.transport.close()
        elif self._script.then == "reset":
            _reset(self.transport)
        else:
            self._serving = False
            self._serve()


class _Complaints(logging.Handler):
    """What Outrider logs: an error is always a bug, and a secret in any line, too."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage() + repr(getattr(record, "fields", ""))
        if record.levelno >= logging.ERROR:
            self.lines.append(logging.Formatter().format(record))
        elif SECRET.decode() in text:
            self.lines.append(f"a secret in the log: {text}")


@dataclass(slots=True)
class Finding:
    """A case that broke a promise, and which."""

    case: Case
    problems: list[str]


@dataclass(slots=True)
class Tally:
    """What became of the messages, to see that a run has tested something."""

    cases: int = 0
    messages: int = 0
    forwarded: int = 0
    passed_on: int = 0
    refused: int = 0
    broken: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another tally's, too."""
        for name in ("cases", "messages", "forwarded", "passed_on", "refused", "broken"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.findings += other.findings


class Slot:
    """One sidecar with its target. Runs one case at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, profile: str) -> None:
        self.loop = loop
        self.clock = clock
        self.profile = profile
        self.seen: list[Seen] = []
        self.targets: list[Target] = []
        self.open_targets = 0
        self.last: Exchanged = ([], [])
        self._scripts: list[Script] = []
        self._port = 0

    async def open(self) -> None:
        """Bind everything."""
        self._server = await self.loop.create_server(lambda: Target(self), "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "outrider.yaml")
            file.write_text(_CONFIG.format(port=port, policy=_PROFILES[self.profile]))  # noqa: ASYNC240  # it is small
            resolved, _ = load([str(file)], environment={"KEY": SECRET.decode()})
        self._authority = b"127.0.0.1:%d" % port
        self._runtime = Runtime(resolved, self.loop)
        self._listener = Listener(self._runtime.proxy)
        self._port = self._listener.serve(socket.create_server(("127.0.0.1", 0), backlog=1024)).port

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        self._close_pools()
        self._server.close()
        for target in self.targets:
            target.transport.abort()

    def next_script(self) -> Script:
        """What to do with the next request that is not a canary."""
        return self._scripts.pop(0) if self._scripts else _DEFAULT

    def put_back(self, script: Script) -> None:
        """It is not to be answered yet."""
        self._scripts.insert(0, script)

    async def run(self, case: Case, tally: Tally) -> list[str]:
        """Run one case; what it broke."""
        self.seen = []
        self.targets = []
        self._scripts = list(case.scripts)
        reference = Reader(tolerant=True)
        reference.feed(b"".join(case.segments))
        problems: list[str] = []

        app = await self._connect([message.method for message in reference.messages])
        for segment in case.segments:
            if app.ended or app.transport.is_closing():
                break
            app.transport.write(segment)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        open_end = reference.error is not None or reference.partial
        expected = len(reference.messages)

        def settled() -> bool:
            if app.reader.messages and app.reader.messages[-1].status == 101:
                return True
            return bool(app.ended) or (not open_end and app.finals() >= expected)

        if not await self.clock.until(settled):
            problems.append(
                f"neither answered nor closed within {PATIENCE} s: {app.finals()} whole answers to {expected} requests"
                f"{' and something unfinished or malformed' if open_end else ''}"
            )
        if case.lingers:  # for bytes that nobody expects any more
            await asyncio.sleep(_LONGER_THAN_ANY_TIMEOUT)
        canary = await self._canary() if self.targets else None  # nothing can be left where nothing has been
        app.hang_up(reset=case.reset)
        problems += await self._leftovers()
        answered = Answered(app.reader, bytes(app.raw), app.ended, canary)
        problems += judge(case, reference, answered, self.seen, [one.reader for one in self.targets], self._authority)
        self._count(case, app, tally)
        self.last = [one.message for one in self.seen if one.message.target != b"/canary"], app.reader.messages
        return problems

    async def _canary(self) -> Reader:
        """The call of another app, which may well be given a connection that the case has used; what came back."""
        app = await self._connect([b"GET"])
        app.transport.write(CANARY_REQUEST)
        await self.clock.until(lambda: bool(app.ended) or app.finals() > 0)
        app.hang_up(reset=True)
        return app.reader

    async def _connect(self, methods: Sequence[bytes]) -> App:
        sock = socket.socket()
        sock.setblocking(True)
        sock.connect(("127.0.0.1", self._port))
        sock.setblocking(False)
        app = App(methods)
        await self.loop.create_connection(lambda: app, sock=sock)
        return app

    def _close_pools(self) -> None:
        for cluster in self._runtime.compiled.clusters:
            for endpoint in cluster.endpoints:
                endpoint.pool.close()

    async def _leftovers(self) -> list[str]:
        """Wait until nothing is under way, and say what stays."""
        proxy = self._runtime.proxy
        endpoints = [one for cluster in self._runtime.compiled.clusters for one in cluster.endpoints]
        idle = lambda: not proxy.connections and not any(one.in_flight for one in endpoints)  # noqa: E731
        problems: list[str] = []
        if not await self.clock.until(idle):
            problems.append(
                f"left over: {len(proxy.connections)} connections of apps, {proxy.in_flight} calls,"
                f" {sum(one.in_flight for one in endpoints)} attempts"
            )
            for connection in list(proxy.connections):
                connection.abort()
        if any(one.pool.open != len(one.pool.idle) for one in endpoints):
            problems.append(f"left over: {[(one.pool.open, len(one.pool.idle)) for one in endpoints]} connections")
        self._close_pools()
        if not await self.clock.until(lambda: not self.open_targets):
            problems.append(f"left over: {self.open_targets} connections to the target")
        if any(one.pool.open for one in endpoints):
            problems.append("the pool counts connections that are closed")
        return problems

    def _count(self, case: Case, app: App, tally: Tally) -> None:
        tally.cases += 1
        tally.messages += case.mutated
        tally.forwarded += sum(one.message.target != b"/canary" for one in self.seen)
        for message in app.reader.messages:
            if message.status >= 200:
                made_here = any(value.startswith(b"outrider; error") for value in message.get_all(b"proxy-status"))
                if not message.complete:
                    tally.broken += 1
                elif made_here:
                    tally.refused += 1
                else:
                    tally.passed_on += 1


class Lab:
    """Slots side by side. `async with Lab(...) as lab: await lab.run(cases)`."""

    def __init__(self, slots: int = 64) -> None:
        self._size = slots
        self._slots: dict[str, list[Slot]] = {}
        self.last: Exchanged = ([], [])  # of the case that was run alone
        self._complaints = _Complaints()
        self._logger = logging.getLogger("outrider")

    async def __aenter__(self) -> Lab:
        loop = asyncio.get_running_loop()
        self._clock = Clock(loop, _TICK if self._size else _SHORT_TICK)
        self._was = (self._logger.propagate, self._logger.level, self._logger.disabled)
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self._complaints)
        loop.set_exception_handler(self._exception)
        for number in range(self._size):  # none: they are made as they are needed
            profile = "retry" if number % 4 == 3 or self._size == 1 else "plain"
            await self._open(profile)
        return self

    async def __aexit__(self, *_: object) -> None:
        for slots in self._slots.values():
            for slot in slots:
                slot.close()
        await asyncio.sleep(0.01)
        self._clock.close()
        self._logger.removeHandler(self._complaints)
        self._logger.propagate = self._was[0]
        self._logger.setLevel(self._was[1])
        self._logger.disabled = self._was[2]

    async def run(self, cases: Callable[[int], Case], numbers: Sequence[int], most_findings: int = 5) -> Tally:
        """Run these cases, as many at a time as there are slots."""
        tally = Tally()
        queues: dict[str, list[Case]] = {profile: [] for profile in _PROFILES}
        waiting = iter(numbers)

        def next_for(profile: str) -> Case | None:
            """The next case for a slot of this kind; others that come up on the way wait for theirs."""
            while not queues[profile]:
                number = next(waiting, None)
                if number is None:
                    return None
                case = cases(number)
                queues[case.profile].append(case)
            return queues[profile].pop(0)

        async def work(slot: Slot) -> None:
            while len(tally.findings) < most_findings and (case := next_for(slot.profile)) is not None:
                problems = await slot.run(case, tally)
                problems += self._complaints.lines
                self._complaints.lines = []
                if problems:
                    tally.findings.append(Finding(case, problems))

        await asyncio.gather(*(work(slot) for slots in self._slots.values() for slot in slots))
        return tally

    async def one(self, case: Case) -> list[str]:
        """Run one case alone."""
        if case.profile not in self._slots:
            await self._open(case.profile)
        problems = await self._slots[case.profile][0].run(case, Tally())
        problems += self._complaints.lines
        self._complaints.lines = []
        self.last = self._slots[case.profile][0].last
        return problems

    async def _open(self, profile: str) -> None:
        slot = Slot(asyncio.get_running_loop(), self._clock, profile)
        await slot.open()
        self._slots.setdefault(profile, []).append(slot)

    def _exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._complaints.lines.append(f"an exception nobody caught: {context!r}")
