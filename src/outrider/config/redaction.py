"""Which values of a configuration are secret, and what is shown of it.

Whatever came from a variable or a file is hidden, since there is no telling what it holds; so is what stands under a
key for secrets, wherever it came from. Of everything else, user names, passwords and query strings of URLs are hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider.config.wording import Sentence
from outrider.model.addresses import HIDDEN, hidden_parts, hide_in_urls
from outrider.model.variables import VARIABLE

if TYPE_CHECKING:
    from outrider.config.source import Document, KeyPath

_NAMES = re.compile(r"(?:^|[_-])(?:token|passw(?:or)?d|passphrase|secret|(?:api|private)[_-]?key)$", re.IGNORECASE)
# Shorter texts are hidden in a sentence only where they stand alone, so that the sentence stays readable.
_SHORT = 4
# Longer ones are hidden in complaints about other values, too.
_LONG = 8


def is_secret_key(path: KeyPath, headers: Iterable[str] = ()) -> bool:
    """Whether a value is secret because of the key it stands under; `headers` are names of `observability.redact`."""
    words = [part for part in path if isinstance(part, str)]
    last = words[-1] if words else ""
    if not words or words[0].startswith("x-"):
        return bool(words)  # anchors for other places, which may be any of these
    if _NAMES.search(last) or last.lower() in headers:
        return True
    if words[0] == "credentials":
        # Of a command, the program is shown and its arguments are not.
        is_argument = last == "command" and path[-1] != 0
        return last == "value" or is_argument or "claims" in words or words[-2:] == ["jwt", "key"]
    if words[:2] == ["inbound", "accept"]:
        return last == "values" or words[-2:] == ["jwt", "key"]
    return words[-3:-1] == ["headers", "set"]


def _tells_only_who_calls(path: KeyPath, value: Any) -> bool:
    """Whether a header is made of nothing but request-time variables, such as {service}."""
    return "set" in path and isinstance(value, str) and not VARIABLE.sub("", value).strip()


def _is_secret(path: KeyPath, value: Any) -> bool:
    if is_secret_key(path):
        return not _tells_only_who_calls(path, value)
    # A URL that is too broken to see where its password ends.
    return path[-1:] in (("url",), ("jwks",)) and "@" in str(value) and hide_in_urls(str(value)) == value


def shown_value(path: KeyPath, value: Any, interpolated: bool, headers: Iterable[str] = ()) -> Any:
    """A single value as it may be shown to everybody who may see the configuration."""
    if value is None or value == "":
        return value
    if interpolated:
        return HIDDEN
    if is_secret_key(path, headers):
        return value if _tells_only_who_calls(path, value) else HIDDEN
    return hide_in_urls(value) if isinstance(value, str) else value


def shown_values(document: Document, headers: Iterable[str] = ()) -> dict[str, Any]:
    """All values of a configuration as they may be shown."""
    names = frozenset(name.lower() for name in headers)

    def shown(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {hide_in_urls(key): shown(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [shown(inner, (*path, index)) for index, inner in enumerate(value)]
        return shown_value(path, value, path in document.interpolated, names)

    values: dict[str, Any] = shown(document.values, ())
    return values


@dataclass(frozen=True, slots=True)
class HiddenTexts:
    """What no complaint may show: `anywhere`, where it is about a value at, above or below a path of `near`, and where
    it is about the value at a path of `there`."""

    anywhere: frozenset[str]
    near: tuple[tuple[KeyPath, tuple[str, ...]], ...]
    there: dict[KeyPath, str]


def hidden_texts(document: Document) -> HiddenTexts:
    """What complaints about a document may not show: what came from variables and files, and what stands under keys for
    secrets. Short texts are hidden where they come from."""
    near = tuple((where, tuple(texts)) for where, texts in document.interpolated.items())
    written = dict(secrets_written_down(document))
    every = [*(text for _, texts in near for text in texts), *written.values()]
    return HiddenTexts(
        frozenset(text for text in every if len(text) >= _LONG),
        tuple((where, texts) for where, texts in near if any(len(text) < _LONG for text in texts)),
        {where: text for where, text in written.items() if len(text) < _LONG},
    )


def scrub(document: Document, path: KeyPath, text: str) -> str:
    """A complaint about the value at `path`, without secrets: what came from variables and files at this place, above
    or below it, and longer texts of that kind anywhere; user names, passwords and queries of URLs. In a Sentence, only
    the values are searched for them: its own words are no secrets."""
    texts = document.hidden if document.hidden is not None else hidden_texts(document)
    hidden = set(texts.anywhere)
    for where, ones in texts.near:
        if where[: len(path)] == path or path[: len(where)] == where:
            hidden.update(ones)
    if path in texts.there:
        hidden.add(texts.there[path])
    value: Any = document.values
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            inner = value[part] if part < len(value) else None
            value = inner if isinstance(inner, (dict, list)) else value  # of a list of URLs, any may be in the text
    for one in value if isinstance(value, list) else [value]:
        hidden |= hidden_parts(one) if isinstance(one, str) else set()
    if isinstance(text, Sentence):
        return text.with_values(lambda part: hide_in_urls(without(part, hidden)))
    return hide_in_urls(without(text, hidden))


def without(text: str, hidden: Iterable[str]) -> str:
    """The text with each of these replaced by `***`, also where they are shown with escapes."""
    forms = {form for text_ in hidden for form in (text_, repr(text_)[1:-1]) if form and form in text}
    for one in sorted(forms, key=len, reverse=True):
        if len(one) >= _SHORT:
            text = text.replace(one, HIDDEN)
        else:
            text = re.sub(rf"(?<!\w){re.escape(one)}(?!\w)", HIDDEN, text)
    return text


def secrets_written_down(document: Document) -> Iterator[tuple[KeyPath, str]]:
    """Values that are secret because of their keys, with their places."""

    def look(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from look(inner, (*path, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                yield from look(inner, (*path, index))
        elif isinstance(value, (str, int, float)) and _is_secret(path, value):
            yield path, str(value)

    return look(document.values, ())
