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


@pytest.mark.parametrize("name", NAMED)
def test_the_test_exists(name: str) -> None:
    """A promise whose test was renamed or deleted is noticed."""
    file, _, function = name.partition("::")
    path = ROOT / (file if "/" in file else f"tests/integration/{file}")
    assert re.search(rf"^(async )?def {function}\(", path.read_text(), re.M), name
