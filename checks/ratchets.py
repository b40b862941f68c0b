"""Ratchets: the outliers of today are listed, new ones fail, and a listed one that has shrunk must be lowered.

    python -m checks.ratchets            compare the source with checks/ratchets.toml
    python -m checks.ratchets --write    write down the sizes of today

A limit that holds everywhere would forbid the few places that are rightly larger; no limit at all lets every file grow
by a line a week. So the table can only shrink, unless somebody writes a larger number into it, which a review sees.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "outrider"
TABLE = ROOT / "checks" / "ratchets.toml"

# What is measured, and the size beyond which a thing must be listed.
LIMITS = {"file_lines": 500, "class_attributes": 20, "function_lines": 40}

Sizes = dict[str, dict[str, int]]
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def measure(source: Path = SOURCE) -> Sizes:
    """The sizes of all files, classes and functions below `source` that are over the limits, by kind and place."""
    sizes: Sizes = {kind: {} for kind in LIMITS}
    for path in sorted(source.rglob("*.py")):
        text = path.read_text()
        place = path.relative_to(source).as_posix()
        found = [("file_lines", place, len(text.splitlines()))]
        for name, node in _definitions(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                found.append(("class_attributes", f"{place}:{name}", len(attributes(node))))
            else:
                found.append(("function_lines", f"{place}:{name}", function_lines(node)))
        for kind, where, size in found:
            if size > LIMITS[kind]:
                sizes[kind][where] = size
    return sizes


def attributes(node: ast.ClassDef) -> set[str]:
    """The names of the data that an instance of a class holds: slots, fields, and what its methods assign to self."""
    names: set[str] = set()
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if "ClassVar" not in ast.unparse(statement.annotation):
                names.add(statement.target.id)
        elif isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__slots__":
            names |= {one.value for one in ast.walk(statement.value) if isinstance(one, ast.Constant)}  # type: ignore[misc]
        elif isinstance(statement, _Function):
            names |= set(_assigned_to_self(statement))
    return names


def function_lines(node: _Function) -> int:
    """How many lines a function has, without its decorators and docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def compare(listed: Sizes, found: Sizes) -> list[str]:
    """One complaint for each size that is larger than its entry, has none, or is smaller than it."""
    complaints = []
    for kind, limit in LIMITS.items():
        old, new = listed.get(kind, {}), found[kind]
        for where in sorted(old.keys() | new.keys()):
            words = f"{where}: {kind.replace('_', ' ')}"
            if where not in old:
                complaints.append(f"{words} {new[where]}, over {limit}: make it smaller")
            elif where not in new:
                complaints.append(f"{words}: no longer over {limit} (or gone): remove its entry from the table")
            elif new[where] > old[where]:
                complaints.append(f"{words} {new[where]}, was {old[where]}: make it smaller")
            elif new[where] < old[where]:
                complaints.append(f"{words} {new[where]}, was {old[where]}: lower its entry in the table")
    return complaints


def as_toml(sizes: Sizes) -> str:
    """The table as it is written to disk."""
    parts = ["# Outliers of today (checks/ratchets.py). Entries only shrink: `python -m checks.ratchets --write`.\n"]
    for kind, entries in sizes.items():
        parts.append(f"[{kind}]  # over {LIMITS[kind]}\n" + "".join(f'"{k}" = {v}\n' for k, v in entries.items()))
    return "\n".join(parts)


def main() -> int:
    """Compare or write; the exit code says whether all is well."""
    if "--write" in sys.argv[1:]:
        TABLE.write_text(as_toml(measure()))
        return 0
    complaints = compare(tomllib.loads(TABLE.read_text()), measure())
    for complaint in complaints:
        print(complaint)
    if complaints:
        print("What has shrunk is lowered by `python -m checks.ratchets --write`.")
    return 1 if complaints else 0


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | _Function]]:
    """The classes and functions of a module, with their dotted names; functions within functions count as lines."""
    todo: list[tuple[str, ast.stmt]] = [("", node) for node in tree.body]
    for prefix, node in todo:
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, node
            todo += [(f"{prefix}{node.name}.", child) for child in node.body]
        elif isinstance(node, _Function):
            yield prefix + node.name, node


def _assigned_to_self(function: _Function) -> Iterator[str]:
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            yield node.attr


if __name__ == "__main__":
    sys.exit(main())
