"""`outrider check`"""

from __future__ import annotations

import json
import sys

import click

from outrider.cli.options import configuration
from outrider.config.load import load
from outrider.config.problems import Problem
from outrider.config.resolve import Resolved
from outrider.controlplane.compile import compile_config
from outrider.errors import EXIT_CONFIG, EXIT_OK, ConfigError


@click.command(name="check")
@configuration
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="How to report.")
@click.option("--strict", is_flag=True, help="Warnings fail, too.")
def command(
    paths: tuple[str, ...], services: tuple[str, ...], settings: tuple[str, ...], format_: str, strict: bool
) -> None:
    """Check a configuration: every problem at once, with its line and a remedy. Exit code 78 if it cannot be used."""
    resolved = None
    try:
        resolved, problems = load(paths, services=services, settings=settings)
        compile_config(resolved)
    except ConfigError as error:
        problems = error.problems
        resolved = None
    failed = resolved is None or (strict and bool(problems))
    if format_ == "json":
        click.echo(json.dumps({"ok": not failed, "problems": [problem.as_dict() for problem in problems]}, indent=2))
    else:
        _report(problems, resolved)
    sys.exit(EXIT_CONFIG if failed else EXIT_OK)


def _report(problems: list[Problem], resolved: Resolved | None) -> None:
    for problem in problems:
        click.echo(problem.render() + "\n")
    counts = {kind: sum(problem.severity == kind for problem in problems) for kind in ("error", "warning")}
    summary = ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in counts.items())
    if resolved is None:
        click.echo(summary)
        return
    routes = sum(1 + len(service.routes) for service in resolved.services)
    click.echo(f"ok: {len(resolved.services)} services, {routes} routes; {summary}")
    # services x routes x (histogram lines + methods x codes), with three methods and five codes in use.
    click.echo(f"about {routes * (17 + 3 * 5)} metric series at most in ordinary use")
