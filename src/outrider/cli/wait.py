"""`outrider wait`: hold the app back until its sidecar is ready. Light, like `outrider health`, for the same reason."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from typing import Any

from outrider.cli.health import ask
from outrider.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from outrider.model.units import parse_duration

_PAUSE = 0.1
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def main(arguments: list[str]) -> int:
    """Wait for /readyz. Then run the command, if there is one: in our place, or with --shutdown as a child after whose
    end the sidecar is told to stop. Exit code: the command's; without one 0 when ready, 1 when not in time."""
    parser = argparse.ArgumentParser(
        prog="outrider wait",
        description="Wait until the sidecar is ready, then run a command.",
        usage="outrider wait [--address HOST:PORT] [--timeout 60s] [--shutdown] [-- COMMAND ...]",
    )
    parser.add_argument("--address", default="127.0.0.1:4102", help="the telemetry port (default %(default)s)")
    parser.add_argument("--admin", default="127.0.0.1:4101", help="the admin port, for --shutdown")
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
    try:
        if not until_ready(options.address, timeout):
            return EXIT_FAILED
    except ValueError as error:
        parser.error(f"--address {error}")
    if not command:
        return EXIT_OK
    try:
        if options.shutdown:
            return _run_then_stop(command, options.admin)
        os.execvp(command[0], command)  # noqa: S606 # this is what the verb is for
    except OSError as error:
        sys.stderr.write(f"outrider: cannot run {command[0]}: {error.strerror}\n")
        return EXIT_USAGE


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
    child = subprocess.Popen(command)  # noqa: S603 # this is what the verb is for
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _: child.send_signal(received))
    code = child.wait()
    try:
        status, text = ask(admin, "/-/quit", method="POST")
        if status != 202:
            sys.stderr.write(f"outrider: the sidecar did not take the order to stop: {text or status}\n")
    except OSError as error:
        sys.stderr.write(f"outrider: the sidecar at {admin} could not be told to stop: {error.strerror or error}\n")
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
