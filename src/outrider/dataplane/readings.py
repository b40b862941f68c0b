"""Every way in which somebody might read a path.

Whether a path is protected is decided by us; what it means is decided by the app, whose framework may decode, collapse,
resolve or fold it first. So a rule that closes something has to hold if any plausible reading is closed, and one that
opens something only if all of them are open. (CVE-2018-14645, CVE-2019-9901, CVE-2021-29492 and their kin.)
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

# What makes a path more than one thing: escapes, parameters, other separators, dot segments, doubled slashes, case, and
# what some readers cut off.
_PLAIN: Final = re.compile(rb"/|(?:/[a-z0-9_~!$&'()*+,=:@-][a-z0-9._~!$&'()*+,=:@-]*)+")
_PARAMETERS: Final = re.compile(rb";[^/]*")
_SLASHES: Final = re.compile(rb"/{2,}")
_CUT: Final = re.compile(rb"[\x00?#].*", re.S)
_DEEPEST: Final = 3  # layers of percent-encoding that are looked through
_MOST: Final = 64


def readings(path: bytes) -> frozenset[bytes]:
    """All readings of a request path, without its query, in lower case and without a trailing slash. The common path
    has one."""
    bare = path.partition(b"?")[0]
    if _PLAIN.fullmatch(bare):
        return frozenset((bare.rstrip(b"/") or b"/",))
    found: set[bytes] = set()
    decoded = bare
    for _ in range(_DEEPEST + 1):
        for slashed in (decoded, decoded.replace(b"\\", b"/")):
            for one in (slashed, _CUT.sub(b"", slashed)):
                for cut in (one, _PARAMETERS.sub(b"", one)):
                    for form in (cut, _SLASHES.sub(b"/", cut), _resolved(cut), _resolved(_SLASHES.sub(b"/", cut))):
                        found.add(form.strip().lower().rstrip(b"/") or b"/")
        further = unquote_to_bytes(decoded)
        if further == decoded or len(found) > _MOST:
            break
        decoded = further
    return frozenset(found)


def _resolved(path: bytes) -> bytes:
    """Without dot segments (RFC 3986 §5.2.4)."""
    kept: list[bytes] = []
    for segment in path.split(b"/")[1:]:
        name = segment.rstrip(b" \t\x00")
        if name == b"..":
            del kept[-1:]
        elif name != b".":
            kept.append(segment)
    return b"/" + b"/".join(kept)
