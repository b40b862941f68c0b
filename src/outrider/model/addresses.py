"""What a URL says about where to connect, and what it must not say to everybody."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult

_USERINFO: Final = re.compile(r"(?<=://)[^/@\s]+@")


def without_userinfo(text: str) -> str:
    """Text with the names and passwords of its URLs hidden."""
    return _USERINFO.sub("***@", text)


def port_of(parts: SplitResult) -> int:
    """The port of an http or https URL, also where it goes without saying. Raises ValueError if there is none such."""
    return parts.port or (443 if parts.scheme == "https" else 80)
