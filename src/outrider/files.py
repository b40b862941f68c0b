"""Small files that somebody else writes: secrets, key sets, certificates, lists of endpoints.

Only regular files are read, and only up to a limit: a FIFO, a device or a file without end in place of a secret is an
error and not a wait. A hung mount still blocks, so on the event loop `read_apart` is the one to use.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from outrider.blocking import run_apart

# Seconds after which a read on the event loop's behalf is given up.
READ_TIMEOUT = 2.0


class FileError(Exception):
    """A file that cannot be read. The message is a sentence with the path; `missing`: there is no such file."""

    def __init__(self, path: str | Path, why: str, *, missing: bool = False) -> None:
        super().__init__(f"{path} {why}")
        self.path = str(path)
        self.why = why
        self.missing = missing


def read_small_file(path: str | Path, limit: int) -> bytes:
    """The contents of a regular file of at most `limit` bytes. Raises FileError."""
    try:
        _check(path, os.stat(path), limit)  # noqa: PTH116 # before it is opened, which a FIFO's writer would notice
        # Without O_NONBLOCK the open would wait if a FIFO has taken the file's place since.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            _check(path, os.fstat(descriptor), limit)
            data = b""
            while len(data) <= limit and (piece := stream.read(limit + 1 - len(data))):
                data += piece
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise FileError(path, f"cannot be read: {error.strerror or error}", missing=missing) from None
    except ValueError:
        raise FileError(path, "cannot be read: no file name contains a zero byte", missing=True) from None
    if len(data) > limit:  # it has grown, or its size is unknown as in /proc
        raise FileError(path, f"is larger than {limit} bytes")
    return data


async def read_apart(path: str | Path, limit: int, timeout: float = READ_TIMEOUT) -> bytes:
    """The same without blocking the event loop: in a thread, of which there is at most one per path. Raises FileError,
    also when the read has not ended after `timeout` seconds."""
    try:
        return await run_apart(("file", str(path)), lambda: read_small_file(path, limit), timeout)
    except TimeoutError:
        raise FileError(path, f"could not be read within {timeout:g} s") from None
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from None


def _check(path: str | Path, found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise FileError(path, "is not a regular file")
    if found.st_size > limit:
        raise FileError(path, f"is larger than {limit} bytes")
