"""What a URL says about where to connect, and what it must not say to everybody."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult

HIDDEN: Final = "***"
# A URL within a text: up to a blank, because a password may contain anything else.
_URL: Final = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*://)(\S*)")
# The query of a path that stands alone, as in `/health?token=abc`.
_PATH_QUERY: Final = re.compile(r"""((?:^|\s)/[^\s?"'<>`]*\?)[^\s"'<>`]*""")
_IPV6: Final = re.compile(r"\[[0-9A-Fa-f:.]*\](:\d*)?")
# The end of a sentence, or of quotes or brackets around a URL, which does not belong to it.
_BEHIND: Final = ".,:;)]}>\"'`"


def hide_in_urls(text: str) -> str:
    """The text with user names, passwords and query strings of the URLs and paths in it replaced by `***`.

    This is for logs, complaints and status pages. Passwords may contain any character, also those that should have been
    percent-encoded, so user information ends with the last `@` of the authority; where even that is not certain,
    nothing of the URL is shown.
    """
    if "://" in text:
        text = _URL.sub(_hide, text)
    return _PATH_QUERY.sub(rf"\g<1>{HIDDEN}", text) if "?" in text else text


def _hide(match: re.Match[str]) -> str:
    scheme, rest = match[1], match[2]
    trimmed = rest.rstrip(_BEHIND)
    if trimmed.startswith("[") and "]" not in trimmed:
        trimmed = rest[: len(trimmed) + 1]  # http://[::1]
    behind = rest[len(trimmed) :]
    authority = re.split(r"[/?#]", trimmed, maxsplit=1)[0]
    _, at, host = authority.rpartition("@")
    uncertain = bool(at) or (":" in authority and not _IPV6.fullmatch(authority))
    if uncertain and "@" in trimmed[len(authority) :]:
        return f"{scheme}{HIDDEN}{behind}"  # a password may contain what ends an authority
    if at:
        trimmed = f"{HIDDEN}@{host}{trimmed[len(authority) :]}"
    path, question, _ = trimmed.partition("?")
    path, hash_, _ = path.partition("#")
    return f"{scheme}{path}{question or hash_}{HIDDEN if question or hash_ else ''}{behind}"


def hidden_parts(text: str) -> set[str]:
    """The pieces of what `hide_in_urls` hides in a text, for sentences that quote only a piece of a URL."""
    shown = hide_in_urls(text)
    if shown == text:
        return set()
    return {part for part in re.split(r"[:/@?#&=]+", text) if part and part not in re.split(r"[:/@?#&=]+", shown)}


def port_of(parts: SplitResult) -> int:
    """The port of an http or https URL, also where it goes without saying. Raises ValueError if there is none such."""
    if parts.port is None:
        return 443 if parts.scheme == "https" else 80
    if parts.port == 0:
        raise ValueError("no port has the number 0")
    return parts.port
