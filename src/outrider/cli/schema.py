"""`outrider schema`"""

from __future__ import annotations

import ast
import inspect
import json
from itertools import pairwise
from typing import Any

import click

from outrider.config import schema as models
from outrider.config.schema import Base, Config


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors: shipped as config/outrider.schema.json."""
    schema = Config.model_json_schema()
    _add_descriptions(schema)
    _add_short_forms(schema)
    schema["properties"]["services"]["additionalProperties"] = False
    _allow_references(schema)
    # As in compose files: a place for anchors, which Outrider itself does not read.
    schema["patternProperties"] = {"^x-": {}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Outrider configuration", **schema}


def _add_descriptions(schema: dict[str, Any]) -> None:
    """Describe each key by the text behind its field. pydantic can do that itself (`use_attribute_docstrings`), but
    then it parses the source of every model at every start of Outrider."""
    texts = _field_texts(inspect.getsource(models))
    for definition in (schema, *schema["$defs"].values()):
        model = getattr(models, definition["title"])
        for name, field in model.model_fields.items():
            owners = [one.__name__ for one in model.__mro__ if issubclass(one, Base)]
            text = next((texts[owner, name] for owner in owners if (owner, name) in texts), None)
            if text is not None:
                definition["properties"][field.alias or name]["description"] = text


def _field_texts(source: str) -> dict[tuple[str, str], str]:
    """The strings that stand behind fields, by class and field."""
    return {
        (model.name, field.target.id): inspect.cleandoc(text.value.value)
        for model in ast.parse(source).body
        if isinstance(model, ast.ClassDef)
        for field, text in pairwise(model.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


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
