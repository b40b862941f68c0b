"""One spelling for text that some reader takes for the same: paths are compared in it."""

from __future__ import annotations

import unicodedata


def folded(path: bytes) -> bytes:
    """A path without differences of case, width and form (Unicode NFKD and case folding), and without characters that
    are not shown. Bytes that are no UTF-8 are read as Latin-1. It goes character by character, so that the work stays
    linear: to put long runs of combining characters in order would not be."""
    if path.isascii():
        return path.lower()
    text = path.decode("utf-8", "surrogateescape")
    table = {ord(character): _folded(character) for character in set(text) if not character.isascii()}
    return text.translate(table).lower().encode()


def _folded(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        character = chr(ord(character) - 0xDC00)  # a byte that is no UTF-8
    if character.isspace():
        return " "
    if unicodedata.category(character) == "Cf":
        return ""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
