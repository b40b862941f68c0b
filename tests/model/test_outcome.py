"""The one place where a status is judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, classify


@pytest.mark.parametrize("status", [100, 200, 204, 302, 304, 399])
def test_success(status: int) -> None:
    """Below 400 the target worked."""
    assert classify(status) is SUCCESS


@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 499])
def test_wrong_request_is_neutral(status: int) -> None:
    """A 4xx says that the request was wrong, and nothing about the target's health."""
    assert classify(status) is NEUTRAL


@pytest.mark.parametrize("status", [501, 505])
def test_never_will_is_neutral(status: int) -> None:
    """501 and 505 are facts about the request."""
    assert classify(status) is NEUTRAL


@pytest.mark.parametrize("status", [500, 502, 503, 504, 507, 599])
def test_failure(status: int) -> None:
    """Other 5xx are failures of the target."""
    assert classify(status) is FAILURE


@given(st.integers(100, 599))
def test_every_status_is_judged(status: int) -> None:
    """Only a 5xx can be a failure, and only what is below 400 a success."""
    outcome = classify(status)
    assert (outcome is SUCCESS) == (status < 400)
    assert outcome is not FAILURE or status >= 500
