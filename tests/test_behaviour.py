"""docs/behaviour.md: every promise has its test, and every test it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = [line for line in (ROOT / "docs" / "behaviour.md").read_text().splitlines() if "::test_" in line]
NAMED = sorted({name for row in ROWS for name in re.findall(r"`([\w/]+\.py::test_\w+)`", row)})


def test_there_are_promises() -> None:
    """The page is not empty, and each of its rows names a test."""
    assert len(ROWS) > 40
    assert len(NAMED) > 80


def test_whatever_can_be_used_up_is_tested() -> None:
    """Each row of the table of isolation says five things, the last of which is its tests."""
    section = (ROOT / "docs" / "behaviour.md").read_text().split("## Isolation", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5, row
        assert all(cells), row
        assert "::test_" in cells[-1], row


@pytest.mark.parametrize("name", NAMED)
def test_the_test_exists(name: str) -> None:
    """A promise whose test was renamed or deleted is noticed."""
    file, _, function = name.partition("::")
    path = ROOT / (file if "/" in file else f"tests/integration/{file}")
    assert re.search(rf"^(async )?def {function}\(", path.read_text(), re.M), name
