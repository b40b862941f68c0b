"""`outrider schema`, and the schema that is shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from outrider.cli.schema import json_schema
from outrider.cli.verbs import cli

SHIPPED = Path(__file__).parents[2] / "config" / "outrider.schema.json"
BASE: dict[str, Any] = {"service": "booking", "services": {"user": "http://127.0.0.1:3001"}}


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    """The schema as shipped, ready to validate."""
    made = json.loads(SHIPPED.read_text())
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def user(**values: Any) -> dict[str, Any]:
    return {**BASE, "services": {"user": {"url": "http://127.0.0.1:3001", **values}}}


def test_shipped_schema_is_current() -> None:
    """config/outrider.schema.json is what `outrider schema` prints."""
    result = CliRunner().invoke(cli, ["schema"])
    assert result.exit_code == 0
    assert SHIPPED.read_text() == result.stdout


def test_schema_is_stable() -> None:
    """Making the schema twice gives the same."""
    assert json_schema() == json_schema()


VALID: dict[str, dict[str, Any]] = {
    "minimal": BASE,
    "two services": {**BASE, "services": {"user": "http://127.0.0.1:3001", "payment": "http://127.0.0.1:3004"}},
    "list of URLs": {**BASE, "services": {"user": ["http://10.0.0.1:1", "http://10.0.0.2:1"]}},
    "URL and list of URLs": {**BASE, "services": {"a": user()["services"]["user"], "b": {"url": ["http://h:1"]}}},
    "top": {
        **BASE,
        "version": 1,
        "instance": "b-1",
        "listen": "127.0.0.1:4100",
        "admin": {"listen": "127.0.0.1:4101"},
        "telemetry": {"listen": "0.0.0.0:4102"},
        "workers": 1,
        "limits": {"header_bytes": "64KiB", "headers": 100, "header_timeout": "10s"},
        "observability": {"log": {"level": "info", "format": "json", "access": "errors"}, "redact": ["cookie"]},
        "shutdown": {"drain": "25s"},
    },
    "credentials": {
        **BASE,
        "credentials": {"key": {"header": "x-api-key", "value": "${file:/run/secrets/key}"}},
        "defaults": {"auth": "key", "timeout": "10s"},
    },
    "policies": {
        **user(policy=["critical", "pika"], auth=["key"]),
        "policies": {
            "critical": {
                "attempt_timeout": "1500ms",
                "retry": {"max_retries": 2, "backoff": "50ms..500ms", "budget": "20%", "on_errors": ["connect"]},
                "circuit_breaker": {"failure_rate": "50%", "open_for": "500ms..5s", "slow_call": "1s"},
                "max_in_flight": 64,
            },
            "pika": {"extends": "critical", "fallback": {"status": 202, "json": {"accepted": True}}},
        },
    },
    "switches": user(timeout=False, retry=False, circuit_breaker=False, auth=False, headers=False, rate_limit=False),
    "rates": user(rate_limit="50/s", routes=[{"match": "GET /a", "rate_limit": {"rate": "5/m", "burst": 2}}]),
    "headers": user(headers={"set": {"x-a": "{service}", "x-b": 2}, "remove": ["cookie"]}),
}


@pytest.mark.parametrize("name", VALID)
def test_valid(schema: Draft202012Validator, name: str) -> None:
    """What Outrider accepts, the schema accepts."""
    assert [error.message for error in schema.iter_errors(VALID[name])] == []


INVALID: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no services": {"service": "a"},
    "empty services": {"service": "a", "services": {}},
    "unknown key": {**BASE, "servises": {}},
    "unknown key in a service": user(timout="1s"),
    "bare number": user(timeout=5),
    "version": {**BASE, "version": 2},
    "later key": {**BASE, "outbox": {"store": "sqlite"}},
    "later key in a service": user(contract={"openapi": "user.yaml"}),
    "rate": user(rate_limit="50"),
    "scheme": {**BASE, "services": {"user": "ftp://h"}},
    "route without match": user(routes=[{"timeout": "1s"}]),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid(schema: Draft202012Validator, name: str) -> None:
    """What Outrider refuses at first sight, the schema refuses."""
    assert not schema.is_valid(INVALID[name])


def test_keys_are_explained() -> None:
    """Editors can show what a key means."""
    made = json_schema()
    assert made["properties"]["listen"]["description"]
    assert made["$defs"]["Retry"]["properties"]["max_retries"]["description"] == "Attempts after the first."


def test_service_names(schema: Draft202012Validator) -> None:
    """A service name that Outrider refuses, the schema refuses."""
    assert not schema.is_valid({**BASE, "services": {"User": "http://h:1"}})


@pytest.mark.parametrize(
    "values",
    [
        {**BASE, "services": {"user": "${USER_URL}"}},
        user(timeout="${TIMEOUT:-5s}"),
        {**BASE, "listen": "${LISTEN}"},
        user(rate_limit="${RATE}"),
    ],
    ids=["URL", "duration", "address", "rate"],
)
def test_references(schema: Draft202012Validator, values: dict[str, Any]) -> None:
    """A reference may stand wherever a scalar may, also in the eyes of an editor."""
    assert schema.is_valid(values)
