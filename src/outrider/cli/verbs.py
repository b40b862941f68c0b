"""The group of verbs; each is imported when it is called for."""

from __future__ import annotations

import importlib

import click

from outrider import __version__

_VERBS = {
    "run": "Run the sidecar.",
    "check": "Check a configuration: every problem, with its line and a remedy.",
    "schema": "Print the JSON Schema of the configuration.",
    "health": "Ask a running sidecar whether it is ready.",
    "wait": "Hold the app back until the sidecar is ready.",
    "drain": "Finish what is in flight, then stop, as SIGTERM does.",
    "circuits": "Show the circuits, or hold one open or closed by hand.",
    "keys": "Show the secrets by name and age, or read them again now.",
    "fault": "Make a service fail on purpose, for a while.",
    "demo": "Show on a small booking system what Outrider does.",
    "version": "Print the version.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"outrider.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        command.help = command.help or _VERBS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="outrider", message="%(prog)s %(version)s")
def cli() -> None:
    """Outrider: a resilience sidecar proxy. Your code calls localhost; Outrider does the rest."""
