"""Several attempts of one call at the same time: the first is late, so another one is made elsewhere.

The first good answer wins. The others are given up: they count for nothing, and their connections, on which an answer
may still arrive, are closed. A failure only ends the race when nobody else is running.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from outrider.dataplane.attempt import Attempt
from outrider.dataplane.engine.one_attempt import run, seal
from outrider.dataplane.policies.deciders.retry import under_way_already
from outrider.dataplane.runtime.driver import Drive
from outrider.dataplane.runtime.parked import suspended
from outrider.dataplane.runtime.timers import NEVER, Timed
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Response
from outrider.model.outcome import FAILURE, NEUTRAL, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.engine.routing import Route
    from outrider.dataplane.policies.deciders.retry import Retry


log = logging.getLogger("outrider")


class RunningAttempt:
    """One attempt in a race, run by a drive of its own."""

    __slots__ = ("attempt", "attempts", "drive", "running")

    def __init__(self, attempts: HedgedAttempts, attempt: Attempt) -> None:
        self.attempts = attempts
        self.attempt = attempt
        self.running = True
        self.drive = Drive(self._ended)
        attempt.resume = self.drive.resume

    def start(self) -> None:
        """Run until it has to wait."""
        self.drive.start(self._run())

    async def _run(self) -> None:
        try:
            await run(self.attempt)
        except Exception:
            log.exception("a bug in Outrider failed an attempt; please report it")
            self.attempt.result = Failure(
                Kind.INTERNAL, "Outrider failed to make this attempt; its log has the details"
            )

    def _ended(self) -> None:
        self.running = False
        self.attempts.news()


class HedgedAttempts(Timed):
    """The attempts of one call that are under way. `due` is when the next one is to be made."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.due = NEVER
        self.wake = NEVER
        self.late = False
        self.runners: list[RunningAttempt] = []
        self._told = False
        self._waiting = False

    def expired(self, now: float) -> None:
        """The answer is late."""
        self.late = True
        self.news()

    def news(self) -> None:
        """Wake the call, unless it is awake."""
        self._told = True
        if self._waiting:
            self._waiting = False
            self.call.app.resume_call()

    async def wait(self) -> None:
        """Until there is news."""
        while not self._told:
            self._waiting = True
            await suspended()
        self._told = False

    def enter(self, attempt: Attempt) -> None:
        """One more attempt."""
        runner = RunningAttempt(self, attempt)
        self.runners.append(runner)
        runner.start()

    def winner(self) -> Attempt | None:
        """The first good answer; with nobody left running, the first attempt that got anywhere."""
        ended = [runner.attempt for runner in self.runners if not runner.running]
        good = [attempt for attempt in ended if _good(attempt)]
        if good:
            return good[0]
        if len(ended) < len(self.runners):
            return None
        return next((attempt for attempt in ended if attempt.admitted), ended[0])

    def stop(self, winner: Attempt | None) -> None:
        """Give everybody else up."""
        self._waiting = False
        self._told = True  # nobody is woken any more
        self.call.app.shared.timers.forget(self)
        runners, self.runners = self.runners, []
        for runner in runners:
            attempt = runner.attempt
            if attempt is not winner:
                if runner.running:
                    runner.drive.cancel()
                seal(attempt, _own_fault(attempt))
            attempt.resume = self.call.app.resume_call
            runner.drive.tell(None)


def _may_hedge(call: Call, retry: Retry) -> bool:
    """Whether this call may be made twice at the same time: repeatable, all of it here, and nobody has said no."""
    sound = call.all_here() and call.may_repeat()
    return sound and retry.repeatable(call) and not retry.forbidden(call) and not call.upgrade


async def hedged(call: Call, route: Route, first: Attempt) -> Response | Failure:
    """Run the first attempt, and others beside it while it is late. `call.attempt` is the one whose result this is."""
    hedge = route.hedge
    assert hedge is not None
    delay = hedge.delay()
    if delay <= 0.0 or not _may_hedge(call, route.retry):
        result = await run(first)
        if first.admitted and isinstance(result, Response):
            hedge.learn(first.latency)
        return result
    stats = route.cluster.stats
    timers = call.app.shared.timers
    this = HedgedAttempts(call)
    timers.arm(this, first.started + delay)
    winner: Attempt | None = None
    try:
        this.enter(first)
        while winner is None:
            await this.wait()
            if this.late:
                this.late = False
                if len(this.runners) <= hedge.most and _enter_another(call, route, this, delay):
                    timers.arm(this, monotonic() + delay)
            winner = this.winner()
        call.attempt = winner
        call.attempts += sum(runner.attempt.admitted for runner in this.runners if runner.attempt is not winner)
        if len(this.runners) > 1:
            won = "won" if winner is not first else "lost"
            stats.hedges[won] += 1
            call.note(f"hedge: try {winner.number} was first")
        return winner.result
    finally:
        if first.admitted and isinstance(first.result, Response):
            hedge.learn(first.latency)
        elif first.unfinished and winner is not None:
            hedge.learn(monotonic() - first.started)  # it would have taken even longer
        if winner is None:  # the call was cancelled, which counts its latest attempt itself
            call.attempts += sum(one.attempt.admitted for one in this.runners if one.attempt is not call.attempt)
        this.stop(winner)


def _enter_another(call: Call, route: Route, this: HedgedAttempts, delay: float) -> bool:
    """Make one more attempt, if budget and breaker allow it."""
    now = monotonic()
    retry = route.retry
    breaker = route.breaker
    if breaker is not None and breaker.refusing() > 0:
        return False
    if retry.budget is not None and not retry.budget.withdraw(now):
        route.cluster.stats.suppressed["budget"] += 1
        return False
    attempt = call.attempt = Attempt(call, route, this.runners[0].attempt.number + len(this.runners), now, "hedge")
    call.note(f"no answer within {delay * 1000:.0f} ms: try {attempt.number} beside it")
    this.enter(attempt)
    return True


def _good(attempt: Attempt) -> bool:
    """Whether this is an answer that nothing better is to be expected than. That the same call is under way already
    says that the other attempt will have one."""
    result = attempt.result
    if not attempt.admitted or not isinstance(result, Response) or result.outcome is FAILURE:
        return False
    return not under_way_already(attempt.call, result)


def _own_fault(attempt: Attempt) -> Outcome:
    """What a loser's end says about its target: nothing, unless it had failed by itself."""
    return NEUTRAL if attempt.unfinished else attempt.result.outcome
