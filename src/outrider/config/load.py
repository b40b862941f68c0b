"""From files, flags and environment to a resolved configuration, or to all of its problems at once."""

from __future__ import annotations

import copy
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from outrider.config.problems import Mark, Problem, did_you_mean, in_order
from outrider.config.redaction import is_secret_key, secrets_written_down
from outrider.config.resolve import Resolved, resolve
from outrider.config.schema import Config
from outrider.config.search import SEARCH, files_in, places
from outrider.config.source import Document, KeyPath, Unresolved, read_file, read_text
from outrider.errors import ConfigError

_MAX_ROUNDS = 6


def load(
    paths: Sequence[str] = (),
    *,
    services: Sequence[str] = (),
    settings: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[Resolved, list[Problem]]:
    """Read, merge, validate and resolve. Returns the configuration and its warnings.

    `paths` are files or directories (all *.yaml and *.yml in order), `services` are NAME=URL, `settings` are
    key=value with dotted keys; later ones win. Raises ConfigError with every problem if there is an error.
    """
    environment = os.environ if environment is None else environment
    found = _find(paths, environment, bool(services))
    files = [file for place in found for file in _expand(place)]
    document = _read_all(files, {place for place in found if place.is_dir()}, environment)
    named: set[str] = set()
    for flag in services:
        name, equals, url = flag.partition("=")
        if name in named:
            document.problems.append(Problem(Mark(f"--service {name}", 0, 0), "", f'"{name}" is given twice'))
        named.add(name)
        document.merge(_flag(f"--service {name}", ("services", name), url, bool(equals and name), environment))
    for flag in settings:
        key, equals, value = flag.partition("=")
        document.merge(_flag(f"--set {key}", tuple(key.split(".")), value, bool(equals and key), environment))
    if services and "service" not in document.values:
        document.values["service"] = "app"
    resolved = _validate(document)
    written = tuple(one for _, one in secrets_written_down(document))
    problems = [replace(problem, hidden=written) for problem in in_order(document.problems)]
    if resolved is None or any(problem.severity == "error" for problem in problems):
        raise ConfigError(problems)
    return resolved, problems


def _find(paths: Sequence[str], environment: Mapping[str, str], optional: bool) -> list[Path]:
    """The files and folders to read: what is given, or OUTRIDER_CONFIG, or the first of the usual places."""
    found = places(paths, environment)
    if found or optional:
        return found
    tried = ", ".join(SEARCH)
    message = f"no configuration found: tried -c, OUTRIDER_CONFIG, {tried}"
    raise ConfigError(
        [Problem(Mark("outrider.yaml", 0, 0), "", message, "give one with -c FILE or --service NAME=URL")]
    )


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = files_in(path)
    if not files:
        message = "there is no .yaml file in this directory"
        raise ConfigError([Problem(Mark(str(path), 0, 0), "", message, "give a file, or put one there")])
    return files


def _read_all(files: list[Path], folders: set[Path], environment: Mapping[str, str]) -> Document:
    document = Document()
    defined: dict[tuple[Path, KeyPath], Mark] = {}  # by folder
    for file in files:
        try:
            part = read_file(file, environment)
        except OSError as error:
            part = Document(marks={(): Mark(str(file), 0, 0)})
            part.complain((), f"cannot be read: {error.strerror}", _lost_link(file))
        if file.parent in folders:
            _complain_about_twins(part, file, defined)
        document.merge(part)
    return document


def _lost_link(file: Path) -> str:
    return "the link leads nowhere; mend or remove it" if file.is_symlink() and not file.exists() else ""


def _complain_about_twins(part: Document, file: Path, defined: dict[tuple[Path, KeyPath], Mark]) -> None:
    """Services, policies and credentials that two files of one folder define. Files that are given one by one are
    layers, which are meant to lie over each other."""
    for kind in ("services", "policies", "credentials"):
        names = part.values.get(kind)
        for name in names if isinstance(names, dict) else ():
            path: KeyPath = (kind, name)
            earlier = defined.setdefault((file.parent, path), part.mark(path, key=True))
            if earlier.file != str(file):
                message = f'"{name}" is also defined in {earlier}; what stands here wins'
                part.complain(path, message, "define it in one file of this folder", key=True, warn=True)


def _flag(flag: str, path: tuple[str, ...], value: str, well_formed: bool, environment: Mapping[str, str]) -> Document:
    """A command-line setting as a document of its own. The value is YAML."""
    mark = Mark(flag, 0, 0)
    if not well_formed:
        document = Document(marks={(): mark})
        document.complain((), "expected NAME=VALUE")
        return document
    text = value if value else "''"
    parsed = read_text(f"value: {text}", flag, environment)
    document = Document(marks={(): mark}, problems=parsed.problems)
    inner = document.values
    *parents, last = path
    for parent in parents:
        inner[parent] = inner = {}
    inner[last] = parsed.values.get("value")
    document.templates = {(*path, *where[1:]): one for where, one in parsed.templates.items()}
    document.interpolated = {(*path, *where[1:]): texts for where, texts in parsed.interpolated.items()}
    for length in range(1, len(path) + 1):
        document.marks[path[:length]] = document.key_marks[path[:length]] = mark
    return document


def _validate(document: Document) -> Resolved | None:
    """Run the models over the values. Errors become problems at the place they are about.

    What is wrong is then taken out, so that references between the rest are checked as well: all problems are
    to be reported at once.
    """
    document.settle()
    # Keys that begin with x- hold anchors for the rest, as in compose files.
    values = {key: value for key, value in copy.deepcopy(document.values).items() if not key.startswith("x-")}
    for round_ in range(_MAX_ROUNDS):
        try:
            config = Config.model_validate(values)
        except ValidationError as error:
            items = error.errors(include_url=False)
            paths = [_real_path(values, item["loc"]) for item in items]
            if round_ == 0:
                _translate_all(document, items, paths)
            for item, path in sorted(zip(items, paths, strict=True), key=lambda pair: len(pair[1]), reverse=True):
                if item["type"] != "switch":
                    _take_out(values, item, path)
            continue
        return resolve(config, document)
    return None


def _take_out(values: dict[str, Any], item: Any, path: KeyPath) -> None:
    """Remove what a complaint is about, or put something harmless in its place."""
    if item["type"] == "missing":
        missing = item["loc"][-1]
        if not path and missing == "service":
            values["service"] = "unnamed"
            return
        if missing == "url":
            _at(values, path)["url"] = "http://unknown.invalid"
            return
    if not path:
        return
    *parents, last = path
    holder = _at(values, tuple(parents))
    if isinstance(holder, dict):
        holder.pop(last, None)
    elif isinstance(holder, list) and isinstance(last, int) and last < len(holder):
        # The places of its neighbours must not change.
        kind = parents[-1]
        harmless = _harmless(str(kind), last)
        holder[last] = harmless or (holder[0] if last else None)
        if harmless is None:
            _take_out(values, {"type": "list", "loc": ()}, tuple(parents))


def _harmless(kind: str, index: int) -> Any:
    """A list item that stands for one that has been complained about, or None. No two routes of them are the same."""
    return {"routes": {"match": f"GET /unreadable-route-{index}"}, "url": "http://unknown.invalid"}.get(kind)


def _translate_all(document: Document, items: list[Any], paths: list[KeyPath]) -> None:
    refused = {path[:-1] for item, path in zip(items, paths, strict=True) if item["type"] == "not_yet"}
    unreadable = any(not problem.path and problem.severity == "error" for problem in document.problems)
    for item, path in zip(items, paths, strict=True):
        if item["type"] == "switch" and (
            paths.count(path) > 1 or any(len(o) > len(path) == _common(o, path) for o in paths)
        ):
            continue  # `false` is one member of a union; what the other member says is what was meant
        if item["type"] == "list_type" and any(len(o) > len(path) == _common(o, path) for o in paths):
            continue  # a list of such maps is another member of a union; what is wrong inside the map was meant
        if item["type"] == "missing" and (path in refused or (unreadable and not path)):
            continue  # it follows from what has been said already
        _translate(document, item, path)


def _common(one: KeyPath, other: KeyPath) -> int:
    """How many parts two paths have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _translate(document: Document, item: Any, path: KeyPath) -> None:
    if isinstance(_at(document.values, path), Unresolved):
        return  # complained about already
    kind = item["type"]
    context = item.get("ctx", {})
    secret = path in document.interpolated or path[:1] == ("credentials",) or is_secret_key(path)
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1])
        other = _OTHER_WORDS.get(str(path[-1]), "")
        hint = did_you_mean(other or str(path[-1]), known) or f"known keys: {', '.join(sorted(known))}"
        document.complain(path, f'unknown key "{path[-1]}"', hint, key=True)
    elif kind == "missing":
        missing = str(item["loc"][-1])
        document.complain(path, f'the key "{missing}" is missing', _EXAMPLES.get(missing, ""))
    elif item["loc"][-1] == "[key]" and kind != "outrider":
        if ":" in str(path[-1]):
            hint = "a space belongs behind the colon"
            document.complain(path, f'"{path[-1]}" is read as one word', hint, key=True)
            return
        message = f'"{path[-1]}" cannot be a name: use lower-case letters, digits, dots, dashes and underscores'
        document.complain(path, message, key=True)
    elif kind in ("outrider", "scalar", "not_yet") and not (secret and kind == "scalar"):
        document.complain(path, item["msg"], str(context.get("hint", "")))
    elif secret and kind == "scalar":
        document.complain(path, "what was read from a variable or file does not fit here")
    else:
        message = _PLAIN.get(kind) or _not_like(kind, path) or f"{item['msg'][:1].lower()}{item['msg'][1:]}"
        shown = "a value that is not shown" if secret else _shown(_at(document.values, path))
        if _at(document.values, path) == "":
            document.complain(path, "must not be empty", _EMPTY_HINT)
        elif path == ("services",) and kind == "too_short":
            document.complain(path, "no service is named", _EXAMPLES["services"])
        else:
            document.complain(path, f"{message}, got {shown}", _remedy(kind, path, _at(document.values, path), shown))


def _not_like(kind: str, path: KeyPath) -> str:
    """The sentence about a text that does not match the pattern of its key; an empty text for other mistakes."""
    names = [part for part in path if isinstance(part, str)]
    return _FORMS.get(names[-1], "") if kind == "string_pattern_mismatch" and names else ""


def _remedy(kind: str, path: KeyPath, value: Any, shown: str) -> str:
    """How a value of the wrong kind is written, or an empty text where there is no telling."""
    if path == ("services",) and isinstance(value, str):
        return "a space belongs behind the colon of each key"
    if kind == "list_type" and not isinstance(value, dict):
        return f"write [{shown}]"
    if kind == "string_pattern_mismatch" and path == ("service",):
        return "write it like booking-service"
    if kind in ("model_type", "dict_type"):
        if isinstance(value, list):
            return "write NAME: VALUE in each line, without a dash before it"
        return _MAPS.get(str(path[-1]), "") if path else ""
    return ""


# What texts with a pattern look like, by their keys.
_FORMS = {
    "service": "expected letters, digits, dots, dashes and underscores, a letter or digit first",
    "hosts": "expected a host name without a port",
    "server_name": "expected a host name without a port",
    "jwks": "expected a URL or an absolute path",
    "identity": "expected the name of a header, or one like x-user-*",
    "methods": "expected a method, like POST",
    "path": "expected a path that begins with /",
}

# Maps that are taken for a number or a switch.
_MAPS = {
    "retry": "say how often: retry: { max_retries: 2 }, or retry: false",
    "circuit_breaker": "it is on unless it is false; leave it out for that",
    "health_check": "say which path: health_check: { path: /health }",
    "inbound": "say where and for which app: inbound: { listen: 0.0.0.0:4103, app: http://127.0.0.1:3000 }",
}

# Names that other programs have for keys of ours.
_OTHER_WORDS = {
    "attempts": "max_retries",
    "max_attempts": "max_retries",
    "num_retries": "max_retries",
    "retries": "max_retries",
    "retry_on": "on_status",
    "connections": "downstream_connections",
}


_EMPTY_HINT = "if it comes from a variable, that variable is empty; ${NAME:?message} says so in your words"

_PLAIN = {
    "model_type": "expected a map of keys",
    "dict_type": "expected a map of keys",
    "list_type": "expected a list",
    "string_type": "expected text (put it in quotes)",
    "bool_type": "expected true or false",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_parsing_size": "expected a whole number",
}

_EXAMPLES = {
    "service": "say who you are: service: booking-service",
    "services": "name what the app calls: services: { user: http://127.0.0.1:3001 }",
    "url": "say where it is: url: http://127.0.0.1:3001",
    "listen": "say where callers connect: listen: 0.0.0.0:4103",
    "app": "say where the app is: app: http://127.0.0.1:3000",
    "match": "say which calls: match: GET /users/{id}",
    "header": "say which header carries it: header: x-api-key",
    "value": "say where the secret is: value: ${file:/run/secrets/key}",
    "rate": "say how many: rate: 50/s",
}


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else text[:60]


def _real_path(values: Any, loc: tuple[str | int, ...]) -> KeyPath:
    """A pydantic location less what names a union member or validator rather than a key of ours."""
    path: list[str | int] = []
    for part in loc:
        in_map = isinstance(values, dict) and part in values
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if in_map or in_list:
            path.append(part)
            values = values[part]
    return tuple(path)


def _at(values: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _known_keys(path: KeyPath) -> set[str]:
    """The keys that the model at a path knows."""
    models: list[Any] = [Config]
    for part in path:
        found: list[Any] = []
        for annotation in models:
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                field = annotation.model_fields.get(str(part))
                found += _members(field.annotation) if field else []
            elif get_origin(annotation) is dict:
                found += _members(get_args(annotation)[1])
            elif get_origin(annotation) is list:
                found += _members(get_args(annotation)[0])
        models = found
    keys: set[str] = set()
    for model in models:
        if isinstance(model, type) and issubclass(model, BaseModel):
            keys |= {field.alias or name for name, field in model.model_fields.items()}
    return keys


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, wrappers taken off."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [member for choice in get_args(annotation) for member in _members(choice)]
    if hasattr(annotation, "__metadata__"):
        return _members(get_args(annotation)[0])
    return [annotation]
