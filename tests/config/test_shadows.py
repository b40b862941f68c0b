"""Routes that no call reaches are found as if every pair were compared, in less time."""

from __future__ import annotations

from time import thread_time

from hypothesis import example, given
from hypothesis import strategies as st

from outrider.config.shadows import Shadows

METHODS = ("GET", "POST", "*", "GET|POST")
SEGMENTS = ("a", "b", "ab", "{x}", "*", "**", "")
MATCHES = st.builds(
    lambda method, segments: f"{method} /{'/'.join(segments)}",
    st.sampled_from(METHODS),
    st.lists(st.sampled_from(SEGMENTS), max_size=4),
)


def covers(earlier: str, later: str) -> bool:
    """The judge, for one pair: all methods and paths of the later pattern are the earlier one's, too."""
    method, _, path = earlier.partition(" ")
    other_method, _, other_path = later.partition(" ")
    if method not in ("*", other_method):
        return False
    if path.endswith("/**") and "{" not in path and "*" not in path[:-3]:
        return other_path.startswith(path[:-2]) or other_path == path[:-3]
    return path == other_path


@given(st.lists(MATCHES, max_size=30))
@example(["* /**", "GET /a"])
@example(["GET /a/b/**", "* /a/**", "GET /a/b/c", "GET /a/b", "GET /a"])
@example(["* /a", "GET /a/**", "GET /a"])
def test_the_same_routes_are_shadowed_as_in_pairs(matches: list[str]) -> None:
    """Each route is shadowed by the first one before it that covers it, whatever the routes."""
    shadows = Shadows()
    for index, match in enumerate(matches):
        expected = next((other for other in matches[:index] if covers(other, match)), None)
        assert shadows.add(match) == expected


def test_thousands_of_routes_are_compared_within_milliseconds() -> None:
    """Ten times the routes cost about ten times as much, not a hundred times."""

    def seconds(count: int) -> float:
        best = 10.0
        for _ in range(3):
            shadows = Shadows()
            started = thread_time()
            for number in range(count):
                assert shadows.add(f"GET /api/v1/r{number}/**") is None
            best = min(best, thread_time() - started)
        return best

    assert seconds(4000) < 30 * seconds(400)
