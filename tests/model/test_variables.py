"""Request-time variables in header values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.model.variables import header_names, unknown_variables

KNOWN = frozenset(("service", "target", "instance"))


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "{service}-{instance}",
        "{request_id} {correlation_id} {attempt}",
        "{header:X-User-Id}",
        "{}",
        "{A B}",
        "",
    ],
)
def test_known_variables(text: str) -> None:
    """Everything that the contract lists is provided, and text in other braces is left alone."""
    assert unknown_variables(text, KNOWN) == []


def test_unknown_variables_in_order() -> None:
    """What nothing provides is named, in order."""
    assert unknown_variables("{nope} {service} {user_id}", KNOWN) == ["nope", "user_id"]


def test_a_parameter_belongs_to_header_only() -> None:
    """Only `header` takes a parameter."""
    assert unknown_variables("{query:x}", KNOWN) == ["query:x"]


def test_header_names() -> None:
    """The headers that a template reads are told in lower case."""
    assert header_names("{header:X-User-Id}/{header:accept}/{service}") == [b"x-user-id", b"accept"]


@given(st.text(max_size=40))
def test_any_text_can_be_looked_at(text: str) -> None:
    """No text is too strange, and no header variable is called unknown."""
    assert not [name for name in unknown_variables(text, KNOWN) if name.startswith("header:")]
    assert all(name == name.lower() for name in header_names(text))


def test_header_with_underscore() -> None:
    """A header name may contain any character that header names may, like an underscore."""
    assert header_names("{header:x_user_id}") == [b"x_user_id"]
