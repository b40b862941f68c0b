"""Libraries that are not installed are told where the configuration asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.config import extras
from outrider.config.load import load
from outrider.errors import ConfigError

TOKENS = "credentials: { k: { jwt: { alg: HS256, key: 0123456789abcdef0123456789abcdef } } }\nservices: { u: http://h }"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [(TOKENS, "outrider[jwt]"), ("services: { u: dnssrv+http://user.test }", "outrider[dns]")],
    ids=["jwt", "dns"],
)
def test_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, remedy: str) -> None:
    """With the line that needs it, and the command that installs it; and nothing when it is there."""
    file = tmp_path / "outrider.yaml"
    file.write_text(f"service: booking\n{text}\n")
    load([str(file)], environment={})
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        load([str(file)], environment={})
    assert [remedy in problem.hint for problem in caught.value.problems] == [True]
