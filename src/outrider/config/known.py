"""What the models say about the place of a value: the keys that are known there, and what a value may be."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from outrider.config.schema import Config
from outrider.config.source import KeyPath
from outrider.config.wording import shown


def known_keys(path: KeyPath) -> set[str]:
    """The keys that the model at a path knows."""
    models: list[Any] = [Config]
    for part in path:
        models = [one for annotation in models for one in _inner(annotation, part)]
    return {field.alias or name for model in models if _is_model(model) for name, field in model.model_fields.items()}


@cache
def places_of(key: str) -> tuple[str, ...]:
    """The dotted paths, without those within routes, policies and defaults, where the contract has this key."""
    return tuple(sorted({path for path in _paths(Config, "") if path.rpartition(".")[2] == key}))


def field_at(path: KeyPath) -> FieldInfo | None:
    """The field of a path, or of the list that the path is an item of; None where names are chosen freely."""
    models: list[Any] = [Config]
    found: FieldInfo | None = None
    for part in path:
        if isinstance(part, str):
            holders = [one for one in _with_items(models) if _is_model(one)]
            found = next((f for one in holders for name, f in one.model_fields.items() if name == part), None)
        models = [one for annotation in models for one in _inner(annotation, part)]
    return found


def bounds(path: KeyPath) -> tuple[float | None, float | None, bool]:
    """The least and the greatest number of a path, or None, and whether the least one is itself too small."""
    field = field_at(path)
    least: float | None = None
    most: float | None = None
    exclusive = False
    for one in _metadata(field.annotation, field.metadata) if field is not None else ():
        if isinstance(one, Ge):
            least = float(str(one.ge))
        elif isinstance(one, Gt):
            least, exclusive = float(str(one.gt)), True
        elif isinstance(one, Le):
            most = float(str(one.le))
    return least, most, exclusive


def choices(path: KeyPath) -> list[str]:
    """The words that a path may be, where only certain ones are allowed."""
    field = field_at(path)
    found = _members(field.annotation) if field is not None else []
    found += [
        one for annotation in found if get_origin(annotation) is list for one in _members(get_args(annotation)[0])
    ]
    words = [word for one in found if get_origin(one) is Literal for word in get_args(one)]
    return [shown(word) for word in words]


def takes_fractions(path: KeyPath) -> bool:
    """Whether a number there need not be a whole one."""
    field = field_at(path)
    return field is not None and float in _members(field.annotation)


def default_at(path: KeyPath) -> Any:
    """The default of a path, or None."""
    field = field_at(path)
    return None if field is None or field.is_required() or path[-1:] != (field.alias or path[-1],) else field.default


def value_at(values: Any, path: KeyPath) -> Any:
    """The value at a path, or None."""
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _with_items(annotations: list[Any]) -> Iterator[Any]:
    for one in annotations:
        yield one
        if get_origin(one) is list:
            yield from _members(get_args(one)[0])


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _inner(annotation: Any, part: str | int) -> list[Any]:
    """The annotations of what stands at a part of a path."""
    if _is_model(annotation):
        field = next((f for name, f in annotation.model_fields.items() if (f.alias or name) == str(part)), None)
        return _members(field.annotation) if field else []
    if get_origin(annotation) is dict:
        return _members(get_args(annotation)[1])
    items = _members(get_args(annotation)[0]) if get_origin(annotation) is list else []
    if isinstance(part, int):
        return items
    return [one for item in items for one in _inner(item, part)]  # one item may stand without its list


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, wrappers taken off."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [member for choice in get_args(annotation) for member in _members(choice)]
    if hasattr(annotation, "__metadata__"):
        return _members(get_args(annotation)[0])
    return [annotation]


def _metadata(annotation: Any, own: Any = ()) -> Iterator[Any]:
    """What wrappers say of an annotation, of its alternatives and of its items."""
    for one in own:
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)
    for one in getattr(annotation, "__metadata__", ()):
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)
    for inner in get_args(annotation) if get_origin(annotation) is not Literal else ():
        if not isinstance(inner, (Ge, Gt, Le, FieldInfo)):
            yield from _metadata(inner)


def _paths(model: Any, at: str) -> Iterator[str]:
    """Every dotted path below a model, each model visited where it stands first; services are called NAME."""
    for name, field in model.model_fields.items():
        path = f"{at}.{field.alias or name}".lstrip(".")
        yield path
        if path.endswith((".routes", "defaults", "policies")):
            continue
        for one in _members(field.annotation):
            mapped = get_origin(one) is dict
            for inner in _members(get_args(one)[-1]) if get_origin(one) in (dict, list) else [one]:
                if _is_model(inner):
                    yield from _paths(inner, f"{path}.NAME" if mapped else path)
