"""`outrider circuits`: how the circuits of a running sidecar stand, and holding one open or closed by hand."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import quote

import click

from outrider.cli.options import admin_port, asked


@click.command(name="circuits")
@click.argument("action", type=click.Choice(["list", "open", "close", "reset"]), default="list")
@click.argument("name", required=False)
@admin_port
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(action: str, name: str | None, admin: str, as_json: bool) -> None:
    """Show the circuits, or hold one by hand.

    `open NAME` refuses all its calls, `close NAME` lets all of them through whatever fails; both until `reset NAME`,
    which closes it and leaves it to its own rules again. A circuit is named after its service, or `SERVICE ROUTE` where
    a route has its own.
    """
    if action != "list" and name is None:
        raise click.UsageError(f"say which circuit: outrider circuits {action} NAME")
    if action == "list":
        answer = asked(admin, "/api/v1/circuits")
    else:
        answer = asked(admin, f"/api/v1/circuits/{quote(name or '', safe='')}/{action}", method="POST")
    by_worker: dict[str, Any] = answer.get("workers", {"": answer})
    found = {worker: page.get("circuits", {}) for worker, page in by_worker.items()}
    if as_json:
        click.echo(json.dumps(found.get("", found)))
        return
    if not any(found.values()):
        click.echo("no circuits", err=True)
        sys.exit(1)
    for worker, circuits in found.items():
        for label, circuit in circuits.items():
            if action == "list" and name not in (None, label):
                continue
            click.echo(f"{f'worker {worker}  ' if worker else ''}{label:<30} {_sentence(circuit)}")


def _sentence(circuit: dict[str, Any]) -> str:
    if "held" in circuit:
        return f"{circuit['state']}, held by hand"
    if "probe_in_seconds" in circuit:
        return f"{circuit['state']}, next probe in {circuit['probe_in_seconds']:.2f} s"
    return f"{circuit['state']}, {circuit['failures_in_window']} failures in its window"
