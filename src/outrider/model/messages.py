"""Requests and responses as the connection edges read them.

Request fields are triples `(lower-case name, name as sent, value)`, in order of arrival: the lower-case name is
computed once, where the field is parsed, and every later comparison uses it.

These are made once per call. Attributes with a common default stand in the class, so that making one object
stores only what differs: that costs half of filling as many `__slots__`.
"""

from __future__ import annotations

Field = tuple[bytes, bytes, bytes]
NO_NAMES: frozenset[bytes] = frozenset()


class Request:
    """The head of one request from the app."""

    method = b""
    target = b""
    minor = 1
    """The HTTP/1 minor version: 0 or 1."""
    length: int | None = None
    """Declared body length in bytes; None if none was declared."""
    chunked = False
    keep_alive = True
    expect_continue = False
    nominated = NO_NAMES
    """Field names that `Connection` asked to be removed (RFC 9110 §7.6.1)."""

    fields: list[Field]
    noted: dict[bytes, bytes]
    """The values of the few fields that some part of Outrider reads, by lower-case name."""

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


class Response:
    """One response from a target: its head, and the body pieces not yet passed on.

    With neither `length` nor `chunked` the body ends with the connection.
    """

    status = 0
    reason = b""
    length: int | None = None
    """Declared body length in bytes; None if none was declared."""
    chunked = False
    keep_alive = False
    retry_after: bytes | None = None
    location = -1
    """Where in `lines` the value of `Location` stands; -1 for nowhere."""
    complete = False
    """Whether the last body byte has been received."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        """The end-to-end fields as they will be passed on: name, colon, value, line end; name, colon, ..."""
        self.pieces: list[bytes] = []
