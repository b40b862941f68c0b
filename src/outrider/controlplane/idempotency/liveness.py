"""Tells whether the guard that began a call still runs, for guards that share one file.

Each guard holds a lock on a file of its own beside the store. The kernel lets the lock go when the process ends,
however it ends. A process number would not do: guards in different containers may have the same one, and none of them
can see the others' processes.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import Final

_BEFORE_NAME: Final = "-guard-"
_MODE: Final = 0o600


class Liveness:
    """The lock of one guard, and a look at those of others. `name` is its own."""

    def __init__(self, store: Path) -> None:
        self._before = f"{store}{_BEFORE_NAME}"
        self.name = secrets.token_hex(8)
        self.file = Path(self._before + self.name)
        self._held: int | None = None  # descriptor

    def show(self) -> None:
        """Show that this guard runs, until `end`. Call it again when the file may have been removed. Raises OSError."""
        if self._held is not None and _is_file(self._held, self.file):
            return
        self.end()
        while self._held is None:
            descriptor = os.open(self.file, os.O_CREAT | os.O_RDWR, _MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # one that clears up may hold it for a moment
                if _is_file(descriptor, self.file):  # it has not been cleared up in that moment
                    self._held, descriptor = descriptor, -1
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def runs(self, name: str) -> bool:
        """Whether the guard with this name runs. Raises OSError if that cannot be told."""
        if name == self.name:
            return self._held is not None
        try:
            descriptor = os.open(self._before + name, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def clear_up(self) -> None:
        """Remove the files of guards that have ended. Raises OSError."""
        before = Path(self._before)
        for file in list(before.parent.iterdir()):
            if not file.name.startswith(before.name) or file == self.file:
                continue
            try:
                descriptor = os.open(file, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)
            except BlockingIOError:
                pass  # it runs
            finally:
                os.close(descriptor)

    def end(self) -> None:
        """From now on this guard counts as one that has ended."""
        descriptor, self._held = self._held, None
        if descriptor is not None:
            os.close(descriptor)

    def leave(self) -> None:
        """End, and take the file away. Raises OSError."""
        if self._held is not None:
            self.end()
            self.file.unlink(missing_ok=True)


def _is_file(descriptor: int, file: Path) -> bool:
    """Whether what is open under this descriptor is the file with that name."""
    try:
        named = file.stat()
    except FileNotFoundError:
        return False
    there = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (named.st_dev, named.st_ino)
