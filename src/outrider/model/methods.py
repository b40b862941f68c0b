"""Names of request methods."""

from __future__ import annotations

from typing import Final

# Methods that the parser knows in a request of HTTP: most of the registry (RFC 9110 §16.1.1), and some others.
PARSED: Final = frozenset(
    b"ACL BIND CHECKOUT CONNECT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY"
    b" OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SUBSCRIBE TRACE UNBIND UNLINK UNLOCK"
    b" UNSUBSCRIBE".split()
)


def is_other_spelling(method: bytes) -> bool:
    """Whether this differs from a known method only by case, like `get`. It is another method (RFC 9110 §9.1), but not
    to every app: it would be allowed as the one and done as the other."""
    return method not in PARSED and method.upper() in PARSED
