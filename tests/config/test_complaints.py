"""Every complaint about a value is in our own words: what was expected, what was found, and an example or remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from outrider.config.known import _members
from outrider.config.load import load
from outrider.config.problems import Problem
from outrider.config.schema import Config
from outrider.errors import ConfigError

BASE: dict[str, Any] = {"service": "booking", "services": {"user": {"url": "http://127.0.0.1:3001"}}}
WRONG: list[Any] = [{"a": {}}, {}, [], [[]], -1, 0, 9999999999, 1.5, "", "x y", "\u00e9", True, False, None, ["x y"]]


def problems(tmp_path: Path, values: Any) -> list[Problem]:
    """Everything that is said of a configuration."""
    (tmp_path / "a.yaml").write_text(json.dumps(values))
    try:
        return load([str(tmp_path / "a.yaml")], environment={})[1]
    except ConfigError as error:
        return error.problems


def places(model: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key of the contract; 0 is an item of a list, `user` a name that is chosen freely."""
    for name, field in model.model_fields.items():
        here = (*path, field.alias or name)
        yield here
        if here in (("defaults",), ("policies",)) or "routes" in path:
            continue  # the same keys as those of a service
        for one in _members(field.annotation):
            part = {dict: ("user",), list: (0,)}.get(get_origin(one), ())  # type: ignore[call-overload] # None is no key
            for inner in _members(get_args(one)[-1]) if part else [one]:
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from places(inner, (*here, *part))
                elif part:
                    yield (*here, *part)


def with_value(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The smallest configuration with a value at a path, beside what has to be there."""
    values: dict[str, Any] = json.loads(json.dumps(BASE))
    inner: Any = values
    for part, then in zip(path, (*path[1:], None), strict=True):
        fresh: Any = value if then is None else [] if isinstance(then, int) else {}
        if isinstance(inner, list):
            inner.append(fresh)
        elif then is None or not isinstance(inner.get(part), type(fresh)):
            inner[part] = fresh
        inner = inner[part]
    return values


PLACES = list(dict.fromkeys(places(Config)))
# How pydantic begins its sentences, and what only programmers say.
FOREIGN = (
    "nput should",
    "nable to parse",
    "alid ",
    "model",
    "dictionary",
    "instance",
    "regex",
    "pattern",
    "None",
    "True",
)


def test_the_places_are_all_of_the_contract() -> None:
    """The walk over the models reaches every corner."""
    assert len(PLACES) > 200
    assert ("services", "user", "routes", 0, "retry", "max_retries") not in PLACES
    assert ("services", "user", "circuit_breaker", "open_for") in PLACES
    assert ("inbound", "accept", 0, "jwt", "jwks") in PLACES


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_every_complaint_is_in_plain_words(tmp_path: Path, path: tuple[Any, ...]) -> None:
    """Whatever stands at a key: no sentence of a library, and a remedy or an example in each complaint."""
    for wrong in WRONG:
        for one in problems(tmp_path, with_value(path, wrong)):
            said = one.message
            assert not [word for word in FOREIGN if word in said.replace("must not be", "")], (wrong, said)
            assert one.hint or ("like" in said or "write" in said or "use" in said or "or false" in said
                                or "leave" in said or "expected true or false" in said or "in quotes" in said
                                or "not supported yet" in said), (wrong, said)  # fmt: skip
            assert one.mark.line == 1, (wrong, said)


def test_every_kind_of_error_of_the_models_has_words(tmp_path: Path) -> None:
    """The wrong values meet these kinds; a new one shows here before a user meets it."""
    kinds: set[str] = set()
    for path in PLACES:
        for wrong in WRONG:
            try:
                Config.model_validate(with_value(path, wrong))
            except ValidationError as error:
                kinds |= {one["type"] for one in error.errors()}
    assert kinds <= {
        "outrider", "not_yet", "scalar", "switch", "missing", "extra_forbidden", "literal_error", "list_type",
        "dict_type", "model_type", "string_type", "string_pattern_mismatch", "string_too_short", "too_short",
        "int_type", "int_from_float", "int_parsing", "bool_type", "bool_parsing", "float_type", "float_parsing",
        "greater_than", "greater_than_equal", "less_than_equal",
    }  # fmt: skip


NUMBERS = [
    ("workers", 9999, "expected a whole number from 1 to 64, got 9999", "for example workers: 2"),
    ("services.user.retry.max_retries", -1, "expected a whole number from 0 to 30, got -1", "max_retries: 3"),
    ("limits.downstream_connections", 0, "expected a whole number from 1, got 0", "downstream_connections: 1024"),
    ("services.user.port", 99999, "expected a whole number from 0 to 65535, got 99999", "port: 4104"),
    ("services.user.throttle.ratio", 0.5, "expected a number from 1, got 0.5", ""),
    ("observability.log.level", "loud", "expected debug, info, warning or error, got loud", "level: info"),
    ("services.user.retry.on_status", [99], "expected a whole number from 100 to 599, got 99", "[502, 503, 504]"),
]


@pytest.mark.parametrize(("key", "value", "message", "hint"), NUMBERS)
def test_bounds_are_named_together(tmp_path: Path, key: str, value: Any, message: str, hint: str) -> None:
    """Both ends of what is allowed, what was found, and a value that works."""
    (only,) = problems(tmp_path, with_value(tuple(key.split(".")), value))
    assert only.message == message
    assert hint in only.hint


def test_a_value_that_is_none_of_several_alternatives_is_complained_of_once(tmp_path: Path) -> None:
    """The alternatives are in one sentence."""
    (only,) = problems(tmp_path, with_value(("services", "user", "fallback"), 5))
    assert only.message == "expected a map of keys or a list, got 5"
