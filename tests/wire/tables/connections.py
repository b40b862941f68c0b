"""One connection and its requests: Expect, HTTP/1.0, pipelining, limits of size and of time."""

from __future__ import annotations

from typing import Any

from tests.wire.model import (
    OWN,
    Await,
    Observed,
    Own,
    abort,
    answer,
    bad_gateway,
    both,
    clean,
    closes,
    either,
    nothing_upstream,
    refuse,
    refuse_early,
    say,
    served,
    status,
    statuses,
    waits,
)
from tests.wire.tables.build import (
    ABC,
    CHUNKED_OK,
    CODED,
    HOST,
    KIB,
    LAST,
    MIB,
    NEXT,
    SMUGGLED,
    THIRD,
    TWO,
    but,
    coded,
    cut,
    get,
    line,
    long,
    ok,
    old,
    post,
    sized,
    table,
)

_EXPECT = b"Expect: 100-continue"
_ASKS = post(b"Content-Length: 3", _EXPECT)
_ASKS_LONG = post(b"Content-Length: %d" % len(SMUGGLED), _EXPECT)


def _continued(it: Observed) -> str:
    return "" if any(one.status == 100 for one in it.interims) else "no 100 (Continue)"


EXPECT = table(
    "Expect",
    "9110 10.1.1",
    clean(b"abc"),
    {
        "100, then the body": but((_ASKS, Await.INTERIM, b"abc"), both(clean(b"abc"), _continued)),
        "target never says 100": but(
            (_ASKS, Await.INTERIM, b"abc"), both(clean(b"abc"), _continued), target=(say(Own.ANSWER, read="silent"),)
        ),
        "app does not wait for 100": (_ASKS, 0.01, b"abc"),
        "body in the same segment": post(b"Content-Length: 3", _EXPECT, body=b"abc"),
        "chunked": but((post(CODED, _EXPECT), Await.INTERIM, ABC), both(clean(b"abc"), _continued)),
        "in another case": (post(b"Content-Length: 3", b"EXPECT: 100-Continue"), Await.INTERIM, b"abc"),
        "without a body": but(get(_EXPECT), either(clean(b""), refuse())),
        "length zero": but(post(b"Content-Length: 0", _EXPECT), either(clean(b""), refuse())),
        "unknown expectation": but(
            (post(b"Content-Length: 3", b"Expect: 200-ok"), 0.01, b"abc"), either(clean(b"abc"), refuse(417))
        ),
        "nominated in Connection": (post(b"Content-Length: 3", _EXPECT, b"Connection: expect"), Await.INTERIM, b"abc"),
        "twice": but(
            (post(b"Content-Length: 3", _EXPECT, _EXPECT), 0.01, b"abc"), either(clean(b"abc"), refuse(417, 400))
        ),
        "HTTP/1.0 gets no 100": but(
            old(_EXPECT, b"Content-Length: 3", method=b"POST", body=b"abc"), either(clean(b"abc"), refuse()), minor=0
        ),
        "final answer instead, body withheld": but(
            (_ASKS, Await.ANSWER),
            either(status(403), both(waits(), _continued)),
            target=(say(long(b"no", first=b"HTTP/1.1 403 Forbidden"), read="head"),),
            after="skip",
            patience=1.0,
        ),
        "final answer instead, body sent all the same": but(
            (_ASKS_LONG, Await.ANSWER, SMUGGLED),
            status(403),
            target=(say(long(b"no", first=b"HTTP/1.1 403 Forbidden"), read="head"),),
        ),
        "final 200 instead, body sent all the same": but(
            (_ASKS_LONG, Await.ANSWER, SMUGGLED), status(200), target=(say(Own.ANSWER, read="head"),)
        ),
        "417 instead, and close": but(
            (_ASKS_LONG, Await.ANSWER, SMUGGLED),
            # The first attempt may be repeated without the expectation (RFC 9110 section 10.1.1).
            status(417, 502, 503),
            target=(say(long(b"", b"Connection: close", first=b"HTTP/1.1 417 No"), read="head", then="close"),),
        ),
        "target closes instead": but(
            (_ASKS_LONG, Await.ANSWER, SMUGGLED), bad_gateway(), target=(say(read="head", then="close"),)
        ),
        "target says 100 twice": but(
            (_ASKS, Await.INTERIM, b"abc"),
            served(),
            target=(say(b"HTTP/1.1 100 Continue\r\n\r\n", Own.ANSWER),),
        ),
        "100 and the final answer before the body": but(
            (_ASKS_LONG, Await.ANSWER, SMUGGLED),
            status(200),
            target=(say(b"HTTP/1.1 100 Continue\r\n\r\n", Own.ANSWER, read="head"),),
        ),
        "next request behind the body": but(
            (_ASKS, Await.INTERIM, b"abc" + get(path=b"/user/y")),
            served(),
            paths=("/x", "/y"),
            methods=("POST", "GET"),
        ),
        "unknown target": but(
            (post(b"Content-Length: %d" % len(SMUGGLED), _EXPECT, path=b"/nobody/x"), Await.ANSWER, SMUGGLED), refuse()
        ),
    },
    patience=2.5,
)


def _kept_alive_says_so(it: Observed) -> str:
    """HTTP/1.0 apps are told, or the connection ends (RFC 9112 section 9.3)."""
    if it.closed or not it.answers or b"keep-alive" in it.answers[-1].tokens("connection"):
        return ""
    return "kept alive for HTTP/1.0 without a word"


def _only_first(it: Observed) -> str:
    if len(it.answers) != 1 or it.status != 200:
        return f"expected one answer, got {it.answers}"
    return closes(it)


VERSIONS = table(
    "HTTP/1.0",
    "9112 9.3, 9110 15.2",
    both(clean(b""), closes),
    {
        "plain": old(),
        "close": old(b"Connection: close"),
        "HEAD": old(method=b"HEAD"),
        "POST": but(old(b"Content-Length: 3", method=b"POST", body=b"abc"), both(clean(b"abc"), closes)),
        "keep-alive": but(old(b"Connection: keep-alive"), both(clean(b""), _kept_alive_says_so)),
        "Keep-Alive in another case": but(old(b"Connection: Keep-Alive"), both(clean(b""), _kept_alive_says_so)),
        "keep-alive and close": but(old(b"Connection: keep-alive, close"), both(clean(b""), closes)),
        "keep-alive, two calls": but(
            (
                old(b"Connection: keep-alive"),
                Await.ANSWER,
                old(b"Connection: keep-alive", path=b"/user/y"),
            ),
            either(served(), _only_first),
            paths=TWO,
        ),
        "Proxy-Connection: keep-alive": but(
            old(b"Proxy-Connection: keep-alive"), both(clean(b""), _kept_alive_says_so)
        ),
        "request behind": but(old() + old(path=b"/user/smuggled"), _only_first),
        "chunked answer": but(
            old(),
            either(answer(200, b"ok", framing="close"), answer(200, b"ok", framing="length")),
            target=(say(CHUNKED_OK),),
        ),
        "chunked answer, keep-alive": but(
            old(b"Connection: keep-alive"),
            both(
                either(answer(200, b"ok", framing="close"), answer(200, b"ok", framing="length")), _kept_alive_says_so
            ),
            target=(say(CHUNKED_OK),),
        ),
        "chunked answer breaks off": but(
            old(), bad_gateway(), target=(say(ok(CODED, body=b"20\r\nhalf of it"), then="close"),)
        ),
        "chunked answer breaks off, later": but(
            old(), bad_gateway(), target=(say(ok(CODED, body=b"4\r\nhalf\r\n"), 0.02, then="close"),)
        ),
        "interim answers": but(
            old(), answer(200, b"ok"), target=(say(b"HTTP/1.1 103 Early Hints\r\n\r\n" + long(b"ok")),)
        ),
        "answer that ends with the connection": but(
            old(), answer(200, b"ok"), target=(say(ok(body=b"ok"), then="close"),)
        ),
        "no Host, keep-alive": but(
            line(b"GET /user/x HTTP/1.0", b"Connection: keep-alive"),
            either(refuse(400), both(clean(b""), _kept_alive_says_so)),
        ),
    },
    minor=0,
)

_SECOND_REFUSED: dict[str, Any] = {"methods": ("GET", "GET"), "after": "refused"}


def _then_refused(it: Observed) -> str:
    """The first request is served, the second is refused, and nothing after it is read."""
    if it.status != 200:
        return f"the first request got {it.answers} ({it.end})"
    if len(it.answers) > 2 or any(one.status < 400 for one in it.answers[1:]):
        return f"expected an answer and a refusal, got {it.answers}"
    return closes(it)


PIPELINING = table(
    "connections and pipelining",
    "9112 9.3, 9.6",
    served(),
    {
        "two": but(get() + NEXT, served(), paths=TWO),
        "two, byte by byte": but(cut(get() + NEXT, 1), served(), paths=TWO),
        "five": but(
            b"".join(get(path=b"/user/%d" % n) for n in range(5)), served(), paths=tuple(f"/{n}" for n in range(5))
        ),
        "300": but(
            b"".join(get(path=b"/user/%d" % n) for n in range(300)),
            served(),
            "CVE-2026-54273",
            paths=tuple(f"/{n}" for n in range(300)),
            patience=5.0,
        ),
        "POST and GET": but(sized() + NEXT, served(), paths=TWO, methods=("POST", "GET")),
        "HEAD in the middle": but(
            get() + get(method=b"HEAD", path=b"/user/y") + THIRD,
            served(),
            paths=("/x", "/y", "/z"),
            methods=("GET", "HEAD", "GET"),
        ),
        "empty line between": but(sized() + b"\r\n" + NEXT, served(), "9112 2.2", paths=TWO, methods=("POST", "GET")),
        "first is slow": but(get() + NEXT, served(), paths=TWO, target=(say(0.02, Own.ANSWER), OWN)),
        "first answer says close": but(
            get() + NEXT,
            statuses(200, 200),
            paths=TWO,
            target=(say(long(b"ok", b"Connection: close"), then="close"), OWN),
        ),
        "first answer ends with the connection": but(
            get() + NEXT,
            either(statuses(200, 200), both(statuses(200), closes)),
            paths=TWO,
            target=(say(ok(body=b"ok"), then="close"), OWN),
        ),
        "first answer is malformed": but(
            sized() + NEXT,
            either(statuses(502, 200), statuses(502)),
            paths=TWO,
            methods=("POST", "GET"),
            target=(say(ok(b"Content-Length: x"), then="close"), OWN),
        ),
        "unknown target in the middle": but(
            get() + get(path=b"/nobody/x") + NEXT,
            lambda it: "" if it.status == 200 and it.answers[1].status >= 400 else f"got {it.answers}",
            paths=("/x", "/nobody/x", "/y"),
        ),
        "malformed in the middle": but(
            get() + line(b"GET /user/y HTTP/1.1", b"Host: a", b"X-A : 1") + SMUGGLED, _then_refused, **_SECOND_REFUSED
        ),
        "garbage in the middle": but(get() + b"\x00\x01\x02\r\n\r\n" + SMUGGLED, _then_refused, **_SECOND_REFUSED),
        "both framings in the middle": but(
            get() + post(CODED, b"Content-Length: 6", body=LAST + b"G", path=b"/user/y") + SMUGGLED[1:],
            either(_then_refused, both(statuses(200, 200), closes)),
            paths=TWO,
            methods=("GET", "POST"),
            after="refused",
        ),
        "no Host in the middle": but(
            get() + line(b"GET /user/y HTTP/1.1") + SMUGGLED, _then_refused, **_SECOND_REFUSED
        ),
        "bad chunk in the middle": but(
            get() + coded(b"zz\r\nabc\r\n0\r\n\r\n", path=b"/user/y") + SMUGGLED,
            _then_refused,
            methods=("GET", "POST"),
            paths=TWO,
            after="refused",
        ),
        "close": but(get(b"Connection: close"), both(clean(b""), closes)),
        "close, then a request": but(get(b"Connection: close") + SMUGGLED, _only_first),
        "Close in another case": but(get(b"Connection: Close") + SMUGGLED, _only_first),
        "close in a list": but(get(b"Connection: foo, close") + SMUGGLED, _only_first),
        "close in the second Connection": but(get(b"Connection: foo", b"Connection: close") + SMUGGLED, _only_first),
        "close and keep-alive": but(get(b"Connection: keep-alive, close") + SMUGGLED, _only_first),
        "close with a body, then a request": but(
            sized(b"abc", b"Connection: close") + SMUGGLED, both(clean(b"abc"), _only_first)
        ),
        "close with a chunked body, then a request": but(
            coded(ABC, b"Connection: close") + SMUGGLED, both(clean(b"abc"), _only_first)
        ),
        "close with a body in two segments, then a request": but(
            (post(b"Connection: close", b"Content-Length: 3", body=b"a"), Await.UPSTREAM, b"bc" + SMUGGLED),
            both(clean(b"abc"), _only_first),
        ),
        "close with a chunked body in two segments, then a request": but(
            (coded(b"3\r\na", b"Connection: close"), Await.UPSTREAM, b"bc\r\n0\r\n\r\n" + SMUGGLED),
            both(clean(b"abc"), _only_first),
        ),
        "close in the second of three": but(
            get() + get(b"Connection: close", path=b"/user/y") + SMUGGLED, both(statuses(200, 200), closes), paths=TWO
        ),
        "keep-alive": but(get(b"Connection: keep-alive"), clean(b"")),
        "HTTP/1.0 behind HTTP/1.1": but(
            get() + old(path=b"/user/y") + SMUGGLED, both(statuses(200, 200), closes), paths=TWO
        ),
    },
)

_LINE = b"X-A: " + b"x" * 1015 + b"\r\n"
_EARLY_ENOUGH = refuse_early(4 * MIB)

SIZES = table(
    "size limits",
    "6585 5, 9110 4.1",
    _EARLY_ENOUGH,
    {
        "value of 100 KiB": get(b"X-A: " + b"x" * 100 * KIB),
        "value of 100 KiB in 1 KiB segments": cut(get(b"X-A: " + b"x" * 100 * KIB), KIB),
        "100 fields of 1 KiB": get(*(b"X-%d: " % n + b"x" * KIB for n in range(100))),
        "100 fields of 1 KiB in 1 KiB segments": cut(get(*(b"X-%d: " % n + b"x" * KIB for n in range(100))), KIB),
        "name of 100 KiB": get(b"x" * 100 * KIB + b": 1"),
        "name of 100 KiB in 1 KiB segments": cut(get(b"x" * 100 * KIB + b": 1"), KIB),
        "target of 100 KiB": get(path=b"/user/" + b"x" * 100 * KIB),
        "target of 100 KiB in 1 KiB segments": cut(get(path=b"/user/" + b"x" * 100 * KIB), KIB),
        "method of 100 KiB": line(b"G" * 100 * KIB + b" /user/x HTTP/1.1", b"Host: app.test"),
        "1000 fields": get(*(b"X-%d: 1" % n for n in range(1000))),
        "1000 fields in small segments": cut(get(*(b"X-%d: 1" % n for n in range(1000))), 100),
        "5000 empty fields": get(*(b"X:",) * 5000),
        "endless value": (b"GET /user/x HTTP/1.1\r\n" + HOST + b"X-A: ", *(b"x" * KIB,) * (5 * KIB)),
        "endless fields": (b"GET /user/x HTTP/1.1\r\n" + HOST, *(_LINE,) * (5 * KIB)),
        "endless small fields": (b"GET /user/x HTTP/1.1\r\n" + HOST, *(b"X: 1\r\n" * 170,) * (5 * KIB)),
        "endless target": (b"GET /user/", *(b"x" * KIB,) * (5 * KIB)),
        "endless method": (b"G" * KIB,) * (5 * KIB),
        "endless name": (b"GET /user/x HTTP/1.1\r\n" + HOST, *(b"x" * KIB,) * (5 * KIB)),
        "endless empty lines": but((b"\r\n" * 512,) * (5 * KIB), either(_EARLY_ENOUGH, nothing_upstream), patience=0.1),
        "behind a good request": but(
            (get(), Await.ANSWER, b"GET /user/y HTTP/1.1\r\n" + HOST, *(_LINE,) * 100, b"\r\n"),
            _then_refused,
            methods=("GET", "GET"),
        ),
        "pipelined behind a good request": but(
            get() + get(b"X-A: " + b"x" * 100 * KIB, path=b"/user/y"), _then_refused, methods=("GET", "GET")
        ),
        "target of 1 MiB with a body": post(b"Content-Length: 3", path=b"/user/" + b"x" * MIB, body=b"abc"),
        "value of 6 KiB": but(get(b"X-A: " + b"x" * 6 * KIB), clean(b"")),
        "50 fields": but(get(*(b"X-%d: 1" % n for n in range(50))), clean(b"")),
        "HTTP/1.0, value of 100 KiB": but(old(b"X-A: " + b"x" * 100 * KIB), _EARLY_ENOUGH, minor=0),
    },
    after="refused",
)

# The cases about time, with limits of 300 ms.
_DRIP = tuple(step for byte in b"X-A: " + b"x" * 60 for step in (bytes([byte]), 0.02))
_DRIP_LINE = tuple(step for byte in b"GET /user/" + b"x" * 50 for step in (bytes([byte]), 0.02))


_CUT_EARLY = either(status(408), abort())

SLOW = table(
    "slow",
    "6585, 9110 15.5.9",
    _CUT_EARLY,
    {
        "head stops": (b"GET /user/x HTTP/1.1\r\nHost: app", Await.END),
        "head stops before the empty line": (b"GET /user/x HTTP/1.1\r\n" + HOST, Await.END),
        "head drips": (b"GET /user/x HTTP/1.1\r\n" + HOST, *_DRIP, Await.END),
        "request line drips": (*_DRIP_LINE, Await.END),
        "body stops": (post(b"Content-Length: 1000", body=b"abc"), Await.END),
        "body never begins": (post(b"Content-Length: 1000"), Await.END),
        "chunked body stops": (coded(b"3\r\nabc\r\n"), Await.END),
        "chunked body stops inside a size": (coded(b"3\r\nabc\r\n1"), Await.END),
        "trailers stop": (coded(b"3\r\nabc\r\n0\r\nX-A: 1"), Await.END),
        "second head stops": but(
            (get() + b"GET /user/y HTTP/1.1\r\n", Await.END),
            lambda it: "" if it.status == 200 and it.end != "open" else f"got {it.answers} ({it.end})",
            methods=("GET", "GET"),
        ),
        "answer stops": but(
            sized(), bad_gateway(), target=(say(ok(b"Content-Length: 10", body=b"half"), then="hold"),)
        ),
        "chunked answer stops": but(
            sized(), bad_gateway(), target=(say(ok(CODED, body=b"4\r\nhalf\r\n"), then="hold"),)
        ),
        "answer never begins": but(sized(), status(502, 503, 504), target=(say(then="hold"),)),
        "head of the answer stops": but(
            sized(), status(502, 503, 504), target=(say(b"HTTP/1.1 200 OK\r\n", then="hold"),)
        ),
    },
    limits="short",
    after="skip",
    patience=2.5,
)
