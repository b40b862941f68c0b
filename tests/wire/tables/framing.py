"""Where a request ends: Content-Length against Transfer-Encoding, their grammar, and bodies that look like requests."""

from __future__ import annotations

from tests.wire.model import (
    Await,
    Expectation,
    Own,
    bad_gateway,
    clean,
    either,
    refuse,
    say,
    served,
    status,
    waits,
)
from tests.wire.tables.build import (
    ABC,
    CODED,
    LAST,
    REFUSE_OR_ABC,
    SMUGGLED,
    but,
    coded,
    cut,
    get,
    line,
    long,
    old,
    post,
    sized,
    table,
)


def _chunked_only(body: bytes) -> Expectation:
    """Both framing fields: refused, or chunked only, with the connection closed behind it."""
    return either(refuse(), clean(body, closes=True))


CL_TE = table(
    "CL.TE",
    "9112 6.1, 6.3.3",
    _chunked_only(b""),
    {
        "request behind the last chunk": post(b"Content-Length: %d" % (5 + len(SMUGGLED)), CODED, body=LAST + SMUGGLED),
        "one byte behind the last chunk": post(b"Content-Length: 6", CODED, body=LAST + b"G"),
        "length covers both chunks": but(post(b"Content-Length: 13", CODED, body=ABC), _chunked_only(b"abc")),
        "length short of the chunks": but(post(b"Content-Length: 4", CODED, body=ABC), _chunked_only(b"abc")),
        "length zero, then chunks": but(post(b"Content-Length: 0", CODED, body=ABC), _chunked_only(b"abc")),
        "upper-case coding": post(b"Content-Length: 6", b"TRANSFER-ENCODING: CHUNKED", body=LAST + b"G"),
        "length equal to the chunked body": post(b"Content-Length: 5", CODED, body=LAST),
        "in three segments": (post(b"Content-Length: 6", CODED), LAST, b"G"),
        "GET": get(b"Content-Length: %d" % (5 + len(SMUGGLED)), CODED, body=LAST + SMUGGLED),
        "keep-alive asked for": post(b"Connection: keep-alive", b"Content-Length: 6", CODED, body=LAST + b"G"),
    },
    after="refused",
)

TE_CL = table(
    "TE.CL",
    "9112 6.1, 6.3.3",
    _chunked_only(b"abc"),
    {
        "request inside a chunk": but(
            post(CODED, b"Content-Length: 4", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
            _chunked_only(SMUGGLED),
        ),
        "length of the size line": but(
            post(CODED, b"Content-Length: 3", body=b"8\r\nSMUGGLED\r\n0\r\n\r\n"), _chunked_only(b"SMUGGLED")
        ),
        "length far too large": post(CODED, b"Content-Length: 1000", body=ABC),
        "length of one": post(CODED, b"Content-Length: 1", body=ABC),
        "length zero": post(CODED, b"Content-Length: 0", body=ABC),
        "overflowing length": post(CODED, b"Content-Length: 99999999999999999999", body=ABC),
        "malformed length": post(CODED, b"Content-Length: x", body=ABC),
        "empty length": post(CODED, b"Content-Length:", body=ABC),
    },
    after="refused",
)

BOTH = table(
    "CL+TE",
    "9112 6.1, 6.3.3",
    _chunked_only(b""),
    {
        "lengths around the coding": but(
            post(b"Content-Length: 3", CODED, b"Content-Length: 3", body=ABC), _chunked_only(b"abc")
        ),
        "length nominated in Connection": post(
            b"Connection: content-length", b"Content-Length: 6", CODED, body=LAST + b"G"
        ),
        "coding nominated in Connection": post(
            b"Connection: transfer-encoding", b"Content-Length: 6", CODED, body=LAST + b"G"
        ),
        "identity and a length": but(
            post(b"Transfer-Encoding: identity", b"Content-Length: 3", body=b"abc"), refuse(), "9112 6.3.4"
        ),
        "gzip and a length": but(
            post(b"Transfer-Encoding: gzip", b"Content-Length: 3", body=b"abc"), refuse(), "9112 6.3.4"
        ),
        "unknown coding and a length": but(
            post(b"Transfer-Encoding: cow", b"Content-Length: 3", body=b"abc"), refuse(), "9112 6.3.4"
        ),
        "Connection: close": post(b"Connection: close", b"Content-Length: 6", CODED, body=LAST + b"G"),
        "DELETE": get(CODED, b"Content-Length: 6", method=b"DELETE", body=LAST + b"G"),
    },
    after="refused",
)

DUPLICATE_CL = table(
    "duplicate CL",
    "9112 6.3.5, 9110 8.6",
    refuse(),
    {
        "3 then 4": post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"),
        "4 then 3": post(b"Content-Length: 4", b"Content-Length: 3", body=b"abcd"),
        "0 then a request": post(b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
        "a request then 0": post(b"Content-Length: %d" % len(SMUGGLED), b"Content-Length: 0", body=SMUGGLED),
        "3 and 3": but(post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), REFUSE_OR_ABC),
        "3 and 03": but(post(b"Content-Length: 3", b"Content-Length: 03", body=b"abc"), REFUSE_OR_ABC),
        "list 3, 3": but(post(b"Content-Length: 3, 3", body=b"abc"), REFUSE_OR_ABC),
        "list 3, 4": post(b"Content-Length: 3, 4", body=b"abcd"),
        "list 3,": post(b"Content-Length: 3,", body=b"abc"),
        "list ,3": post(b"Content-Length: ,3", body=b"abc"),
        "3 and empty": post(b"Content-Length: 3", b"Content-Length:", body=b"abc"),
        "empty and 3": post(b"Content-Length:", b"Content-Length: 3", body=b"abc"),
        "differing in case of the name": post(b"Content-Length: 3", b"content-length: 4", body=b"abcd"),
        "two on GET": get(b"Content-Length: 0", b"Content-Length: 3", body=b"abc"),
    },
    after="refused",
)

CL_GRAMMAR = table(
    "CL grammar",
    "9110 8.6",
    refuse(),
    {
        "+3": post(b"Content-Length: +3", body=b"abc"),
        "-0": post(b"Content-Length: -0", body=b"abc"),
        "-3": post(b"Content-Length: -3", body=b"abc"),
        "0x3": post(b"Content-Length: 0x3", body=b"abc"),
        "0_3": post(b"Content-Length: 0_3", body=b"abc"),
        "3.0": post(b"Content-Length: 3.0", body=b"abc"),
        "3e0": post(b"Content-Length: 3e0", body=b"abc"),
        "hex digit": post(b"Content-Length: a", body=b"abcdefghij"),
        "3 3": post(b"Content-Length: 3 3", body=b"abc"),
        "quoted": post(b'Content-Length: "3"', body=b"abc"),
        "NUL behind": post(b"Content-Length: 3\x00", body=b"abc"),
        "NUL before": post(b"Content-Length: \x003", body=b"abc"),
        "VT before": post(b"Content-Length: \x0b3", body=b"abc"),
        "FF behind": post(b"Content-Length: 3\x0c", body=b"abc"),
        "0xa0 before": post(b"Content-Length: \xa03", body=b"abc"),
        "full-width digit": post("Content-Length: ３".encode(), body=b"abc"),
        "Arabic digit": post("Content-Length: ٣".encode(), body=b"abc"),
        "superscript digit": post(b"Content-Length: \xb3", body=b"abc"),
        "empty": post(b"Content-Length:", body=b"abc"),
        "only spaces": post(b"Content-Length:   ", body=b"abc"),
        "2**64 + 3": post(b"Content-Length: 18446744073709551619", body=b"abc"),
        "2**63": post(b"Content-Length: 9223372036854775808", body=b"abc"),
        "500 digits": post(b"Content-Length: " + b"9" * 500, body=b"abc"),
        "parameter": post(b"Content-Length: 3;a=b", body=b"abc"),
        "folded": but(post(b"Content-Length:\r\n 3", body=b"abc"), REFUSE_OR_ABC),
        "leading zeros": but(post(b"Content-Length: 003", body=b"abc"), REFUSE_OR_ABC),
        "tab before": but(post(b"Content-Length:\t3", body=b"abc"), REFUSE_OR_ABC),
        "space behind": but(post(b"Content-Length: 3 ", body=b"abc"), REFUSE_OR_ABC),
        "nothing before": but(post(b"Content-Length:3", body=b"abc"), clean(b"abc")),
    },
    after="refused",
)

TE_OBFUSCATION = table(
    "TE obfuscation",
    "9112 6.1, 6.3.4, 7",
    either(refuse(), clean(b"abc")),
    {
        "xchunked": post(b"Transfer-Encoding: xchunked", body=ABC),
        "x": post(b"Transfer-Encoding: x", body=ABC),
        "double quotes": post(b'Transfer-Encoding: "chunked"', body=ABC),
        "single quotes": post(b"Transfer-Encoding: 'chunked'", body=ABC),
        "VT before": post(b"Transfer-Encoding: \x0bchunked", body=ABC),
        "VT behind": post(b"Transfer-Encoding: chunked\x0b", body=ABC),
        "FF before": post(b"Transfer-Encoding: \x0cchunked", body=ABC),
        "NUL before": post(b"Transfer-Encoding: \x00chunked", body=ABC),
        "NUL behind": post(b"Transfer-Encoding: chunked\x00", body=ABC),
        "0xa0 before": post(b"Transfer-Encoding: \xa0chunked", body=ABC),
        "0xff behind": post(b"Transfer-Encoding: chunked\xff", body=ABC),
        "folded": post(b"Transfer-Encoding:\r\n chunked", body=ABC),
        "folded with a tab": post(b"Transfer-Encoding:\r\n\tchunked", body=ABC),
        "hidden in a fold": post(b"X-A: b\r\n Transfer-Encoding: chunked", b"Content-Length: 3", body=b"abc"),
        "bare CR before": post(b"X-A: b\rTransfer-Encoding: chunked", b"Content-Length: 3", body=b"abc"),
        "bare LF before": but(
            post(b"X-A: b\nTransfer-Encoding: chunked", b"Content-Length: 13", body=ABC),
            either(refuse(), clean(ABC), clean(b"abc", closes=True)),
        ),
        "space before the colon": but(post(b"Transfer-Encoding : chunked", body=ABC), refuse(400)),
        "space before the colon, and a length": but(
            post(b"Transfer-Encoding : chunked", b"Content-Length: 3", body=b"abc"), refuse(400)
        ),
        "underscore in the name, and a length": but(
            post(b"Transfer_Encoding: chunked", b"Content-Length: 13", body=ABC),
            either(refuse(), clean(ABC)),
        ),
        "chunked twice in a list": post(b"Transfer-Encoding: chunked, chunked", body=ABC),
        "chunked twice": post(CODED, CODED, body=ABC),
        "chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=ABC),
        "chunked then identity": post(CODED, b"Transfer-Encoding: identity", body=ABC),
        "identity then chunked": post(b"Transfer-Encoding: identity", CODED, body=ABC),
        "identity": post(b"Transfer-Encoding: identity", body=ABC),
        "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=ABC),
        "gzip then chunked": post(b"Transfer-Encoding: gzip", CODED, body=ABC),
        "chunked, gzip": but(post(b"Transfer-Encoding: chunked, gzip", body=ABC), refuse()),
        "gzip": but(post(b"Transfer-Encoding: gzip", body=ABC), refuse()),
        "empty": post(b"Transfer-Encoding:", body=ABC),
        "empty, and a length": post(b"Transfer-Encoding:", b"Content-Length: 3", body=b"abc"),
        "only a comma": post(b"Transfer-Encoding: ,", body=ABC),
        ",chunked": post(b"Transfer-Encoding: ,chunked", body=ABC),
        "chunked,": post(b"Transfer-Encoding: chunked,", body=ABC),
        "chunked;q=1": post(b"Transfer-Encoding: chunked;q=1", body=ABC),
        "chunked x": post(b"Transfer-Encoding: chunked x", body=ABC),
        "chunk": post(b"Transfer-Encoding: chunk", body=ABC),
        "mixed case": but(post(b"tRANSFER-eNCODING: cHuNkEd", body=ABC), clean(b"abc")),
        "tab before": post(b"Transfer-Encoding:\tchunked", body=ABC),
        "spaces behind": post(b"Transfer-Encoding: chunked   ", body=ABC),
        "on GET": but(get(CODED, body=ABC), either(refuse(), clean(b"abc"))),
        "on GET with nothing behind": but(get(CODED), either(waits(), refuse()), patience=0.06, after="skip"),
    },
    after="refused",
)

TE_IN_1_0 = table(
    "TE in HTTP/1.0",
    "9112 6.1",
    either(refuse(), clean(b"abc", closes=True)),
    {
        "chunked": old(CODED, method=b"POST", body=ABC),
        "chunked and keep-alive": old(CODED, b"Connection: keep-alive", method=b"POST", body=ABC),
        "chunked and a length": but(old(CODED, b"Content-Length: 13", method=b"POST", body=ABC), _chunked_only(b"abc")),
        "length and chunked": but(
            old(b"Content-Length: 6", CODED, method=b"POST", body=LAST + b"G"), _chunked_only(b"")
        ),
        "list": old(b"Transfer-Encoding: gzip, chunked", method=b"POST", body=ABC),
        "identity, chunked": old(b"Transfer-Encoding: identity, chunked", method=b"POST", body=ABC),
        "GET": old(CODED, body=ABC),
        "request behind, keep-alive": old(CODED, b"Connection: keep-alive", method=b"POST", body=ABC + SMUGGLED),
        "no Host": line(b"POST /user/x HTTP/1.0", CODED, body=ABC),
    },
    minor=0,
    after="refused",
)


_INNER_STAYS = either(refuse(), clean(SMUGGLED))

CL_0 = table(
    "CL.0",
    "9110 9.3.1, 9112 6.3",
    _INNER_STAYS,
    {
        "GET": sized(SMUGGLED, method=b"GET"),
        "HEAD": sized(SMUGGLED, method=b"HEAD"),
        "OPTIONS": sized(SMUGGLED, method=b"OPTIONS"),
        "DELETE": sized(SMUGGLED, method=b"DELETE"),
        "POST": but(sized(SMUGGLED), clean(SMUGGLED)),
        "PUT": but(sized(SMUGGLED, method=b"PUT"), clean(SMUGGLED)),
        "PATCH": but(sized(SMUGGLED, method=b"PATCH"), clean(SMUGGLED)),
        "GET, chunked": get(CODED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
        "HEAD, chunked": get(CODED, method=b"HEAD", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
        "DELETE, chunked": get(CODED, method=b"DELETE", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
        "GET in two segments": (get(b"Content-Length: %d" % len(SMUGGLED)), SMUGGLED),
        "POST byte by byte": but(cut(sized(SMUGGLED), 1), clean(SMUGGLED)),
        "POST with nothing": but(post(), either(refuse(), clean(b""))),
        "POST, length zero": but(sized(b""), clean(b"")),
        "GET, length zero": but(sized(b"", method=b"GET"), clean(b"")),
        "length zero, then a request": but(
            sized(b"") + get(path=b"/user/y"), served(), paths=("/x", "/y"), methods=("POST", "GET")
        ),
        "GET without framing, then a request": but(get() + get(path=b"/user/y"), served(), paths=("/x", "/y")),
        "body then a request in one segment": but(
            sized(SMUGGLED) + get(path=b"/user/y"), served(), paths=("/x", "/y"), methods=("POST", "GET")
        ),
        "chunked body then a request in one segment": but(
            coded() + get(path=b"/user/y"), served(), paths=("/x", "/y"), methods=("POST", "GET")
        ),
        "body larger than one read": but(sized(b"GET /user/smuggled HTTP/1.1\r\n\r\n" * 4000), clean(None)),
        "20000 chunks of one byte": but(coded(b"1\r\nx\r\n" * 20_000 + LAST), clean(b"x" * 20_000), "9112 7.1"),
    },
)

_HEAD_ONLY = post(b"Content-Length: %d" % len(SMUGGLED))
_EARLY = (say(Own.ANSWER, read="head"),)
_EARLY_413 = (say(long(b"no", first=b"HTTP/1.1 413 Too Large"), read="head"),)
_EARLY_413_CLOSE = (say(long(b"no", b"Connection: close", first=b"HTTP/1.1 413 Too Large"), read="head", then="close"),)

ZERO_CL = table(
    "0.CL",
    "9112 9.3, 9110 10.1.1",
    status(200, 502, 503, 504),
    {
        "early answer, body later": but((_HEAD_ONLY, Await.ANSWER, SMUGGLED), status(200), target=_EARLY),
        "early answer, body much later": but((_HEAD_ONLY, Await.ANSWER, 0.03, SMUGGLED), status(200), target=_EARLY),
        "early answer, body byte by byte": but(
            (_HEAD_ONLY, Await.ANSWER, *cut(SMUGGLED, 1)), status(200), target=_EARLY
        ),
        "early answer, half of the body later": but(
            (post(b"Content-Length: %d" % (5 + len(SMUGGLED)), body=b"12345"), Await.ANSWER, SMUGGLED),
            status(200),
            target=_EARLY,
        ),
        "early answer, chunked body later": but(
            (post(CODED), Await.ANSWER, b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
            status(200),
            target=_EARLY,
        ),
        "early answer, body never": but(
            (_HEAD_ONLY, Await.ANSWER), either(status(200), waits()), target=_EARLY, after="skip", patience=0.2
        ),
        "early answer, chunked body never ends": but(
            (post(CODED, body=b"3\r\nabc\r\n"), Await.ANSWER),
            either(status(200), waits()),
            target=_EARLY,
            after="skip",
            patience=0.2,
        ),
        "early 413, body later": but((_HEAD_ONLY, Await.ANSWER, SMUGGLED), status(413), target=_EARLY_413),
        "early 413 and close, body later": but(
            (_HEAD_ONLY, Await.ANSWER, SMUGGLED), status(413, 502, 503), target=_EARLY_413_CLOSE
        ),
        "early 413 and close, large body under way": but(
            (post(b"Content-Length: 2097152"), *(b"x" * 65536,) * 16, Await.ANSWER),
            either(status(413, 502, 503, 504), bad_gateway(), waits()),
            target=_EARLY_413_CLOSE,
            after="skip",
            patience=0.5,
        ),
        "reset in the middle of the upload": but(
            (post(b"Content-Length: 2097152"), *(b"x" * 65536,) * 16, Await.ANSWER),
            either(bad_gateway(), waits()),
            target=(say(read="head", then="reset"),),
            after="skip",
            patience=0.5,
        ),
        "unknown target, body later": but(
            (post(b"Content-Length: %d" % len(SMUGGLED), path=b"/nobody/x"), Await.ANSWER, SMUGGLED), refuse()
        ),
        "unknown target, body at once": but(sized(SMUGGLED, path=b"/nobody/x"), refuse()),
        "unknown target, chunked body later": but(
            (coded(b"", path=b"/nobody/x"), Await.ANSWER, b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
            refuse(),
        ),
        "length hidden behind a VT": but(
            post(b"\x0bContent-Length: %d" % len(SMUGGLED), body=SMUGGLED), refuse(), after="refused"
        ),
        "length hidden behind a NUL": but(
            post(b"Content-Length\x00: %d" % len(SMUGGLED), body=SMUGGLED), refuse(), after="refused"
        ),
        "app hangs up in the middle of its body": but(
            (post(b"Content-Length: 100", body=b"abc"), Await.UPSTREAM), waits(), patience=0.02, after="skip"
        ),
    },
)
