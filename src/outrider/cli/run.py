"""`outrider run`"""

from __future__ import annotations

import sys

import click

from outrider.cli.options import configuration
from outrider.config.load import load
from outrider.errors import EXIT_USAGE, ConfigError, OutriderError


@click.command(name="run", context_settings={"ignore_unknown_options": False})
@configuration
@click.argument("wrapped", nargs=-1, metavar="")
def command(
    paths: tuple[str, ...], services: tuple[str, ...], settings: tuple[str, ...], wrapped: tuple[str, ...]
) -> None:
    """Run the sidecar until SIGTERM. A configuration with errors never starts."""
    if wrapped:
        sys.exit(die(f"cannot run {wrapped[0]}: wrapping a command is not supported yet", EXIT_USAGE))
    try:
        resolved, warnings = load(paths, services=services, settings=settings)
        for problem in warnings:
            click.echo(problem.render(), err=True)
        # Not before the configuration is known to be sound.
        if resolved.config.workers == 1:
            from outrider.app import run

            code = run(resolved)
        else:
            from outrider.supervisor import Supervisor

            code = Supervisor(resolved).run()
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem.render(), err=True)
        code = die(str(error), error.exit_code)
    except OutriderError as error:
        code = die(str(error), error.exit_code)
    sys.exit(code)


def die(message: str, code: int) -> int:
    """One clear line on standard error, and the exit code."""
    sys.stderr.write(f"outrider: {message}\n")
    return code
