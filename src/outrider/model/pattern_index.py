"""The first of many patterns that matches a request, without trying them one after the other.

A tree of path segments: a pattern stands where the segments end that it fixes, up to its first `**`. A request follows
the branch of its own segment and the branch for any segment, so it meets only patterns whose beginning fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from outrider.model.patterns import PathPattern

# So few patterns are tried sooner than a path is split.
_FEW: Final = 3


class _Node:
    """A place in the tree. `lowest` is the smallest number of a pattern here or below."""

    __slots__ = ("any_segment", "lowest", "patterns", "segments")

    def __init__(self, lowest: int) -> None:
        self.lowest = lowest
        self.patterns: list[tuple[int, PathPattern]] = []
        self.segments: dict[bytes, _Node] = {}
        self.any_segment: _Node | None = None

    def below(self, segment: bytes | None, number: int) -> _Node:
        """The node of this segment, made if it is missing. None: of any segment."""
        node = self.any_segment if segment is None else self.segments.get(segment)
        if node is None:
            node = _Node(number)
            if segment is None:
                self.any_segment = node
            else:
                self.segments[segment] = node
        return node


class PatternIndex:
    """Patterns in the order in which they are declared."""

    __slots__ = ("_depth", "_patterns", "_root")

    def __init__(self, patterns: Sequence[PathPattern]) -> None:
        self._patterns = list(patterns)
        self._depth = 0
        self._root = _Node(0)
        for number, pattern in enumerate(self._patterns):
            node = self._root
            for segment in pattern.beginning:
                node = node.below(segment, number)
            node.patterns.append((number, pattern))
            self._depth = max(self._depth, len(pattern.beginning))

    def first(self, method: bytes, path: bytes) -> int:
        """The number of the first pattern that matches a request with this method and this path (without query), or
        how many patterns there are if none does."""
        if len(self._patterns) <= _FEW:
            for number, pattern in enumerate(self._patterns):
                if pattern.matches(method, path):
                    return number
            return len(self._patterns)
        # No more of a stranger's path is split than the tree is deep.
        segments = path.split(b"/", self._depth + 1)
        return _lowest(self._root, method, path, segments, 1, len(self._patterns))


def _lowest(node: _Node, method: bytes, path: bytes, segments: list[bytes], level: int, best: int) -> int:
    """The smallest number of a pattern at or below this node that matches, if it is smaller than `best`; else `best`.

    `level` is the index of the next segment; the first element is what stands before the first slash, nothing.
    """
    for number, pattern in node.patterns:
        if number >= best:
            break
        if pattern.matches(method, path):
            best = number
            break
    if level < len(segments):
        below = node.segments.get(segments[level])
        if below is not None and below.lowest < best:
            best = _lowest(below, method, path, segments, level + 1, best)
        below = node.any_segment
        if below is not None and below.lowest < best:
            best = _lowest(below, method, path, segments, level + 1, best)
    return best
