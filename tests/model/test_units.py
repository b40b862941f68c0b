"""Durations, sizes, rates, shares and ranges as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.model.units import (
    format_duration,
    parse_duration,
    parse_duration_range,
    parse_rate,
    parse_share,
    parse_size,
)

PARSERS = [parse_duration, parse_duration_range, parse_rate, parse_share, parse_size]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("5s", 5.0),
        ("1m30s", 90.0),
        ("1.5s", 1.5),
        ("100us", 1e-4),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("0s", 0.0),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    """A duration is the sum of its parts, in seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5 s", "5S", "-5s", "1e3s", "5s ", "5sec", "٥s", "1m 30s", "5s\n", ".5s"])
def test_what_is_no_duration(text: str) -> None:
    """Whatever is not plainly a duration is refused, with an example of one."""
    with pytest.raises(ValueError, match="like 250ms, 5s or 1m30s"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["5000", "1.5", "0"])
def test_bare_number_is_no_duration(text: str) -> None:
    """A bare number is an error that offers both readings."""
    with pytest.raises(ValueError) as caught:
        parse_duration(text)
    assert f"did you mean {text}s or {text}ms?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512B", 512),
        ("64KiB", 65536),
        ("10MiB", 10 * 1024**2),
        ("1GiB", 1024**3),
        ("1kB", 1000),
        ("1KB", 1000),
        ("2MB", 2_000_000),
        ("1.5KiB", 1536),
        ("64 KiB", 65536),
    ],
)
def test_size(text: str, size: int) -> None:
    """A size is in bytes; KiB counts by 1024, kB by 1000."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1B", "64K", "64kib", "1TiB", "64  KiB"])
def test_what_is_no_size(text: str) -> None:
    """Whatever is not plainly a size is refused, with an example of one."""
    with pytest.raises(ValueError, match="like 64KiB or 10MiB"):
        parse_size(text)


def test_bare_number_is_no_size() -> None:
    """A bare number is an error that offers both readings."""
    with pytest.raises(ValueError, match="did you mean 64B or 64KiB"):
        parse_size("64")


@pytest.mark.parametrize(
    ("text", "rate"),
    [("50/s", (50.0, 1.0)), ("100/m", (100.0, 60.0)), ("0.5/s", (0.5, 1.0)), ("1/h", (1.0, 3600.0))],
)
def test_rate(text: str, rate: tuple[float, float]) -> None:
    """A rate is a count and a period in seconds."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["50", "50/x", "/s", "-1/s", "50 /s", "50/min", "0/s"])
def test_what_is_no_rate(text: str) -> None:
    """A rate needs a count above zero and a known period."""
    with pytest.raises(ValueError, match="rate"):
        parse_rate(text)


@pytest.mark.parametrize(("text", "share"), [("20%", 0.2), ("0%", 0.0), ("100%", 1.0), ("0.5%", 0.005)])
def test_share(text: str, share: float) -> None:
    """A share is a fraction."""
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["20", "0.2", "101%", "-1%", "%", "20 %"])
def test_what_is_no_share(text: str) -> None:
    """A share without its sign, or beyond all, is refused."""
    with pytest.raises(ValueError, match="between 0% and 100%"):
        parse_share(text)


def test_range() -> None:
    """A range is first and cap, in seconds; spaces around the dots do not matter."""
    assert parse_duration_range("50ms..500ms") == (0.05, 0.5)
    assert parse_duration_range("1s .. 10m") == (1.0, 600.0)
    assert parse_duration_range("1s..1s") == (1.0, 1.0)


@pytest.mark.parametrize("text", ["50ms", "50ms-500ms", "50ms...500ms", "1s..2s..3s", "..1s", "1s..", "50..500"])
def test_what_is_no_range(text: str) -> None:
    """A range without both of its ends is refused."""
    with pytest.raises(ValueError, match="expected a"):
        parse_duration_range(text)


def test_backward_range() -> None:
    """A range that runs backwards is refused with the remedy."""
    with pytest.raises(ValueError, match="smaller duration first"):
        parse_duration_range("1s..50ms")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "250ms"), (5, "5s"), (90, "1m30s"), (60, "1m"), (0.0005, "0.5ms"), (600, "10m")]
)
def test_format(seconds: float, text: str) -> None:
    """A duration is shown as people would write it."""
    assert format_duration(seconds) == text


@given(st.integers(0, 7 * 86400 * 1000))
def test_what_is_shown_can_be_read(milliseconds: int) -> None:
    """What is shown as a duration can be read as one, and means the same to five digits."""
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-4)


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 999))
def test_parts_add_up(minutes: int, seconds: int, milliseconds: int) -> None:
    """The order of magnitude of every part is its unit's."""
    assert parse_duration(f"{minutes}m{seconds}s{milliseconds}ms") == pytest.approx(
        minutes * 60 + seconds + milliseconds / 1000
    )


@given(st.text(max_size=20), st.sampled_from(PARSERS))
def test_any_text_is_read_or_refused(text: str, parse: object) -> None:
    """No text makes a parser fail with anything but a ValueError that says what was expected."""
    said = "expected a"
    try:
        parse(text)
    except ValueError as error:
        said = str(error)
    assert said.startswith(("expected a", "a rate must", "the range"))


@given(
    st.text(alphabet="0123456789.msuhd%/KMiB", max_size=12), st.sampled_from([parse_duration, parse_size, parse_share])
)
def test_numbers_are_never_negative(text: str, parse: object) -> None:
    """Whatever is accepted is zero or more."""
    try:
        assert parse(text) >= 0
    except ValueError:
        pass
