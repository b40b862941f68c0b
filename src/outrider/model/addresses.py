"""What a URL says about where to connect."""

from __future__ import annotations

from urllib.parse import SplitResult


def port_of(parts: SplitResult) -> int:
    """The port of an http or https URL, also where it goes without saying. Raises ValueError if there is none such."""
    return parts.port or (443 if parts.scheme == "https" else 80)
