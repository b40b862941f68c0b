"""What `outrider demo` concludes from its bookings, however few they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from outrider.cli.demo import DEPENDENCIES, DIRECT, INJECTED, PHASES, THROUGH, Lane, _judge, tolerated

_SEEN = {name: {"headers": dict.fromkeys(INJECTED, "x"), "count": 50, "charged_twice": 0} for name in DEPENDENCIES}
_METRICS = {
    "transitions": Counter({("payment", "closed", "open"): 1, ("payment", "half_open", "closed"): 1}),
    "retries": Counter(user=10),
}
_MOST = "at least 99 % of bookings succeed while only user-service misbehaves"
_WAITS = "99 % of bookings do not wait for a hanging payment-service"


def verdict(number: int, failed: int, waiting: int) -> dict[str, Any]:
    """Of a run with so many bookings in each phase, of which through Outrider so many fail, and wait."""
    first, slow, last = (name for name, _ in PHASES)
    direct, through = Lane(), Lane()
    direct.made |= {first: [(False, 0.1)] * number, slow: [(False, 2.0)] * number, last: [(True, 0.1)] * number}
    through.made |= {
        first: [(False, 0.1)] * failed + [(True, 0.1)] * (number - failed),
        slow: [(False, 1.9)] * waiting + [(False, 0.5)] * (number - waiting),
        last: [(True, 0.1)] * number,
    }
    promises: dict[str, Any] = _judge({DIRECT: direct, THROUGH: through}, _SEEN, _METRICS)["promises"]
    return promises


@pytest.mark.parametrize(
    ("number", "failed", "held"),
    [(45, 0, True), (45, 2, True), (45, 5, False), (45, 14, False), (2000, 25, True), (2000, 60, False)],
)
def test_a_small_sample_is_judged_as_one(number: int, failed: int, held: bool) -> None:
    """One failure among 45 says nothing against 99 %; five do, and so do 3 % of many."""
    assert verdict(number, failed, 0)[_MOST] is held
    assert verdict(number, 0, failed)[_WAITS] is held


def test_all_else_stands() -> None:
    """A run without incident holds every promise."""
    assert all(verdict(45, 0, 0).values())


def test_the_tolerance_follows_the_sample() -> None:
    """Relative to the sample it becomes smaller; with nothing to judge there is nothing to tolerate."""
    assert [tolerated(0.01, number) for number in (0, 1, 45, 2000)] == [0, 1, 4, 35]
