"""Durations, sizes, rates, shares and ranges as model types."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from outrider.config.scalars import Duration, DurationRange, NotYet, RatePerPeriod, Share, Size

TYPES: dict[str, TypeAdapter[Any]] = {
    "duration": TypeAdapter(Duration),
    "range": TypeAdapter(DurationRange),
    "size": TypeAdapter(Size),
    "share": TypeAdapter(Share),
    "rate": TypeAdapter(RatePerPeriod),
}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("duration", "1m30s", 90.0),
        ("range", "50ms..500ms", (0.05, 0.5)),
        ("size", "64KiB", 65536),
        ("share", "20%", 0.2),
        ("rate", "100/m", (100.0, 60.0)),
    ],
)
def test_text_becomes_numbers(kind: str, text: str, value: object) -> None:
    """Text in the file is numbers in the model."""
    assert TYPES[kind].validate_python(text) == value


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [5, 5.0, True, False, None, [], {}, "", "x"])
def test_anything_else_is_one_clear_error(kind: str, value: object) -> None:
    """Bare numbers, switches, nothing, lists and maps are errors that say what was expected."""
    with pytest.raises(ValidationError) as caught:
        TYPES[kind].validate_python(value)
    (error,) = caught.value.errors()
    assert error["type"] == "scalar"
    assert error["msg"].startswith("expected a")


def test_bare_number_has_a_hint() -> None:
    """A bare number as a duration is an error that offers both readings."""
    with pytest.raises(ValidationError, match="did you mean 5000s or 5000ms"):
        TYPES["duration"].validate_python(5000)


@pytest.mark.parametrize("value", [None, 1, "x", {}, []])
def test_not_yet(value: object) -> None:
    """A key of the contract that is not supported yet is refused, whatever it holds."""
    with pytest.raises(ValidationError, match="not supported yet"):
        TypeAdapter(NotYet).validate_python(value)


@given(st.sampled_from(sorted(TYPES)), st.text(alphabet="0123456789.msuhdKiBMG%/", max_size=12))
def test_schema_admits_what_is_accepted(kind: str, text: str) -> None:
    """Editors are never told that something is wrong which is accepted."""
    try:
        TYPES[kind].validate_python(text)
    except ValidationError:
        return
    assert re.search(TYPES[kind].json_schema()["pattern"], text)
