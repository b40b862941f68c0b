"""Which promises held: Outrider's own numbers, and those next to Envoy's in the same run.

Shares are compared as samples: lower means lower by more than two standard errors of the difference, and by more than
one call. Tails vary from run to run, so p99.9 may be a tenth and 5 ms above Envoy's; it is compared where an endpoint
is healthy, over good calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.chaos.measure import Row, Share
from bench.chaos.proxies import ENVOY, OUTRIDER
from bench.chaos.run import Result
from bench.chaos.timeline import Phase

GOOD_GETS = 99.9
FLAPPING = 48.0
AMPLIFICATION = 1.3
WHOLE_AFTER = 1.0
P999_SHARE, P999_MORE = 1.1, 5.0
BROWNOUT, FLAP = "brownout-10pct-503", "flap-400ms"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise; `broken` says where it did not hold, and by how much. None of it: it held."""

    promise: str
    broken: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether it held everywhere."""
        return not self.broken


def verdicts(result: Result) -> list[Verdict]:
    """All promises that this timeline can test."""
    return list((_three if result.timeline.endpoints > 1 else _one)(result))


def _three(result: Result) -> Iterator[Verdict]:
    ours = _phases(result, OUTRIDER)
    yield _all(
        f"GETs: at least {GOOD_GETS} % good where an endpoint is healthy",
        [
            f"{phase.name}: {row.gets.percent:.2f} %"
            for phase, row in ours
            if phase.healthy and row.gets.percent < GOOD_GETS
        ],
    )
    yield _beside(result, "GETs: nowhere fewer good than Envoy's", lambda row: row.gets)
    yield _beside(result, "POSTs: nowhere fewer good than Envoy's", lambda row: row.posts)
    yield _all(
        "POSTs: more good than Envoy's where one endpoint resets",
        [
            f"{phase.name}: {row.posts.percent:.2f} % against {theirs.posts.percent:.2f} %"
            for (phase, row), (_, theirs) in zip(ours, _phases(result, ENVOY), strict=True)
            if phase.resets and row.posts.percent <= theirs.posts.percent and row.posts.percent < 100
        ],
    )
    yield _no_duplicates(result)
    yield _all(
        "p99.9 of good calls no worse than Envoy's where an endpoint is healthy",
        [
            f"{phase.name}: {row.p999:.1f} ms against {theirs.p999:.1f} ms"
            for (phase, row), (_, theirs) in zip(ours, _phases(result, ENVOY), strict=True)
            if phase.healthy and row.p999 and theirs.p999 and row.p999 > theirs.p999 * P999_SHARE + P999_MORE
        ],
    )
    yield _amplified(result)
    yield _whole(result)


def _one(result: Result) -> Iterator[Verdict]:
    ours = _phases(result, OUTRIDER)
    yield _all(
        f"brownout: at least {GOOD_GETS} % of GETs good",
        [f"{row.gets.percent:.2f} %" for phase, row in ours if phase.name == BROWNOUT and row.gets.percent < GOOD_GETS],
    )
    yield _all(
        f"flapping: at least {FLAPPING:g} % good",
        [f"{row.every.percent:.2f} %" for phase, row in ours if phase.name == FLAP and row.every.percent < FLAPPING],
    )
    yield _no_duplicates(result)
    yield _amplified(result)
    yield _whole(result)


def _beside(result: Result, promise: str, what: Callable[[Row], Share]) -> Verdict:
    broken = []
    for (phase, row), (_, theirs) in zip(_phases(result, OUTRIDER), _phases(result, ENVOY), strict=True):
        if fewer(what(row), what(theirs)):
            broken.append(f"{phase.name}: {what(row).percent:.2f} % against {what(theirs).percent:.2f} %")
    return _all(promise, broken)


def fewer(ours: Share, theirs: Share) -> bool:
    """Whether our share is lower by more than chance explains."""
    margin = max(2 * math.hypot(ours.error(), theirs.error()), 100.0 / max(1, ours.of))
    return ours.percent < theirs.percent - margin - 1e-9


def _no_duplicates(result: Result) -> Verdict:
    found = [f"{phase.name}: {row.duplicates}" for phase, row in _phases(result, OUTRIDER) if row.duplicates]
    return _all("no POST executed twice", found)


def _amplified(result: Result) -> Verdict:
    return _all(
        f"at most {AMPLIFICATION} requests per call at total failure",
        [
            f"{phase.name}: {row.amplification:.2f}"
            for phase, row in _phases(result, OUTRIDER)
            if phase.total and row.amplification > AMPLIFICATION
        ],
    )


def _whole(result: Result) -> Verdict:
    return _all(
        f"whole again within {WHOLE_AFTER:g} s of the end of a fault",
        [
            f"{phase.name}: {row.whole_after:.2f} s" if math.isfinite(row.whole_after) else f"{phase.name}: not at all"
            for phase, row in _phases(result, OUTRIDER)
            if phase.heals and row.whole_after > WHOLE_AFTER
        ],
    )


def _phases(result: Result, lane: str) -> list[tuple[Phase, Row]]:
    """Without the warm-up."""
    return list(zip(result.timeline.phases, result.rows[lane], strict=True))[1:]


def _all(promise: str, broken: list[str]) -> Verdict:
    return Verdict(promise, tuple(broken))
