"""Fields of an answer as JSON keeps them. Their bytes are any; latin-1 gives each a character and takes it back."""

from __future__ import annotations

from collections.abc import Iterable

Fields = tuple[tuple[bytes, bytes], ...]


def as_text(fields: Fields) -> list[tuple[str, str]]:
    """What can be written as JSON."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]


def from_text(read: Iterable[tuple[str, str]]) -> Fields:
    """The fields again. Raises ValueError, TypeError or AttributeError for what is none."""
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in read)
