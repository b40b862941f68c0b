"""`outrider`, and `python -m outrider`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. `health` and `wait` come first and alone: a container runs the one every few seconds, the
    app's start waits for the other, and the rest of Outrider takes ten times as long to import."""
    occupy_standard_descriptors()
    if sys.argv[1:2] == ["run"]:
        hear_early()
    if sys.argv[1:2] == ["health"]:
        from outrider.cli.health import main as health

        sys.exit(health(sys.argv[2:]))
    if sys.argv[1:2] == ["wait"]:
        from outrider.cli.wait import main as wait

        sys.exit(wait(sys.argv[2:]))
    # Importing makes many objects and no garbage; looking for it would take a tenth of the start. `run` switches
    # the collector on again once everything stands.
    gc.disable()
    from outrider.cli.verbs import cli

    cli(prog_name="outrider")


def occupy_standard_descriptors() -> None:
    """Open those of standard input, output and error that are closed: otherwise a connection would get the number, and
    what libraries print would go there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def hear_early() -> None:
    """Take SIGTERM and SIGINT from the first moment on. The first process of a container has no default for signals, so
    that one which comes before the event loop would be lost."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _nothing_has_begun)


def _nothing_has_begun(number: int, frame: FrameType | None) -> None:
    os._exit(0)


if __name__ == "__main__":
    main()
