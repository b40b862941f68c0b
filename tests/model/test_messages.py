"""Texts that may stand in a header."""

from __future__ import annotations

import pytest

from outrider.model.messages import as_field_value, is_field_value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("booking-7d4f9", "booking-7d4f9"),
        ("Zoës-Rechner", "Zo%C3%ABs-Rechner"),
        ("名前", "%E5%90%8D%E5%89%8D"),
        ("a\r\nX-Evil: 1", "a%0D%0AX-Evil: 1"),
        ("100%\x7f", "100%25%7F"),
        ("\udcff", "%FF"),
    ],
)
def test_any_host_name_can_stand_in_a_header(text: str, shown: str) -> None:
    """What may not stand there is percent-encoded, so no name breaks a head."""
    assert as_field_value(text) == shown
    assert is_field_value(shown)
