"""Credentials: written into every attempt, replaced while running, never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.policies.credentials import Credential
from tests.fakes import make_attempt


def test_a_credential_is_one_line() -> None:
    """Header and value as configured; the name is owned in lower case."""
    credential = Credential("X-Api-Key", "s3cret value!")
    assert credential.stamp(make_attempt()) == b"X-Api-Key: s3cret value!\r\n"
    assert credential.owned == {b"x-api-key"}


def test_a_new_value_holds_from_the_next_attempt_on() -> None:
    """Rotation needs no new route."""
    credential = Credential("x-api-key", "old")
    credential.replace("new")
    assert credential.stamp(make_attempt()) == b"x-api-key: new\r\n"


@pytest.mark.parametrize("value", ["", " ", "a ", " a", "a\n", "a\r\nx: y", "a\tb", "a\x00", "ключ", "a\x7f"])
def test_what_cannot_stand_in_a_header_is_refused(value: str) -> None:
    """An empty or broken secret is a clear error, not an empty header; the old one stays in use."""
    credential = Credential("x-api-key", "good")
    with pytest.raises(ValueError, match="one line of printable ASCII"):
        credential.replace(value)
    assert credential.stamp(make_attempt()) == b"x-api-key: good\r\n"
    if value:
        with pytest.raises(ValueError, match="one line of printable ASCII"):
            Credential("x-api-key", value)


def test_without_a_value_nothing_is_written() -> None:
    """Not even an empty header; from the first value on it is."""
    credential = Credential("x-api-key")
    assert not credential.ready
    assert credential.stamp(make_attempt()) == b""
    credential.replace("new")
    assert credential.ready
    assert credential.stamp(make_attempt()) == b"x-api-key: new\r\n"


@given(st.text(min_size=1, max_size=40))
def test_no_value_breaks_out_of_its_line(value: str) -> None:
    """Whatever a secret file holds, at most one line is written."""
    try:
        line = Credential("x-api-key", value).stamp(make_attempt())
    except ValueError:
        return
    assert line == b"x-api-key: " + value.encode("ascii") + b"\r\n"
    assert line.count(b"\r") == line.count(b"\n") == 1


def test_the_value_does_not_show() -> None:
    """Neither log nor traceback prints the secret, and the error does not either."""
    credential = Credential("x-api-key", "s3cret")
    assert "s3cret" not in f"{credential!r} {credential}"
    with pytest.raises(ValueError) as caught:
        credential.replace("s3cret\n")
    assert "s3cret" not in str(caught.value)
