"""Chunk sizes, chunk extensions and trailers of requests."""

from __future__ import annotations

from tests.wire.model import Await, Expectation, Observed, abort, both, clean, either, served, waits
from tests.wire.tables.build import (
    ABORT_OR_ABC,
    KIB,
    LAST,
    MIB,
    SMUGGLED,
    but,
    coded,
    cut,
    get,
    host_is_not,
    table,
)

CHUNK_SIZE = table(
    "chunk size",
    "9112 7.1",
    abort(),
    {
        "0x3": coded(b"0x3\r\nabc\r\n0\r\n\r\n"),
        "+3": coded(b"+3\r\nabc\r\n0\r\n\r\n"),
        "-3": coded(b"-3\r\nabc\r\n0\r\n\r\n"),
        "-0 last": coded(b"3\r\nabc\r\n-0\r\n\r\n"),
        "0_3": coded(b"0_3\r\nabc\r\n0\r\n\r\n"),
        "3.0": coded(b"3.0\r\nabc\r\n0\r\n\r\n"),
        "g": coded(b"g\r\nabc\r\n0\r\n\r\n"),
        "empty": coded(b"\r\nabc\r\n0\r\n\r\n"),
        "space before": coded(b" 3\r\nabc\r\n0\r\n\r\n"),
        "two sizes": coded(b"3 3\r\nabc\r\n0\r\n\r\n"),
        "NUL behind": coded(b"3\x00\r\nabc\r\n0\r\n\r\n"),
        "VT behind": coded(b"3\x0b\r\nabc\r\n0\r\n\r\n"),
        "0xa0 behind": coded(b"3\xa0\r\nabc\r\n0\r\n\r\n"),
        "full-width digit": coded("３\r\nabc\r\n0\r\n\r\n".encode()),
        "superscript digit": coded(b"\xb3\r\nabc\r\n0\r\n\r\n"),
        "2**64 + 3": coded(b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
        # No overflow, only more than will ever come: waiting for it is safe.
        "2**64 - 1": but(coded(b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n"), either(abort(), waits()), patience=0.06),
        "2**32 + 3": but(coded(b"100000003\r\nabc\r\n0\r\n\r\n"), either(abort(), waits()), patience=0.06),
        "70 KiB of zeros": but(coded(b"0" * 70 * KIB + b"3\r\nabc\r\n0\r\n\r\n"), ABORT_OR_ABC),
        "zeros without end": but(
            (coded(b""), *(b"0" * KIB,) * (5 * KIB), b"3\r\nabc\r\n0\r\n\r\n"),
            both(abort(), lambda it: "" if it.sent < 4 * MIB else f"it took {it.sent} bytes"),
        ),
        "no line end behind the data": coded(b"3\r\nabc0\r\n\r\n"),
        "more data than announced": coded(b"3\r\nabcd\r\n0\r\n\r\n"),
        "a request spilt over": coded(b"3\r\nabc" + SMUGGLED),
        "less data than announced": but(coded(b"8\r\nabc\r\n0\r\n\r\n"), either(abort(), waits()), patience=0.06),
        "two junk bytes for CR LF": but(coded(b"3\r\nabcXX0\r\n\r\n"), abort(), "CVE-2025-43859"),
        "two junk bytes for CR LF, request behind": but(coded(b"3\r\nabcXX0\r\n\r\n" + SMUGGLED), abort()),
        "LF CR for CR LF": coded(b"3\r\nabc\n\r0\r\n\r\n"),
        "CR and junk": coded(b"3\r\nabc\rX0\r\n\r\n"),
        "size line ends with LF": coded(b"3\nabc\r\n0\r\n\r\n"),
        "size line ends with CR": coded(b"3\rabc\r\n0\r\n\r\n"),
        "data ends with LF": coded(b"3\r\nabc\n0\r\n\r\n"),
        "data ends with CR": coded(b"3\r\nabc\r0\r\n\r\n"),
        "LF only": coded(b"3\nabc\n0\n\n"),
        "junk for the last line end": but(
            coded(b"3\r\nabc\r\n0\r\nXX"), either(abort(), waits()), patience=0.06, after="skip"
        ),
        "last line end missing": but(
            coded(b"3\r\nabc\r\n0\r\n"), either(abort(), waits()), patience=0.06, after="skip"
        ),
        "last chunk missing": but(coded(b"3\r\nabc\r\n"), either(abort(), waits()), patience=0.06, after="skip"),
        "ends inside a size": but(coded(b"3\r\nabc\r\n1"), either(abort(), waits()), patience=0.06, after="skip"),
        "space behind": coded(b"3 \r\nabc\r\n0\r\n\r\n"),
        "leading zeros": but(coded(b"0003\r\nabc\r\n0\r\n\r\n"), ABORT_OR_ABC),
        "20 leading zeros": but(coded(b"0" * 20 + b"3\r\nabc\r\n0\r\n\r\n"), ABORT_OR_ABC),
        "last chunk 000": but(coded(b"3\r\nabc\r\n000\r\n\r\n"), ABORT_OR_ABC),
        "upper-case digits": but(coded(b"A\r\n0123456789\r\n0\r\n\r\n"), clean(b"0123456789")),
        "in one-byte segments": but(cut(coded(), 1), clean(b"abc")),
        "error in the second chunk": coded(b"3\r\nabc\r\nzz\r\nabc\r\n0\r\n\r\n"),
        "error in the second chunk, later": (coded(b"3\r\nabc\r\n"), Await.UPSTREAM, b"zz\r\nabc\r\n0\r\n\r\n"),
        "junk for CR LF, later": (coded(b"3\r\nabc"), 0.01, b"XX0\r\n\r\n"),
    },
    after="refused",
)


def _no_extensions(it: Observed) -> str:
    return "".join(f"extensions at the target: {one.extensions[:60]!r}" for one in it.seen if one.extensions)


STRIPPED = both(either(abort(), clean(b"abc")), _no_extensions)

CHUNK_EXTENSIONS = table(
    "chunk extensions",
    "9112 7.1.1",
    STRIPPED,
    {
        "name and value": but(coded(b"3;a=b\r\nabc\r\n0\r\n\r\n"), STRIPPED),
        "name alone": coded(b"3;a\r\nabc\r\n0\r\n\r\n"),
        "on the last chunk": coded(b"3\r\nabc\r\n0;a=b\r\n\r\n"),
        "quoted": coded(b'3;a="b;c"\r\nabc\r\n0\r\n\r\n'),
        "white space around": coded(b"3 ; a = b\r\nabc\r\n0\r\n\r\n"),
        "quoted line end": coded(b'3;a="\r\nabc\r\n0\r\n\r\n'),
        "empty name": coded(b"3;\r\nabc\r\n0\r\n\r\n"),
        "no name": coded(b"3;=b\r\nabc\r\n0\r\n\r\n"),
        "without semicolon": but(coded(b"3a=b\r\nabc\r\n0\r\n\r\n"), abort()),
        "LF inside": but(coded(b"3;a\nb\r\nabc\r\n0\r\n\r\n"), STRIPPED, "CVE-2024-52304"),
        "LF ends it": coded(b"3;a\nabc\r\n0\r\n\r\n"),
        "LF hides a chunk": but(coded(b"3;\n" + b"abc\r\n0\r\n\r\n" + SMUGGLED), either(abort(), clean(None))),
        "LF smuggles": coded(b"2;\nxx\r\n4c\r\n0\r\n\r\n" + SMUGGLED),
        "CR inside": coded(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
        "NUL inside": coded(b"3;a=\x00\r\nabc\r\n0\r\n\r\n"),
        "CTL inside": coded(b"3;a=\x01\r\nabc\r\n0\r\n\r\n"),
        "100 KiB": coded(b"3;a=" + b"x" * 100 * KIB + b"\r\nabc\r\n0\r\n\r\n"),
        "5 MiB in 1 KiB segments": but(
            (coded(b"3;a="), *(b"x" * KIB,) * (5 * KIB), b"\r\nabc\r\n0\r\n\r\n"),
            both(abort(), lambda it: "" if it.sent < 4 * MIB else f"it took {it.sent} bytes"),
        ),
        "flood": but(
            coded(b"1;a=bbbbbbbbbbbbbbbbbbbbbbbb\r\nx\r\n" * 3000 + LAST),
            both(either(abort(), clean(b"x" * 3000)), _no_extensions),
        ),
    },
    after="refused",
)


def _trailer(*lines: bytes) -> bytes:
    return coded(b"3\r\nabc\r\n0\r\n" + b"".join(one + b"\r\n" for one in lines) + b"\r\n")


def _not_merged(*names: str) -> Expectation:
    return either(abort(), clean(b"abc", absent=names))


TRAILERS = table(
    "trailers",
    "9110 6.5.1",
    _not_merged("x-evil"),
    {
        "harmless": but(_trailer(b"X-Evil: 1"), clean(b"abc", absent=("x-evil",))),
        "Content-Length": but(_trailer(b"Content-Length: 10"), _not_merged("content-length-x")),
        "Transfer-Encoding": _trailer(b"Transfer-Encoding: identity"),
        "Host": but(_trailer(b"Host: evil.test"), both(ABORT_OR_ABC, host_is_not(b"evil.test"))),
        "credential": _trailer(b"x-api-key: evil"),
        "credential with underscores": _trailer(b"x_api_key: evil"),
        "credential in upper case": _trailer(b"X-API-KEY: evil"),
        "credential announced by Trailer": coded(
            b"3\r\nabc\r\n0\r\nx-api-key: evil\r\n\r\n", b"Trailer: x-api-key", b"TE: trailers"
        ),
        "Authorization": but(_trailer(b"Authorization: evil"), _not_merged("authorization")),
        "x-forwarded-for": but(_trailer(b"X-Forwarded-For: 6.6.6.6"), ABORT_OR_ABC),
        "Connection": _trailer(b"Connection: x-api-key"),
        "bare LF": _trailer(b"X-A: 1\nx-api-key: evil"),
        "bare LF at the end": coded(b"3\r\nabc\r\n0\r\nX-A: 1\n\n"),
        "bare CR": _trailer(b"X-A: 1\rx-api-key: evil"),
        "NUL": _trailer(b"X-A: \x00"),
        "no colon": but(_trailer(b"X-A"), ABORT_OR_ABC),
        "space before the colon": but(_trailer(b"X-A : 1"), ABORT_OR_ABC),
        "folded": _trailer(b"X-A: 1\r\n x-api-key: evil"),
        "request as a trailer": but(coded(b"3\r\nabc\r\n0\r\n" + SMUGGLED), ABORT_OR_ABC, "CVE-2025-53643"),
        "request behind the trailers": but(
            _trailer(b"X-A: 1") + get(path=b"/user/y"), served(), paths=("/x", "/y"), methods=("POST", "GET")
        ),
        "100 KiB": _trailer(b"X-Evil: " + b"x" * 100 * KIB),
        "5000": but(_trailer(*(b"X-Evil: %d" % n for n in range(5000))), _not_merged("x-evil"), "CVE-2026-22815"),
        "endless": but(
            (coded(b"3\r\nabc\r\n0\r\n"), *(b"X-Evil: %b\r\n" % (b"x" * 1000),) * (5 * KIB)),
            both(abort(), lambda it: "" if it.sent < 4 * MIB else f"it took {it.sent} bytes"),
        ),
        "never ends": but(
            coded(b"3\r\nabc\r\n0\r\nX-Evil: 1\r\n"), either(abort(), waits()), patience=0.06, after="skip"
        ),
    },
    after="refused",
)
