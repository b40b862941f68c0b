"""Where a running sidecar listens for its owners, found as `outrider run` found it: in its configuration.

Only that one value is read, so a verb works where secrets that the configuration refers to are not at hand. The YAML
library is imported only if a file has something to say about the port, because `outrider health` must start at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The address of each port unless the configuration says otherwise (`config/schema.py`).
_USUAL = {"telemetry": "127.0.0.1:4102", "admin": "127.0.0.1:4101"}
# Every address of this machine, and how to reach one of them.
_ANY = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # nothing is bound here
_LARGEST = 1 << 22


class PortError(Exception):
    """The address cannot be found; the message says why."""


def port_of(key: str, paths: Sequence[str] = ()) -> str:
    """`HOST:PORT` of the telemetry or admin port (`key`), as the configuration has it that `paths`, OUTRIDER_CONFIG or
    the usual files hold. The default if there is none. Raises PortError."""
    from outrider.config.search import files_in, places

    found = _USUAL[key]
    try:
        for place in places(paths, os.environ):
            for file in files_in(place) if place.is_dir() else [place]:
                found = _listen(file, key) or found
    except OSError as error:
        raise PortError(f"{error.filename}: {error.strerror}") from None
    host, _, port = found.rpartition(":")
    if port == "0":
        raise PortError(f"{key}.listen is {found}: the port is another one at every start; its log line says which")
    return f"{_ANY.get(host, host)}:{port}"


def _listen(file: Path, key: str) -> str | None:
    """What a file says about the address of a port; None if nothing."""
    with file.open("rb") as stream:
        text = stream.read(_LARGEST)
    if key.encode() not in text:
        return None
    import yaml

    from outrider.config.interpolate import interpolate

    try:
        values: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 # both are safe
    except (yaml.YAMLError, ValueError, RecursionError):
        raise PortError(f"{file} cannot be understood; outrider check says why") from None
    section = values.get(key) if isinstance(values, dict) else None
    listen = section.get("listen") if isinstance(section, dict) else None
    if not isinstance(listen, str):
        return None
    try:
        return interpolate(listen, os.environ)
    except ValueError as error:
        raise PortError(f"{file}: {key}.listen: {error}") from None
