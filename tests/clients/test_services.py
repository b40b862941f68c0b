"""Services in Node that check their callers themselves: the middleware of the platforms takes what Outrider sends, and
the guard in front of them is as strict as they are."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.clients.conftest import running
from tests.clients.drivers import NODE

API_KEY = "pika-0123456789abcdef0123456789abcdef"
TOKEN = "internal-0123456789abcdef0123456789"
CONFIG = """
service: booking-service
instance: booking-7
listen: 127.0.0.1:0
admin: {{ listen: 127.0.0.1:0 }}
telemetry: {{ listen: 127.0.0.1:0 }}
credentials:
  api-key:  {{ header: x-api-key, value: {api_key} }}
  internal: {{ header: X-Internal-Auth, value: {token} }}
services:
  users:  {{ url: 'http://127.0.0.1:{express}', auth: api-key }}
  notion: {{ url: 'http://127.0.0.1:{fastify}', auth: internal }}
  bare:   {{ url: 'http://127.0.0.1:{express}' }}
{more}
"""
INBOUND = """
inbound:
  listen: 127.0.0.1:0
  app: 'http://127.0.0.1:{express}'
  protect: ["/internal/**"]
  accept: [ {{ header: x-api-key, values: [{api_key}], require: [x-service-name, x-service-id], forward: true }} ]
"""


@pytest.fixture(scope="module")
def services(node_packages: Path) -> Iterator[tuple[int, int]]:
    """The ports of both."""
    environment = {**os.environ, "NODE_PATH": str(node_packages)}
    environment |= {"SERVICE_API_KEY": API_KEY, "INTERNAL_AUTH_TOKEN": TOKEN}
    command = ["node", str(NODE / "services.cjs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        express, fastify = json.loads(process.stdout.readline())
        yield express, fastify
        process.kill()


def config(services: tuple[int, int], more: str = "") -> str:
    express, fastify = services
    return CONFIG.format(api_key=API_KEY, token=TOKEN, express=express, fastify=fastify, more=more)


def test_both_styles_of_middleware_are_satisfied(services: tuple[int, int], tmp_path: Path) -> None:
    """With the configured credential each service lets the call in, and knows who calls; without one it does not."""
    with running(tmp_path, config(services)) as outrider, httpx.Client(trust_env=False) as http:
        base = f"http://127.0.0.1:{outrider.port}"
        answer = http.get(f"{base}/users/internal/who", headers={"x-user-id": "42", "x-api-key": "the app's guess"})
        assert answer.json() == {
            "caller": {"serviceName": "booking-service", "serviceId": "booking-7"},
            "user": "42",
        }
        assert http.get(f"{base}/notion/internal/notion/u1").json() == {"user": "u1"}
        assert http.get(f"{base}/bare/internal/who").status_code == 401


def test_the_guard_agrees_with_the_middleware(services: tuple[int, int], tmp_path: Path) -> None:
    """Whatever a caller shows, guard and middleware come to the same status; a public path needs nothing."""
    more = INBOUND.format(express=services[0], api_key=API_KEY)
    with running(tmp_path, config(services, more)) as outrider, httpx.Client(trust_env=False) as http:
        guarded = f"http://127.0.0.1:{outrider.ports['inbound.listen']}"
        direct = f"http://127.0.0.1:{services[0]}"
        named = {"x-service-name": "web", "x-service-id": "web-1"}
        for shown, status in (
            ({}, 401),
            ({"x-api-key": "wrong", **named}, 401),
            ({"x-api-key": API_KEY}, 400),
            ({"x-api-key": API_KEY, "x-service-name": "web"}, 400),
            ({"x-api-key": API_KEY, **named}, 200),
        ):
            for base in (direct, guarded):
                for path in ("/internal/who", "/INTERNAL/who", "/internal/who/"):
                    assert http.get(f"{base}{path}", headers=shown).status_code == status, (base, path, shown)
        assert http.get(f"{guarded}/health").json() == {"ok": True}
