"""The index finds the pattern that trying one after the other finds."""

from __future__ import annotations

from time import thread_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outrider.model.pattern_index import PatternIndex
from outrider.model.patterns import PathPattern

METHODS = ("GET", "POST", "*", "GET|POST")
# Few different ones, so that patterns and paths meet often. `é` and `%41` are spelled in several ways.
SEGMENTS = ("a", "b", "ab", "a.b", "{x}", "*", "**", "x-{y}", "{x}.b", "é", "%41", "a+b")
IN_PATHS = (
    "a",
    "b",
    "ab",
    "a.b",
    "x-1",
    "é",
    "%C3%a9",
    "%c3%A9",
    "%41",
    "A",
    "a%20b",
    "a+b",
    "",
    "a\n",
    "%2A",
    "*",
    "{x}",
)

PATHS = st.lists(st.sampled_from(SEGMENTS), max_size=4).map(lambda parts: "/" + "/".join(parts))
PATTERNS = st.builds(
    lambda method, path, slash: f"{method} {path}{slash if path != '/' else ''}",
    st.sampled_from(METHODS),
    PATHS,
    st.sampled_from(("", "", "", "/")),
)
REQUESTS = st.lists(st.sampled_from(IN_PATHS), max_size=5).map(lambda parts: "/" + "/".join(parts))


def one_after_the_other(patterns: list[PathPattern], method: bytes, path: bytes) -> int:
    """The judge."""
    found = (number for number, pattern in enumerate(patterns) if pattern.matches(method, path))
    return next(found, len(patterns))


@given(
    st.lists(PATTERNS, max_size=25),
    st.lists(st.tuples(st.sampled_from((b"GET", b"POST", b"PUT", b"get")), REQUESTS), min_size=1, max_size=20),
)
@example(["GET /a/**", "GET /b", "* /**", "GET /a"], [(b"GET", "/a"), (b"GET", "/"), (b"PUT", "*"), (b"PUT", "")])
@example(["GET /b", "GET /c", "GET /d", "GET /{x}/a", "GET /a/**"], [(b"GET", "/a/a"), (b"GET", "/a/b")])
def test_the_first_match_is_the_same_as_one_after_the_other(
    texts: list[str], requests: list[tuple[bytes, str]]
) -> None:
    """Whatever the patterns and the request, the first pattern that matches is found."""
    patterns = [PathPattern(text) for text in texts]
    index = PatternIndex(patterns)
    for method, path in requests:
        assert index.first(method, path.encode()) == one_after_the_other(patterns, method, path.encode())


@given(PATTERNS, REQUESTS)
def test_a_path_that_matches_has_the_beginning(text: str, path: str) -> None:
    """What the index relies on: the segments of `beginning` are those of every path that matches."""
    pattern = PathPattern(text)
    if pattern.matches(b"GET", path.encode()):
        segments = path.encode()[1:].split(b"/")
        assert len(segments) >= len(pattern.beginning)
        assert all(own in (None, one) for own, one in zip(pattern.beginning, segments, strict=False))


@pytest.mark.parametrize(
    "shape", ["GET /r{0}/**", "GET /api/v1/{{tenant}}/r{0}", "* /{{a}}/{{b}}/r{0}/**", "GET /r{0}/{{id}}"]
)
def test_thousands_of_patterns_cost_as_much_as_ten(shape: str) -> None:
    """The last of 2,000 routes is found without trying the others."""
    path = shape.format(1999).split(" ")[1].replace("{", "").replace("}", "").replace("**", "x").encode()

    def seconds(count: int) -> float:
        index = PatternIndex([PathPattern(shape.format(number)) for number in range(2000 - count, 2000)])
        assert index.first(b"GET", path) == count - 1
        best = 1.0
        for _ in range(5):
            started = thread_time()
            for _ in range(200):
                index.first(b"GET", path)
            best = min(best, thread_time() - started)
        return best

    assert seconds(2000) < 5 * seconds(10)
