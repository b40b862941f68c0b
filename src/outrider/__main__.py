"""`outrider`, and `python -m outrider`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. `health` comes first and alone: a container runs it every few seconds, and the rest of
    Outrider takes ten times as long to import."""
    if sys.argv[1:2] == ["health"]:
        from outrider.cli.health import main as health

        sys.exit(health(sys.argv[2:]))
    from outrider.cli.verbs import cli

    cli(prog_name="outrider")


if __name__ == "__main__":
    main()
