"""`outrider drain`: tell a running sidecar to finish what is in flight and stop, as SIGTERM does."""

from __future__ import annotations

import sys

import click

from outrider.cli.health import ask
from outrider.cli.options import admin_port
from outrider.errors import EXIT_FAILED


@click.command(name="drain")
@admin_port
def command(admin: str) -> None:
    """Drain a running sidecar: readiness turns 503, calls in flight and the app's last ones are finished, then it
    ends. A token of the admin port is taken from OUTRIDER_ADMIN_TOKEN."""
    try:
        status, text = ask(admin, "/-/drain", method="POST", admin=True)
    except (OSError, ValueError) as error:
        click.echo(f"outrider: no answer from {admin}: {getattr(error, 'strerror', None) or error}", err=True)
        sys.exit(EXIT_FAILED)
    click.echo(text, err=status != 202)
    sys.exit(0 if status == 202 else EXIT_FAILED)
