"""One long-lived sidecar for thousands of small examples: the slots of the fuzz lab, with everything they watch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, pairwise

import uvloop
from fuzz.lab import Lab
from fuzz.mutate import Case, Script
from fuzz.oracle import only_late
from fuzz.strict import Fields, Message

# What Outrider writes anew for every request, and what tells the time.
_CHANGING = (
    b"x-correlation-id",
    b"traceparent",
    b"x-request-timeout-ms",
    b"x-request-total-timeout-ms",
    b"server-timing",
    b"date",
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(slots=True)
class Outcome:
    """What the target received and what the app received, in order."""

    requests: list[Message]
    answers: list[Message]

    def lasting(self) -> tuple[list[object], list[object]]:
        """Everything but what changes from call to call, to compare two outcomes."""
        return [_plain(one) for one in self.requests], [_plain(one) for one in self.answers]


def _plain(message: Message) -> object:
    fields = [(name.lower(), value) for name, value in message.fields if name.lower() not in _CHANGING]
    what = (message.method, message.target, message.status, message.reason)
    return what, fields, message.framing, bytes(message.body), message.complete


class Bench:
    """Runs examples. Each must be clean at both ends, be over in time and leave nothing behind, or `run` fails."""

    def __init__(self, runner: asyncio.Runner, lab: Lab) -> None:
        self._runner = runner
        self._lab = lab
        self._numbers = count()

    def run(
        self,
        sent: tuple[bytes, ...],
        said: tuple[tuple[bytes, ...], ...] = (),
        *,
        then: str = "keep",
    ) -> Outcome:
        """The app sends these segments; the target answers its requests with those."""
        scripts = tuple(Script(segments, then) for segments in said) or (Script((OK,)),) * 50
        case = Case(f"example {next(self._numbers)}", sent, scripts, "plain", 0, reset=True, lingers=False)
        problems = self._runner.run(self._lab.one(case))
        if problems and only_late(problems):
            problems = self._runner.run(self._lab.one(case))
        assert not problems, "\n".join((repr(sent), repr(said), *problems))
        seen, answers = self._lab.last
        return Outcome(seen, answers)


@contextmanager
def bench() -> Iterator[Bench]:
    """A workbench on an event loop of its own, the one of production."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lab = runner.run(Lab(0).__aenter__())
        try:
            yield Bench(runner, lab)
        finally:
            runner.run(lab.__aexit__())


def cut(data: bytes, places: set[int]) -> tuple[bytes, ...]:
    """The bytes in segments that end at these places."""
    edges = [0, *sorted(place for place in places if 0 < place < len(data)), len(data)]
    return tuple(data[start:end] for start, end in pairwise(edges))


def lines(fields: Fields) -> bytes:
    """Fields as they are sent."""
    return b"".join(b"%b: %b\r\n" % field for field in fields)
