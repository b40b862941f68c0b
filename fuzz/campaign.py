"""Many cases, and what to say about those that broke a promise."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from time import monotonic

import uvloop

from fuzz.lab import Finding, Lab, Tally
from fuzz.mutate import Case, Script, make_case
from fuzz.oracle import only_late

FIRST_SEED = 20_000
_SHRINK_SECONDS = 8.0
_KIND = 24  # characters of what was wrong that tell one kind from another; one of each is shown
_BATCH = 2000
_MOST_FINDINGS = 5
# Cases run out of order where many run side by side, so that a rare race need not show again when a case runs alone.
_TRIES = 3


@dataclass(slots=True)
class Campaign:
    """The outcome of a run; `findings` are as small as they could be made."""

    tally: Tally = field(default_factory=Tally)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Campaign) -> None:
        """Count another one, which ran at the same time."""
        self.tally.add(other.tally)
        self.findings += other.findings
        self.seconds = max(self.seconds, other.seconds)


def campaign(seed: int, messages: int, slots: int = 64) -> Campaign:
    """Run cases of this seed until so many messages have been mutated, or too many promises broken."""
    result = Campaign()
    began = monotonic()
    uvloop.run(_run(result, seed, messages, slots))
    result.seconds = monotonic() - began
    kinds = {finding.problems[0][:_KIND]: finding for finding in reversed(result.tally.findings)}
    shrunk = [uvloop.run(_shrink(finding)) for finding in kinds.values()]
    result.findings = [finding for finding in shrunk if finding is not None]
    return result


def replay(name: str) -> Finding | None:
    """Run one case alone; what it broke, as small as it could be made."""
    seed, _, number = name.partition(":")
    case = make_case(int(seed), int(number))
    problems = uvloop.run(_alone(case))
    return uvloop.run(_shrink(Finding(case, problems))) if problems else None


def report(result: Campaign) -> str:
    """What happened, for a person."""
    tally = result.tally
    rate = tally.messages / result.seconds if result.seconds else 0.0
    counts = (
        f"{tally.messages} mutated messages in {tally.cases} cases, {result.seconds:.1f} s ({rate:.0f}/s):"
        f" {tally.forwarded} requests reached the target; of the answers, {tally.passed_on} were the target's,"
        f" {tally.refused} Outrider's, {tally.broken} broke off visibly."
    )
    if not result.findings:
        return f"{counts}\nNothing wrong."
    return "\n\n".join((counts, *(explain(finding) for finding in result.findings)))


def explain(finding: Finding) -> str:
    """A finding with everything that is needed to see it again."""
    case = finding.case
    lines = [f"CASE {case.name} ({case.profile})", *(f"  {problem}" for problem in finding.problems[:5])]
    lines += ["  the app sends", *(f"    {segment!r}" for segment in case.segments)]
    for script in case.scripts:
        when = "as soon as it has the head, the target answers" if script.early else "the target answers"
        lines += [f"  {when}, and then: {script.then}", *(f"    {segment!r}" for segment in script.segments)]
    lines.append(f"  to see it again: python -m fuzz --case {case.name}")
    return "\n".join(lines)


async def _run(result: Campaign, seed: int, messages: int, slots: int) -> None:
    gc.collect()
    gc.freeze()
    async with Lab(slots) as lab:
        first = 0
        while result.tally.messages < messages and _serious(result) < _MOST_FINDINGS:
            # A case has one mutated message or two: a little more than asked for is run, never less.
            count = min(_BATCH, messages - result.tally.messages)
            result.tally.add(await lab.run(lambda number: make_case(seed, number), range(first, first + count)))
            first += count
    gc.unfreeze()


def _serious(result: Campaign) -> int:
    """Findings that are not only about time, which a busy machine makes by itself: those are looked at in the end."""
    return sum(not only_late(finding.problems) for finding in result.tally.findings)


async def _alone(case: Case) -> list[str]:
    async with Lab(0) as lab:
        for _ in range(_TRIES):
            if problems := await lab.one(case):
                return problems
    return []


async def _shrink(finding: Finding) -> Finding | None:
    """The smallest case found in a short time that still breaks something. One that does not show when it runs alone
    stays as it is, unless it was about time: then it was the machine that was slow."""
    end = monotonic() + _SHRINK_SECONDS
    async with Lab(0) as lab:
        for _ in range(_TRIES):
            if problems := await lab.one(finding.case):
                break
        else:
            return None if only_late(finding.problems) else finding
        best = Finding(finding.case, problems)
        smaller = True
        while smaller:
            smaller = False
            for candidate in _smaller(best.case):
                if monotonic() > end:
                    return best
                problems = await lab.one(candidate)
                if problems:
                    best = Finding(candidate, problems)
                    smaller = True
                    break
        return best


def _smaller(case: Case) -> Iterator[Case]:
    """The same case with something taken away, the larger pieces first."""
    for number in range(len(case.scripts)):
        yield replace(case, scripts=case.scripts[:number] + case.scripts[number + 1 :])
    for segments in _smaller_segments(case.segments):
        yield replace(case, segments=segments)
    for number, script in enumerate(case.scripts):
        for segments in _smaller_segments(script.segments):
            shorter = (*case.scripts[:number], Script(segments, script.then, script.early), *case.scripts[number + 1 :])
            yield replace(case, scripts=shorter)


def _smaller_segments(segments: tuple[bytes, ...]) -> Iterator[tuple[bytes, ...]]:
    if len(segments) > 1:
        yield (b"".join(segments),)
        for number in range(len(segments) - 1):
            yield (*segments[:number], segments[number] + segments[number + 1], *segments[number + 2 :])
    for number, segment in enumerate(segments):
        size = len(segment) // 2
        while size:
            for start in range(0, len(segment), size):
                shorter = segment[:start] + segment[start + size :]
                if shorter:
                    yield (*segments[:number], shorter, *segments[number + 1 :])
            size //= 2
