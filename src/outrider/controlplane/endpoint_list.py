"""Lists of endpoints in files: a YAML or JSON list of URLs, or of maps with url and weight, read again when it changes.

Another program writes the file, and may be in the middle of it, or wrong. It is read and parsed in a thread; it must be
a regular file of moderate size; aliases, with which a few bytes of YAML stand for millions of entries, are refused; and
a change is only taken when two looks find the same. The best way to replace a list is to write another file beside it
and rename that: then it is whole at any moment.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from pydantic import TypeAdapter, ValidationError

from outrider.blocking import run_apart
from outrider.config.schema import Service, Target
from outrider.controlplane.dns import SourceError
from outrider.files import FileError, read_apart
from outrider.model.addresses import port_of

# Bytes; an entry takes about a hundred, and a service has at most 256 endpoints.
_LARGEST: Final = 256 * 1024
# A list of maps is three levels deep, and an entry of it six events of the parser.
_DEEPEST, _MOST_EVENTS = 4, 20_000
# Seconds between the two looks that have to find the same, how often they are repeated, and how long parsing may take.
_LONGEST_REASON: Final = 300  # characters
_SETTLES, _LOOKS, _PARSED_WITHIN = 0.2, 5, 5.0

# Scalars stay text: no number, date or truth value is made of them that could be slow to make. The parser written in C
# is ten times as fast, and not everywhere.
_Loader: Final[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_adapter: Final[TypeAdapter[Service]] = TypeAdapter(Service)


@dataclass(slots=True, frozen=True)
class Entry:
    """One endpoint of a list. `netloc` is the authority of its URL."""

    url: str
    host: str
    port: int
    netloc: str
    weight: float


class EndpointList:
    """One file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = b""
        self._found: list[Entry] = []
        self._error = "has not been read yet"  # why `_seen` cannot be used; empty if it can

    async def read(self) -> list[Entry]:
        """What the file says now. Raises SourceError if that cannot be used."""
        try:
            data = await self._settled()
        except FileError as error:
            raise SourceError(str(error)) from None
        if data != self._seen:
            self._seen = data
            try:
                self._found, self._error = (
                    await run_apart(("list", self._path), lambda: parse(data), _PARSED_WITHIN),
                    "",
                )
            except ValueError as error:
                self._error = str(error)
            except (TimeoutError, OSError):
                self._seen = b""
                self._error = "could not be parsed in time"
        if self._error:
            raise SourceError(f"{self._path} {self._error}")
        return self._found

    async def _settled(self) -> bytes:
        """The content, once it is not being written any more. Raises FileError."""
        data = await read_apart(self._path, _LARGEST)
        for _ in range(_LOOKS):
            if data == self._seen:
                return data
            await asyncio.sleep(_SETTLES)
            before, data = data, await read_apart(self._path, _LARGEST)
            if data == before:
                return data
        raise FileError(self._path, "changes all the time")


def parse(data: bytes) -> list[Entry]:
    """The entries of a list. Raises ValueError with a sentence that goes on from the name of the file."""
    try:
        _check_shape(data)
        listed = yaml.load(data, _Loader)  # noqa: S506 # which makes nothing but text, lists and maps
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {str(error)[:_LONGEST_REASON]}") from None
    if not isinstance(listed, list):
        if listed is None or listed == "":
            return []
        raise ValueError("holds no list: expected a list of URLs")
    try:
        targets = _adapter.validate_python({"url": listed}).url if listed else []
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise ValueError(f"cannot be used: {place}: {first['msg'][:_LONGEST_REASON]}") from None
    return [_entry(target) for target in targets]


def _check_shape(data: bytes) -> None:
    """Refuse what would cost more than its size says. Raises ValueError or YAMLError."""
    depth = 0
    for number, event in enumerate(yaml.parse(data, _Loader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError("has anchors or aliases, which are not taken here: write every entry out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ValueError("is nested too deeply: expected a list of URLs")
        if number > _MOST_EVENTS:
            raise ValueError("has far too many entries")


def _entry(target: Target) -> Entry:
    if target.is_source:
        raise ValueError("cannot be used: only http:// and https:// URLs can stand in a list")
    parts = urlsplit(target.url)
    return Entry(target.url, parts.hostname or "", port_of(parts), parts.netloc, target.weight)
