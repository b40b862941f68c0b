"""What decides about attempts: retry and its budget, hedging, the circuit breaker."""

from __future__ import annotations

import sys
from typing import Any, cast


def _import_pybreaker_alone() -> None:
    """pybreaker imports Redis and Tornado wherever they are installed, for storages and coroutines that we do not use.
    That takes a third of the whole start, and 10 MiB. While it is imported, they look as if they were not there."""
    modules = cast("dict[str, Any]", sys.modules)
    hidden = [name for name in ("redis", "tornado") if name not in modules]
    for name in hidden:
        modules[name] = None
    try:
        import pybreaker  # noqa: F401 # for the side effect: it is the one that breaker.py gets
    finally:
        for name in hidden:
            del modules[name]


_import_pybreaker_alone()
