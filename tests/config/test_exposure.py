"""Ports that are open to more than the app are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.test_resolve import complaints

KEY = "credentials: { k: { header: x-key, value: v } }\n"
WITH, WITHOUT = "services: { user: { url: 'http://h:1', auth: k } }", "services: { user: 'http://h:1' }"
ROUTE = "services: { user: { url: 'http://h:1', routes: [{ match: GET /x, auth: k }] } }"


@pytest.mark.parametrize("listen", ["0.0.0.0:4100", "'[::]:4100'", "10.0.0.1:4100", "'host.example:4100'"])
@pytest.mark.parametrize("services", [WITH, ROUTE])
def test_credentials_for_whoever_reaches_the_port(tmp_path: Path, listen: str, services: str) -> None:
    """A calls port that is not on loopback lends our credentials to everybody there."""
    (said,) = complaints(tmp_path, f"listen: {listen}\n{KEY}{services}")
    assert said.startswith("2:9 whoever reaches ")
    assert said.endswith(":4100 calls user with the credentials of this configuration")


@pytest.mark.parametrize(
    "text",
    [
        f"listen: 127.0.0.1:4100\n{KEY}{WITH}",
        f"listen: 127.0.0.7:4100\n{KEY}{WITH}",
        f"listen: localhost:4100\n{KEY}{WITH}",
        f"listen: '[::1]:4100'\n{KEY}{WITH}",
        f"{KEY}{WITH}",
        f"listen: 0.0.0.0:4100\n{KEY}{WITHOUT}",
    ],
)
def test_nothing_to_warn_of(tmp_path: Path, text: str) -> None:
    """On loopback, or without credentials."""
    assert complaints(tmp_path, text) == []
