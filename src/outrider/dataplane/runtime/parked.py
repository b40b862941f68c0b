"""The one thing a call waits for that is not a future: see drive.py. Not compiled: mypyc has no plain generators that
can be awaited."""

from __future__ import annotations

from collections.abc import Generator
from types import coroutine

SUSPENDED = object()


@coroutine
def suspended() -> Generator[object, None, None]:
    """Wait until somebody calls `Drive.resume`."""
    yield SUSPENDED
