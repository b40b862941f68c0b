"""`outrider wait`: hold the app back until its sidecar is ready. Light, like `outrider health`, for the same reason."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from outrider.cli.health import add_address, address_of, ask
from outrider.cli.ports import PortError, port_of
from outrider.errors import EXIT_FAILED, EXIT_OK
from outrider.model.units import parse_duration

_PAUSE = 0.1
# Exit codes of shells (POSIX.1-2024, Shell Command Language 2.8.2).
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def main(arguments: list[str]) -> int:
    """Wait for /readyz. Then run the command, if there is one: in our place, or with --shutdown as a child after whose
    end the sidecar is told to stop. Exit code: the command's; without one 0 when ready, 1 when not in time."""
    parser = argparse.ArgumentParser(
        prog="outrider wait",
        description="Wait until the sidecar is ready, then run a command.",
        usage="outrider wait [--address HOST:PORT] [-c FILE] [--timeout 60s] [--shutdown] [-- COMMAND ...]",
    )
    add_address(parser)
    parser.add_argument("--admin", metavar="HOST:PORT", help="the admin port, for --shutdown")
    parser.add_argument("--timeout", default="60s", help="how long to wait (default %(default)s)")
    parser.add_argument("--shutdown", action="store_true", help="stop the sidecar when the command has ended")
    mine, command = _split(arguments)
    options = parser.parse_args(mine)
    try:
        timeout = parse_duration(options.timeout)
    except ValueError as error:
        parser.error(f"--timeout: {error}")
    if options.shutdown and not command:
        parser.error("--shutdown needs a command: outrider wait --shutdown -- COMMAND")
    address = address_of(parser, options)
    admin = _admin_of(parser, options) if options.shutdown else ""
    try:
        if not until_ready(address, timeout):
            return EXIT_FAILED
    except ValueError as error:
        parser.error(f"--address {error}")
    if not command:
        return EXIT_OK
    if options.shutdown:
        return _run_then_stop(command, admin)
    try:
        os.execvp(command[0], command)  # noqa: S606 # this is what the verb is for
    except OSError as error:
        return _cannot_run(command, error)


def _cannot_run(command: list[str], error: OSError) -> int:
    """Say so; returns the exit code that a shell has for it."""
    sys.stderr.write(f"outrider: cannot run {command[0]}: {error.strerror}\n")
    return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE


def _admin_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    try:
        return options.admin or port_of("admin", options.config)
    except PortError as error:
        parser.error(str(error))


def until_ready(address: str, timeout: float) -> bool:
    """Ask /readyz until it answers 200, for up to `timeout` seconds; says why not."""
    end = time.monotonic() + timeout
    why = "it was not asked"
    while True:
        try:
            status, text = ask(address, "/readyz")
            if status == 200:
                return True
            why = text or f"status {status}"
        except OSError as error:
            why = str(error.strerror or error)
        if time.monotonic() >= end:
            sys.stderr.write(f"outrider: the sidecar at {address} was not ready in time: {why}\n")
            return False
        time.sleep(_PAUSE)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _run_then_stop(command: list[str], admin: str) -> int:
    """Run the command, pass signals on to it, and tell the sidecar to stop when it has ended. A token of the admin port
    is taken from OUTRIDER_ADMIN_TOKEN."""
    early: list[int] = []
    pass_on: Callable[[int], None] = early.append
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _: pass_on(received))
    try:
        child = subprocess.Popen(command)  # noqa: S603 # this is what the verb is for
    except OSError as error:
        code = _cannot_run(command, error)
    else:
        pass_on = child.send_signal
        for early_number in early:
            child.send_signal(early_number)
        code = child.wait()
    try:
        status, text = ask(admin, "/-/quit", method="POST", admin=True)
        if status != 202:
            sys.stderr.write(f"outrider: the sidecar did not take the order to stop: {text or status}\n")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        sys.stderr.write(f"outrider: the sidecar at {admin} could not be told to stop: {why}\n")
    return code if code >= 0 else 128 - code


def __getattr__(name: str) -> Any:
    """The same verb for click's help, made only when click is there anyway."""
    if name != "command":
        raise AttributeError(name)
    import click

    @click.command(name="wait", context_settings={"ignore_unknown_options": True}, add_help_option=False)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        """Hold the app back until the sidecar is ready."""
        sys.exit(main(list(arguments)))

    return command
