"""Which files a configuration is read from. Light, for verbs that must start at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

SEARCH: Final = ("outrider.yaml", "/etc/outrider/outrider.yaml")
_SUFFIXES: Final = (".yaml", ".yml")


def places(paths: Sequence[str], environment: Mapping[str, str]) -> list[Path]:
    """The files and folders to read: what is given, or what OUTRIDER_CONFIG says, or the first of the usual files that
    is there; none if nothing is."""
    given = list(paths) or [path for path in environment.get("OUTRIDER_CONFIG", "").split(os.pathsep) if path]
    if given:
        return [Path(path) for path in given]
    return [Path(path) for path in SEARCH if Path(path).is_file()][:1]


def files_in(folder: Path) -> list[Path]:
    """The files of a folder that are read, in their order. Dotfiles are backups of editors, or the inside of a mounted
    ConfigMap. A link that leads nowhere stays in the list: reading it tells that."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in _SUFFIXES and not file.name.startswith(".") and not file.is_dir()
    )
