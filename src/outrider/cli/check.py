"""`outrider check`"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from outrider.cli.options import configuration
from outrider.config.load import load
from outrider.config.problems import Problem
from outrider.config.resolve import Resolved
from outrider.controlplane.compile import compile_config
from outrider.errors import EXIT_CONFIG, EXIT_OK, ConfigError

_SERIES_OF_THE_PROCESS = 60
_SERIES_OF_A_SERVICE = 11  # endpoints, circuit, connections, calls in flight
_SERIES_OF_A_HISTOGRAM = 17
_RESULTS_AND_REASONS = 20  # of attempts, retries and what kept them from being made


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
        found = {"ok": not failed, "problems": [problem.as_dict() for problem in problems]}
        click.echo(json.dumps({**found, "notes": notes(resolved) if resolved is not None else []}, indent=2))
    else:
        _report(problems, resolved, failed)
    sys.exit(EXIT_CONFIG if failed else EXIT_OK)


def _report(problems: list[Problem], resolved: Resolved | None, failed: bool) -> None:
    for problem in problems:
        click.echo(problem.render() + "\n")
    counts = {kind: sum(problem.severity == kind for problem in problems) for kind in ("error", "warning")}
    summary = ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in counts.items())
    if resolved is None:
        click.echo(summary)
        return
    routes = sum(1 + len(service.routes) for service in resolved.services)
    verdict = "failed, because --strict lets no warning pass" if failed else "ok"
    click.echo(f"{verdict}: {len(resolved.services)} services, {routes} routes; {summary}")
    for note in notes(resolved):
        click.echo(note)
    idle, busy = series(len(resolved.services), routes)
    click.echo(f"about {idle} metric series at start, {busy} once every route has seen 3 methods with 5 statuses each")


def notes(resolved: Resolved) -> list[str]:
    """What is worth knowing and no fault of the configuration; some of it depends on this machine and user."""
    found = []
    if resolved.config.admin.token is None:
        host, port = resolved.config.admin.listen
        found.append(f"any process on this machine may look at it and stop it at {host}:{port}: admin.token is not set")
    inbound = resolved.config.inbound
    if inbound is not None and inbound.idempotency and inbound.idempotency.store != "redis":
        why = _unusable(Path(inbound.idempotency.store))
        if why:
            refused = "all calls with a key would be refused" if inbound.idempotency.on_error == "refuse" else ""
            passed = refused or "repetitions of calls with a key would be executed again"
            found.append(f"on this machine, as this user, {passed}: inbound.idempotency.store: {why}")
    return found


def _unusable(store: Path) -> str:
    """Why no store can be opened at this path; empty if one can."""
    try:
        if store.exists():
            return "" if store.is_file() and os.access(store, os.R_OK | os.W_OK) else f"{store} cannot be written"
        folder = next(one for one in store.parents if one.exists())
    except OSError as error:
        return f"{store}: {error.strerror}"
    return "" if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


def series(services: int, routes: int) -> tuple[int, int]:
    """How many series `/metrics` has, about: before the first call, and when every route has answered three methods
    with five statuses, each once plainly and once after a retry. Undeclared calls of a service count as one route."""
    idle = _SERIES_OF_THE_PROCESS + services * _SERIES_OF_A_SERVICE + routes * _SERIES_OF_A_HISTOGRAM
    return idle, idle + services * _RESULTS_AND_REASONS + routes * 3 * 5 * 2
