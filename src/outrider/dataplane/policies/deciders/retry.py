"""Whether a failed attempt is tried again, when, and the reason for every "no".

What may be repeated (RFC 9110 §9.2.2): idempotent methods; any method when provably nothing was sent; others
only with an `Idempotency-Key` or when the route itself lists the method. A safe default that cannot charge a
card twice comes before every other promise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import uniform
from time import time
from typing import TYPE_CHECKING, Final

from outrider.dataplane.policies.deciders.budget import RetryBudget
from outrider.dataplane.policies.idempotency_key import KEY
from outrider.dataplane.route import RepeatRules
from outrider.model.failure import Failure, Kind, Phase
from outrider.model.messages import Response

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))
RETRY_HEADER: Final = b"x-outrider-retry"
ATTEMPT_HEADER: Final = b"x-outrider-attempt"
# Answers about the request that another try may yet turn into a good one.
MAYBE_LATER: Final = frozenset((401, 408, 409, 429))
# Why a call is given up that must not be tried again by whoever called us either: otherwise every hop of a chain
# multiplies the load on its end.
TRIED_ENOUGH: Final = frozenset(("exhausted", "budget", "is_retry", "tried_below", "circuit_open"))
_LONGEST_DATE: Final = 64
_LONGEST_RESET: Final = 1024  # bytes; a few policies with their names
_ABOUT_RETRIES: Final = frozenset((RETRY_HEADER, ATTEMPT_HEADER))
_OUT_OF_TIME: Final = frozenset((Kind.DEADLINE, Kind.CALL_ENDED))
_RESET: Final = re.compile(rb"(?:^|[;,\s])(?:t|reset)=(\d{1,12})(?:$|[;,\s])")
_NUMBER: Final = re.compile(rb"\s*(\d{1,12})\s*")
_UNIX_TIME: Final = 1e9  # what is larger is no number of seconds anybody would wait
_MAX_PUSHBACK: Final = 300.0  # seconds; a Retry-After beyond this is not a pause but a refusal


@dataclass(slots=True, frozen=True)
class Decision:
    """`wait` is the pause in seconds before the next attempt, or None for no further attempt; `reason` is the
    metric label: what made us retry, or what kept us from it."""

    wait: float | None
    reason: str


NOT_NEEDED: Final = Decision(None, "not_needed")


@dataclass(slots=True, frozen=True)
class Circumstances:
    """What a decision depends on beside the attempt itself.

    `has_newer_credential`: one was replaced since the attempt began, and the target has not seen it yet.
    `has_previous_credential`: a receiver may still want the value before the present one. `circuit_refuses`: the
    breaker would refuse another attempt, and calls do not wait for it. `has_untried_endpoint`: this call has not tried
    all.
    """

    has_newer_credential: bool = False
    has_previous_credential: bool = False
    circuit_refuses: bool = False
    has_untried_endpoint: bool = False


@dataclass(slots=True)
class Retry(RepeatRules):
    """The retry rules of one route. `first` and `cap` of the back-off are in seconds; `max_retries` counts the
    attempts after the first (0: never retry). `by_key`: a key makes a request repeatable, since who is asked knows what
    it means."""

    max_retries: int = 3
    methods: frozenset[bytes] = IDEMPOTENT
    on_status: frozenset[int] = frozenset((500, 502, 503, 504))
    on_errors: frozenset[Phase] = frozenset(Phase)
    first: float = 0.025
    cap: float = 1.0
    budget: RetryBudget | None = None
    by_key: bool = True
    jitter: Callable[[float, float], float] = field(default=uniform)
    on_timeout: bool = field(init=False)

    def __post_init__(self) -> None:
        self.on_timeout = Phase.TIMEOUT in self.on_errors

    @property
    def retries(self) -> bool:
        """Whether there is a second attempt at all."""
        return self.max_retries > 0

    def repeatable(self, call: Call) -> bool:
        """Whether the request may be sent again although the target may have acted on it. A key counts only if the
        target gets to see it."""
        if call.method in self.methods:
            return True
        return self.by_key and bool(call.noted.get(KEY)) and KEY not in call.nominated

    def may_follow(self, call: Call, number: int) -> bool:
        """Whether the `number`-th attempt may be followed by another one if it gets no answer in time, as far as that
        is known beforehand."""
        if number > self.max_retries or not self.on_timeout:
            return False
        if call.method not in self.methods and not self.repeatable(call):
            return False
        body = call.body
        if body is not None and (not body.replayable or (call.length or 0) > body.limit):
            return False
        return _ABOUT_RETRIES.isdisjoint(call.noted) or self.forbidden(call) is None

    def acted_on(self, call: Call, failure: Failure) -> bool:
        """Whether the target may have executed a call that failed so, and must not be given it again."""
        if failure.kind.phase in (None, Phase.CONNECT) and failure.kind not in _OUT_OF_TIME:
            return False
        if not call.attempts or call.method in IDEMPOTENT or self.repeatable(call):
            return False
        return not (call.route.inbound and KEY in call.noted)  # the guard remembers what has a key

    def holds(self, call: Call) -> bool:
        """Whether the app should not see any of an answer before it is whole: a keyed POST can be made again, but only
        by us, since the app may not know the key. Not while it is still uploading: how long that takes is not ours."""
        return (
            self.max_retries > 0
            and call.method not in IDEMPOTENT
            and self.repeatable(call)
            and call.all_here()
            and call.may_repeat()
            and self.forbidden(call) is None
        )

    def forbidden(self, call: Call) -> str | None:
        """Who has said that this call is not to be repeated, as a metric label: the app, or the app's own caller, by
        being on a retry already."""
        if call.noted.get(RETRY_HEADER, b"").lower() == b"off":
            return "caller"
        return "is_retry" if again(call.noted.get(ATTEMPT_HEADER)) else None

    def decide(self, attempt: Attempt, around: Circumstances, now: float) -> Decision:
        """Judge a finished attempt; charges the budget when the answer is yes."""
        call = attempt.call
        cause = self._cause(attempt, around)
        if cause is None:
            return NOT_NEEDED
        if cause == "401":
            # Refused for our key, so nothing was done: once more with another one, whatever the method: the one that
            # was fetched meanwhile, or else the one before.
            if not call.may_repeat():
                return Decision(None, "body_too_large")
            # Free of charge, as a refusal costs the target next to nothing: the budget would let most calls fail until
            # a late receiver has learned of a new key.
            if not around.has_newer_credential:
                call.with_old_keys = True
            return Decision(0.0, cause)
        refusal = self._refusal(attempt, around)
        if refusal is not None:
            return Decision(None, refusal)
        # On a kept connection these say more about the connection than about the target: a fresh one is tried at once.
        at_once = attempt.on_kept_connection and (cause == "408" or is_reset(attempt.result))
        wait = 0.0 if at_once else self._pause(attempt.number, attempt.result)
        if wait is None or now + wait >= call.deadline:
            return Decision(None, "deadline")
        # Asking after a key that is being worked on takes a second each time, and starts nothing.
        free = cause == "409" or self._free(attempt, around)
        if self.budget is not None and not free and not self.budget.withdraw(now):
            return Decision(None, "budget")
        return Decision(wait, cause)

    def _cause(self, attempt: Attempt, around: Circumstances) -> str | None:
        """The fault that these rules retry on, if this is one."""
        result = attempt.result
        if isinstance(result, Failure):
            phase = result.kind.phase
            return phase.value if phase in self.on_errors else None
        status = result.status
        if status == 429:
            return "429" if asked_pause(result) is not None else None
        if status == 401:
            another = around.has_newer_credential or around.has_previous_credential
            return "401" if another and not attempt.call.with_old_keys else None
        if status == 408:
            # A target that grows tired of a kept connection may say so just when a request comes (RFC 9110 §15.5.9).
            return "408" if attempt.on_kept_connection else None
        if status == 409:
            # The key of an earlier try of ours may still be worked on: its answer will be there soon.
            return "409" if attempt.number > 1 and under_way_already(attempt.call, result) else None
        return str(status) if status in self.on_status else None

    def _refusal(self, attempt: Attempt, around: Circumstances) -> str | None:
        """Why this fault must not be retried although its class is, or None."""
        call = attempt.call
        if self.max_retries == 0:
            return "off"
        forbidden = self.forbidden(call)
        if forbidden is not None and not (forbidden == "is_retry" and attempt.unsent):
            return forbidden
        if isinstance(attempt.result, Response) and attempt.result.tried_below:
            return "tried_below"
        if attempt.number > self.max_retries:
            return "exhausted"
        if not attempt.unsent and not self.repeatable(call):
            return "not_idempotent"
        if not call.may_repeat() and not attempt.unsent:
            return "body_too_large"
        return "circuit_open" if around.circuit_refuses else None

    def _pause(self, number: int, result: Response | Failure) -> float | None:
        """Full jitter ("Exponential Backoff And Jitter", AWS), or what the target asked for (RFC 9110 §10.2.3);
        None when it asked for more time than anybody waits."""
        if isinstance(result, Response) and result.status in (409, 429, 503):
            asked = asked_pause(result)
            if asked is not None and asked > 0:
                return None if asked > _MAX_PUSHBACK else self.jitter(asked, asked * 1.5)
        return self.jitter(0.0, min(self.cap, self.first * 2.0 ** (number - 1)))

    @staticmethod
    def _free(attempt: Attempt, around: Circumstances) -> bool:
        """After a connect failure, once per call: going on to another endpoint adds no load to anything, and neither
        has a retry that was paid for after a broken connection and could not even be sent."""
        if not attempt.unsent:
            return False
        return attempt.reason == "reset" or (attempt.number == 1 and around.has_untried_endpoint)


def again(attempt: bytes | None) -> bool:
    """Whether `x-outrider-attempt`, as the app received and passed it on, says that its own caller already retries."""
    return attempt is not None and attempt not in (b"", b"0", b"1")


def under_way_already(call: Call, response: Response) -> bool:
    """Whether a target says of a keyed call that it is at it, and when to come back for the answer."""
    return response.status == 409 and KEY in call.noted and parse_retry_after(response.retry_after) is not None


def asked_pause(response: Response) -> float | None:
    """Seconds that a refusing target asks for: `Retry-After`, or else the reset of its rate limit."""
    asked = parse_retry_after(response.retry_after)
    return asked if asked is not None else parse_reset(response.rate_limit)


def parse_reset(value: bytes | None) -> float | None:
    """Seconds until a rate limit has room again: `"default";r=0;t=30`, `limit=10, remaining=0, reset=30`, a number of
    seconds, or a Unix time; None for none or nonsense."""
    if value is None or len(value) > _LONGEST_RESET:
        return None
    found = _RESET.search(value) or _NUMBER.fullmatch(value)
    if found is None:
        return None
    seconds = float(found[1])
    return seconds if seconds < _UNIX_TIME else max(0.0, seconds - time())


def parse_retry_after(value: bytes | None) -> float | None:
    """Seconds from now that a `Retry-After` asks for, in either form; None for none or nonsense."""
    if value is None:
        return None
    if len(value) > _LONGEST_DATE:
        return None
    text = value.decode("latin-1")
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def is_reset(result: Response | Failure) -> bool:
    """Whether the connection broke before any answer came."""
    return isinstance(result, Failure) and result.kind is Kind.RESET
