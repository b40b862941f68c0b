"""`outrider version`"""

from __future__ import annotations

import click

from outrider import __version__


@click.command(name="version")
def command() -> None:
    """Print the version."""
    click.echo(f"outrider {__version__}")
