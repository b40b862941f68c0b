"""The hedge: when an answer is late, by a fixed time or compared with this route's others."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.policies.deciders.hedge import Hedge, Percentile


def learned(percentile: Percentile, samples: list[float]) -> float:
    for seconds in samples:
        percentile.learn(seconds)
    return percentile.value


def true_percentile(samples: list[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(share * len(samples)))]


def test_a_fixed_time_needs_no_data() -> None:
    """From the first call on, and whatever is measured."""
    hedge = Hedge(0.05)
    assert hedge.delay() == 0.05
    hedge.learn(9.0)
    assert hedge.delay() == 0.05
    assert hedge.most == 1


def test_without_data_no_answer_is_late() -> None:
    """Fewer than a hundred answers say nothing about the slowest twentieth."""
    hedge = Hedge(percentile=Percentile(0.95))
    assert hedge.delay() == 0.0
    for _ in range(99):
        hedge.learn(0.01)
    assert hedge.delay() == 0.0
    hedge.learn(0.01)
    assert hedge.delay() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_within_a_tenth_of_the_truth(share: float, seed: int) -> None:
    """On answers as they come in practice, log-normal around ten milliseconds."""
    random = Random(seed)
    samples = [random.lognormvariate(-4.6, 0.7) for _ in range(900)]
    truth = sorted(samples)
    value = learned(Percentile(share), samples)
    at = int(share * 900)
    assert truth[max(0, at - 3)] * 0.999 <= value <= truth[min(899, at + 3)] * 1.101


@given(st.floats(0.0002, 60), st.sampled_from([0.5, 0.95, 0.99]))
def test_answers_that_all_take_the_same(seconds: float, share: float) -> None:
    """Then this is every percentile, at most a tenth too long and never too short."""
    value = learned(Percentile(share), [seconds] * 100)
    assert seconds * 0.999 <= value <= seconds * 1.101


@given(st.lists(st.floats(0.0002, 60), min_size=100, max_size=100), st.sampled_from([0.5, 0.9, 0.99]))
def test_at_least_its_share_is_faster(samples: list[float], share: float) -> None:
    """Of any answers, no more than the rest of the share are later than the percentile."""
    value = learned(Percentile(share), samples)
    assert sum(seconds > value * 1.001 for seconds in samples) <= round((1 - share) * 100)
    assert value <= true_percentile(samples, share) * 1.101


def test_what_was_long_ago_is_forgotten() -> None:
    """A bad hour does not make the next one wait: after some thousand answers only the new pace counts."""
    percentile = Percentile(0.95)
    learned(percentile, [1.0] * 1000)
    assert percentile.value == pytest.approx(1.0, rel=0.11)
    learned(percentile, [0.01] * 5000)
    assert percentile.value == pytest.approx(0.01, rel=0.11)


def test_a_few_new_answers_do_not_move_much() -> None:
    """A burst of slow answers below the percentile's rest leaves it where it was."""
    percentile = Percentile(0.9)
    learned(percentile, [0.01] * 900)
    assert learned(percentile, [1.0] * 50) == pytest.approx(0.01, rel=0.11)


@given(st.lists(st.one_of(st.floats(-1, 1e9), st.just(0.0)), min_size=100, max_size=300))
def test_nothing_measured_breaks_it(samples: list[float]) -> None:
    """Clock jumps and days of waiting stay within a tenth of a millisecond and a few minutes."""
    value = learned(Percentile(0.95), samples)
    assert 0.0001 <= value <= 200
