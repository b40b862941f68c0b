"""Setting aside an endpoint that does worse than the others, and finding out gently when it does not any more.

    in ──a failure──> suspect ──a success──> in
     │                   │ consecutive_failures, or far worse than the others
     │                   v
     └──a probe worked── out, for a while that doubles ──over──> on probation, one probe at a time

A suspect gets only calls that may be repeated elsewhere, one at a time and after a short pause, while there is somebody
better: so one bad endpoint costs a POST at most one failure, not five. Never are all set aside: the last one stays,
and is the service breaker's business. In the manner of Envoy's outlier detection and Linkerd's failure accrual, with
rules for small pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import uniform
from typing import TYPE_CHECKING, Final

from outrider.model.outcome import FAILURE, NEUTRAL, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.upstream.cluster import Endpoint

# Seconds before a suspect is tried again: first, and cap; doubling with every failure.
_FIRST_LOOK: Final = 0.05
_LAST_LOOK: Final = 1.0
_MAX_DOUBLINGS: Final = 16
# Seconds over which failures are compared with the others', and attempts below which that says nothing.
_WINDOW: Final = 10.0
_MIN_ATTEMPTS: Final = 20
# Answers in a row that must be far slower than the others': one long report is no reason.
_SLOW_IN_A_ROW: Final = 5


@dataclass(slots=True, frozen=True)
class EjectionSettings:
    """When to eject, and for how long. Durations in seconds; a rule with 0 is off.

    Ejects after `consecutive_failures`; when the share of failed attempts exceeds that of the other endpoints by
    `failure_rate`; when several answers in a row take `slow_factor` times as long as the others' usual ones and longer
    than `slow_call`.
    """

    consecutive_failures: int = 5
    failure_rate: float = 0.3
    slow_factor: float = 10.0
    slow_call: float = 0.25
    base: float = 0.2
    cap: float = 30.0


class Ejection:
    """Looks after the endpoints of one cluster. `troubled` counts those that are not plainly `in`."""

    __slots__ = ("_hook", "_jitter", "_settings", "troubled")

    def __init__(
        self,
        settings: EjectionSettings,
        *,
        hook: Callable[[Endpoint, bool, str], None] = lambda endpoint, out, why: None,
        jitter: Callable[[float, float], float] = uniform,
    ) -> None:
        """`hook` hears of every ejection and return: endpoint, whether it is out, and why."""
        self._settings = settings
        self._hook = hook
        self._jitter = jitter
        self.troubled = 0

    def observe(
        self,
        endpoint: Endpoint,
        outcome: Outcome,
        started: float,
        seconds: float,
        now: float,
        others: Sequence[Endpoint],
    ) -> None:
        """An attempt at `endpoint`, begun at `started` and answered after `seconds`, is over; `others` are all
        endpoints of the cluster, itself included. What began before it was set aside says nothing about how it is
        now."""
        if outcome is NEUTRAL or (endpoint.out and started < endpoint.out_since):
            return
        self._age(endpoint, now)
        endpoint.attempts += 1
        if outcome is FAILURE:
            endpoint.failures += 1
            self._failed(endpoint, now, others)
            return
        slow = seconds > self._settings.slow_call and self._far_slower(endpoint, seconds, others)
        endpoint.slow_run = endpoint.slow_run + 1 if slow else 0
        if endpoint.out and slow:
            self._put_out(endpoint, now, "its probe was far slower than the others")
        elif endpoint.out or (endpoint.run and started >= endpoint.failed_at):
            self._worked(endpoint, now)
            endpoint.latency = seconds
        elif endpoint.slow_run >= _SLOW_IN_A_ROW and _others_stay(endpoint, others):
            if not endpoint.run:
                self.troubled += 1
            self._put_out(endpoint, now, f"{endpoint.slow_run} answers in a row far slower than the others'")

    def forget(self, endpoint: Endpoint) -> None:
        """An endpoint has left the cluster."""
        if endpoint.doubtful:
            self.troubled -= 1

    def _worked(self, endpoint: Endpoint, now: float) -> None:
        self.troubled -= 1
        endpoint.run = endpoint.slow_run = 0
        endpoint.look_at = 0.0
        if endpoint.out:
            endpoint.out = False
            endpoint.attempts = endpoint.failures = 0
            endpoint.since = now  # slow start
            self._hook(endpoint, False, "a probe worked")

    def _failed(self, endpoint: Endpoint, now: float, others: Sequence[Endpoint]) -> None:
        if not endpoint.doubtful:
            self.troubled += 1
        endpoint.run += 1
        endpoint.failed_at = now
        pause = min(_LAST_LOOK, _FIRST_LOOK * 2.0 ** min(endpoint.run - 1, _MAX_DOUBLINGS))
        endpoint.look_at = now + self._jitter(pause / 2, pause)
        if endpoint.out:
            self._put_out(endpoint, now, "its probe failed")
        elif (why := self._reason(endpoint, now, others)) and _others_stay(endpoint, others):
            self._put_out(endpoint, now, why)

    def _far_slower(self, endpoint: Endpoint, seconds: float, others: Sequence[Endpoint]) -> bool:
        """Whether that is this endpoint's own pace, and not the target's usual one."""
        factor = self._settings.slow_factor
        rest = sorted(one.latency for one in others if one is not endpoint and not one.out and one.latency)
        return bool(factor and rest) and seconds > factor * rest[len(rest) // 2]

    def _reason(self, endpoint: Endpoint, now: float, others: Sequence[Endpoint]) -> str:
        settings = self._settings
        if settings.consecutive_failures and endpoint.run >= settings.consecutive_failures:
            return f"{endpoint.run} failures in a row"
        if settings.failure_rate and endpoint.attempts >= _MIN_ATTEMPTS:
            rest = [one for one in others if one is not endpoint and not one.out]
            for one in rest:
                self._age(one, now)
            attempts = sum(one.attempts for one in rest)
            share = endpoint.failures / endpoint.attempts
            usual = sum(one.failures for one in rest) / attempts if attempts else 1.0
            if share - usual >= settings.failure_rate:
                return f"{share:.0%} of its attempts fail, {usual:.0%} of the others'"
        return ""

    def _put_out(self, endpoint: Endpoint, now: float, why: str) -> None:
        settings = self._settings
        if now - endpoint.out_until > settings.cap:
            endpoint.ejections = 0  # it has done well for long
        period = min(settings.cap, settings.base * 2.0 ** min(endpoint.ejections, _MAX_DOUBLINGS))
        endpoint.ejections += 1
        endpoint.out = True
        endpoint.look_at = now
        endpoint.out_since = now
        endpoint.out_until = now + self._jitter(period, period * 1.2)
        self._hook(endpoint, True, why)

    def _age(self, endpoint: Endpoint, now: float) -> None:
        """Let old counts fade: half of them go with every window that has passed."""
        while now - endpoint.counted_from > _WINDOW:
            endpoint.attempts //= 2
            endpoint.failures //= 2
            endpoint.counted_from += _WINDOW
            if not endpoint.attempts:
                endpoint.counted_from = now


def _others_stay(endpoint: Endpoint, others: Sequence[Endpoint]) -> bool:
    """At most n-1 may be out: somebody must be left."""
    return any(not one.out and one.healthy for one in others if one is not endpoint)
