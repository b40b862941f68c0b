"""The circuit breaker of a service: stop calling what is broken, and find out gently when it is not any more.

pybreaker is the state machine and the listener hub, driven by its public `open`, `half_open` and `close`. No call runs
*through* it: it would admit every call while half-open, count a cancelled call as a failure, let stragglers prolong an
outage, and it is told of a failure by an exception. So the window, the count of failures in a row, the probe permits
and the generation stamps are ours. Closed is good: calls pass. Open refuses. Half-open lets `probes` calls through at a
time.

The pause between probes grows with the outage, not with the number of probes: it is a twentieth of how long the target
has been away, so that recovery is noticed late by little more than that. A probe that hangs does not hold up the next
one for long (docs/decisions/0012).
"""

from __future__ import annotations

import asyncio
import math
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import random, uniform
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import pybreaker

from outrider.model.failure import Failure, Kind
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half_open"
_NAMES: Final = {pybreaker.STATE_CLOSED: CLOSED, pybreaker.STATE_OPEN: OPEN, pybreaker.STATE_HALF_OPEN: HALF_OPEN}
_BUCKETS: Final = 10
# Open periods spread by up to this share, so that many sidecars do not probe in step.
_SPREAD: Final = 0.2
# The pause between two probes, as a share of how long the target has been away.
_OF_THE_OUTAGE: Final = 0.05
# Seconds after which a probe that has not ended no longer keeps the next one from going.
_PROBE_TAKES: Final = 0.5
# How many of those who wait go at a time once it has closed, and after how many seconds the next.
_BATCH: Final = 16
_BATCH_EVERY: Final = 0.005
# What a ramp begins with, as a share of all attempts.
_RAMP_FROM: Final = 0.1
# Seconds that a target may ask us to stay away for.
_MOST_ASKED: Final = 60.0

TransitionHook = Callable[[str, str, str], None]


@dataclass(slots=True, frozen=True)
class BreakerSettings:
    """When to open, and for how long. Durations in seconds, rates as fractions; 0 switches a rule off.

    Opens on `consecutive_failures` in a row, or when of at least `min_requests` attempts within `window` a share
    of `failure_rate` failed or of `slow_rate` took longer than `slow_call` to answer. Stays open for `open_first`,
    later for longer, up to `open_cap`. Within `ramp` after closing, it lets a growing share of attempts through. Calls
    that it refuses may wait for it to close for up to `wait`.
    """

    consecutive_failures: int = 5
    failure_rate: float = 0.5
    slow_rate: float = 0.8
    slow_call: float = 4.0
    min_requests: int = 20
    window: float = 10.0
    open_first: float = 0.02
    open_cap: float = 0.25
    probes: int = 1
    ramp: float = 0.0
    wait: float = 0.0


class _Window:
    """Attempts, failures and slow answers of the last `window` seconds, in ten buckets.

    The oldest bucket leaves when something is added after `rotate_at`; before that, a plain success is
    `latest[0] += 1; total += 1` for whoever holds the window.
    """

    __slots__ = ("_buckets", "_width", "failed", "latest", "rotate_at", "slow", "total")

    def __init__(self, window: float) -> None:
        self._width = window / _BUCKETS
        self.rotate_at = 0.0
        self.clear()

    def clear(self) -> None:
        self.latest = [0, 0, 0]  # total, failed, slow
        self._buckets = deque(([0, 0, 0] for _ in range(_BUCKETS - 1)), _BUCKETS)
        self._buckets.append(self.latest)
        self.total = self.failed = self.slow = 0

    def add(self, now: float, failed: bool, slow: bool) -> None:
        if now >= self.rotate_at:
            self.rotate(now)
        latest = self.latest
        latest[0] += 1
        self.total += 1
        if failed:
            latest[1] += 1
            self.failed += 1
        if slow:
            latest[2] += 1
            self.slow += 1

    def rotate(self, now: float) -> None:
        """Let go of the buckets that are older than the window."""
        steps = int((now - self.rotate_at) / self._width) + 1
        self.rotate_at = now - (now - self.rotate_at) % self._width + self._width
        for _ in range(min(steps, _BUCKETS)):
            total, failed, slow = self._buckets[0]
            self.total -= total
            self.failed -= failed
            self.slow -= slow
            self.latest = [0, 0, 0]
            self._buckets.append(self.latest)


class Breaker:
    """One circuit breaker. Sees attempts, not calls."""

    __slots__ = (
        "_asked",
        "_away_since",
        "_bell",
        "_cheap",
        "_clock",
        "_draw",
        "_good_probes",
        "_hooks",
        "_in_a_row",
        "_jitter",
        "_machine",
        "_permits",
        "_probed_at",
        "_ramp_until",
        "_settings",
        "_slow_call",
        "_waiting",
        "_window",
        "generation",
        "held",
        "name",
        "open_until",
        "state",
        "wait",
    )

    def __init__(
        self,
        name: str,
        settings: BreakerSettings,
        *,
        hooks: tuple[TransitionHook, ...] = (),
        clock: Callable[[], float] = monotonic,
        jitter: Callable[[float, float], float] = uniform,
        draw: Callable[[], float] = random,
    ) -> None:
        """`hooks` hear every transition as `(name, from, to)`. `draw` gives a number from 0 to 1."""
        self.name = name
        self.held = ""  # the state it is kept in by hand
        self.state = CLOSED
        self.generation = 0
        self.open_until = 0.0
        self._settings = settings
        self._slow_call = settings.slow_call
        self._hooks = hooks
        self._clock = clock
        self._jitter = jitter
        self._draw = draw
        self._window = _Window(settings.window)
        self._in_a_row = 0
        self._away_since = 0.0
        self._asked = 0.0  # until when the target has asked us to stay away
        self._ramp_until = 0.0
        self._permits = 0
        self._good_probes = 0  # since the circuit became half-open
        self._probed_at = 0.0
        self._cheap = False  # the latest failure was a refused connection: asking again costs nobody anything
        self.wait = settings.wait
        self._waiting: deque[Future[None]] = deque()
        self._bell: TimerHandle | None = None  # wakes those who wait
        self._machine = pybreaker.CircuitBreaker(
            listeners=[_Listener(self)],
            name=name,
        )

    # ---------------------------------------------------------------- the two verbs

    def admit(self, attempt: Attempt) -> Failure | None:
        """Let the attempt go, stamped with the generation it belongs to, or refuse it."""
        if self.state is not CLOSED:
            refusal = self._refuse()
            if refusal is not None:
                return refusal
            self._permits -= 1
            self._probed_at = self._clock()
        elif self._ramp_until and (refusal := self._ramping(attempt.started)) is not None:
            return refusal
        attempt.generation = self.generation
        return None

    def observe(self, attempt: Attempt, outcome: Outcome) -> None:
        """Hear how the attempt ended. A straggler, whose state has passed, moves nothing."""
        if attempt.generation != self.generation:
            return
        if outcome is FAILURE:
            self._cheap = attempt.refused
        if self.state is CLOSED:
            if outcome is SUCCESS:
                now = attempt.answered
                window = self._window
                if not self._in_a_row and now < window.rotate_at and now - attempt.started <= self._slow_call:
                    window.latest[0] += 1  # nothing to decide, only to count
                    window.total += 1
                    return
            if outcome is not NEUTRAL:
                self._count(attempt.answered, attempt.latency, outcome is FAILURE, attempt.excused)
        else:
            self._judge_probe(outcome)

    @property
    def worth_waiting(self) -> bool:
        """Whether calls may wait for it to close, and it may do so by itself."""
        return self.wait > 0 and not self.held

    def refusing(self) -> float:
        """Seconds until an attempt may go again; 0 if it may go now. Takes nothing."""
        refusal = self._refuse() if self.state is not CLOSED else None
        return 0.0 if refusal is None else refusal.retry_after or _SPREAD

    def until_probe(self) -> float:
        """Seconds for which an open circuit stays so; 0 if it is not open, or would let a probe go. Changes nothing."""
        return max(0.0, self.open_until - self._clock()) if self.state is OPEN else 0.0

    async def changed(self, seconds: float) -> None:
        """Wait until the circuit closes, or until it is this call's turn to make the next probe, but no longer than so
        many seconds."""
        loop = asyncio.get_running_loop()
        turn: Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _resolve, turn)
        self._waiting.append(turn)
        if self._bell is None:
            self._set_bell()
        try:
            await turn
        finally:
            timer.cancel()
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _set_bell(self) -> None:
        """Wake those who wait: one when a probe is due, all when the circuit has closed, a few at a time."""
        if self._bell is not None:
            self._bell.cancel()
            self._bell = None
        if not self._waiting:
            return
        if self.state is CLOSED:
            left = _BATCH_EVERY
        elif self.state is OPEN:
            left = self.open_until - self._clock()
        else:
            left = self._probed_at + _PROBE_TAKES - self._clock()
        if left < math.inf:
            self._bell = asyncio.get_running_loop().call_later(max(left, 0.001), self._ring)

    def _ring(self) -> None:
        self._bell = None
        self._wake(_BATCH if self.state is CLOSED else 1)
        self._set_bell()

    def _wake(self, count: int) -> None:
        waiting = self._waiting
        while waiting and count:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                count -= 1

    def asked_to_wait(self, seconds: float) -> None:
        """The target has said when to come back (`Retry-After` of a 503, RFC 9110 §10.2.3): if this opens, it stays
        open until then."""
        wait = min(seconds, _MOST_ASKED)
        self._asked = max(self._asked, self._clock() + self._jitter(wait, wait * (1 + _SPREAD)))

    def probing(self, attempt: Attempt) -> bool:
        """Whether this attempt holds one of the probe permits."""
        return self.state is HALF_OPEN and attempt.generation == self.generation

    # ---------------------------------------------------------------- by hand

    def hold_open(self) -> None:
        """Refuse everything until told otherwise."""
        self.held = OPEN
        if self.state is not OPEN:
            self._machine.open()
        self.open_until = math.inf
        self._set_bell()

    def hold_closed(self) -> None:
        """Let everything through until told otherwise, whatever fails."""
        self.held = CLOSED
        self._ramp_until = 0.0
        if self.state is not CLOSED:
            self._machine.close()

    def reset(self) -> None:
        """Closed, with nothing remembered, and by its own rules again."""
        self.held = ""
        if self.state is not CLOSED:
            self._machine.close()
        self._in_a_row = 0
        self._asked = self._ramp_until = 0.0
        self._window.clear()

    # ---------------------------------------------------------------- rules

    @property
    def failures(self) -> int:
        """Failures within the window that ends now."""
        window, now = self._window, self._clock()
        if now >= window.rotate_at:
            window.rotate(now)
        return window.failed

    @property
    def in_a_row(self) -> int:
        """Failures since the last success."""
        return self._in_a_row

    def _refuse(self) -> Failure | None:
        """In open and half-open state: None if a probe may go. Opening time that has passed turns half-open."""
        if self.state is OPEN:
            left = self.open_until - self._clock()
            if left > 0:
                if self.held:
                    return Failure(Kind.CIRCUIT_OPEN, f"the circuit of {self.name} is held open by hand")
                return Failure(
                    Kind.CIRCUIT_OPEN,
                    f"the circuit of {self.name} is open after too many failures; next probe in {left:.2f} s",
                    retry_after=left,
                )
            self._machine.half_open()
        if self._permits > 0 or self._clock() >= self._probed_at + _PROBE_TAKES:
            return None
        detail = f"the circuit of {self.name} is half-open and a probe is already on its way"
        return Failure(Kind.CIRCUIT_OPEN, detail, retry_after=_PROBE_TAKES)

    def _ramping(self, now: float) -> Failure | None:
        """Just closed again: a share that grows with time may go, so that a cold target is not overrun."""
        left = self._ramp_until - now
        if left <= 0:
            self._ramp_until = 0.0
            return None
        if self._draw() < max(_RAMP_FROM, 1.0 - left / self._settings.ramp):
            return None
        return Failure(Kind.CIRCUIT_OPEN, f"{self.name} has just recovered and gets calls gradually", retry_after=left)

    def _count(self, now: float, latency: float, failed: bool, excused: bool) -> None:
        if self.held:
            return
        settings = self._settings
        window = self._window
        slow = latency > settings.slow_call
        window.add(now, failed, slow)
        if failed:
            if not excused:
                self._in_a_row += 1
        else:
            self._in_a_row = 0
        if (settings.consecutive_failures and self._in_a_row >= settings.consecutive_failures) or (
            (failed or slow)
            and not excused
            and window.total >= settings.min_requests
            and (
                (settings.failure_rate and window.failed >= settings.failure_rate * window.total)
                or (settings.slow_rate and window.slow >= settings.slow_rate * window.total)
            )
        ):
            self._machine.open()

    def _judge_probe(self, outcome: Outcome) -> None:
        """Success counts towards closing, failure opens again, neutral only gives the permit back."""
        self._permits = min(self._settings.probes, self._permits + 1)
        if outcome is FAILURE:
            self._machine.open()
        elif outcome is SUCCESS:
            self._good_probes += 1
            if self._good_probes >= self._settings.probes:
                self._machine.close()

    def _moved(self, old: str, new: str) -> None:
        """The only place where a transition takes effect."""
        self.state = new
        self.generation += 1
        self._in_a_row = self._good_probes = 0
        self._permits = self._settings.probes if new is HALF_OPEN else 0
        if new is CLOSED:
            self._window.clear()
            self._wake(_BATCH)
            self._ramp_until = self._clock() + self._settings.ramp if self._settings.ramp and not self.held else 0.0
        elif new is OPEN:
            now = self._clock()
            if old is CLOSED:
                self._away_since = now
            settings = self._settings
            period = min(settings.open_cap, max(settings.open_first, (now - self._away_since) * _OF_THE_OUTAGE))
            if self._cheap:
                period = settings.open_first
            self.open_until = max(now + self._jitter(period, period * (1 + _SPREAD)), self._asked)
        if self._waiting:
            self._set_bell()
        for hook in self._hooks:
            hook(self.name, old, new)


class _Listener(pybreaker.CircuitBreakerListener):
    """Hears pybreaker's transitions. A same-state event is no transition."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def state_change(self, cb: pybreaker.CircuitBreaker, old_state: Any, new_state: Any) -> None:
        old, new = _NAMES[old_state.name], _NAMES[new_state.name]
        if old != new:
            self._breaker._moved(old, new)


def _resolve(turn: Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
