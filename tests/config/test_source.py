"""Files to values with marks: what YAML may do here, and what it may not."""

from __future__ import annotations

import math
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.config.problems import Problem
from outrider.config.source import Document, Unresolved, dotted, read_file, read_text, typed


def read(text: str) -> Document:
    return read_text(text, "o.yaml", {})


def only(document: Document) -> Problem:
    assert len(document.problems) == 1
    return document.problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("0", 0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("5s", "5s"),
        ("50ms..1s", "50ms..1s"),
        ("20%", "20%"),
        ("127.0.0.1:4100", "127.0.0.1:4100"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        ('"5"', "5"),
        ("'true'", "true"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    """Plain scalars follow the YAML 1.2 core schema, and quoted ones are text."""
    document = read(f"a: {text}")
    assert document.values == {"a": value}
    assert type(document.values["a"]) is type(value)
    assert not document.problems


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "Yes", "OFF", "y", "N", "010", "-07", "1:30", "12:30:45"])
def test_yaml11_values(text: str) -> None:
    """What YAML 1.1 reads differently is an error at its place with the remedy, and quoting helps."""
    document = read(f"a:\n  b: {text}")
    problem = only(document)
    assert (str(problem.mark), problem.path) == ("o.yaml:2:6", "a.b")
    assert text in problem.message
    assert f'"{text}"' in problem.hint
    assert isinstance(document.values["a"]["b"], Unresolved)
    assert not read(f'a: "{text}"').problems


@pytest.mark.parametrize("text", ["on", "yes", "no", "off", "Y"])
def test_yaml11_keys(text: str) -> None:
    """A key that YAML 1.1 reads as true or false is an error at its place, and quoting helps."""
    problem = only(read(f"a: 1\n{text}: 2"))
    assert str(problem.mark) == "o.yaml:2:1"
    assert problem.hint == f'write "{text}" in quotes'
    assert not read(f'"{text}": 2').problems


def test_duplicate_key() -> None:
    """A duplicate key is an error that names the first one's line; the first one counts."""
    document = read("a: 1\nb: 2\na: 3")
    problem = only(document)
    assert str(problem.mark) == "o.yaml:3:1"
    assert "line 1" in problem.message
    assert document.values == {"a": 1, "b": 2}


def test_duplicate_nested_keys_are_all_told() -> None:
    """Every duplicate is told, at any depth, and the same key in two maps is none."""
    document = read("a: {x: 1, x: 2}\nb: {x: 1}\nc:\n  - {z: 1, z: 2, z: 3}")
    assert [str(problem.mark) for problem in document.problems] == ["o.yaml:1:11", "o.yaml:4:12", "o.yaml:4:18"]


def test_tab_indentation() -> None:
    """A tab is pointed at, with the remedy."""
    problem = only(read("a:\n\tb: 1"))
    assert str(problem.mark) == "o.yaml:2:1"
    assert "tabs cannot indent" in problem.hint


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("a: [1", "o.yaml:1:6"),
        ("a: 1\nb: x: y", "o.yaml:2:5"),
        ("a: *none", "o.yaml:1:4"),
        ("a: 1\n---\nb: 2", "o.yaml:2:1"),
    ],
)
def test_what_is_not_yaml(text: str, mark: str) -> None:
    """Broken YAML is one error at the place where it broke."""
    problem = only(read(text))
    assert str(problem.mark) == mark
    assert problem.message.startswith("not valid YAML: ")
    assert "\n" not in problem.message


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    """A file in another encoding is refused, and the first wrong byte named."""
    path = tmp_path / "o.yaml"
    path.write_bytes("a: ä".encode("latin-1"))
    problem = only(read_file(path, {}))
    assert problem.mark.file == str(path)
    assert "not UTF-8 text (byte 3)" in problem.message


def test_byte_order_mark(tmp_path: Path) -> None:
    """A byte order mark, as some editors write it, does not matter."""
    path = tmp_path / "o.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = read_file(path, {})
    assert document.values == {"a": 1, "b": 2}
    assert str(document.mark(("b",))) == f"{path}:2:4"


@pytest.mark.parametrize("text", ["- a", "just text", "5", "[a, b]"])
def test_top_level_that_is_no_map(text: str) -> None:
    """Anything but a map at the top level is an error with an example."""
    problem = only(read(text))
    assert problem.message.startswith("expected keys and values at the top level")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment"])
def test_nothing_is_an_empty_document(text: str) -> None:
    """An empty file has no values and no problems of its own."""
    document = read(text)
    assert document.values == {}
    assert not document.problems


def test_marks() -> None:
    """Every value and every key knows its line and column; what is missing stands where its parent stands."""
    document = read("a:\n  - b: 1\n    c: [x, y]\n")
    assert str(document.mark(("a", 0, "c", 1))) == "o.yaml:3:12"
    assert str(document.mark(("a", 0, "c"), key=True)) == "o.yaml:3:5"
    assert str(document.mark(("a", 0, "nope"))) == "o.yaml:2:5"


def test_dotted() -> None:
    """Paths are shown as people write them."""
    assert dotted(("services", "user", "url", 0)) == "services.user.url[0]"
    assert dotted(()) == ""


@pytest.mark.parametrize("text", ["a: !!python/object:os.system x", "a: !secret x", "a: !!python/name:os.system"])
def test_tags(text: str) -> None:
    """Tags that would make something other than plain values are refused."""
    problem = only(read(text))
    assert "is not allowed" in problem.message
    assert str(problem.mark) == "o.yaml:1:4"


def test_keys_are_words() -> None:
    """A key that is a list or a map is refused."""
    assert "plain word" in only(read("? [a, b]\n: 1")).message


def test_aliases_and_merge_keys() -> None:
    """Aliases repeat, and merge keys lay a map under what stands here, the first of several on top."""
    document = read(
        "a: &a {p: 1, q: 1}\nb: &b {q: 2, r: 2}\nc:\n  <<: *a\n  p: 9\nd:\n  <<: [*a, *b]\ne: *a\n"
        "f: &f {<<: *b, q: 5}\ng: {<<: *f}"
    )
    assert not document.problems
    assert document.values["c"] == {"p": 9, "q": 1}
    assert document.values["d"] == {"p": 1, "q": 1, "r": 2}
    assert document.values["e"] == {"p": 1, "q": 1}
    assert document.values["g"] == {"q": 5, "r": 2}


def test_merge_key_needs_a_map() -> None:
    """A merge key that refers to something else is an error at its place."""
    problem = only(read("a: 1\nb:\n  <<: 5"))
    assert str(problem.mark) == "o.yaml:3:3"
    assert problem.message == "<< must refer to a map"


def test_merged_values_keep_their_place() -> None:
    """What is merged in is marked where it was written."""
    document = read("a: &a\n  x: 1\nb:\n  <<: *a")
    assert str(document.mark(("b", "x"))) == "o.yaml:2:6"


def bomb(levels: int, width: int) -> str:
    lines = ["l0: &l0 [x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [bomb(12, 10), "a: &a [*a]", "a: &a {b: *a}", "a: &a [*a, *a]", "a: " + "[" * 80 + "]" * 80]
)
def test_too_large_or_endless(text: str) -> None:
    """Alias bombs, aliases to themselves and absurd depth end soon, in one complaint."""
    began = monotonic()
    assert "too large or too deep" in only(read(text)).message
    assert monotonic() - began < 3


def test_depth_beyond_the_parser() -> None:
    """Even what the YAML parser itself cannot stand is only a complaint."""
    assert "not valid YAML" in only(read("a: " + "[" * 5000)).message


def test_merging_documents() -> None:
    """Maps merge by key, lists and scalars are replaced, and every value is marked in its own file."""
    base = read_text("a: {x: 1, y: 1}\nl: [1, 2, 3]\ns: 1", "base.yaml", {})
    base.merge(read_text("\na: {y: 2, z: 2}\nl: [9]\ns: {t: 1}", "over.yaml", {}))
    assert base.values == {"a": {"x": 1, "y": 2, "z": 2}, "l": [9], "s": {"t": 1}}
    assert str(base.mark(("a", "x"))) == "base.yaml:1:8"
    assert str(base.mark(("a", "y"))) == "over.yaml:2:8"
    assert str(base.mark(("l", 0))) == "over.yaml:3:5"
    assert ("l", 2) not in base.marks


def test_templates_of_replaced_values_go() -> None:
    """A value from a file that is replaced by a plain one is no longer read from the file."""
    base = read_text('k: {v: "${file:/no/key:-x}"}', "base.yaml", {})
    assert base.templates == {("k", "v"): "${file:/no/key:-x}"}
    base.merge(read_text("k: {v: plain}", "over.yaml", {}))
    assert base.templates == {}


@given(st.text())
def test_any_text_is_read_or_complained_about(text: str) -> None:
    """No file makes the reader fail: there are values or there are problems."""
    document = read(text)
    assert isinstance(document.values, dict)


@given(st.text(alphabet="ab:-[]{},&*<!#\"' \n\t|>%?", max_size=40))
def test_any_syntax_is_read_or_complained_about(text: str) -> None:
    """Nor does any arrangement of the characters that mean something to YAML."""
    assert isinstance(read(text).values, dict)


@given(st.integers())
def test_integers(number: int) -> None:
    """Every whole number in decimal is that number."""
    assert typed(str(number)) == number


@given(st.floats(-1e6, 1e6).filter(lambda number: "e" not in repr(number)))
def test_floats(number: float) -> None:
    """Every decimal fraction is that fraction."""
    assert math.isclose(typed(repr(number)), number)


def test_merge_key_to_itself() -> None:
    """A merge key that refers to the map it stands in is a complaint, not a crash."""
    assert read("a: &a\n  <<: *a\n  x: 1").problems


def test_bomb_of_merge_keys() -> None:
    """Merge keys that double at every level end soon."""
    lines = ["l0: &l0 {x: 1}", *(f"l{n}: &l{n} {{<<: [*l{n - 1}, *l{n - 1}]}}" for n in range(1, 19))]
    began = monotonic()
    read("\n".join(lines))
    assert monotonic() - began < 0.5


def test_control_character() -> None:
    """A character that YAML forbids is one line, at its place."""
    problem = only(read("a: 1\nb: \x00"))
    assert str(problem.mark) == "o.yaml:2:4"
    assert "\n" not in problem.message


def test_tagged_collections() -> None:
    """A tag is refused on maps and lists as it is on scalars."""
    assert "is not allowed" in only(read("a: !secret {b: 1}")).message


def test_text_by_tag() -> None:
    """A scalar that is tagged as text is text."""
    assert read("a: !!str 5").values == {"a": "5"}
