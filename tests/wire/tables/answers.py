"""What a target sends: broken off, malformed, too much, or too early."""

from __future__ import annotations

from typing import Any

from tests.wire.model import OWN, Await, Expectation, Observed, answer, bad_gateway, both, either, say, served
from tests.wire.tables.build import (
    CODED,
    KIB,
    SMUGGLED,
    TWO_BYTES,
    But,
    Bytes,
    but,
    get,
    long,
    ok,
    old,
    post,
    sized,
    table,
)


def _broken(data: bytes, end: str, row: bytes = sized(), **own: Any) -> But:
    return but(row, bad_gateway(), target=(say(data, then=end),), **own)


def _late(data: bytes, rest: bytes, end: str) -> But:
    return but(sized(), bad_gateway(), target=(say(data, 0.01, rest, then=end),))


_TRUNCATED = {
    "length": ok(b"Content-Length: 10", body=b"half"),
    "length, nothing": ok(b"Content-Length: 10", body=b""),
    "length, last byte": ok(b"Content-Length: 10", body=b"012345678"),
    "inside a chunk": ok(CODED, body=b"a\r\nhalf"),
    "inside a chunk size": ok(CODED, body=b"4\r\nhalf\r\n1"),
    "between chunks": ok(CODED, body=b"4\r\nhalf\r\n"),
    "before the first chunk": ok(CODED, body=b""),
    "inside the last chunk": ok(CODED, body=b"4\r\nhalf\r\n0"),
    "before the last line end": ok(CODED, body=b"4\r\nhalf\r\n0\r\n"),
    "inside the last line end": ok(CODED, body=b"4\r\nhalf\r\n0\r\n\r"),
    "inside a trailer": ok(CODED, body=b"4\r\nhalf\r\n0\r\nX-A: 1\r\n"),
    "inside the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "before the empty line": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
    "inside the status line": b"HTTP/1.1 2",
    "behind an interim answer": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "nothing at all": b"",
}

TRUNCATED = table(
    "truncated answers",
    "9112 8",
    bad_gateway(),
    {
        **{f"{name}, FIN": _broken(data, "close") for name, data in _TRUNCATED.items()},
        **{f"{name}, RST": _broken(data, "reset") for name, data in _TRUNCATED.items()},
        "no length, RST": _late(ok(body=b"half"), b"", "reset"),
        "no length, FIN is its end": but(
            sized(), answer(200, b"whole"), target=(say(ok(body=b"whole"), 0.01, then="close"),)
        ),
        "late, length, FIN": _late(ok(b"Content-Length: 10", body=b"half"), b"more", "close"),
        "late, chunked, FIN": _late(ok(CODED, body=b"4\r\nhalf\r\n"), b"4\r\nmore\r\n", "close"),
        "late, before the last line end, FIN": _late(ok(CODED, body=b"4\r\nhalf\r\n"), b"0\r\n", "close"),
        "late, length, RST": _late(ok(b"Content-Length: 10", body=b"half"), b"more", "reset"),
        "HTTP/1.0 app, length, FIN": _broken(
            ok(b"Content-Length: 10", body=b"half"), "close", old(method=b"POST"), minor=0
        ),
        "HTTP/1.0 app, no length, RST": but(
            old(method=b"POST"), bad_gateway(), target=(say(ok(body=b"half"), 0.01, then="reset"),), minor=0
        ),
        "HTTP/1.0 app, chunked, RST": _broken(ok(CODED, body=b"4\r\nhalf\r\n"), "reset", old(method=b"POST"), minor=0),
        "HTTP/1.0 target, length, FIN": _broken(
            ok(b"Content-Length: 10", body=b"half", first=b"HTTP/1.0 200 OK"), "close"
        ),
    },
)

SANITISED = either(bad_gateway(), answer(200, b"ok"))

_MALFORMED: dict[str, tuple[bytes, Expectation]] = {
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", bad_gateway()),
    "HTTP/0.9": (b"<html>hello</html>", bad_gateway()),
    "HTTP/2.0": (long(first=b"HTTP/2.0 200 OK"), bad_gateway()),
    "HTTP/1.2": (long(first=b"HTTP/1.2 200 OK"), SANITISED),
    "ICY": (long(first=b"ICY 200 OK"), bad_gateway()),
    "lower-case http": (long(first=b"http/1.1 200 OK"), bad_gateway()),
    "status of two digits": (long(first=b"HTTP/1.1 20 OK"), bad_gateway()),
    "status of four digits": (long(first=b"HTTP/1.1 2000 OK"), bad_gateway()),
    "status 000": (long(first=b"HTTP/1.1 000 OK"), bad_gateway()),
    "status 099": (long(first=b"HTTP/1.1 099 OK"), bad_gateway()),
    "status -200": (long(first=b"HTTP/1.1 -200 OK"), bad_gateway()),
    "status 2x0": (long(first=b"HTTP/1.1 2x0 OK"), bad_gateway()),
    "status 600": (long(first=b"HTTP/1.1 600 OK"), bad_gateway()),
    "status 999": (long(first=b"HTTP/1.1 999 OK"), bad_gateway()),
    "no status": (long(first=b"HTTP/1.1 OK"), bad_gateway()),
    "no reason": (long(first=b"HTTP/1.1 200"), SANITISED),
    "a request": (SMUGGLED, bad_gateway()),
    "CR in the reason": (long(first=b"HTTP/1.1 200 O\rK"), SANITISED),
    "NUL in the reason": (long(first=b"HTTP/1.1 200 O\x00K"), SANITISED),
    "LF for CR LF": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", SANITISED),
    "LF between fields": (long(b"ok", b"X-A: 1\nX-B: 2"), SANITISED),
    "CR in a value": (long(b"ok", b"X-A: 1\rX-B: 2"), SANITISED),
    "NUL in a value": (long(b"ok", b"X-A: \x001"), SANITISED),
    "CTL in a value": (long(b"ok", b"X-A: \x01\x1f"), SANITISED),
    "DEL in a value": (long(b"ok", b"X-A: \x7f"), SANITISED),
    "NUL in a name": (long(b"ok", b"X-\x00A: 1"), SANITISED),
    "space in a name": (long(b"ok", b"X A: 1"), SANITISED),
    "fold": (long(b"ok", b"X-A: 1\r\n 2"), SANITISED),
    "fold right behind the status line": (ok(b" X-A: 1", TWO_BYTES), SANITISED),
    "space before the colon": (long(b"ok", b"X-A : 1"), SANITISED),
    "space before the colon of the length": (ok(b"Content-Length : 2"), SANITISED),
    "space before the colon of the coding": (
        ok(b"Transfer-Encoding : chunked", TWO_BYTES, body=b"2\r\nok\r\n0\r\n\r\n"),
        bad_gateway(),
    ),
    "no colon": (long(b"ok", b"X-A"), SANITISED),
    "empty name": (long(b"ok", b": 1"), SANITISED),
    "length and chunked": (ok(TWO_BYTES, CODED, body=b"2\r\nok\r\n0\r\n\r\n"), SANITISED),
    "chunked and length": (ok(CODED, TWO_BYTES, body=b"2\r\nok\r\n0\r\n\r\n"), SANITISED),
    "two lengths": (ok(TWO_BYTES, b"Content-Length: 3", body=b"ok!"), bad_gateway()),
    "two equal lengths": (ok(TWO_BYTES, TWO_BYTES), SANITISED),
    "list of equal lengths": (ok(b"Content-Length: 2, 2"), SANITISED),
    "list of lengths": (ok(b"Content-Length: 2, 3", body=b"ok!"), bad_gateway()),
    "length -2": (ok(b"Content-Length: -2"), bad_gateway()),
    "length +2": (ok(b"Content-Length: +2"), bad_gateway()),
    "length 0x2": (ok(b"Content-Length: 0x2"), bad_gateway()),
    "length 2_0": (ok(b"Content-Length: 0_2"), bad_gateway()),
    "length empty": (ok(b"Content-Length:"), bad_gateway()),
    "length overflows": (ok(b"Content-Length: 18446744073709551618"), bad_gateway()),
    "gzip, chunked": (
        ok(b"Transfer-Encoding: gzip, chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
        SANITISED,
    ),
    "gzip": (ok(b"Transfer-Encoding: gzip"), bad_gateway()),
    "chunked, gzip": (ok(b"Transfer-Encoding: chunked, gzip", body=b"2\r\nok\r\n0\r\n\r\n"), bad_gateway()),
    "chunked twice": (ok(CODED, CODED, body=b"2\r\nok\r\n0\r\n\r\n"), SANITISED),
    "xchunked": (ok(b"Transfer-Encoding: xchunked", body=b"2\r\nok\r\n0\r\n\r\n"), bad_gateway()),
    "chunked behind a VT": (ok(b"Transfer-Encoding: \x0bchunked", body=b"2\r\nok\r\n0\r\n\r\n"), bad_gateway()),
    "chunked in HTTP/1.0": (ok(CODED, body=b"2\r\nok\r\n0\r\n\r\n", first=b"HTTP/1.0 200 OK"), SANITISED),
    "chunk size zz": (ok(CODED, body=b"zz\r\nok\r\n0\r\n\r\n"), bad_gateway()),
    "chunk size +2": (ok(CODED, body=b"+2\r\nok\r\n0\r\n\r\n"), bad_gateway()),
    "chunk size overflows": (ok(CODED, body=b"10000000000000002\r\nok\r\n0\r\n\r\n"), bad_gateway()),
    "junk for the line end of a chunk": (ok(CODED, body=b"2\r\nokXX0\r\n\r\n"), bad_gateway()),
    "LF in a chunk extension": (ok(CODED, body=b"2;a\nb\r\nok\r\n0\r\n\r\n"), SANITISED),
    "valid chunk extension": (ok(CODED, body=b"2;a=b\r\nok\r\n0\r\n\r\n"), answer(200, b"ok")),
    "trailer": (ok(CODED, body=b"2\r\nok\r\n0\r\nX-Poison: 1\r\n\r\n"), answer(200, b"ok", absent=("x-poison",))),
    "trailer with a length": (
        ok(CODED, body=b"2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n"),
        either(bad_gateway(), answer(200, b"ok")),
    ),
    "value of 300 KiB": (long(b"ok", b"X-A: " + b"x" * 300 * KIB), bad_gateway()),
    "5000 fields": (long(b"ok", *(b"X-A: %d" % n for n in range(5000))), bad_gateway()),
    "endless head": (b"HTTP/1.1 200 OK\r\n" + b"X-A: 1\r\n" * 200_000, bad_gateway()),
}

MALFORMED = table(
    "malformed answers",
    "9112 2.2, 4, 5.1, 5.2, 6.3",
    bad_gateway(),
    {name: but(sized(), expect, target=(say(data, then="close"),)) for name, (data, expect) in _MALFORMED.items()},
)

_POISON = long(b"poison", b"X-Poison: 1")
_MINE = {
    "length": (get(), long(b"mine"), answer(200, b"mine")),
    "chunked": (get(), ok(CODED, body=b"4\r\nmine\r\n0\r\n\r\n"), answer(200, b"mine")),
    "204": (get(), b"HTTP/1.1 204 No Content\r\n\r\n", answer(204, b"")),
    "304": (get(), ok(b"Content-Length: 6", body=b"", first=b"HTTP/1.1 304 Not Modified"), answer(304, b"")),
    "HEAD": (get(method=b"HEAD"), ok(b"Content-Length: 6", body=b""), answer(200, b"")),
    "POST": (sized(), long(b"mine"), answer(200, b"mine")),
}


def _unpoisoned(expect: Expectation) -> Expectation:
    def check(it: Observed) -> str:
        return "the poison reached the app" if b"oison" in it.raw else ""

    return both(either(expect, bad_gateway(), served()), check)  # a GET may be repeated


def _queue(row: bytes, said: tuple[bytes | float, ...], expect: Expectation, wait: float, end: str = "keep") -> But:
    return but((row, Await.ANSWER, wait) if wait else row, _unpoisoned(expect), target=(say(*said, then=end), OWN))


_QUEUE: dict[str, Bytes | But] = {}
for _name, (_row, _said, _expect) in _MINE.items():
    _QUEUE[f"answer behind {_name}, at once"] = _queue(_row, (_said + _POISON,), _expect, 0.0)
    _QUEUE[f"answer behind {_name}, right after"] = _queue(_row, (_said, _POISON), _expect, 0.0)
    _QUEUE[f"answer behind {_name}, later"] = _queue(_row, (_said, 0.01, _POISON), _expect, 0.03)
for _name, _extra in {
    "garbage": b"poison garbage",
    "half an answer": _POISON[:-4],
    "line end": b"\r\n",
    "interim answer": b"HTTP/1.1 103 Early Hints\r\nX-Poison: 1\r\n\r\n",
    "100 (Continue)": b"HTTP/1.1 100 Continue\r\n\r\n",
    "408 and close": long(b"poison", b"Connection: close", first=b"HTTP/1.1 408 Timeout"),
    "NUL": b"\x00",
}.items():
    _QUEUE[f"{_name} at once"] = _queue(get(), (long(b"mine") + _extra,), answer(200, b"mine"), 0.0)
    _QUEUE[f"{_name} later"] = _queue(get(), (long(b"mine"), 0.01, _extra), answer(200, b"mine"), 0.03)
_QUEUE |= {
    "204 with a length and a body": _queue(
        get(), (ok(b"Content-Length: 6", body=b"poison", first=b"HTTP/1.1 204 No Content"),), answer(204, b""), 0.0
    ),
    "204 with a chunked body": _queue(
        get(), (ok(CODED, body=b"6\r\npoison\r\n0\r\n\r\n", first=b"HTTP/1.1 204 No Content"),), answer(204, b""), 0.0
    ),
    "304 with a body": _queue(
        get(), (ok(b"Content-Length: 6", body=b"poison", first=b"HTTP/1.1 304 Not Modified"),), answer(304, b""), 0.0
    ),
    "304 with a chunked body": _queue(
        get(), (ok(CODED, body=b"6\r\npoison\r\n0\r\n\r\n", first=b"HTTP/1.1 304 Not Modified"),), answer(304, b""), 0.0
    ),
    "HEAD with a body": _queue(get(method=b"HEAD"), (long(b"poison"),), answer(200, b""), 0.0),
    "HEAD with a body, later": _queue(
        get(method=b"HEAD"), (ok(b"Content-Length: 6", body=b""), 0.01, b"poison"), answer(200, b""), 0.03
    ),
    "HEAD with a chunked body": _queue(
        get(method=b"HEAD"), (ok(CODED, body=b"6\r\npoison\r\n0\r\n\r\n"),), answer(200, b""), 0.0
    ),
    "HEAD with an answer as its body": _queue(
        get(method=b"HEAD"), (ok(b"Content-Length: %d" % len(_POISON), body=_POISON),), answer(200, b""), 0.0
    ),
    "close that is a lie": _queue(get(), (long(b"mine", b"Connection: close") + _POISON,), answer(200, b"mine"), 0.0),
    "close that is a lie, later": _queue(
        get(), (long(b"mine", b"Connection: close"), 0.01, _POISON), answer(200, b"mine"), 0.03
    ),
    "close that never comes": _queue(get(), (long(b"mine", b"Connection: close"),), answer(200, b"mine"), 0.0, "hold"),
    "HTTP/1.0 that stays open": _queue(
        get(), (long(b"mine", first=b"HTTP/1.0 200 OK"), 0.01, _POISON), answer(200, b"mine"), 0.03
    ),
    "HTTP/1.0 and an answer at once": _queue(
        get(), (long(b"mine", first=b"HTTP/1.0 200 OK") + _POISON,), answer(200, b"mine"), 0.0
    ),
    "HTTP/1.0, keep-alive, and an answer": _queue(
        get(),
        (long(b"mine", b"Connection: keep-alive", first=b"HTTP/1.0 200 OK") + _POISON,),
        answer(200, b"mine"),
        0.0,
    ),
    "second answer to a POST whose body is late": but(
        (post(b"Content-Length: 3"), Await.ANSWER, b"abc", 0.02),
        _unpoisoned(answer(200, b"mine")),
        target=(say(long(b"mine") + _POISON, read="head"), OWN),
    ),
}

RESPONSE_QUEUE = table("response queue", "9112 6.3.1, 9.2, 9.6", served(), _QUEUE)
