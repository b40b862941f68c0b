"""Imports that wait until they are needed, beside calls."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Late(Generic[_T]):
    """Something that needs a large import, made when it is first asked for."""

    def __init__(self, load: Callable[[], _T]) -> None:
        """`load` imports it and makes it. It runs in a thread, and raises what it likes."""
        self._load = load
        self._made: list[_T] = []

    async def get(self) -> _T:
        """It, without holding the event loop meanwhile. Raises what `load` raises, and tries again next time."""
        if not self._made:
            made = await _in_a_thread(self._load)
            if not self._made:  # several may have waited for it
                self._made.append(made)
        return self._made[0]


async def _in_a_thread(load: Callable[[], _T]) -> _T:
    """Its result. The thread is gone afterwards: a process with one thread takes no locks."""
    collecting = gc.isenabled()
    gc.disable()  # importing makes many objects and no garbage
    try:
        with ThreadPoolExecutor(1) as importer:
            return await asyncio.get_running_loop().run_in_executor(importer, load)
    finally:
        if collecting:
            gc.freeze()  # modules stay: they need not be looked at again
            gc.enable()
