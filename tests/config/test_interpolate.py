"""References in scalars: every form, and every way they go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.config.interpolate import MAX_SECRET_BYTES, interpolate, reads_file, refers
from outrider.config.source import Document, read_text

ENVIRONMENT = {"USER": "ann", "EMPTY": "", "PORT": "3001"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${USER}", "ann"),
        ("${env:USER}", "ann"),
        ("a-${USER}-${PORT}", "a-ann-3001"),
        ("${USER:-bob}", "ann"),
        ("${NONE:-bob}", "bob"),
        ("${EMPTY:-bob}", "bob"),
        ("${EMPTY}", ""),
        ("${NONE:-}", ""),
        ("${NONE:-http://h:1/a?b}", "http://h:1/a?b"),
        ("${USER:?who}", "ann"),
        ("${NONE:-C:\\dir}", "C:\\dir"),
    ],
)
def test_environment(text: str, value: str) -> None:
    """Variables are replaced, and an unset or empty one by its default."""
    assert interpolate(text, ENVIRONMENT) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("$$", "$"), ("$${USER}", "${USER}"), ("$$$$", "$$"), ("$$${USER}", "$ann"), ("$USER", "$USER"), ("5$", "5$")],
)
def test_dollars(text: str, value: str) -> None:
    """`$$` is a dollar sign, and a dollar without braces is left alone."""
    assert interpolate(text, ENVIRONMENT) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NONE}", "the environment variable NONE is not set; set it, or write ${NONE:-default}"),
        ("${NONE:?set NONE first}", "set NONE first"),
        ("${EMPTY:?set EMPTY first}", "set EMPTY first"),
        ("${NONE:?}", "the environment variable NONE is not set"),
        ("${USER", "${ is never closed; write $$ for a dollar sign"),
        ("${}", "${} is not a reference"),
        ("${A B}", "${A B} is not a reference"),
        ("${1A}", "${1A} is not a reference"),
        ("${file:/no/such/file}", "the file /no/such/file cannot be read: No such file or directory"),
        ("${file:/no/such/file:?mount the key}", "mount the key"),
    ],
)
def test_what_cannot_be_replaced(text: str, message: str) -> None:
    """A reference without a value is an error that names it, or says what its author wanted said."""
    with pytest.raises(ValueError) as caught:
        interpolate(text, ENVIRONMENT)
    assert str(caught.value).startswith(message)


def test_file(tmp_path: Path) -> None:
    """A file's text is taken without the line end, and nothing else is trimmed."""
    path = tmp_path / "key"
    path.write_text(" se cret \r\n\n")
    assert interpolate(f"<${{file:{path}}}>", {}) == "< se cret >"


def test_file_defaults(tmp_path: Path) -> None:
    """The default stands for a file that is missing or empty."""
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert interpolate(f"${{file:{tmp_path}/none:-x}}", {}) == "x"
    assert interpolate(f"${{file:{empty}:-x}}", {}) == "x"
    assert interpolate(f"${{file:{tmp_path}/none:-}}", {}) == ""


def test_file_that_is_too_large(tmp_path: Path) -> None:
    """A file that cannot be a secret is refused rather than read whole."""
    path = tmp_path / "large"
    path.write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        interpolate(f"${{file:{path}}}", {})


def test_file_that_is_no_text(tmp_path: Path) -> None:
    """A file that is not UTF-8 is refused."""
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        interpolate(f"${{file:{path}}}", {})


def test_directory_is_no_file(tmp_path: Path) -> None:
    """A directory in place of a file is an error that says so."""
    with pytest.raises(ValueError, match="is not a regular file"):
        interpolate(f"${{file:{tmp_path}}}", {})


def test_what_reads_files() -> None:
    """Text that takes its value from a file is known for a secret; escaped text is not."""
    assert reads_file("Bearer ${file:/k}")
    assert not reads_file("${USER} $${file:/k}")
    assert not refers("plain {service}")


def read(text: str, **environment: str) -> Document:
    return read_text(text, "o.yaml", environment)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("2.5", 2.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("5s", "5s"),
        ("[1]", "[1]"),
        ("a: b", "a: b"),
    ],
)
def test_plain_scalars_are_typed_afterwards(text: str, value: object) -> None:
    """A plain scalar gets its type after its value is put in, and never becomes a list or a map."""
    assert read("a: ${X}", X=text).values == {"a": value}


@pytest.mark.parametrize("text", ["3", "true", "null", "", "yes", "010"])
@pytest.mark.parametrize("line", ['a: "${X}"', "a: '${X}'", "a: |-\n  ${X}"])
def test_quoted_scalars_stay_text(line: str, text: str) -> None:
    """A quoted scalar is text, whatever is put in."""
    document = read(line, X=text)
    assert document.values == {"a": text}
    assert not document.problems


@pytest.mark.parametrize("text", ["yes", "off", "010", "1:30"])
def test_surprises_from_the_environment(text: str) -> None:
    """What YAML tools disagree on is an error from the environment, too."""
    document = read("a: ${X}", X=text)
    assert [str(problem.mark) for problem in document.problems] == ["o.yaml:1:4"]


@given(st.text().filter(lambda text: "$" not in text))
def test_text_without_dollars_is_kept(text: str) -> None:
    """Text without a dollar sign comes out as it went in."""
    assert interpolate(text, {}) == text


@given(st.text())
def test_doubled_dollars_keep_any_text(text: str) -> None:
    """Doubling its dollars protects any text."""
    assert interpolate(text.replace("$", "$$"), {}) == text


@given(st.text())
def test_values_are_not_interpolated_again(value: str) -> None:
    """What is put in is taken as it is, references and all, but for line ends behind it."""
    assert interpolate("${X:-}", {"X": value}) == value.rstrip("\r\n")


@given(st.text())
def test_no_value_can_inject_yaml(value: str) -> None:
    """A value is one scalar: it cannot add keys, lists, comments or aliases."""
    quoted = read('a: "${X:-}"\nb: 1', X=value)
    assert quoted.values == {"a": value.rstrip("\r\n"), "b": 1}
    plain = read("a: ${X:-}\nb: 1", X=value)
    assert set(plain.values) == {"a", "b"}
    assert not isinstance(plain.values["a"], (dict, list))


@given(st.text(alphabet="${}:-?abfile/ ", max_size=20))
def test_any_reference_is_replaced_or_refused(text: str) -> None:
    """No text makes interpolation fail with anything but a ValueError."""
    try:
        interpolate(text, {"a": "1"})
    except ValueError:
        pass


def test_message_with_the_mark_of_a_default() -> None:
    """The first suffix counts, so that a message may contain `:-`."""
    with pytest.raises(ValueError) as caught:
        interpolate("${NONE:?set NONE, or write a:-b}", {})
    assert str(caught.value) == "set NONE, or write a:-b"
