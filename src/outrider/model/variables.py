"""Request-time variables in header values: `{service}`, `{header:x-user-id}` and their like."""

from __future__ import annotations

import re
from collections.abc import Container

VARIABLE = re.compile(r"\{([a-z_]+(?::[!#$%&'*+.^_`|~0-9A-Za-z-]+)?)\}")
WITH_EACH_ATTEMPT = frozenset(("request_id", "correlation_id", "attempt"))


def unknown_variables(text: str, known: Container[str]) -> list[str]:
    """The variables in a template that nothing provides."""
    return [
        name
        for name in VARIABLE.findall(text)
        if name not in known and name not in WITH_EACH_ATTEMPT and not name.startswith("header:")
    ]


def header_names(text: str) -> list[bytes]:
    """The request headers a template reads, lower case."""
    return [name[7:].lower().encode() for name in VARIABLE.findall(text) if name.startswith("header:")]
