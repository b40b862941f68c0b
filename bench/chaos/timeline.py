"""What happens when: the phases of a run, and what the endpoints do in each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bench.chaos.endpoints import Behaviour

# Nothing is sent for so long (seconds) around a change of phase: a call in flight would belong to both.
GAP = 0.06
# Seconds; long enough to see whether all is well within one second.
SHORTEST_HEAL = 1.3
OK = Behaviour()
REFUSE = Behaviour("refuse")
RESET = Behaviour("reset")
RESET_ON_ACCEPT = Behaviour("reset-on-accept")
ERROR = Behaviour("status", status=500)
UNAVAILABLE = Behaviour("status", status=503)
BROWNOUT = Behaviour("status", status=503, share=0.1)
TAIL = Behaviour("tail", share=0.03, extra=1.0)
SLOW = Behaviour("ok", latency=0.6)
# 2 at a time for 60 ms each: 33 requests a second, a third of what three endpoints get of 300.
OVERLOAD = Behaviour("overload", slots=2, latency=0.06, queue=32)


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of `seconds` in which endpoint i behaves as `faults[i]`.

    `healthy`: the service can answer every call in time, because an endpoint is well or a second try is. `heals`: the
    fault ended as it began, and what counts is how soon every call is good again. `total`: nothing can be answered, and
    what counts is how little is asked. `resets`: a request may have been executed although its connection broke.
    `cycle`: the phase lasts whole cycles of so many seconds, however it is scaled. `settle`: seconds without new calls
    after it, in which those that it made slow can end before the next fault hits them.
    """

    name: str
    seconds: float
    faults: tuple[Behaviour, ...]
    healthy: bool = True
    heals: bool = False
    total: bool = False
    resets: bool = False
    cycle: float = 0.0
    settle: float = 0.0

    def scaled(self, scale: float) -> Phase:
        """The same, shorter or longer. What happens at set moments within it moves along; a whole number of cycles
        remains, at least one."""
        seconds = self.seconds * scale
        if self.cycle:
            seconds = max(1, math.floor(seconds / self.cycle + 0.5)) * self.cycle
        if self.heals:
            seconds = max(seconds, SHORTEST_HEAL)
        faults = tuple(
            replace(
                fault,
                period=fault.period * scale,
                restarts=tuple((at * scale, gracefully) for at, gracefully in fault.restarts),
            )
            if fault.restarts
            else fault
            for fault in self.faults
        )
        return replace(self, seconds=seconds, faults=faults)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A named run: `rate` in calls per second; the first phase only warms up and is not reported."""

    name: str
    title: str
    endpoints: int
    rate: float
    phases: tuple[Phase, ...]

    def scaled(self, scale: float) -> Timeline:
        """The same, shorter or longer."""
        return replace(self, phases=(self.phases[0], *(phase.scaled(scale) for phase in self.phases[1:])))

    def offsets(self) -> list[tuple[float, float]]:
        """Begin and duration of every phase, in seconds."""
        begins = []
        at = 0.0
        for phase in self.phases:
            begins.append((at, phase.seconds))
            at += phase.seconds + phase.settle + GAP
        return begins


def three_endpoints() -> Timeline:
    """Three endpoints, of which mostly one is at fault."""

    def one(behaviour: Behaviour) -> tuple[Behaviour, ...]:
        return OK, behaviour, OK

    def every(behaviour: Behaviour) -> tuple[Behaviour, ...]:
        return (behaviour,) * 3

    heal = every(OK)
    # Six restarts one after the other, each half down and half up again: first gracefully, then not.
    rolling = tuple(
        Behaviour("restart", period=0.5, restarts=((0.1 + index, True), (3.1 + index, False))) for index in range(3)
    )
    return Timeline(
        "three",
        "Three endpoints, 300 calls/s",
        3,
        300.0,
        (
            Phase("warm-up", 1.5, heal),
            Phase("baseline", 5, heal),
            Phase("one-refuses", 6, one(REFUSE)),
            Phase("heal-1", 4, heal, heals=True),
            Phase("one-resets", 6, one(RESET), resets=True),
            Phase("one-resets-on-accept", 5, one(RESET_ON_ACCEPT), resets=True),
            Phase("heal-2", 4, heal, heals=True),
            Phase("one-500s", 6, one(ERROR)),
            Phase("brownout-10pct-503", 6, every(BROWNOUT)),
            Phase("latency-tail-3pct-1s", 6, every(TAIL), settle=1.1),
            Phase("one-blackholes", 7, one(Behaviour("hang"))),
            Phase("one-20x-slower", 6, one(Behaviour("ok", latency=0.06))),
            Phase("heal-3", 4, heal, heals=True),
            Phase("one-flaps", 6, one(Behaviour("flap", period=1.0)), cycle=2.0),
            Phase("one-drips", 6, one(Behaviour("drip"))),
            Phase("one-truncates-30pct", 6, one(Behaviour("truncate", share=0.3))),
            Phase("all-503", 5, every(UNAVAILABLE), healthy=False, total=True),
            Phase("all-slow-600ms", 5, every(SLOW), healthy=False, settle=0.7),
            Phase("outage-all-refuse", 4, every(REFUSE), healthy=False, total=True),
            Phase("recovery-1", 6, heal, heals=True),
            Phase("rolling-restart", 6, rolling),
            Phase("overload-3x", 6, every(OVERLOAD), healthy=False),
            Phase("recovery-2", 5, heal, heals=True),
        ),
    )


def one_endpoint() -> Timeline:
    """A single endpoint: what a sidecar sees whose service has one instance, or one virtual address."""

    def phase(name: str, seconds: float, fault: Behaviour, **more: bool | float) -> Phase:
        return Phase(name, seconds, (fault,), healthy=False, **more)

    def heal(number: int) -> Phase:
        return Phase(f"heal-{number}", 3, (OK,), heals=True)

    return Timeline(
        "one",
        "One endpoint, 200 calls/s",
        1,
        200.0,
        (
            Phase("warm-up", 1.5, (OK,)),
            Phase("baseline", 4, (OK,)),
            phase("resets", 5, RESET, total=True, resets=True),
            heal(1),
            phase("500s", 5, ERROR, total=True),
            heal(2),
            Phase("brownout-10pct-503", 6, (BROWNOUT,)),
            Phase("latency-tail-3pct-1s", 6, (TAIL,), settle=1.1),
            phase("flap-400ms", 8, Behaviour("flap", period=0.4), cycle=0.8),
            heal(3),
            phase("all-503", 5, UNAVAILABLE, total=True),
            heal(4),
            phase("outage-refuses", 4, REFUSE, total=True),
            Phase("recovery", 5, (OK,), heals=True),
        ),
    )
