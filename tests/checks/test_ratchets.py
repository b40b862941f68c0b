"""Ratchets: what is listed may shrink, what is not listed may not appear."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from checks.ratchets import as_toml, attributes, compare, function_lines, measure

SMALL: dict[str, dict[str, int]] = {"file_lines": {}, "class_attributes": {}, "function_lines": {}}


def sizes(**entries: dict[str, int]) -> dict[str, dict[str, int]]:
    return {**SMALL, **entries}


def test_what_has_not_changed_is_well() -> None:
    """The table is what was measured."""
    same = sizes(file_lines={"a.py": 600})
    assert compare(same, same) == []


@pytest.mark.parametrize(
    ("listed", "found", "word"),
    [
        ({}, {"a.py": 501}, "over 500"),
        ({"a.py": 600}, {"a.py": 601}, "was 600: make it smaller"),
        ({"a.py": 600}, {"a.py": 599}, "lower its entry"),
        ({"a.py": 600}, {}, "remove its entry"),
    ],
)
def test_what_has_changed_is_told(listed: dict[str, int], found: dict[str, int], word: str) -> None:
    """Once, with what to do."""
    (complaint,) = compare(sizes(file_lines=listed), sizes(file_lines=found))
    assert complaint.startswith("a.py: file lines")
    assert word in complaint


def test_the_table_reads_back() -> None:
    """As it was written."""
    found = sizes(class_attributes={"a.py:B": 21}, function_lines={"a.py:B.c": 41})
    assert tomllib.loads(as_toml(found)) == found


def test_attributes_are_slots_fields_and_what_methods_assign() -> None:
    """Each counted once; constants of the class are none of its data."""
    (node,) = ast.parse(
        "class A:\n"
        "    __slots__ = ('a', 'b')\n"
        "    c: int\n"
        "    D: ClassVar[int] = 1\n"
        "    def __init__(self):\n"
        "        self.a = self.e = 1\n"
        "        other.f = 2\n"
    ).body
    assert isinstance(node, ast.ClassDef)
    assert attributes(node) == {"a", "b", "c", "e"}


def test_lines_of_a_function_are_counted_without_its_docstring() -> None:
    """Words are free."""
    (node,) = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n').body
    assert isinstance(node, ast.FunctionDef)
    assert function_lines(node) == 2


def test_a_tree_is_measured(tmp_path: Path) -> None:
    """Files, classes, and methods, by path and dotted name."""
    lines = ["class A:", "    def b(self):", *(f"        self.x{n} = {n}" for n in range(600))]
    (tmp_path / "large.py").write_text("\n".join(lines))
    assert measure(tmp_path) == {
        "file_lines": {"large.py": 602},
        "class_attributes": {"large.py:A": 600},
        "function_lines": {"large.py:A.b": 601},
    }
