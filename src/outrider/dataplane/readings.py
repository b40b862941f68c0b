"""Every way in which somebody might read a path.

Whether a path is protected is decided by us; what it means is decided by the app, whose framework may decode, collapse,
resolve, cut or fold it first, in any order. So a rule that closes something has to hold if any plausible reading is
closed, and one that opens something only if all of them are open. (CVE-2018-14645, CVE-2019-9901, CVE-2021-29492 and
their kin.)
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

# A path with more readings than this is nothing but an attack: whoever asks must refuse it.
MOST: Final = 256
# What makes a path more than one thing: escapes, parameters, other separators, dot segments, doubled slashes, case, and
# what some readers cut off.
_PLAIN: Final = re.compile(rb"/|(?:/[a-z0-9_~!$&'()*+,=:@-][a-z0-9._~!$&'()*+,=:@-]*)+/?")
_QUESTION_MARK: Final = 0x3F  # a number, as in wire.py
_PARAMETERS: Final = re.compile(rb";[^/]*")
_SLASHES: Final = re.compile(rb"/{2,}")
_SPACES: Final = re.compile(rb"[ \t\r\n\x00]+(?=/|\Z)")
_CUT: Final = re.compile(rb"[\x00?#].*", re.S)


def readings(path: bytes) -> tuple[bytes, ...]:
    """All readings of a request path, without its query, in lower case and without a trailing slash. The common path
    has one; never more than MOST."""
    bare = path.partition(b"?")[0] if _QUESTION_MARK in path else path
    if _PLAIN.fullmatch(bare):
        return (bare.rstrip(b"/") or b"/",)
    found = {_comparable(bare)}
    unread = list(found)
    while unread and len(found) < MOST:
        one = unread.pop()
        for form in (
            unquote_to_bytes(one),
            one.replace(b"\\", b"/"),
            _CUT.sub(b"", one),
            _PARAMETERS.sub(b"", one),
            _SPACES.sub(b"", one),
            _SLASHES.sub(b"/", one),
            _resolved(one),
        ):
            read = _comparable(form)
            if read not in found and len(found) < MOST:
                found.add(read)
                unread.append(read)
    return tuple(found)


def _comparable(path: bytes) -> bytes:
    return path.strip().lower().rstrip(b"/") or b"/"


def _resolved(path: bytes) -> bytes:
    """Without dot segments (RFC 3986 §5.2.4)."""
    kept: list[bytes] = []
    for segment in path.split(b"/")[1:]:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    return b"/" + b"/".join(kept)
