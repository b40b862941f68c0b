"""Configuration files to plain values, with a mark for every one of them.

Built on PyYAML's nodes rather than on its constructor, because nodes know where they stand. Scalars are typed
as YAML 1.2 does (decimal numbers, true, false, null); what YAML 1.1 would have read differently (`on`, `yes`,
010, 1:30) is an error with the remedy, not a surprise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from outrider.config.interpolate import interpolate, reads_file, refers
from outrider.config.problems import Mark, Problem
from outrider.config.redaction import HiddenTexts, hidden_texts, is_secret_key, scrub
from outrider.model.addresses import HIDDEN, hide_in_urls

KeyPath = tuple[str | int, ...]

_MAX_NODES = 100_000
_MAX_DEPTH = 50
_PLAIN_TAGS = frozenset(("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"))
_SCALAR_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp"))
_NULL = frozenset(("", "null", "~", "Null", "NULL"))
_TRUE, _FALSE = frozenset(("true", "True", "TRUE")), frozenset(("false", "False", "FALSE"))
_YAML11_BOOL = re.compile(r"(?:y|yes|on|n|no|off)", re.IGNORECASE)
_YAML11_NUMBER = re.compile(r"[-+]?0[0-7_]*[0-7]|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_MOST_DIGITS = 40  # of a number; longer ones stay text, as Python refuses to read thousands of digits
# What PyYAML quotes of a file: more than one character may be a part of a secret.
_QUOTED = re.compile(r" ?(?P<quote>['\"])(?:(?!(?P=quote)).){2,}(?P=quote)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?")


@dataclass(slots=True)
class Document:
    """Plain values, and where each came from.

    `marks` and `key_marks` give the place of a value and of its key by path; `templates` the uninterpolated text
    of values that came (partly) from files; `interpolated` the texts not to be shown of those that came (partly) from
    variables or files: the whole value, and each part that was put in.
    """

    values: dict[str, Any] = field(default_factory=dict, repr=False)  # secrets are among them
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    key_marks: dict[KeyPath, Mark] = field(default_factory=dict)
    templates: dict[KeyPath, str] = field(default_factory=dict)
    interpolated: dict[KeyPath, tuple[str, ...]] = field(default_factory=dict, repr=False)
    problems: list[Problem] = field(default_factory=list)
    hidden: HiddenTexts | None = field(default=None, repr=False)

    def settle(self) -> None:
        """Say that the values stay as they are: what complaints must hide is collected once, and not for each."""
        self.hidden = hidden_texts(self)

    def mark(self, path: KeyPath, *, key: bool = False) -> Mark:
        """The place of a path, or of its nearest ancestor that has one."""
        for length in range(len(path), -1, -1):
            found = (key and self.key_marks.get(path[:length])) or self.marks.get(path[:length])
            if found:
                return found
        return Mark("configuration", 0, 0)

    def complain(
        self,
        path: KeyPath,
        message: str,
        hint: str = "",
        *,
        key: bool = False,
        warn: bool = False,
        follows: Iterable[KeyPath] = (),
    ) -> None:
        """Add a problem at a path. What is secret in the message or the hint is hidden. `follows` are the places whose
        values make it one: where one of them has been complained of, its value is not the one that was meant, and
        nothing more is said."""
        if any(map(self.in_doubt, follows)):
            return
        severity: Literal["error", "warning"] = "warning" if warn else "error"
        message, hint = scrub(self, path, message), scrub(self, path, hint)
        self.problems.append(Problem(self.mark(path, key=key), hide_in_urls(dotted(path)), message, hint, severity))

    def has_error(self, path: KeyPath) -> bool:
        """Whether there is an error about this path, or about something below it."""
        name = dotted(path)
        return any(
            problem.severity == "error" and (problem.path == name or problem.path.startswith((f"{name}.", f"{name}[")))
            for problem in self.problems
        )

    def in_doubt(self, path: KeyPath) -> bool:
        """Whether there is an error about this path, something below it, or a map or list that it is in."""
        above = {dotted(path[:length]) for length in range(1, len(path))}
        return self.has_error(path) or any(one.severity == "error" and one.path in above for one in self.problems)

    def merge(self, other: Document) -> None:
        """Lay another document over this one: maps merge by key, everything else is replaced."""
        _merge(self, other, self.values, other.values, ())
        self.problems += other.problems


def dotted(path: KeyPath) -> str:
    """`services.user.url[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_file(path: Path, environment: Mapping[str, str]) -> Document:
    """Parse one file. Problems are in the document; raises OSError if the file cannot be read."""
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        document = Document(marks={(): Mark(name, 1, 1)})
        document.complain((), f"the file is not UTF-8 text (byte {error.start})")
        return document
    return read_text(text, name, environment)


def read_text(text: str, name: str, environment: Mapping[str, str]) -> Document:
    """Parse configuration text; `name` stands for the file in complaints."""
    document = Document(marks={(): Mark(name, 1, 1)})
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        document.marks[()] = Mark(name, at.line + 1, at.column + 1) if at else Mark(name, 1, 1)
        hint = _yaml_hint(text, at, str(error.problem))
        problem = _QUOTED.sub("", str(error.problem or error.context))
        document.problems.append(Problem(document.mark(()), "", f"not valid YAML: {problem}", hint, unread=True))
        return document
    except yaml.reader.ReaderError as error:
        before = text[: error.position].splitlines() or [""]
        document.marks[()] = Mark(name, len(before), len(before[-1]) + 1)
        code = error.character if isinstance(error.character, int) else ord(error.character)
        document.complain((), f"not valid YAML: the character U+{code:04X} is not allowed")
        return document
    except (yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else type(error).__name__
        document.complain((), f"not valid YAML: {reason}")
        return document
    if node is None:
        return document
    if not isinstance(node, yaml.MappingNode):
        document.complain((), "expected keys and values at the top level, like `service: booking-service`")
        return document
    _Reader(document, name, environment).mapping(node, (), document.values)
    return document


def _yaml_hint(text: str, at: yaml.Mark | None, problem: str) -> str:
    """What to do about a syntax error, where its cause can be seen."""
    if "'\\t'" in problem:
        return "tabs cannot indent YAML; use spaces"
    lines = text.splitlines()
    line = lines[at.line] if at is not None and at.line < len(lines) else ""
    before = line[: at.column] if at is not None else ""
    if before.endswith("$"):
        return 'inside { } and [ ], a reference needs quotes: "${NAME}"'
    if line[len(before) : len(before) + 1] == "{" and "{" in before:
        return "inside { } and [ ], text that holds braces needs quotes"
    if "mapping values are not allowed" in problem and at is not None:
        above = next((one for one in reversed(lines[: at.line]) if one.strip()), "")
        if found := re.match(r"\s*([\w.-]+):(\S.*)", above):
            known = found[1] == "service" or re.match(r"https?://", found[2])
            return f"a space belongs behind the colon: {found[1]}: {hide_in_urls(found[2])[:40] if known else HIDDEN}"
    return ""


_TAG = "a YAML tag is not allowed, and a value must not begin with !"
_TAG_HINT = "put it in quotes if the ! belongs to it"


class _Reader:
    """Turns nodes into values, interpolating scalars and recording marks."""

    def __init__(self, document: Document, name: str, environment: Mapping[str, str]) -> None:
        self._document = document
        self._name = name
        self._environment = environment
        self._nodes = 0
        self._merging: set[int] = set()  # maps whose merge keys are being resolved

    def mapping(self, node: yaml.MappingNode, path: KeyPath, into: dict[str, Any]) -> None:
        seen: dict[str, Mark] = {}
        for key_node, value_node in self._pairs(node):
            mark = self._mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(mark, path, "a key must be a plain word")
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key_node.style is None and _YAML11_BOOL.fullmatch(key):
                self._complain(
                    mark, here, f"YAML 1.1 tools read the key {key} as true or false", f'write "{key}" in quotes'
                )
            if key in seen:
                self._complain(
                    mark, here, f"this key is already there in line {seen[key].line}", "remove one of the two"
                )
                continue
            seen[key] = mark
            self._document.key_marks[here] = mark
            into[key] = self._value(value_node, here)

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """The pairs of a mapping, merge keys (`<<`) resolved: what stands here wins over what is merged in."""
        own = [(key, value) for key, value in node.value if key.value != "<<"]
        names = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
        yield from own
        self._merging.add(id(node))
        for key, value in node.value:
            if key.value == "<<":
                for pair in self._merged(key, value):
                    if isinstance(pair[0], yaml.ScalarNode) and pair[0].value not in names:
                        names.add(pair[0].value)
                        yield pair
        self._merging.discard(id(node))

    def _merged(self, key: yaml.Node, value: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """What a merge key brings in."""
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            self._nodes += 1
            if not isinstance(source, yaml.MappingNode):
                self._complain(self._mark(key), (), "<< must refer to a map")
            elif id(source) in self._merging:
                self._complain(self._mark(key), (), "<< refers to the map that it stands in")
            elif self._nodes <= _MAX_NODES:
                yield from self._pairs(source)

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._nodes += 1
        mark = self._document.marks[path] = self._mark(node)
        if self._nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            if self._nodes <= _MAX_NODES + 1:
                self._complain(
                    mark, path, "the configuration is too large or too deep; do aliases refer to themselves?"
                )
            self._nodes = _MAX_NODES + 1
            return None
        if node.tag not in _PLAIN_TAGS and not isinstance(node, yaml.ScalarNode):
            self._complain(mark, path, _TAG, _TAG_HINT, unread=True)
        if isinstance(node, yaml.MappingNode):
            values: dict[str, Any] = {}
            self.mapping(node, path, values)
            return values
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path, mark)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath, mark: Mark) -> Any:
        text = str(node.value)
        if node.tag not in _SCALAR_TAGS:
            self._complain(mark, path, _TAG, _TAG_HINT, unread=True)
            return Unresolved()
        interpolated = refers(text)
        if interpolated:
            if reads_file(text):
                self._document.templates[path] = text
            try:
                parts: list[str] = []
                text = interpolate(text, self._environment, parts)
                self._document.interpolated[path] = tuple({text, *parts} - {""})
            except ValueError as error:
                self._complain(mark, path, str(error))
                return Unresolved()
        if node.style is not None:
            return text
        if not interpolated and node.tag.endswith(":str") and not isinstance(typed(text), str):
            return text  # by an explicit !!str
        if _YAML11_BOOL.fullmatch(text) or _YAML11_NUMBER.fullmatch(text):
            secret = interpolated or (is_secret_key(path) and not _YAML11_BOOL.fullmatch(text))
            shown = "this value" if secret else text
            hint = f'write true or false, or "{text}"'
            if secret:
                hint = "put the reference in quotes" if interpolated else "put it in quotes"
            self._complain(mark, path, f"YAML tools disagree on what {shown} means", hint, unread=secret)
            return Unresolved()
        return typed(text)

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self._name, node.start_mark.line + 1, node.start_mark.column + 1)

    def _complain(self, mark: Mark, path: KeyPath, message: str, hint: str = "", unread: bool = False) -> None:
        self._document.problems.append(Problem(mark, dotted(path), message, hint, unread=unread))


class Unresolved:
    """Stands for a value that has already been complained about: nothing more is said of it."""


def typed(text: str) -> Any:
    """A plain scalar: null, true, false, a decimal number, or text."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text) and len(text) <= _MOST_DIGITS:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _merge(base: Document, over: Document, ours: dict[str, Any], theirs: dict[str, Any], path: KeyPath) -> None:
    for key, value in theirs.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(ours.get(key), (str, list)) and here[:-1] == ("services",):
            ours[key] = {"url": ours[key]}  # a URL alone is a complete service
            base.marks[*here, "url"] = base.marks[here]
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            _merge(base, over, ours[key], value, here)
            continue
        ours[key] = value
        for mine, other in (
            (base.marks, over.marks),
            (base.key_marks, over.key_marks),
            (base.templates, over.templates),
            (base.interpolated, over.interpolated),
        ):
            _adopt(mine, other, here)
    if () not in base.marks or not base.values:
        base.marks[()] = over.marks.get((), Mark("configuration", 0, 0))


def _adopt(mine: dict[KeyPath, Any], other: dict[KeyPath, Any], path: KeyPath) -> None:
    """Replace everything at and below a path."""
    length = len(path)
    for known in [known for known in mine if known[:length] == path]:
        del mine[known]
    mine.update({known: value for known, value in other.items() if known[:length] == path})
