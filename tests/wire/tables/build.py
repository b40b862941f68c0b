"""What the tables are built from: requests and answers as bytes, rows, and tables of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.wire.model import Case, Expectation, Observed, Step, abort, clean, either, refuse

Bytes = bytes | tuple[Step, ...]

HOST = b"Host: app.test\r\n"
SMUGGLED = b"GET /user/smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n"
LAST = b"0\r\n\r\n"
ABC = b"3\r\nabc\r\n0\r\n\r\n"  # a chunked body
CODED = b"Transfer-Encoding: chunked"
KIB = 1024
MIB = 1024 * KIB


def line(first: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """A request with this request line and just these fields."""
    return b"".join([first, b"\r\n", *(one + b"\r\n" for one in fields), b"\r\n", body])


def get(*fields: bytes, path: bytes = b"/user/x", method: bytes = b"GET", body: bytes = b"") -> bytes:
    """A GET, or another method without a body of its own."""
    return line(b"%b %b HTTP/1.1" % (method, path), b"Host: app.test", *fields, body=body)


def post(*fields: bytes, body: bytes = b"", path: bytes = b"/user/x") -> bytes:
    """A POST whose framing is up to the fields."""
    return get(*fields, path=path, method=b"POST", body=body)


def sized(body: bytes = b"abc", *fields: bytes, path: bytes = b"/user/x", method: bytes = b"POST") -> bytes:
    """A request with a body and its right length."""
    return get(*fields, b"Content-Length: %d" % len(body), path=path, method=method, body=body)


def coded(body: bytes = ABC, *fields: bytes, path: bytes = b"/user/x") -> bytes:
    """A POST whose chunked body is these bytes."""
    return post(*fields, CODED, body=body, path=path)


def old(*fields: bytes, method: bytes = b"GET", path: bytes = b"/user/x", body: bytes = b"") -> bytes:
    """An HTTP/1.0 request."""
    return line(b"%b %b HTTP/1.0" % (method, path), b"Host: app.test", *fields, body=body)


def ok(*fields: bytes, body: bytes = b"ok", first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """An answer whose framing is up to the fields."""
    return b"".join([first, b"\r\n", *(one + b"\r\n" for one in fields), b"\r\n", body])


def long(body: bytes = b"ok", *fields: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """An answer with its right length."""
    return ok(*fields, b"Content-Length: %d" % len(body), body=body, first=first)


def cut(data: bytes, size: int) -> tuple[Step, ...]:
    """The same bytes in segments."""
    return tuple(data[at : at + size] for at in range(0, len(data), size))


@dataclass(frozen=True)
class But:
    """A row of a table that differs from its neighbours in more than its bytes."""

    app: Bytes
    expect: Expectation
    rfc: str
    own: dict[str, Any]


def but(app: Bytes, expect: Expectation, rfc: str = "", **own: Any) -> But:
    """A row with an expectation of its own, and whatever else of Case is special about it."""
    return But(app, expect, rfc, own)


def table(group: str, rfc: str, expect: Expectation, rows: Mapping[str, Bytes | But], **common: Any) -> list[Case]:
    """Cases that share their section, their expectation, and what is in `common`, unless a row says otherwise."""
    cases = []
    for name, row in rows.items():
        special = row if isinstance(row, But) else But(row, expect, "", {})
        app = (special.app,) if isinstance(special.app, bytes) else special.app
        section = f"{rfc}; {special.rfc}" if special.rfc else rfc
        cases.append(Case(f"{group}: {name}", group, section, app, special.expect, **(common | special.own)))
    return cases


# Requests and answers, and expectations, that several tables use.
TWO = ("/x", "/y")
NEXT = get(path=b"/user/y")
THIRD = get(path=b"/user/z")
TWO_BYTES = b"Content-Length: 2"
CHUNKED_OK = ok(CODED, body=b"2\r\nok\r\n0\r\n\r\n")
REFUSE_OR_ABC = either(refuse(), clean(b"abc"))
ABORT_OR_ABC = either(abort(), clean(b"abc"))
REFUSE_OR_CLEAN = either(refuse(), clean(None))


def host_is_not(value: bytes) -> Expectation:
    """No request at the target names this host."""

    def check(it: Observed) -> str:
        hosts = [host for request in it.seen for host in request.values("host")]
        return f"Host at the target: {hosts}" if value in hosts else ""

    return check
