"""Random ids for the path of a call.

`os.urandom` is a system call, so it is asked for a block at a time, and the block is turned into hexadecimal
once: an id is then a matter of cutting strings.
"""

from __future__ import annotations

import os
from binascii import hexlify
from collections.abc import Callable
from time import time

_BLOCK = 8192  # hexadecimal digits
_VARIANT = {b"0123456789abcdef"[i : i + 1]: b"89ab"[i % 4 : i % 4 + 1] for i in range(16)}


class Entropy:
    """A source of random hexadecimal digits and of the ids made of them."""

    __slots__ = ("_block", "_millisecond", "_position", "_stamp")

    def __init__(self) -> None:
        self._block = b""
        self._position = _BLOCK
        self._millisecond = 0
        self._stamp = b""

    def take(self, count: int) -> bytes:
        """`count` random hexadecimal digits; `count` must be far below 8192."""
        start = self._position
        if start + count > _BLOCK:
            self._block = hexlify(os.urandom(_BLOCK // 2))
            start = 0
        self._position = start + count
        return self._block[start : start + count]

    def uuid7(self) -> bytes:
        """A time-ordered UUID, version 7 (RFC 9562 §5.7), in its text form."""
        millisecond = int(time() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            digits = b"%012x" % millisecond
            self._stamp = b"%b-%b-7" % (digits[:8], digits[8:])
        noise = self.take(19)
        return b"%b%b-%b%b-%b" % (self._stamp, noise[:3], _VARIANT[noise[3:4]], noise[4:7], noise[7:])

    def uuid4(self) -> bytes:
        """A random UUID, version 4 (RFC 9562 §5.4), in its text form."""
        noise = self.take(31)
        return b"%b-%b-4%b-%b%b-%b" % (
            noise[:8],
            noise[8:12],
            noise[12:15],
            _VARIANT[noise[15:16]],
            noise[16:19],
            noise[19:],
        )

    def traceparent(self) -> bytes:
        """A new W3C trace context (trace-context §3.2): fresh trace and parent ids, not sampled.

        Nobody records this span yet, so claiming `sampled` would be untrue and would switch on tracing
        at full rate in every service behind.
        """
        start = self._position
        if start > _BLOCK - 48:
            self.take(48)
            start = 0
        self._position = middle = start + 32
        self._position = end = middle + 16
        return b"00-%b-%b-00" % (self._block[start:middle], self._block[middle:end])


ENTROPY = Entropy()

ID_FORMATS: dict[str, Callable[[], bytes]] = {"uuid7": ENTROPY.uuid7, "uuid4": ENTROPY.uuid4}
