"""Options that several verbs share."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from outrider.cli.health import ask
from outrider.cli.ports import PortError, port_of
from outrider.errors import EXIT_FAILED, EXIT_USAGE

F = TypeVar("F", bound=Callable[..., Any])


def configuration(function: F) -> F:
    """`-c`, `--service` and `--set`: where the configuration comes from."""
    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set one key, dotted."),
        click.option("--service", "services", multiple=True, metavar="NAME=URL", help="Add a service."),
        click.option("-c", "--config", "paths", multiple=True, metavar="FILE|DIR", help="Read this; repeatable."),
    ):
        function = option(function)
    return function


def admin_port(function: F) -> F:
    """`--admin` and `-c`: which sidecar is meant. The function gets the address of its admin port as `admin`."""

    @functools.wraps(function)
    def command(*arguments: Any, admin: str | None, paths: tuple[str, ...], **others: Any) -> Any:
        try:
            address = admin or port_of("admin", paths)
        except PortError as error:
            click.echo(f"outrider: {error}", err=True)
            sys.exit(EXIT_USAGE)
        return function(*arguments, admin=address, **others)

    usual = "The admin port; without it, the one in the configuration."
    for option in (
        click.option("--admin", metavar="HOST:PORT", help=usual),
        click.option("-c", "--config", "paths", multiple=True, metavar="FILE|DIR", help="The sidecar's configuration."),
    ):
        command = option(command)
    return cast(F, command)


def asked(admin: str, path: str, *, method: str = "GET", body: str = "") -> dict[str, Any]:
    """What the admin port of a running sidecar answers; without a good answer, says why and exits."""
    try:
        status, text = ask(admin, path, method=method, body=body, admin=True)
    except (OSError, ValueError) as error:
        click.echo(f"outrider: no answer from {admin}: {getattr(error, 'strerror', None) or error}", err=True)
        sys.exit(EXIT_FAILED)
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        answer = {"error": text or f"status {status}"}
    if status >= 400:
        click.echo(f"outrider: {answer.get('error', text)}", err=True)
        sys.exit(EXIT_FAILED)
    return answer
