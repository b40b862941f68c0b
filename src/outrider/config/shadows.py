"""Routes that no call reaches, because one before them matches everything they would."""

from __future__ import annotations


class Shadows:
    """The patterns of one service's routes so far. Only plain cases are decided: the same path, or one below a path
    that ends with `/**` and has no other wildcard.

    Each pattern is looked up by its path and by the beginnings of that, so that thousands of routes are not compared in
    pairs.
    """

    def __init__(self) -> None:
        # By method and path: the number of the first route with it, and its pattern.
        self._same: dict[tuple[str, str], tuple[int, str]] = {}
        # By method and what stands before `/**`.
        self._below: dict[tuple[str, str], tuple[int, str]] = {}
        self._count = 0

    def add(self, match: str) -> str | None:
        """Add the pattern of the next route, `METHOD /path`. Returns the first pattern before it that matches all it
        would, or None."""
        method, _, path = match.partition(" ")
        found = [one for asked in {method, "*"} for one in self._covering(asked, path)]
        number = self._count
        self._count += 1
        base = path.removesuffix("/**")
        if base != path and "{" not in base and "*" not in base:
            self._below.setdefault((method, base), (number, match))
        else:
            self._same.setdefault((method, path), (number, match))
        return min(found)[1] if found else None

    def _covering(self, method: str, path: str) -> list[tuple[int, str]]:
        """The first routes of this method that match everything below this path, or this path."""
        ends = [index for index, character in enumerate(path) if character == "/"]
        bases = [self._below.get((method, path[:end])) for end in (*ends, len(path))]
        return [one for one in (*bases, self._same.get((method, path))) if one is not None]
