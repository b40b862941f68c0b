"""Which operations a route or rule is about, and which names: `METHOD /path` patterns, and names that end with `*`.

Paths come from strangers, so matching is linear in their length, whatever the pattern: every part of an expression
either cannot be matched in two ways or is atomic (docs/decisions/0015).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import quote, unquote

from outrider.model.folding import folded
from outrider.model.methods import is_other_spelling

# Names that a HeaderNames remembers: far more than anybody uses, and few enough for somebody who invents them.
_MOST_KNOWN: Final = 1024
_LONGEST_KNOWN: Final = 64
# For each byte of a name, the one that stands for it.
_DASHED: Final = bytes(byte if byte in b"abcdefghijklmnopqrstuvwxyz0123456789-" else ord("-") for byte in range(256))

# RFC 9110 §9.1: any token is a method. `|` stands between several here, and `*` for any.
_METHODS: Final = re.compile(r"\*|[!#$%&'+.^_`~0-9A-Za-z-]+(?:\|[!#$%&'+.^_`~0-9A-Za-z-]+)*")
_PLACEHOLDER: Final = re.compile(r"(\{[A-Za-z_][A-Za-z0-9_-]*\}|^\*$)")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPED_SLASH: Final = re.compile(r"%(?:2f|5c)", re.IGNORECASE)
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f])([0-9A-Fa-f])")
# What stands in no path, or in one only encoded (RFC 3986 §3.3).
_NEVER: Final = re.compile(r"""[\x00-\x20\x7f"<>\\^`|\[\]]""")
_AS_IN_PATHS: Final = "/!$&'()*+,;=:@~"
_BOUNDARY: Final = rb"(?=/|\Z)"


class PathPattern:
    """`METHOD /path` with `{name}` or `*` for one segment and `**` for any number of them; `*` as method means any.

    Every path that matches has the segments of `beginning` first, where None stands for one that may differ.
    """

    __slots__ = ("_method", "_path", "any_path", "beginning", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError when the text is not `METHOD /path`, or means less than it seems to say."""
        method, path = _parts(text)
        segments = _segments(path)
        self._set(text, method, _expression(segments, _as_sent), _beginning(segments))

    def _set(self, text: str, method: str, expression: bytes, beginning: tuple[bytes | None, ...] = ()) -> None:
        self.text = text
        self.beginning = beginning
        self._method = None if method == "*" else frozenset(method.encode().split(b"|"))
        self._path = re.compile(expression, re.DOTALL)
        self.any_path = expression == _ANYTHING

    def matches(self, method: bytes, path: bytes) -> bool:
        """Whether a request with this method and this path (without query) is meant."""
        if self._method is not None and method not in self._method:
            return False
        return self.any_path or self._path.fullmatch(path) is not None


def comparable(match: str) -> PathPattern:
    """A pattern for paths as `readings` gives them: folded, without a trailing slash. Raises ValueError."""
    method, path = _parts(match)
    pattern = PathPattern(match)
    pattern._set(match, method, _expression(_folded_segments(path), _as_read))
    return pattern


def covering(path: str) -> PathPattern:
    """A pattern for a path and everything below it, for any method, for paths as `readings` gives them. A suffix behind
    a dot is covered, too: to some frameworks it is a format of the same. Raises ValueError."""
    pattern = PathPattern(f"* {path}")
    segments = _folded_segments(path)
    while segments and segments[-1] == "**":
        segments.pop()
    expression = _expression(segments, _as_read) + rb"(?:[/.].*)?" if segments else _ANYTHING
    pattern._set(path, "*", expression)
    return pattern


def _parts(text: str) -> tuple[str, str]:
    """Method and path. Raises ValueError."""
    method, _, path = text.partition(" ")
    path = path.strip()
    if not _METHODS.fullmatch(method) or not path.startswith("/"):
        raise ValueError(f'expected METHOD /path, like "GET /users/{{id}}" or "* /internal/**", got "{text}"')
    for one in method.split("|"):
        if is_other_spelling(one.encode()):
            raise ValueError(f"methods are told apart by case: {one} is not {one.upper()}, so write {one.upper()}")
    return method, path


def _segments(path: str) -> list[str]:
    """The segments of a pattern's path; ValueError where a reader would expect more of one than it does."""
    if "?" in path or "#" in path:
        mark = min(path.find(one) for one in "?#" if one in path)
        raise ValueError(f'a pattern is about the path alone; leave "{path[mark:]}" out')
    odd = _NEVER.search(path)
    if odd is not None:
        raise ValueError(
            f'"{odd[0]}" stands in no path; patterns are no regular expressions: use {{name}} or * for one segment,'
            " ** for any number"
        )
    if _BAD_ESCAPE.search(path):
        raise ValueError(f'"%" stands in a path only before two hexadecimal digits; write %25 in "{path}"')
    if _ESCAPED_SLASH.search(path):
        raise ValueError(f'a separator that is percent-encoded is read in two ways; leave it out of "{path}"')
    segments = path[1:].split("/")
    for segment in segments[:-1]:
        if not segment:
            raise ValueError(f'"//" is an empty segment; write one slash in "{path}"')
    for segment in segments:
        _check_segment(segment)
    return segments


def _check_segment(segment: str) -> None:
    if segment in (".", ".."):
        raise ValueError(f'"{segment}" is resolved by who reads it; write the path without it')
    if "*" in segment and segment not in ("*", "**"):
        raise ValueError(
            f'"*" stands for a whole segment, so "{segment}" would be taken literally; write "**" for everything below,'
            ' "*" or "{name}" for one segment'
        )
    rest = _PLACEHOLDER.sub("", segment)
    if "{" in rest or "}" in rest:
        raise ValueError(f'"{segment}" is not a placeholder; write {{name}} for one segment, ** for any number')
    if "}{" in segment:
        raise ValueError(f'where the one ends and the other begins in "{segment}" is open; put something between them')
    if segment.startswith(":"):
        raise ValueError(f'"{segment}" would be taken literally; write {{{segment[1:] or "name"}}} for one segment')
    if segment == ".+" or (segment.endswith("$") and len(segment) > 1):
        raise ValueError(f'"{segment}" would be taken literally; patterns are no regular expressions')


def _folded_segments(path: str) -> list[str]:
    """The segments of a pattern for readings: an escape is what it stands for. Raises ValueError."""
    if ";" in path:
        raise ValueError(f'parameters are cut off by some readers; leave ";" out of "{path}"')
    return [unquote(segment) for segment in _segments(path.rstrip("/") or "/") if segment]


def _as_sent(text: str) -> bytes:
    """An expression for text of a path as a request brings it; escapes in either case (RFC 3986 §6.2.2.1)."""
    escaped = quote(text, safe=_AS_IN_PATHS + "%")
    return b"".join(_part_as_sent(index % 3, part) for index, part in enumerate(_ESCAPE.split(escaped)))


def _part_as_sent(position: int, part: str) -> bytes:
    """Of text split by its escapes: what stands between them, their first digit, or their second one."""
    if position == 0:
        return re.escape(part).encode()
    digit = f"[{part.upper()}{part.lower()}]" if part.isalpha() else part
    return (f"%{digit}" if position == 1 else digit).encode()


def _beginning(segments: list[str]) -> tuple[bytes | None, ...]:
    """The segments before the first `**`: as a request brings them, or None where that may be in several ways."""
    end = segments.index("**") if "**" in segments else len(segments)
    return tuple(segment.encode() if _has_one_spelling(segment) else None for segment in segments[:end])


def _has_one_spelling(segment: str) -> bool:
    """Whether only this text matches a segment: no placeholder, and nothing that is or must be escaped."""
    return _PLACEHOLDER.search(segment) is None and quote(segment, safe=_AS_IN_PATHS) == segment


def _as_read(text: str) -> bytes:
    """An expression for text of a path in any of its readings, also that of who does not decode it."""
    expression = b""
    for character in text:
        if character.isascii() and (character.isalnum() or character in _AS_IN_PATHS + "-._"):
            expression += re.escape(folded(character.encode()))
            continue
        spellings = {quote(one, safe="").lower().encode() for one in (character, character.lower(), character.upper())}
        either = sorted({folded(character.encode()), *spellings})
        expression += b"(?:" + b"|".join(re.escape(one) for one in either) + b")"
    return expression


def _expression(segments: list[str], literal: Callable[[str], bytes]) -> bytes:
    """An expression for these segments, linear in what it is matched with.

    What stands between two `**` is taken where it first fits: if anything behind it fits at all, it fits behind that.
    """
    groups: list[list[str]] = [[]]
    for segment in segments:
        if segment == "**":
            groups.append([])
        else:
            groups[-1].append(segment)
    fixed = [b"".join(b"/" + _segment(one, literal) for one in group) for group in groups]
    if len(fixed) == 1:
        return fixed[0] or b"/"
    expression = fixed[0] + _BOUNDARY if fixed[0] else b""
    for between in fixed[1:-1]:
        if between:
            expression += b"(?>.*?" + between + _BOUNDARY + b")"
    return expression + (b".*?" + fixed[-1] if fixed[-1] else rb"(?:/.*)?")


def _segment(segment: str, literal: Callable[[str], bytes]) -> bytes:
    """An expression for one segment. Every placeholder but the last one ends where what is behind it first fits."""
    parts = [part for part in _PLACEHOLDER.split(segment) if part]
    expression = b""
    pending = False
    for index, part in enumerate(parts):
        if _PLACEHOLDER.fullmatch(part):
            pending = True
            continue
        text = literal(part)
        if not pending:
            expression += text
        elif index == len(parts) - 1:
            expression += b"(?>[^/]+" + text + _BOUNDARY + b")"
        else:
            expression += b"(?>[^/]+?" + text + b")"
        pending = False
    return expression + b"[^/]++" if pending else expression


_ANYTHING: Final = _expression(["**"], _as_sent)


def is_named(pattern: str, name: str) -> bool:
    """Whether a name is the one that is meant, or begins with it where that ends with `*`."""
    return name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))


def dashed(name: bytes) -> bytes:
    """A lower-case header name as CGI-style servers (PHP, Rack, WSGI) tell names apart (RFC 3875 §4.1.18): to them
    `x.user.id`, `x_user_id` and `x-user-id` are one. Here they count as one wherever a header is taken off."""
    return name.translate(_DASHED)  # a stranger's name may be as long as a head


class HeaderNames:
    """A set of header names, or beginnings with `*`; how they are `dashed` makes no difference."""

    __slots__ = ("_beginnings", "_known", "_longest", "_names")

    def __init__(self, patterns: Iterable[str]) -> None:
        names: set[bytes] = set()
        beginnings: set[bytes] = set()
        for pattern in patterns:
            name = dashed(pattern.removesuffix("*").lower().encode())
            (beginnings if pattern.endswith("*") else names).add(name)
        self._names = frozenset(names)
        self._beginnings = tuple(sorted(beginnings))
        # Of a name that is asked for, what is behind that and one more byte makes no difference.
        self._longest = max(map(len, names | beginnings), default=0)
        self._known: dict[bytes, bool] = {}  # what has been asked before

    def have(self, name: bytes) -> bool:
        """Whether this lower-case name is one of them."""
        known = self._known.get(name)
        if known is None:
            plain = dashed(name[: self._longest + 1])
            known = plain in self._names or plain.startswith(self._beginnings)
            if len(self._known) < _MOST_KNOWN and len(name) <= _LONGEST_KNOWN:
                self._known[name] = known
        return known
