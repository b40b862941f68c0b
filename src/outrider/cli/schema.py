"""`outrider schema`"""

from __future__ import annotations

import json
from typing import Any

import click

from outrider.config.schema import Config


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors: shipped as config/outrider.schema.json."""
    schema = Config.model_json_schema()
    _add_short_forms(schema)
    schema["properties"]["services"]["additionalProperties"] = False
    _allow_references(schema)
    # As in compose files: a place for anchors, which Outrider itself does not read.
    schema["patternProperties"] = {"^x-": {}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Outrider configuration", **schema}


def _allow_references(node: Any) -> None:
    """Where text must look a certain way, a reference like ${VAR} may stand for it."""
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            node["pattern"] = f"({node['pattern']})|\\$\\{{"
        for inner in node.values():
            _allow_references(inner)
    elif isinstance(node, list):
        for inner in node:
            _allow_references(inner)


def _add_short_forms(schema: dict[str, Any]) -> None:
    """Write in the short forms that are accepted where a map could stand: a URL for a service, a rate for a limit."""
    definitions = schema["$defs"]
    url = {
        "type": "string",
        "pattern": r"^(((dns|dnssrv)\+)?https?://|file\+/)",
        "examples": ["http://127.0.0.1:3001", "https://payment-service", "dns+http://user-service:3001"],
    }
    urls = {"type": "array", "items": url, "minItems": 1}
    by_name = schema["properties"]["services"]["patternProperties"]
    for pattern, service in by_name.items():
        by_name[pattern] = {"anyOf": [url, urls, service]}
    definitions["Service"]["properties"]["url"] |= {"anyOf": [url, urls]}
    definitions["Service"]["properties"]["url"].pop("type", None)
    definitions["Service"]["properties"]["url"].pop("items", None)
    one_or_more = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    definitions["Service"]["properties"]["url"] = {
        "anyOf": [url, {"type": "array", "items": url, "minItems": 1}],
        "description": definitions["Service"]["properties"]["url"].get("description", ""),
    }
    for model in ("Service", "Policy", "PolicyFields", "Route"):
        properties = definitions[model]["properties"]
        for name in ("auth", "policy", "extends"):
            if name in properties:
                members = one_or_more["anyOf"] + ([{"const": False}] if name == "auth" else [])
                properties[name] = {"anyOf": members, "description": properties[name].get("description", "")}
        limit = properties["rate_limit"]
        limit["anyOf"] = [{"type": "string", "pattern": r"^\d+(\.\d+)?/[smhd]$"}, *limit["anyOf"]]


@click.command(name="schema")
def command() -> None:
    """Print the JSON Schema of the configuration."""
    click.echo(json.dumps(json_schema(), indent=2, sort_keys=True))
