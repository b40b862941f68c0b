"""Interpolation of parsed scalars: `${VAR}`, `${env:VAR}`, `${VAR:-default}`, `${VAR:?message}`, `${file:/path}`
with the same suffixes, and `$$` for a dollar sign. Never on raw text, so that no value can inject YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping

from outrider.files import FileError, read_small_file

_REFERENCE = re.compile(r"\$\$|\$\{([^{}]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_SECRET_BYTES = 64 * 1024


def refers(text: str) -> bool:
    """Whether there is anything to interpolate."""
    return "$" in text


def reads_file(text: str) -> bool:
    """Whether the text takes (part of) its value from a file, and is therefore taken for a secret."""
    return any((match[1] or "").startswith("file:") for match in _REFERENCE.finditer(text))


def interpolate(text: str, environment: Mapping[str, str], parts: list[str] | None = None) -> str:
    """The text with every reference replaced; `parts` gets what they were replaced with. Raises ValueError, naming the
    reference and the remedy."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match[1] is None:
            if "}" in text[match.end() :]:
                raise ValueError("references cannot stand inside each other; write $$ for a dollar sign")
            raise ValueError("${ is never closed; write $$ for a dollar sign")
        value = _value(match[1], environment)
        if parts is not None:
            parts.append(value)
        return value

    return _REFERENCE.sub(replace, text)


def _value(reference: str, environment: Mapping[str, str]) -> str:
    if reference.startswith("file:"):
        name, default, message = _suffix(reference[5:])
        value, missing = _read(name)
    else:
        name, default, message = _suffix(reference.removeprefix("env:"))
        if not _NAME.fullmatch(name):
            raise ValueError(f"${{{reference}}} is not a reference; write ${{VAR}}, ${{file:/path}} or $$ for a dollar")
        # Without line ends, as a shell reads `$(cat file)`: many secrets get one on their way into the variable.
        value, missing = environment.get(name), f"the environment variable {name} is not set"
        value = value.rstrip("\r\n") if value is not None else None
    if value:
        return value
    if default is not None:
        return default
    if message is not None:
        raise ValueError(message or missing)
    if value is None or reference.startswith("file:"):
        raise ValueError(f"{missing}; set it, or write ${{{reference}:-default}}")
    return value


def _suffix(reference: str) -> tuple[str, str | None, str | None]:
    """`(name, default, message)`; a Windows drive or a URL in a default does not confuse it."""
    found = [(reference.index(mark), mark) for mark in (":-", ":?") if mark in reference]
    if not found:
        return reference, None, None
    at, mark = min(found)
    name, rest = reference[:at], reference[at + 2 :]
    return (name, rest, None) if mark == ":-" else (name, None, rest)


def _read(name: str) -> tuple[str | None, str]:
    try:
        return read_small_file(name, MAX_SECRET_BYTES).decode().rstrip("\r\n"), f"the file {name} is empty"
    except UnicodeDecodeError:
        return None, f"the file {name} is not UTF-8 text"
    except FileError as error:
        return None, f"the file {error}"
