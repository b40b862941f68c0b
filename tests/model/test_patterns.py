"""Which operations a route is about."""

from __future__ import annotations

import re
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.model.patterns import HeaderNames, PathPattern, comparable, covering

SEGMENT = st.text(alphabet="abcXYZ019-_~+", min_size=1, max_size=8)


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
        ("GET /a/**/z", b"GET", b"/a/z"),
        ("GET /**/admin/**", b"GET", b"/admin"),
        ("GET /**/admin/**", b"GET", b"/x/y/admin/z"),
        ("GET /a/**/b/**/c", b"GET", b"/a/b/x/b/c/y/c"),
        ("GET /files/{name}-{size}.jpg", b"GET", b"/files/a-b-8.jpg.jpg"),
        ("VERSION-CONTROL|LIST /x", b"LIST", b"/x"),
        ("list /x", b"list", b"/x"),
        ("GET /münchen", b"GET", b"/m%c3%BCnchen"),
        ("GET /m%c3%bcnchen", b"GET", b"/m%C3%BCnchen"),
        ("GET /Users('1')/$metadata", b"GET", b"/Users('1')/$metadata"),
        ("POST /things/{id}:cancel", b"POST", b"/things/4:cancel"),
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
        ("GET /a/**/z", b"GET", b"/abc/z"),
        ("GET /a/**/z", b"GET", b"/a/bz"),
        ("GET /**/admin/**", b"GET", b"/x/admins/y"),
        ("GET /a/**/b/**/c", b"GET", b"/a/c/b"),
        ("GET /files/{name}-{size}.jpg", b"GET", b"/files/a-b/8.jpg"),
        ("GET /files/{name}-{size}.jpg", b"GET", b"/files/a-.jpg"),
    ],
)
def test_does_not_match(pattern: str, method: bytes, path: bytes) -> None:
    """A pattern means nothing that it does not describe: no prefix, no other method, no wild dots."""
    assert not PathPattern(pattern).matches(method, path)


@pytest.mark.parametrize("text", ["", "GET", "/users", "GET users", "GET,POST /x", "| /x", "GET| /x"])
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


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("/internal*", "**"),
        ("/in*/x", "**"),
        ("/internal**", "**"),
        ("/x/.*", "**"),
        ("/internal?x=1", 'leave "?x=1" out'),
        ("/internal#x", 'leave "#x" out'),
        ("/internal/[a-z]+", "no regular expressions"),
        ("/(a|b)", "no regular expressions"),
        ("/x$", "no regular expressions"),
        ("/x/.+", "no regular expressions"),
        ("/x/\\d", "no regular expressions"),
        ("/x/:id", "write {id}"),
        ("/x/<id>", "{name}"),
        ("/x/{id:int}", "write {name}"),
        ("/x/{id", "write {name}"),
        ("/x/{*rest}", "**"),
        ("/x/{a}{b}", "between them"),
        ("/a//b", "one slash"),
        ("/a/../b", "without it"),
        ("/a/./b", "without it"),
        ("/a%2Fb", "leave it out"),
        ("/100%", "%25"),
    ],
)
def test_what_would_mean_less_than_it_says(path: str, remedy: str) -> None:
    """A pattern of which a reader would expect more is refused with the remedy, wherever it stands."""
    for make in (lambda: PathPattern(f"* {path}"), lambda: comparable(f"* {path}"), lambda: covering(path)):
        with pytest.raises(ValueError) as caught:
            make()
        assert remedy in str(caught.value)


@pytest.mark.parametrize("text", ["get /x", "Post /x", "GET|head /x", "m-search /x"])
def test_methods_have_a_case(text: str) -> None:
    """A known method in another case is another method (RFC 9110 §9.1), which nobody who writes a pattern means."""
    with pytest.raises(ValueError, match="told apart by case"):
        PathPattern(text)


@pytest.mark.parametrize("pattern", ["/internal", "/internal/", "/internal/**", "/INTERNAL"])
@pytest.mark.parametrize(
    "path", [b"/internal", b"/internal/x", b"/internal/x/y", b"/internal.", b"/internal.json", b"/internal.json/x"]
)
def test_a_protected_path_covers_everything_below(pattern: str, path: bytes) -> None:
    """However it is written; a format suffix is below it, too."""
    assert covering(pattern).matches(b"GET", path)
    assert not covering(pattern).matches(b"GET", b"/internals")
    assert not covering(pattern).matches(b"GET", b"/x" + path)


def test_the_root_covers_everything() -> None:
    """Below it is all there is."""
    for pattern in ("/", "/**", "/**/**"):
        assert covering(pattern).any_path


def test_a_rule_opens_what_it_says_and_no_more() -> None:
    """What is below, or has a suffix, is another operation."""
    rule = comparable("GET /stock")
    assert rule.matches(b"GET", b"/stock")
    assert not any(rule.matches(b"GET", path) for path in (b"/stock/1", b"/stock.json", b"/stocks"))


def test_a_rule_with_letters_that_are_encoded() -> None:
    """All readings of what it opens match, that of who does not decode included."""
    for pattern in ("GET /münchen/{id}", "GET /m%C3%BCnchen/{id}"):
        rule = comparable(pattern)
        assert rule.matches(b"GET", "/mu\u0308nchen/1".encode())
        assert rule.matches(b"GET", b"/m%c3%9cnchen/1")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (b"x-user-", True),
        (b"x_user.id", True),
        (b"x-user-" + b"!" * 60_000, True),
        (b"x-user", False),
        (b"x-tenant", True),
        (b"x-tenant-", False),
        (b"x.tenant", True),
        (b"x-tenan", False),
        (b"x-tenant" + b"-" * 60_000, False),
        (b"", False),
    ],
)
def test_names_and_beginnings_of_names(name: bytes, known: bool) -> None:
    """Names are told apart as CGI does, however long they are; asking twice makes no difference."""
    names = HeaderNames(("X-User-*", "x_tenant"))
    assert (names.have(name), names.have(name)) == (known, known)
    assert HeaderNames(()).have(name) is False
    assert HeaderNames(("*",)).have(name) is True


LONG = 60_000


@pytest.mark.parametrize(
    "text", ["* /**/a/**/b/**/c", "* /**/{x}/b/**/{y}.{z}.k/**/*/d", "* /a/{x}-{y}-{z}.json", "* /**/{x}.k/**/e"]
)
@pytest.mark.parametrize(
    "piece", [b"/a", b"/a/b", b"/a/b/c", b"/", b"a", b".k", b"/a.k", b"k.", b"-", b"-.json", b"/a-"]
)
def test_matching_is_linear(text: str, piece: bytes) -> None:
    """No path of a stranger makes any pattern take longer than a few milliseconds."""
    path = b"/a/" + piece * (LONG // len(piece))
    for pattern in (PathPattern(text), comparable(text), covering(text.partition(" ")[2])):
        took = []
        for _ in range(3):
            started = thread_time()
            pattern.matches(b"GET", path)
            took.append(thread_time() - started)
        assert min(took) < 0.01
