"""`outrider health`: is the sidecar ready? Imports nothing but argparse and socket, so that it starts in 20 ms."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from typing import Any

from outrider.cli.ports import PortError, port_of

_TIMEOUT = 2.0


def main(arguments: list[str]) -> int:
    """Exit code 0 if /readyz (or the path given) answers 200, 1 if not."""
    parser = argparse.ArgumentParser(prog="outrider health", description="Ask a running sidecar whether it is ready.")
    add_address(parser)
    parser.add_argument("--path", default="/readyz", help="what to ask (default %(default)s)")
    options = parser.parse_args(arguments)
    address = address_of(parser, options)
    try:
        status, text = ask(address, options.path)
    except ValueError as error:
        parser.error(f"--address {error}")
    except OSError as error:
        sys.stderr.write(f"outrider: no answer from {address}: {error.strerror or error}\n")
        return 1
    sys.stdout.write(f"{text}\n")
    return 0 if status == 200 else 1


def add_address(parser: argparse.ArgumentParser) -> None:
    """`--address` and `-c`: which sidecar is meant."""
    usual = "the telemetry port; without it, the one in the configuration"
    parser.add_argument("--address", metavar="HOST:PORT", help=usual)
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE|DIR", help="the sidecar's configuration"
    )


def address_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The address of the telemetry port that the options mean."""
    try:
        return options.address or port_of("telemetry", options.config)
    except PortError as error:
        parser.error(str(error))


def ask(address: str, path: str, *, method: str = "GET", body: str = "", admin: bool = False) -> tuple[int, str]:
    """One request to a control port: `(status, text)`. A token, if the port has one, is taken from
    OUTRIDER_ADMIN_TOKEN. Raises ValueError for a bad address, OSError for no answer. `admin`: it needs the token, so
    raises ValueError for one that is none, which it does not show."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"must be HOST:PORT, not {address}")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "X-Outrider: 1"]
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body.encode())}"]
    token = os.environ.get("OUTRIDER_ADMIN_TOKEN", "").strip()
    if token.isascii() and token.isprintable() and " " not in token:
        lines += [f"Authorization: Bearer {token}"] if token else []
    elif admin:
        raise ValueError("OUTRIDER_ADMIN_TOKEN holds characters that no token has")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT) as connection:
        connection.sendall("\r\n".join([*lines, "", body]).encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, text = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    return status, text.decode("utf-8", "replace").strip()


def __getattr__(name: str) -> Any:
    """The same verb for click's help, made only when click is there anyway."""
    if name != "command":
        raise AttributeError(name)
    import click

    @click.command(name="health", context_settings={"ignore_unknown_options": True}, add_help_option=False)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        """Ask a running sidecar whether it is ready."""
        sys.exit(main(list(arguments)))

    return command
