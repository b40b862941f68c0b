"""Questions that only the kernel can answer about a connection."""

from __future__ import annotations

import struct
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Final

UNKNOWN: Final = -1
_ROOM: Final = struct.pack("i", 0)


def unacknowledged(descriptor: int) -> int:
    """Bytes that the kernel has taken from us for this TCP socket and that the other side has not acknowledged, so
    those in flight included (`SIOCOUTQ`, tcp(7)). UNKNOWN where the system does not say, or the socket is closed."""
    if descriptor < 0:
        return UNKNOWN
    try:
        queued: int = struct.unpack("i", ioctl(descriptor, TIOCOUTQ, _ROOM))[0]
    except OSError:
        return UNKNOWN
    return queued
