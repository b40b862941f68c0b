"""Reading files that others put there: secrets, certificates, key sets, lists of endpoints."""

from __future__ import annotations

import os
from stat import S_ISREG


class UnusableFileError(ValueError):
    """A file that cannot be used; the message names it and says why."""


def read_regular(path: str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    A pipe or a device could keep whatever reads it waiting for ever, and a large file could fill the memory, so neither
    is read. Blocks for as long as the file system does. Raises UnusableFileError.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not S_ISREG(status.st_mode):
                raise UnusableFileError(f"{path} is not a regular file")
            if status.st_size > limit:
                raise UnusableFileError(f"{path} is larger than {limit} bytes")
            data = stream.read(limit + 1)
    except OSError as error:
        raise UnusableFileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name with a NUL in it
        raise error if isinstance(error, UnusableFileError) else UnusableFileError(f"{path!r}: {error}") from None
    if len(data) > limit:  # it has grown meanwhile, or lies about its size, as files in /proc do
        raise UnusableFileError(f"{path} is larger than {limit} bytes")
    return data
