"""Every way in which somebody might read a path.

Whether a path is protected is decided by us; what it means is decided by the app, whose framework may decode, collapse,
resolve, cut, trim or fold it first, in any order. So a rule that closes something has to hold if any plausible reading
is closed, and one that opens something only if all of them are open. (CVE-2016-5007, CVE-2018-14645, CVE-2019-9901,
CVE-2021-29492 and their kin; docs/decisions/0015 lists what is read, and what is not.)

Strangers choose the path, before they have proven anything, so the work is bounded: every step is linear in what it
reads, and there are bounds on the length of a path that needs them, and on all that is made of it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from outrider.model.folding import folded

# A path with more readings, or one that takes more bytes to read, is nothing but an attack. Longer paths are fine as
# long as there is only one way to read them.
MOST: Final = 128
MOST_BYTES: Final = 48 * 1024
_EVERY: Final = 64  # bytes that each reading counts for beside its own, as short ones cost something, too
LONGEST: Final = 4 * 1024
# The common path, in lower case: segments that begin and end with more than a dot, and nothing that means anything else
# to anybody. Possessive, so that a path that fails at its end is not tried again in other ways.
_PLAIN: Final = re.compile(
    rb"/|(?:/[a-z0-9_~!$&'()*+,=:@-]++(?:\.++[a-z0-9_~!$&'()*+,=:@-]++)*+)++/?",
)
_QUESTION_MARK: Final = 0x3F  # numbers, as in wire.py
_PERCENT: Final = 0x25
_BACKSLASH: Final = 0x5C
_SEMICOLON: Final = 0x3B
_PARAMETERS: Final = re.compile(rb";[^/]*+")
_SLASHES: Final = re.compile(rb"/{2,}+")
# Who reads a path as a reference to resolve (`new URL(path, base)`, `urlsplit(path)`) takes what stands between two
# slashes in front and the next one for an authority (RFC 3986 §4.2); browsers' rules allow more slashes than two.
_AUTHORITY: Final = re.compile(rb"/{2,}+[^/]*+")
# What trimmers take off the ends of a segment. The lookbehind keeps a run from being tried again at each of its bytes.
_AROUND: Final = re.compile(rb"(?<![\x00-\x20\x7f])[\x00-\x20\x7f]++(?=/|\Z)|(?<=/)[\x00-\x20\x7f]++")
_CONTROLS: Final = re.compile(rb"[\x00-\x20\x7f]")
_DOTS_BEHIND: Final = re.compile(rb"(?<=[^/.])\.++(?=/|\Z)")  # a name, for Windows; not `.` and `..`
_CUT: Final = re.compile(rb"[\x00?#].*", re.S)
# Escapes of two bytes, as IIS reads them, and ASCII in more bytes than it needs, which careless decoders take.
_WIDE: Final = re.compile(rb"%u([0-9a-f]{4})")
_OVERLONG: Final = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80\x81][\x80-\xbf]|\xf0\x80[\x80\x81][\x80-\xbf]")


def readings(path: bytes) -> tuple[bytes, ...] | None:
    """All readings of a request path, without its query, folded and without a trailing slash. The common path has one.
    None if there are too many."""
    bare = path.partition(b"?")[0] if _QUESTION_MARK in path else path
    lower = bare.lower()
    if _PLAIN.fullmatch(lower):
        return (lower.rstrip(b"/") or b"/",)
    if len(bare) > LONGEST:
        return None
    first = _comparable(bare)
    found = {first}
    unread = [first]
    size = 0
    while unread:
        for form in _forms(unread.pop()):
            size += len(form) + _EVERY
            if size > MOST_BYTES:
                return None
            read = _comparable(form)
            if read not in found:
                if len(found) == MOST:
                    return None
                found.add(read)
                unread.append(read)
    return tuple(found)


def _comparable(path: bytes) -> bytes:
    return folded(path).rstrip(b"/") or b"/"


def _forms(path: bytes) -> list[bytes]:
    """What one step of a reader makes of a path, for every step that changes anything."""
    forms = []
    if _PERCENT in path:
        decoded = unquote_to_bytes(path)
        forms.append(decoded)
        if not decoded.isascii():
            forms.append(_OVERLONG.sub(_meant, decoded))
            forms.append(decoded.decode(errors="ignore").encode())
        if path.find(b"%u") >= 0:
            forms.append(_WIDE.sub(_wide, path))
    if _BACKSLASH in path:
        forms.append(path.replace(b"\\", b"/"))
    if _SEMICOLON in path:
        forms.append(_PARAMETERS.sub(b"", path))
    if _CUT.search(path):
        forms.append(_CUT.sub(b"", path))
    if _CONTROLS.search(path):
        forms.append(_AROUND.sub(b"", path))
        forms.append(_CONTROLS.sub(b"", path))
    if path.find(b"//") >= 0:
        forms.append(_SLASHES.sub(b"/", path))
        authority = _AUTHORITY.match(path)
        if authority is not None:
            forms.append(path[authority.end() :] or b"/")
    if path.find(b"/.") >= 0:
        forms.append(_resolved(path))
    if path.find(b"./") >= 0 or path.endswith(b"."):
        forms.append(_DOTS_BEHIND.sub(b"", path))
    return forms


def _meant(overlong: re.Match[bytes]) -> bytes:
    """The ASCII character that an overlong sequence stands for."""
    sequence = overlong[0]
    return bytes(((sequence[-2] & 0x1F) << 6 & 0x7F | sequence[-1] & 0x3F,))


def _wide(escape: re.Match[bytes]) -> bytes:
    return chr(int(escape[1], 16)).encode(errors="ignore")


def _resolved(path: bytes) -> bytes:
    """Without dot segments (RFC 3986 §5.2.4)."""
    kept: list[bytes] = []
    for segment in path.split(b"/")[1:]:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    return b"/" + b"/".join(kept)
