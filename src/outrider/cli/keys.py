"""`outrider keys`: how old the secrets of a running sidecar are, and reading them again at once."""

from __future__ import annotations

from typing import Any

import click

from outrider.cli.options import admin_port, asked


@click.command(name="keys")
@click.argument("action", type=click.Choice(["status", "rotate"]), default="status")
@admin_port
def command(action: str, admin: str) -> None:
    """Show the secrets by name, never by value: where they come from, how old they are, and who still wants an old one.

    `rotate` reads all of them from their sources now, instead of within the next moments.
    """
    answer = asked(admin, f"/api/v1/keys{'/rotate' if action == 'rotate' else ''}", method=_METHODS[action])
    for page in answer["workers"].values() if "workers" in answer else [answer]:
        for name, key in page["keys"].items():
            click.echo(f"{name:<32} {_sentence(key)}")


_METHODS = {"status": "GET", "rotate": "POST"}


def _sentence(key: dict[str, Any]) -> str:
    parts = [f"{key['source']:<8}"]
    if "age_seconds" in key:
        parts.append(f"{key['age_seconds']:.0f} s old")
    if "expires_in_seconds" in key:
        parts.append(f"good for {key['expires_in_seconds']:.0f} s more")
    if key.get("failures"):
        parts.append(f"{key['failures']} tries to get a new one have failed")
    if key.get("old_uses"):
        parts.append(f"{key['old_uses']} calls needed the one before it")
    if key.get("shown_by"):
        parts.append(f"shown by {', '.join(key['shown_by'])}")
    return ", ".join(parts)
