"""Which operations a route is about."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.model.patterns import PathPattern

SEGMENT = st.text(alphabet="abcXYZ019-_.~%+", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("pattern", "method", "path"),
    [
        ("GET /users", b"GET", b"/users"),
        ("GET /users/{id}", b"GET", b"/users/42"),
        ("GET /users/*", b"GET", b"/users/42"),
        ("* /users", b"DELETE", b"/users"),
        ("GET|HEAD /users", b"HEAD", b"/users"),
        ("POST /notifications/**", b"POST", b"/notifications"),
        ("POST /notifications/**", b"POST", b"/notifications/"),
        ("POST /notifications/**", b"POST", b"/notifications/a/b"),
        ("GET /a/{x}/c/{y}", b"GET", b"/a/b/c/d"),
        ("GET /a/**/z", b"GET", b"/a/b/c/z"),
        ("GET /files/{name}.json", b"GET", b"/files/a.json"),
        ("* /**", b"GET", b"/"),
        ("* /", b"GET", b"/"),
    ],
)
def test_matches(pattern: str, method: bytes, path: bytes) -> None:
    """A pattern means every operation that it describes."""
    assert PathPattern(pattern).matches(method, path)


@pytest.mark.parametrize(
    ("pattern", "method", "path"),
    [
        ("GET /users", b"POST", b"/users"),
        ("GET /users", b"GET", b"/users/"),
        ("GET /users", b"GET", b"/Users"),
        ("GET /users/{id}", b"GET", b"/users/"),
        ("GET /users/{id}", b"GET", b"/users/42/orders"),
        ("GET /users/*", b"GET", b"/users/a/b"),
        ("* /internal/**", b"GET", b"/internals"),
        ("GET /a.b", b"GET", b"/axb"),
        ("GET /users", b"GETX", b"/users"),
        ("GET /users", b"get", b"/users"),
        ("GET /files/{name}.json", b"GET", b"/files/a.xml"),
        ("GET /users", b"GET", b"/users\n"),
    ],
)
def test_does_not_match(pattern: str, method: bytes, path: bytes) -> None:
    """A pattern means nothing that it does not describe: no prefix, no other method, no wild dots."""
    assert not PathPattern(pattern).matches(method, path)


@pytest.mark.parametrize("text", ["", "GET", "/users", "get /users", "GET users", "GET,POST /x", "| /x", "GET| /x"])
def test_what_is_no_pattern(text: str) -> None:
    """Whatever is not METHOD /path is refused, with examples."""
    with pytest.raises(ValueError, match="expected METHOD /path") as caught:
        PathPattern(text)
    assert f'got "{text}"' in str(caught.value)


@given(st.lists(SEGMENT, max_size=5))
def test_plain_path_matches_itself_only(segments: list[str]) -> None:
    """A path without placeholders matches itself, and nothing longer."""
    path = "/" + "/".join(segments)
    pattern = PathPattern(f"GET {path}")
    assert pattern.matches(b"GET", path.encode())
    assert not pattern.matches(b"GET", path.encode() + b"x")


@given(st.lists(SEGMENT, min_size=1, max_size=4), st.lists(SEGMENT, max_size=4))
def test_double_star_takes_the_rest(start: list[str], rest: list[str]) -> None:
    """`/**` matches the path before it and everything below."""
    base = "/" + "/".join(start)
    assert PathPattern(f"* {base}/**").matches(b"PUT", "/".join([base, *rest]).encode())


@given(SEGMENT, st.text(max_size=10))
def test_placeholder_is_one_segment(segment: str, other: str) -> None:
    """A placeholder takes exactly one segment, which is not empty."""
    pattern = PathPattern("GET /a/{id}")
    assert pattern.matches(b"GET", f"/a/{segment}".encode())
    assert pattern.matches(b"GET", f"/a/{other}".encode()) == bool(re.fullmatch(r"[^/]+", other))


@given(st.text(max_size=30))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    """No text makes a pattern fail with anything but a ValueError."""
    try:
        assert PathPattern(text).text == text
    except ValueError:
        pass
