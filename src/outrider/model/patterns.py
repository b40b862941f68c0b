"""Which operations a route or rule is about, and which names: `METHOD /path` patterns, and names that end with `*`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# Names that a HeaderNames remembers: far more than anybody uses, and few enough for somebody who invents them.
_MOST_KNOWN: Final = 1024


class PathPattern:
    """`METHOD /path` with `{name}` or `*` for one segment and `**` for the rest; `*` as method means any."""

    __slots__ = ("_method", "_path", "any_path", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError when the text is not `METHOD /path`."""
        method, _, path = text.partition(" ")
        path = path.strip()
        if not re.fullmatch(r"\*|[A-Z]+(?:\|[A-Z]+)*", method) or not path.startswith("/"):
            raise ValueError(f'expected METHOD /path, like "GET /users/{{id}}" or "* /internal/**", got "{text}"')
        self.text = text
        self._method = None if method == "*" else frozenset(method.encode().split(b"|"))
        self._path = re.compile(_path_expression(path).encode(), re.DOTALL)
        self.any_path = path == "/**"

    def matches(self, method: bytes, path: bytes) -> bool:
        """Whether a request with this method and this path (without query) is meant."""
        if self._method is not None and method not in self._method:
            return False
        return self.any_path or self._path.fullmatch(path) is not None


def comparable(match: str) -> PathPattern:
    """A pattern for paths as `readings` gives them: in lower case, without a trailing slash. Raises ValueError."""
    method, _, path = match.partition(" ")
    return PathPattern(f"{method} {path.strip().lower().rstrip('/') or '/'}")


def is_named(pattern: str, name: str) -> bool:
    """Whether a name is the one that is meant, or begins with it where that ends with `*`."""
    return name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))


class HeaderNames:
    """A set of header names, or beginnings with `*`. Underscores count as dashes, because CGI-style servers read both
    as one."""

    __slots__ = ("_known", "_patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(pattern.lower().replace("_", "-") for pattern in patterns)
        self._known: dict[bytes, bool] = {}  # what has been asked before

    def have(self, name: bytes) -> bool:
        """Whether this lower-case name is one of them."""
        known = self._known.get(name)
        if known is None:
            dashed = name.decode("latin-1").replace("_", "-")
            known = any(is_named(pattern, dashed) for pattern in self._patterns)
            if len(self._known) < _MOST_KNOWN:
                self._known[name] = known
        return known


def _path_expression(path: str) -> str:
    expression = ""
    for part in re.split(r"(/\*\*$|\{[^/{}]*\}|\*\*|\*)", path):
        if part == "/**":
            expression += r"(?:/.*)?"
        elif part == "**":
            expression += r".*"
        elif part == "*" or (part.startswith("{") and part.endswith("}")):
            expression += r"[^/]+"
        else:
            expression += re.escape(part)
    return expression
