"""How an attempt or a call ended, and the one place where a status is judged.

Breaker, retry and metrics must agree on what "failed" means, so they all ask here.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Outcome(Enum):
    """The three ways an admission can end.

    NEUTRAL says nothing about the target: the app hung up, Outrider itself refused, or the target answered
    that the *request* was wrong. A neutral outcome neither counts, nor resets, nor closes anything.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


SUCCESS: Final = Outcome.SUCCESS
FAILURE: Final = Outcome.FAILURE
NEUTRAL: Final = Outcome.NEUTRAL

# 501 and 505 say "I will never do this", which is a fact about the request, not about the target's health.
_NOT_A_HEALTH_SIGNAL: Final = frozenset({501, 505})


def classify(status: int) -> Outcome:
    """Judge a response status: below 400 success, 4xx neutral, 5xx failure (except 501 and 505)."""
    if status < 400:
        return SUCCESS
    if status < 500 or status in _NOT_A_HEALTH_SIGNAL:
        return NEUTRAL
    return FAILURE
