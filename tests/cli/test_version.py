"""`outrider version`, and the command line as a whole."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from click.testing import CliRunner

from outrider import __version__
from outrider.cli.verbs import cli


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version(word: str) -> None:
    """The version is that of the package, as a verb and as an option."""
    result = CliRunner().invoke(cli, [word])
    assert (result.exit_code, result.stdout) == (0, f"outrider {__version__}\n")


def test_version_is_that_of_the_distribution() -> None:
    """Package and distribution agree on the version."""
    assert version("outrider") == __version__


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_verbs(option: str) -> None:
    """Help lists every verb with what it does."""
    result = CliRunner().invoke(cli, [option])
    assert result.exit_code == 0
    for verb in ("run", "check", "schema", "health", "version"):
        assert f"\n  {verb} " in result.stdout


@pytest.mark.parametrize("verb", ["run", "check", "schema", "version"])
def test_help_of_a_verb(verb: str) -> None:
    """Every verb explains itself."""
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0
    assert f"outrider {verb}" in result.stdout.replace("cli", "outrider")


def test_unknown_verb() -> None:
    """An unknown verb is wrong usage: exit code 2."""
    result = CliRunner().invoke(cli, ["rum"])
    assert result.exit_code == 2
    assert "rum" in result.output


def test_every_listed_verb_exists() -> None:
    """What help lists can be called."""
    for verb in cli.list_commands(None):
        assert cli.get_command(None, verb) is not None
