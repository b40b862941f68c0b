"""The circuit breaker of a service: stop calling what is broken, and find out gently when it is not any more.

pybreaker is the state machine and the listener hub, fed with finished outcomes through its public methods; no
call ever runs *through* it, because it would admit every call while half-open, count a cancelled call as a
failure, and let stragglers prolong an outage. Ours are therefore the window, the probe permits and the
generation stamps. Closed is good: calls pass. Open refuses. Half-open lets `probes` calls through at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import uniform
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

TransitionHook = Callable[[str, str, str], None]


@dataclass(slots=True, frozen=True)
class BreakerSettings:
    """When to open, and for how long. Durations in seconds, rates as fractions; 0 switches a rule off.

    Opens on `consecutive_failures` in a row, or when of at least `min_requests` attempts within `window` a share
    of `failure_rate` failed or of `slow_rate` took longer than `slow_call` to answer.
    """

    consecutive_failures: int = 5
    failure_rate: float = 0.5
    slow_rate: float = 0.8
    slow_call: float = 4.0
    min_requests: int = 20
    window: float = 10.0
    open_first: float = 0.5
    open_cap: float = 5.0
    probes: int = 1


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
            self._rotate(now)
        latest = self.latest
        latest[0] += 1
        self.total += 1
        if failed:
            latest[1] += 1
            self.failed += 1
        if slow:
            latest[2] += 1
            self.slow += 1

    def _rotate(self, now: float) -> None:
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
        "_clock",
        "_hooks",
        "_in_a_row",
        "_jitter",
        "_machine",
        "_opened_times",
        "_permits",
        "_settings",
        "_slow_call",
        "_window",
        "generation",
        "name",
        "open_until",
        "state",
    )

    def __init__(
        self,
        name: str,
        settings: BreakerSettings,
        *,
        hooks: tuple[TransitionHook, ...] = (),
        clock: Callable[[], float] = monotonic,
        jitter: Callable[[float, float], float] = uniform,
    ) -> None:
        """`hooks` hear every transition as `(name, from, to)`."""
        self.name = name
        self.state = CLOSED
        self.generation = 0
        self.open_until = 0.0
        self._settings = settings
        self._slow_call = settings.slow_call
        self._hooks = hooks
        self._clock = clock
        self._jitter = jitter
        self._window = _Window(settings.window)
        self._in_a_row = 0
        self._opened_times = 0
        self._permits = 0
        self._machine = pybreaker.CircuitBreaker(
            fail_max=settings.consecutive_failures or 2**31,
            success_threshold=settings.probes,
            throw_new_error_on_trip=False,
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
        attempt.generation = self.generation
        return None

    def observe(self, attempt: Attempt, outcome: Outcome) -> None:
        """Hear how the attempt ended. A straggler, whose state has passed, moves nothing."""
        if attempt.generation != self.generation:
            return
        if self.state is CLOSED:
            if outcome is SUCCESS:
                now = attempt.answered
                window = self._window
                if not self._in_a_row and now < window.rotate_at and now - attempt.started <= self._slow_call:
                    window.latest[0] += 1  # nothing to decide, only to count
                    window.total += 1
                    return
            if outcome is not NEUTRAL:
                self._count(attempt.answered, attempt.latency, outcome is FAILURE)
        else:
            self._judge_probe(outcome)

    def refusing(self) -> bool:
        """Whether an attempt would be refused right now; takes nothing."""
        return self.state is not CLOSED and self._refuse() is not None

    def probing(self, attempt: Attempt) -> bool:
        """Whether this attempt holds one of the probe permits."""
        return self.state is HALF_OPEN and attempt.generation == self.generation

    # ---------------------------------------------------------------- by hand

    def open(self) -> None:
        """Open the circuit now."""
        if self.state is not OPEN:
            self._machine.open()

    def close(self) -> None:
        """Close the circuit now."""
        if self.state is not CLOSED:
            self._machine.close()

    # ---------------------------------------------------------------- rules

    @property
    def failures(self) -> int:
        """Failures within the window."""
        return self._window.failed

    @property
    def in_a_row(self) -> int:
        """Failures since the last success."""
        return self._in_a_row

    def _refuse(self) -> Failure | None:
        """In open and half-open state: None if a probe may go. Opening time that has passed turns half-open."""
        if self.state is OPEN:
            left = self.open_until - self._clock()
            if left > 0:
                return Failure(
                    Kind.CIRCUIT_OPEN,
                    f"the circuit of {self.name} is open after too many failures; next probe in {left:.1f} s",
                    retry_after=left,
                )
            self._machine.half_open()
        if self._permits > 0:
            return None
        detail = f"the circuit of {self.name} is half-open and a probe is already on its way"
        return Failure(Kind.CIRCUIT_OPEN, detail, retry_after=1.0)

    def _count(self, now: float, latency: float, failed: bool) -> None:
        settings = self._settings
        window = self._window
        slow = latency > settings.slow_call
        window.add(now, failed, slow)
        if failed:
            self._in_a_row += 1
            _feed(self._machine, _failing)
        elif self._in_a_row:
            self._in_a_row = 0
            _feed(self._machine, _working)
        if (
            (failed or slow)
            and self.state is CLOSED
            and window.total >= settings.min_requests
            and (
                (settings.failure_rate and window.failed >= settings.failure_rate * window.total)
                or (settings.slow_rate and window.slow >= settings.slow_rate * window.total)
            )
        ):
            self._machine.open()

    def _judge_probe(self, outcome: Outcome) -> None:
        """Success counts towards closing, failure opens again, neutral only gives the permit back."""
        self._permits += 1
        if outcome is not NEUTRAL:
            _feed(self._machine, _failing if outcome is FAILURE else _working)

    def _moved(self, old: str, new: str) -> None:
        """The only place where a transition takes effect."""
        self.state = new
        self.generation += 1
        self._in_a_row = 0
        self._permits = self._settings.probes if new is HALF_OPEN else 0
        if new is CLOSED:
            self._opened_times = 0
            self._window.clear()
        elif new is OPEN:
            period = min(self._settings.open_cap, self._settings.open_first * 2.0**self._opened_times)
            self._opened_times = min(self._opened_times + 1, 30)
            self.open_until = self._clock() + self._jitter(period, period * (1 + _SPREAD))
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


class _AttemptFailedError(Exception):
    """What pybreaker is told when an attempt failed."""


def _working() -> None:
    pass


def _failing() -> None:
    raise _AttemptFailedError


def _feed(machine: pybreaker.CircuitBreaker, result: Callable[[], None]) -> None:
    try:
        machine.call(result)
    except (_AttemptFailedError, pybreaker.CircuitBreakerError):
        pass  # the machine re-raises what it is told; the listener has already acted on it
