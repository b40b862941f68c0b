"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

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
