"""Which operations a route or rule is about: `METHOD /path` patterns."""

from __future__ import annotations

import re


class PathPattern:
    """`METHOD /path` with `{name}` or `*` for one segment and `**` for the rest; `*` as method means any."""

    __slots__ = ("_method", "_path", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError when the text is not `METHOD /path`."""
        method, _, path = text.partition(" ")
        path = path.strip()
        if not re.fullmatch(r"\*|[A-Z]+(?:\|[A-Z]+)*", method) or not path.startswith("/"):
            raise ValueError(f'expected METHOD /path, like "GET /users/{{id}}" or "* /internal/**", got "{text}"')
        self.text = text
        self._method = None if method == "*" else frozenset(method.encode().split(b"|"))
        self._path = re.compile(_path_expression(path).encode(), re.DOTALL)

    def matches(self, method: bytes, path: bytes) -> bool:
        """Whether a request with this method and this path (without query) is meant."""
        return (self._method is None or method in self._method) and self._path.fullmatch(path) is not None


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
