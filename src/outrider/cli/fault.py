"""`outrider fault`: make a service fail on purpose, for a while."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import quote

import click
from click.core import ParameterSource

from outrider.cli.options import admin_port, asked


@click.command(name="fault")
@click.argument("service", required=False)
@click.option("--latency", metavar="DURATION", help="Answer so much later.")
@click.option("--status", type=int, metavar="CODE", help="Answer this instead.")
@click.option("--reset", is_flag=True, help="Break the connection as the request comes.")
@click.option("--hang", is_flag=True, help="Take the request, and say nothing.")
@click.option("--truncate", is_flag=True, help="Break the connection in the middle of the answer.")
@click.option("--garbage", is_flag=True, help="Answer something that is not HTTP.")
@click.option("--bandwidth", metavar="SIZE", help="Answer so many bytes a second, e.g. 10KiB.")
@click.option("--probability", default="100%", show_default=True, metavar="SHARE", help="Of so many requests.")
@click.option("--for", "lasts", default="60s", show_default=True, metavar="DURATION", help="For so long.")
@click.option("--clear", is_flag=True, help="End the faults of this service, or all.")
@admin_port
def command(service: str | None, admin: str, clear: bool, probability: str, lasts: str, **kinds: Any) -> None:
    """Make SERVICE fail on purpose, as its callers through this sidecar see it; without options, show the faults.

    Only where the configuration says `admin: { allow_faults: true }`. Faults end by themselves.
    """
    orders = [_order(kind, value) for kind, value in kinds.items() if value not in (None, False)]
    given = click.get_current_context().get_parameter_source
    details = [f"--{name}" for name, key in _DETAILS.items() if given(key) is ParameterSource.COMMANDLINE]
    if details and not orders:
        raise click.UsageError(f"{details[0]} says more about a fault, but there is none: add {_KINDS} or another")
    if clear and orders:
        raise click.UsageError("--clear ends faults; it cannot begin one")
    if clear:
        path = f"/api/v1/faults?service={quote(service, safe='')}" if service else "/api/v1/faults"
        answer = asked(admin, path, method="DELETE")
        click.echo(f"{sum(page['ended'] for page in _pages(answer))} faults ended")
        return
    if orders and service is None:
        raise click.UsageError("say which service is to fail")
    for order in orders:
        body = {"service": service, "probability": probability, "for": lasts, **order}
        asked(admin, "/api/v1/faults", method="POST", body=json.dumps(body))
    faults = [fault for page in _pages(asked(admin, "/api/v1/faults")) for fault in page["faults"]]
    shown = [fault for fault in faults if service in (None, fault["service"])]
    for fault in shown:
        click.echo(
            f"{fault['service']:<20} {fault['kind']:<10} {fault['probability']:>5} of requests, "
            f"{fault['seconds_left']:.0f} s left, met {fault['met']}"
        )
    if not shown:
        click.echo("no faults", err=True)
        sys.exit(0)


_DETAILS = {"for": "lasts", "probability": "probability"}
_KINDS = "--latency, --status, --reset"


def _order(kind: str, value: Any) -> dict[str, Any]:
    detail = {"latency": "delay", "status": "status", "bandwidth": "rate"}.get(kind)
    return {"kind": kind, **({detail: value} if detail else {})}


def _pages(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The page of every worker, or the only one."""
    return list(answer["workers"].values()) if "workers" in answer else [answer]
