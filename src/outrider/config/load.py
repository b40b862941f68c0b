"""From files, flags and environment to a resolved configuration, or to all of its problems at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from outrider.config.complaints import complain_of
from outrider.config.known import value_at
from outrider.config.problems import Mark, Problem, in_order
from outrider.config.redaction import secrets_written_down
from outrider.config.resolve import Resolved, resolve
from outrider.config.schema import Config
from outrider.config.search import SEARCH, files_in, places
from outrider.config.source import Document, KeyPath, read_file, read_text
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
                complain_of(document, items, paths)
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
            value_at(values, path)["url"] = "http://unknown.invalid"
            return
    if not path:
        return
    *parents, last = path
    holder = value_at(values, tuple(parents))
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
