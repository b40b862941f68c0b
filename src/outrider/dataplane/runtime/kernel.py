"""Questions that only the kernel can answer about a connection."""

from __future__ import annotations

import socket
import struct
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Final

UNKNOWN: Final = -1
_ROOM: Final = struct.pack("i", 0)
# `tcpi_last_ack_recv` in `struct tcp_info` of linux/tcp.h, in milliseconds.
_LAST_ACK: Final = struct.Struct("@56xI")


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


def silent_for(sock: socket.socket) -> float:
    """Seconds since the last segment of the other side of this TCP connection (`TCP_INFO`, tcp(7)); the last one of the
    handshake counts, too. 0 where the system does not say."""
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK.size)
    except (OSError, AttributeError):
        return 0.0
    return float(_LAST_ACK.unpack(told)[0]) / 1000 if len(told) == _LAST_ACK.size else 0.0
