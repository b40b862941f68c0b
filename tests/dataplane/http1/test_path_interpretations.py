"""Readings: what a path may mean to whoever reads it after us."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from outrider.dataplane.http1.path_interpretations import LONGEST, MOST, readings
from outrider.model.folding import folded
from outrider.model.patterns import comparable, covering


def read(path: bytes) -> tuple[bytes, ...]:
    """The readings of a path that has not too many."""
    found = readings(path)
    assert found is not None
    return found


def under(pattern: str, path: bytes) -> bool:
    """Whether a path is protected by a pattern, as the guard asks it: a reading is under it, or there are too many."""
    protected = covering(pattern)
    found = readings(path)
    return found is None or any(protected.matches(b"GET", reading) for reading in found)


# ---------------------------------------------------------------- the usual


@pytest.mark.parametrize(
    ("path", "reading"),
    [
        (b"/", b"/"),
        (b"/users", b"/users"),
        (b"/users/", b"/users"),
        (b"/users/1?a=/internal/x", b"/users/1"),
        (b"/a-b/c_d/~e/f.json/@g", b"/a-b/c_d/~e/f.json/@g"),
        (b"/v1.2/users:search", b"/v1.2/users:search"),
    ],
)
def test_the_common_path_has_one_reading(path: bytes, reading: bytes) -> None:
    """Nothing in it can be read in two ways; its query is no part of it."""
    assert read(path) == (reading,)


def test_case_is_folded() -> None:
    """Some frameworks tell no difference, so neither may a rule."""
    assert readings(b"/Internal/USERS") == (b"/internal/users",)


# ---------------------------------------------------------------- the classics

# Ways to write /internal/users that somebody reads as just that.
CLASSICS: dict[str, bytes] = {
    "plain": b"/internal/users",
    "with a query": b"/internal/users?x=1",
    "one letter encoded": b"/%69nternal/users",
    "all letters encoded": b"/%69%6e%74%65%72%6e%61%6c/%75%73%65%72%73",
    "encoded in capitals": b"/%49NTERNAL/users",
    "encoded twice": b"/%2569nternal/users",
    "encoded three times": b"/%252569nternal/users",
    "percent signs encoded apart": b"/%25%36%39nternal/users",
    "encoded slash": b"/internal%2fusers",
    "encoded slash in capitals": b"/internal%2Fusers",
    "encoded slash, twice": b"/internal%252fusers",
    "first slash encoded": b"/%2finternal/users",
    "dot segment": b"/./internal/users",
    "dot segment inside": b"/internal/./users",
    "dot segment at the end": b"/internal/users/.",
    "up and down": b"/public/../internal/users",
    "up from the root": b"/../internal/users",
    "up from far below the root": b"/../../../../internal/users",
    "up inside": b"/internal/x/../users",
    "up at the end": b"/internal/users/x/..",
    "encoded dots": b"/public/%2e%2e/internal/users",
    "one of two dots encoded": b"/public/.%2e/internal/users",
    "the other dot encoded": b"/public/%2E./internal/users",
    "encoded dots and slashes": b"/public%2f%2e%2e%2finternal%2fusers",
    "dots encoded twice": b"/public/%252e%252e/internal/users",
    "dots and slashes encoded twice": b"/public%252f..%252finternal/users",
    "backslash": b"/internal\\users",
    "first slash as backslash": b"\\internal\\users",
    "encoded backslash": b"/internal%5cusers",
    "encoded backslash, twice": b"/internal%255cusers",
    "up by backslashes": b"/public\\..\\internal\\users",
    "up by an encoded backslash": b"/public/..%5cinternal/users",
    "parameter": b"/internal;x=1/users",
    "empty parameter": b"/internal;/users",
    "parameter at the end": b"/internal/users;jsessionid=1",
    "parameter in front": b"/;x/internal/users",
    "encoded parameter": b"/internal%3bx/users",
    "parameter encoded twice": b"/internal%253bx/users",
    "up with a parameter": b"/public/..;/internal/users",
    "up with a parameter and a value": b"/public/..;a=b/internal/users",
    "up with an encoded parameter": b"/public/..%3b/internal/users",
    "up with encoded dots and a parameter": b"/public/%2e%2e;/internal/users",
    "slash doubled": b"//internal/users",
    "slash doubled inside": b"/internal//users",
    "many slashes": b"////internal////users////",
    "slash and encoded slash": b"/%2f/internal/users",
    "doubled and up": b"/public//..//..//internal/users",
    "behind an authority": b"//a/internal/users",
    "behind an authority with a port": b"//user@a:80/internal/users",
    "behind an authority and more slashes": b"////a/internal/users",
    "behind an authority and backslashes": b"/\\a\\internal/users",
    "behind an authority with encoded slashes": b"/%2fa%2finternal/users",
    "up, and behind an authority": b"/x/..//a/internal/users",
    "case": b"/INTERNAL/Users",
    "trailing slash": b"/internal/users/",
    "trailing slashes": b"/internal/users//",
    "trailing dot segment": b"/internal/users/./",
    "NUL at the end": b"/internal/users%00",
    "NUL and something": b"/internal/users%00.html",
    "NUL encoded twice": b"/internal/users%2500.html",
    "encoded question mark": b"/internal/users%3fx",
    "question mark encoded twice": b"/internal/users%253fx",
    "encoded hash": b"/internal/users%23x",
    "encoded blank at the end": b"/internal/users%20",
    "encoded tab at the end": b"/internal/users%09",
    "encoded line feed at the end": b"/internal/users%0a",
    "up with a blank": b"/public/..%20/internal/users",
    "up with NUL": b"/public/..%00/internal/users",
    "mixed": b"/PUBLIC%2f.%2e;a//%5c%69nternal%2f.%2fusers%3b%00?x",
    "mixed twice": b"/public/%252e%252e%255c%2569nternal;x//users",
    "parameters cut before the rest is decoded": b"/;%2fq/%69nternal/users",
    "a parameter with encoded slashes in it": b"/%69nternal;a%2fb%2f../users",
    "up before the rest is decoded": b"/public/../%69nternal/users",
    "blank in front": b"/%20internal/users",
    "tab in front": b"/%09internal/users",
    "blanks around": b"/%20internal%20/%20users%20",
    "vertical tab behind": b"/internal%0b/users",
    "control character behind": b"/internal%01/users",
    "control character in front": b"/%1finternal/users",
    "delete character behind": b"/internal%7f/users",
    "control characters, encoded twice": b"/%2509internal%250b/users",
    "tab inside": b"/int%09ernal/users",
    "line feed inside": b"/int%0aernal/users",
    "up with a control character": b"/public/..%01/internal/users",
    "blank that does not break": b"/%C2%A0internal/users",
    "wide blank": b"/%E3%80%80internal/users",
    "character without width": b"/int%E2%80%8Bernal/users",
    "byte order mark": b"/%EF%BB%BFinternal/users",
    "soft hyphen": b"/inter%C2%ADnal/users",
    "dot behind": b"/internal./users",
    "dots behind": b"/internal.../users...",
    "blank and dot behind": b"/internal%20./users",
    "fullwidth letters": "/ｉｎｔｅｒｎａｌ/users".encode(),
    "fullwidth letters, encoded": quote_from_bytes("/ＩＮＴＥＲＮＡＬ/users".encode()).encode(),
    "fullwidth slash": b"/internal%EF%BC%8Fusers",
    "fullwidth backslash": b"/internal%EF%BC%BCusers",
    "fullwidth dots": b"/public/%EF%BC%8E%EF%BC%8E/internal/users",
    "fullwidth percent sign": b"/%EF%BC%8569nternal/users",
    "two dots in one": b"/public/%E2%80%A5/internal/users",
    "long s": b"/internal/u%C5%BFers",
    "overlong slash": b"/internal%c0%afusers",
    "overlong slash in three bytes": b"/internal%e0%80%afusers",
    "overlong slash in four bytes": b"/internal%f0%80%80%afusers",
    "overlong dots": b"/public/%c0%ae%c0%ae/internal/users",
    "overlong letter": b"/%c1%a9nternal/users",
    "overlong, encoded twice": b"/internal%25c0%25afusers",
    "letter in two bytes": b"/%u0069nternal/users",
    "slash in two bytes": b"/internal%u002fusers",
    "fullwidth slash in two bytes": b"/internal%uFF0Fusers",
    "bytes that are no UTF-8": b"/int%FFernal/users",
    "parameter before a control character": b"/internal;a%0b=b%01/users",
    "backslash in front": b"/\\internal/users",
}


@pytest.mark.parametrize("name", CLASSICS)
def test_classic(name: str) -> None:
    """One of the readings is what it is meant to pass for, exactly, and so it is under every pattern of that."""
    assert b"/internal/users" in read(CLASSICS[name])


@pytest.mark.parametrize("name", CLASSICS)
@pytest.mark.parametrize("pattern", ["/internal/**", "/internal/*", "/internal/users", "/Internal/{id}", "/**"])
def test_classic_under_a_pattern(name: str, pattern: str) -> None:
    """However a protected path is written, it is found to be protected."""
    assert under(pattern, CLASSICS[name])


@pytest.mark.parametrize(
    "path", [b"/%69nternal/a%0ab", b"/%69nternal/%0a/b", b"/%69nternal/a%0d%0ab", b"/internal%0a/b"]
)
def test_a_line_feed_inside_hides_nothing(path: bytes) -> None:
    """What a pattern takes for any character includes the end of a line."""
    assert under("/internal", path)


@pytest.mark.parametrize(
    "path",
    [
        b"/M%C3%9CNCHEN/x",
        b"/m%c3%bcnchen",
        b"/m%C3%BCnchen/%FF",
        b"/mu%CC%88nchen/x",
        b"/M%FCnchen/x",
        b"/%6D%25C3%259Cnchen/x",
    ],
)
def test_case_and_form_of_other_letters(path: bytes) -> None:
    """Whatever spelling, encoding and composition the letters of a protected path come in, it is protected; whether its
    pattern is written with them or with escapes makes no difference."""
    for pattern in ("/münchen/**", "/MÜNCHEN", "/m%C3%BCnchen/**"):
        assert under(pattern, path)
        assert not under(pattern, b"/munchen/x")


def test_rules_open_encoded_letters() -> None:
    """A rule for a path with such letters opens it in the spelling that clients send."""
    rule = comparable("GET /münchen/**")
    assert all(rule.matches(b"GET", reading) for reading in read(b"/m%C3%BCnchen/x"))


@pytest.mark.parametrize("path", [b"/internal.json", b"/internal.", b"/internal.json/x", b"/internal%2ejson"])
def test_format_suffixes(path: bytes) -> None:
    """Some frameworks take what is behind a dot for a format of the same: it is protected, too."""
    assert under("/internal", path)


@pytest.mark.parametrize("path", [b"/public", b"/internals/users", b"/x/internal/users", b"/inter/nal", b"/%2569"])
def test_what_is_not_protected_is_not(path: bytes) -> None:
    """Not everything odd is under lock and key: other paths have no reading under the pattern."""
    assert not under("/internal/**", path)


# ---------------------------------------------------------------- anything at all

SEGMENTS = st.text("abcXYZ019-_~", min_size=1, max_size=8).map(str.encode)
PIECES = st.sampled_from(
    [b"/", b"//", b".", b"..", b"%2e", b"%2f", b"%5c", b"\\", b";", b"%3b", b"%00", b"%3f", b"%23", b"%25", b"a", b"B"]
)


@given(st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=60).map(b"".join)))
def test_any_bytes_have_readings(path: bytes) -> None:
    """Or too many, but never an exception; and what is plainly written is among them."""
    found = readings(path)
    if found is not None:
        assert 1 <= len(found) <= MOST
        assert (folded(path.partition(b"?")[0]).rstrip(b"/") or b"/") in found


@given(st.lists(PIECES, min_size=100, max_size=2000).map(b"".join))
def test_long_ones_are_bounded_too(path: bytes) -> None:
    """A path of many kilobytes gets no more readings for it."""
    found = readings(path)
    assert found is None or len(found) <= MOST


@given(st.one_of(st.binary(max_size=100), st.lists(PIECES, max_size=30).map(b"".join)))
def test_readings_are_comparable(path: bytes) -> None:
    """Lower case, without a trailing slash and without a query, so that a pattern need not think of them."""
    for reading in readings(path) or ():
        assert reading == reading.lower()
        assert reading == b"/" or not reading.endswith(b"/")


@given(st.one_of(st.binary(max_size=100), st.lists(PIECES, max_size=30).map(b"".join)), st.binary(max_size=50))
def test_a_query_makes_no_difference(path: bytes, query: bytes) -> None:
    """What follows a question mark is not read as path."""
    assert readings(path + b"?" + query) == readings(path)


# ---------------------------------------------------------------- any path, in any disguise


def every_byte(path: bytes) -> bytes:
    return b"".join(b"%%%02x" % byte if byte != 0x2F else b"/" for byte in path)


DISGUISES: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda path: path,
    "encoded": every_byte,
    "encoded twice": lambda path: quote_from_bytes(every_byte(path)).encode(),
    "encoded thrice": lambda path: quote_from_bytes(quote_from_bytes(every_byte(path)).encode()).encode(),
    "encoded slashes": lambda path: b"/" + path[1:].replace(b"/", b"%2f"),
    "slashes encoded twice": lambda path: b"/" + path[1:].replace(b"/", b"%252F"),
    "backslashes": lambda path: path.replace(b"/", b"\\"),
    "encoded backslashes": lambda path: b"/" + path[1:].replace(b"/", b"%5C"),
    "doubled slashes": lambda path: path.replace(b"/", b"//"),
    "capitals": bytes.upper,
    "swapped case": bytes.swapcase,
    "parameters": lambda path: path.replace(b"/", b";a=b/") + b";c",
    "encoded parameters": lambda path: path + b"%3bc=d",
    "up": lambda path: b"/x/.." + path,
    "up, encoded": lambda path: b"/x/%2e%2E" + path,
    "up, encoded twice": lambda path: b"/x/%252e%252e" + path,
    "up, with a parameter": lambda path: b"/x/..;y" + path,
    "up, by backslashes": lambda path: b"/x\\..\\" + path[1:],
    "up, twice": lambda path: b"/x/y/../.." + path,
    "up, too far": lambda path: b"/../.." + path,
    "dots": lambda path: path.replace(b"/", b"/./"),
    "encoded dots": lambda path: path.replace(b"/", b"/%2e/"),
    "trailing slash": lambda path: path + b"/",
    "trailing dot": lambda path: path + b"/.",
    "NUL": lambda path: path + b"%00.png",
    "question mark": lambda path: path + b"%3fa=b",
    "hash": lambda path: path + b"%23a",
    "blank": lambda path: path + b"%20",
    "parameters before decoding": lambda path: b"/;%2fz" + every_byte(path),
}


@given(
    st.lists(SEGMENTS, min_size=1, max_size=4),
    st.lists(SEGMENTS, min_size=1, max_size=3),
    st.sampled_from(sorted(DISGUISES)),
)
def test_any_disguise_of_any_path(first: list[bytes], rest: list[bytes], disguise: str) -> None:
    """For any protected part of the app and any path in it, every disguise has a reading that is under it."""
    part = b"/" + b"/".join(first)
    path = DISGUISES[disguise](part + b"/" + b"/".join(rest))
    assert under(part.decode() + "/**", path), path


ENCODINGS = ["plain", "encoded", "encoded slashes", "encoded parameters", "NUL", "blank"]
WAYS = ["up", "up, encoded", "up, with a parameter", "doubled slashes", "capitals", "trailing slash", "up, too far"]


@given(st.sampled_from(ENCODINGS), st.sampled_from(WAYS), st.sampled_from(WAYS))
def test_disguises_may_be_combined(encoding: str, one: str, other: str) -> None:
    """One put on over the other hides no more than each alone."""
    path = DISGUISES[other](DISGUISES[one](DISGUISES[encoding](b"/internal/users/1")))
    assert under("/internal/**", path), path


# ---------------------------------------------------------------- work


def took(path: bytes) -> float:
    """Seconds of CPU that it takes to read a path, at best."""
    times = []
    for _ in range(3):
        started = thread_time()
        readings(path)
        times.append(thread_time() - started)
    return min(times)


HOSTILE = [b"/%20", b"%20", b"/.", b"/..", b"/a/..", b"%252e", b"%25", b"/a;", b"\\", b"/%e2%80%8b", b"%c0%af"]
HOSTILE += [b"/%00", b"//", b"%ef%bc%8f", b". ", b"%20.", b"/%0b/", b"/x%20.%20.", b"/;%2f", b"%ff", b"/a/%2e%2e;/"]
HOSTILE += [b"%25%32%35", b"/%2e%2e%5c", b"%d0%b0%cc%81%cc%80", b" ", b"/A", b"a", b".", b"%u0061", b"%3f"]


@pytest.mark.parametrize("size", [200, 4000, 8000, 15_000, 60_000])
@pytest.mark.parametrize("piece", HOSTILE)
def test_reading_is_bounded_work(piece: bytes, size: int) -> None:
    """No path makes the guard read for longer than a few milliseconds, however it is made and however long it is."""
    assert took(b"/" + piece * (size // len(piece))) < 0.01


@given(st.lists(st.sampled_from(HOSTILE), min_size=10, max_size=300).map(b"".join))
@settings(max_examples=60)
def test_no_mixture_takes_longer(path: bytes) -> None:
    """Nor when it is mixed."""
    target(took(b"/" + path))
    assert took(b"/" + path) < 0.01


def test_long_plain_paths_have_one_reading() -> None:
    """The bound on length is for paths that may be read in several ways."""
    path = b"/abc" * (2 * LONGEST // 4)
    assert read(path) == (path,)
    assert readings(path + b"%20") is None
