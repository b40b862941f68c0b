"""What takes more than a request and an answer: 1xx, repeats, upgrades."""

from __future__ import annotations

from typing import Any

from tests.wire.model import (
    OWN,
    Await,
    Expectation,
    Observed,
    Own,
    Say,
    abort,
    answer,
    at_most,
    bad_gateway,
    both,
    clean,
    closes,
    either,
    refuse,
    say,
    served,
    status,
    statuses,
)
from tests.wire.tables.build import (
    ABC,
    CHUNKED_OK,
    KIB,
    NEXT,
    SMUGGLED,
    TWO,
    TWO_BYTES,
    But,
    Bytes,
    but,
    coded,
    get,
    long,
    ok,
    old,
    sized,
    table,
)

_HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
_FINAL = long(b"ok")


def _interim(data: bytes, expect: Expectation = answer(200, b"ok"), row: bytes = get(), **own: Any) -> But:  # noqa: B008
    return but(row, expect, target=(say(data),), **own)


def _hops_gone(it: Observed) -> str:
    left = {name for one in it.interims for name in one.names()} & {"x-hop", "keep-alive", "connection", "upgrade"}
    return f"hop-by-hop fields in 1xx: {left}" if left else ""


INTERIM = table(
    "1xx",
    "9110 15.2",
    answer(200, b"ok"),
    {
        "100 unasked": _interim(b"HTTP/1.1 100 Continue\r\n\r\n" + _FINAL),
        "102": _interim(b"HTTP/1.1 102 Processing\r\n\r\n" + _FINAL),
        "103": _interim(_HINT + _FINAL),
        "150": _interim(b"HTTP/1.1 150 Fine\r\n\r\n" + _FINAL),
        "199": _interim(b"HTTP/1.1 199 Fine\r\n\r\n" + _FINAL),
        "three": _interim(_HINT * 3 + _FINAL),
        "50": _interim(_HINT * 50 + _FINAL),
        "3000": _interim(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000 + _FINAL),
        "103 before a chunked answer": _interim(_HINT + CHUNKED_OK),
        "103, then the answer later": but(get(), answer(200, b"ok"), target=(say(_HINT, 0.01, _FINAL),)),
        "103 in pieces": but(get(), answer(200, b"ok"), target=(say(_HINT[:20], 0.005, _HINT[20:] + _FINAL),)),
        "103 to POST": _interim(_HINT + _FINAL, row=sized()),
        "103 to HEAD": _interim(_HINT + ok(TWO_BYTES, body=b""), answer(200, b""), get(method=b"HEAD")),
        "103 before 204": _interim(_HINT + b"HTTP/1.1 204 No Content\r\n\r\n", answer(204, b"")),
        "103 with a length of zero": _interim(
            b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n" + _FINAL, either(answer(200, b"ok"), bad_gateway())
        ),
        "103 with a length": _interim(
            b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n" + _FINAL, either(answer(200, b"ok"), bad_gateway())
        ),
        "103 with a coding": _interim(
            b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n" + _FINAL,
            either(answer(200, b"ok"), bad_gateway()),
        ),
        "103 with hop-by-hop fields": _interim(
            b"HTTP/1.1 103 Early Hints\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\r\n" + _FINAL,
            both(answer(200, b"ok"), _hops_gone),
        ),
        "103 with a NUL": _interim(
            b"HTTP/1.1 103 Early Hints\r\nX-A: \x00\r\n\r\n" + _FINAL, either(answer(200, b"ok"), bad_gateway())
        ),
        "103 with a huge head": _interim(
            b"HTTP/1.1 103 Early Hints\r\nX-A: " + b"x" * 300 * KIB + b"\r\n\r\n" + _FINAL,
            either(answer(200, b"ok"), bad_gateway()),
        ),
        "103 to HTTP/1.0": _interim(_HINT + _FINAL, row=old(), minor=0),
        "100 to HTTP/1.0": _interim(b"HTTP/1.1 100 Continue\r\n\r\n" + _FINAL, row=old(), minor=0),
        "103 to both of two pipelined": but(get() + NEXT, statuses(200, 200), paths=TWO, target=(say(_HINT + _FINAL),)),
        "103, then nothing": but(get(), bad_gateway(), target=(say(_HINT, then="close"),)),
        "101 unasked": _interim(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello", bad_gateway()
        ),
        "101 unasked, bare": _interim(b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello", bad_gateway()),
        "101 unasked, then an answer": _interim(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + _FINAL, bad_gateway()),
        "101 unasked, to POST": _interim(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", bad_gateway(), sized()
        ),
        "101 behind 103": _interim(_HINT + b"HTTP/1.1 101 Switching Protocols\r\n\r\n", bad_gateway()),
    },
)

_STALE: dict[str, tuple[Say, ...]] = {"FIN": (OWN, say(then="close"), OWN), "RST": (OWN, say(then="reset"), OWN)}
_IDLE_CLOSE = (say(Own.ANSWER, then="close"), OWN)
_PUT = sized(b"abc", method=b"PUT", path=b"/user/y")
_POST = sized(b"abc", path=b"/user/y")
_BROKEN_OFF = ok(b"Content-Length: 10", body=b"half")
_UNANSWERED: dict[str, tuple[Say, ...]] = {"FIN": (say(then="close"),), "RST": (say(then="reset"),)}
_503 = (say(long(b"down", first=b"HTTP/1.1 503 Down")),)
_SECOND_GOOD = both(served(), lambda it: "" if len(it.answers) == 2 else f"got {it.answers}")
_SECOND_FAILS = at_most(1, "/y", lambda it: "" if it.status == 200 else f"the first got {it.answers}")

_RETRIES: dict[str, Bytes | But] = {}
for _end, _script in _STALE.items():
    _two: dict[str, Any] = {"paths": TWO, "target": _script}
    _RETRIES[f"stale connection, {_end}, GET"] = but((get(), Await.ANSWER, NEXT), _SECOND_GOOD, **_two)
    _RETRIES[f"stale connection, {_end}, HEAD"] = but(
        (get(), Await.ANSWER, get(method=b"HEAD", path=b"/user/y")), _SECOND_GOOD, methods=("GET", "HEAD"), **_two
    )
    _RETRIES[f"stale connection, {_end}, POST"] = but(
        (get(), Await.ANSWER, _POST), _SECOND_FAILS, methods=("GET", "POST"), **_two
    )
    _RETRIES[f"stale connection, {_end}, chunked POST"] = but(
        (get(), Await.ANSWER, coded(path=b"/user/y")), _SECOND_FAILS, methods=("GET", "POST"), **_two
    )
for _end, _script in _UNANSWERED.items():
    _RETRIES[f"never an answer, {_end}, POST"] = but(sized(), at_most(1, "/x", bad_gateway()), target=_script)
    _RETRIES[f"never an answer, {_end}, chunked POST"] = but(coded(), at_most(1, "/x", bad_gateway()), target=_script)
    _RETRIES[f"never an answer, {_end}, PATCH"] = but(
        sized(method=b"PATCH"), at_most(1, "/x", bad_gateway()), target=_script
    )
    _RETRIES[f"never an answer, {_end}, GET"] = but(
        get(), at_most(6, "/x", bad_gateway()), target=_script, patience=4.0
    )
_RETRIES |= {
    "reset, then good, GET": but(get(), at_most(2, "/x", served()), target=(say(then="reset"), OWN)),
    "close, then good, GET": but(get(), at_most(2, "/x", served()), target=(say(then="close"), OWN)),
    "reset, then good, PUT": but(
        sized(method=b"PUT"),
        either(
            clean(b"abc"),
            both(at_most(2, "/x", served()), lambda it: "" if it.seen[-1].body == b"abc" else "body"),
            bad_gateway(),
        ),
        target=(say(then="reset"), OWN),
    ),
    "503, POST": but(sized(), at_most(1, "/x", status(503)), target=_503),
    "503, GET": but(get(), at_most(6, "/x", status(502, 503)), target=_503, patience=4.0),
    "partial head, POST": but(
        sized(), at_most(1, "/x", bad_gateway()), target=(say(b"HTTP/1.1 200 OK\r\n", then="reset"), OWN)
    ),
    "partial body, POST": but(sized(), at_most(1, "/x", bad_gateway()), target=(say(_BROKEN_OFF, then="reset"), OWN)),
    "partial body, GET": but(get(), either(bad_gateway(), served()), target=(say(_BROKEN_OFF, then="reset"), OWN)),
    "idle close, GET": but((get(), Await.ANSWER, 0.02, NEXT), _SECOND_GOOD, paths=TWO, target=_IDLE_CLOSE),
    "idle close, POST": but(
        (get(), Await.ANSWER, 0.02, _POST),
        at_most(1, "/y", _SECOND_GOOD),
        paths=TWO,
        methods=("GET", "POST"),
        target=_IDLE_CLOSE,
    ),
    "idle-close race, GET": but((get(), Await.ANSWER, NEXT), _SECOND_GOOD, paths=TWO, target=_IDLE_CLOSE),
    "idle-close race, PUT": but(
        (get(), Await.ANSWER, _PUT), at_most(1, "/y", served()), paths=TWO, methods=("GET", "PUT"), target=_IDLE_CLOSE
    ),
    "idle-close race, POST": but(
        (get(), Await.ANSWER, _POST), _SECOND_FAILS, paths=TWO, methods=("GET", "POST"), target=_IDLE_CLOSE
    ),
    "twenty idle closes in a row, GET": but(
        tuple(step for n in range(20) for step in (get(path=b"/user/%d" % n), Await.ANSWER)),
        served(),
        paths=tuple(f"/{n}" for n in range(20)),
        target=(say(Own.ANSWER, then="close"),),
    ),
}

RETRIES = table("retries", "9110 9.2.2; 9112 9.3.1", served(), _RETRIES, patience=3.0)

_WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
_SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
_H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
_TUNNEL = (say(_SWITCH, then="tunnel"),)
_NOT_FORWARDED = either(refuse(), clean(None, absent=("upgrade", "http2-settings")))


def _echoed(data: bytes) -> Expectation:
    """A tunnel was opened, and carried just this both ways."""

    def check(it: Observed) -> str:
        if it.tunnel is None:
            return f"no tunnel: {it.answers} ({it.end})"
        return "" if it.tunnel == it.tunnelled == data else f"tunnelled {it.tunnelled!r}, back came {it.tunnel!r}"

    return check


def _no_tunnel(it: Observed) -> str:
    return "" if it.tunnel is None and not it.tunnelled else f"a tunnel was opened: {it.tunnel!r} {it.tunnelled!r}"


# Bytes sent before the 101: kept back until it comes, or the connection ends; refused if it does not come.
_AHEAD = either(_echoed(b"ahead"), both(_no_tunnel, either(closes, status(200, 400, 501))))

UPGRADE = table(
    "upgrade",
    "9110 7.8",
    _NOT_FORWARDED,
    {
        "websocket": but((get(*_WEBSOCKET), Await.INTERIM, b"ping", Await.ECHO), _echoed(b"ping"), target=_TUNNEL),
        "websocket, bytes both ways": but(
            (get(*_WEBSOCKET), Await.INTERIM, b"ping", Await.ECHO, b"pong", Await.ECHO),
            _echoed(b"pingpong"),
            target=_TUNNEL,
        ),
        "websocket, HTTP through the tunnel": but(
            (get(*_WEBSOCKET), Await.INTERIM, SMUGGLED, Await.ECHO), _echoed(SMUGGLED), target=_TUNNEL
        ),
        "websocket, first bytes with the 101": but(
            (get(*_WEBSOCKET), Await.INTERIM, Await.ECHO),
            lambda it: "" if it.tunnel == b"hello" else f"got {it.tunnel!r} {it.answers}",
            target=(say(_SWITCH + b"hello", then="tunnel"),),
        ),
        "websocket, the target ends it": but(
            (get(*_WEBSOCKET), Await.INTERIM, Await.END),
            lambda it: "" if it.tunnel == b"bye" and it.end != "open" else f"got {it.tunnel!r} ({it.end})",
            target=(say(_SWITCH, b"bye", then="close"),),
        ),
        "websocket, spoofed credential": but(
            (get(*_WEBSOCKET, b"x-api-key: evil"), Await.INTERIM, b"ping", Await.ECHO), _echoed(b"ping"), target=_TUNNEL
        ),
        "websocket, nominated credential": but(
            (get(b"Connection: x-api-key", *_WEBSOCKET), Await.INTERIM, b"ping", Await.ECHO),
            _echoed(b"ping"),
            target=_TUNNEL,
        ),
        "websocket in another case": but(
            (
                get(b"connection: UPGRADE", b"upgrade: WebSocket", *_WEBSOCKET[2:]),
                Await.INTERIM,
                b"ping",
                Await.ECHO,
            ),
            _echoed(b"ping"),
            target=_TUNNEL,
        ),
        "websocket, bytes ahead of the 101": but(
            (get(*_WEBSOCKET) + b"ahead", Await.INTERIM, Await.ECHO),
            _AHEAD,
            "CVE-2026-2833",
            target=_TUNNEL,
            after="refused",
        ),
        "websocket, request ahead of a refusal": but(
            get(*_WEBSOCKET) + NEXT,
            both(_no_tunnel, either(served(), closes)),
            "CVE-2026-2833",
            paths=TWO,
        ),
        "websocket, bytes ahead of a refusal": but(
            get(*_WEBSOCKET) + b"\x81\x05hello",
            both(_no_tunnel, status(200, 400, 403)),
            after="refused",
        ),
        "websocket, request ahead of a late refusal": but(
            get(*_WEBSOCKET) + NEXT,
            both(_no_tunnel, either(served(), closes)),
            paths=TWO,
            target=(say(0.02, Own.ANSWER),),
        ),
        "websocket refused": but(get(*_WEBSOCKET), both(_no_tunnel, status(200))),
        "websocket refused with 403": but(
            get(*_WEBSOCKET),
            both(_no_tunnel, status(403)),
            target=(say(long(b"no", first=b"HTTP/1.1 403 Forbidden")), OWN),
        ),
        "websocket refused with 426": but(
            get(*_WEBSOCKET),
            both(_no_tunnel, status(426)),
            target=(say(long(b"no", b"Upgrade: websocket", first=b"HTTP/1.1 426 Upgrade Required")), OWN),
        ),
        "websocket, 101 without Upgrade": but(
            get(*_WEBSOCKET),
            both(bad_gateway(), _no_tunnel),
            target=(say(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", then="tunnel"),),
        ),
        "websocket, 101 for another protocol": but(
            get(*_WEBSOCKET),
            both(bad_gateway(), _no_tunnel),
            target=(
                say(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", then="tunnel"),
            ),
        ),
        "websocket, target closes": but(
            get(*_WEBSOCKET), both(bad_gateway(), _no_tunnel), target=(say(then="close"),), patience=4.0
        ),
        "h2c": get(*_H2C),
        "h2c in upper case": get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: H2C", _H2C[2]),
        "h2c in a list": get(_H2C[0], b"Upgrade: foo, h2c", _H2C[2]),
        "h2c behind websocket": but(
            get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: websocket, h2c", *_WEBSOCKET[2:], _H2C[2]),
            lambda it: next(
                (f"h2c at the target: {one.fields}" for one in it.seen if b"h2c" in one.tokens("upgrade")), ""
            ),
        ),
        "h2c, in a second Upgrade": but(
            get(*_WEBSOCKET, b"Upgrade: h2c"),
            lambda it: next(
                (f"h2c at the target: {one.fields}" for one in it.seen if b"h2c" in one.tokens("upgrade")), ""
            ),
        ),
        "h2c, settings not nominated": get(b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        "h2c with a body": but(
            sized(SMUGGLED, *_H2C), either(refuse(), clean(SMUGGLED, absent=("upgrade", "http2-settings")))
        ),
        "h2c that the target takes up": but(
            get(*_H2C),
            either(refuse(), both(bad_gateway(), _no_tunnel)),
            target=(say(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),),
        ),
        "h2c with a request behind": but(get(*_H2C) + NEXT, both(_no_tunnel, either(served(), closes)), paths=TWO),
        "TLS/1.0": but(get(b"Connection: Upgrade", b"Upgrade: TLS/1.0"), either(refuse(), clean(b""))),
        "unknown protocol": but(get(b"Connection: Upgrade", b"Upgrade: foo/2"), either(refuse(), clean(b""))),
        "Upgrade without Connection": get(*_WEBSOCKET[1:]),
        "Connection without Upgrade": but(
            get(b"Connection: Upgrade"), either(refuse(), clean(b"", absent=("upgrade",)))
        ),
        "empty Upgrade": but(get(b"Connection: Upgrade", b"Upgrade:"), either(refuse(), clean(b""))),
        "websocket without a key": but(get(*_WEBSOCKET[:2]), either(refuse(), clean(b""))),
        "websocket as POST with a body": but(sized(SMUGGLED, *_WEBSOCKET), either(abort(), clean(SMUGGLED))),
        "websocket as POST, chunked": but(coded(ABC, *_WEBSOCKET), either(abort(), clean(b"abc"))),
        "websocket in HTTP/1.0": but(old(*_WEBSOCKET), either(refuse(), clean(b"", absent=("upgrade",))), minor=0),
        "websocket in HTTP/1.0, taken up": but(
            old(*_WEBSOCKET), either(refuse(), both(bad_gateway(), _no_tunnel)), minor=0, target=_TUNNEL
        ),
    },
)
