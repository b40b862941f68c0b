"""Random ids for the path of a call.

`os.urandom` is a system call, and putting one id together takes as long as looking at three policies. So ids are
prepared a batch at a time, where a tight loop makes them for a third of the price, and a call takes one.
"""

from __future__ import annotations

import os
from binascii import hexlify
from collections.abc import Callable
from time import monotonic, time
from typing import Final

_BATCH: Final = 64
_VARIANT: Final = {b"0123456789abcdef"[i : i + 1]: b"89ab"[i % 4 : i % 4 + 1] for i in range(16)}


class Entropy:
    """A source of ids."""

    __slots__ = ("_next_millisecond", "_stamp", "_tails", "_traceparents")

    def __init__(self) -> None:
        self._tails: list[bytes] = []
        self._traceparents: list[bytes] = []
        self._stamp = b""
        self._next_millisecond = 0.0

    def uuid7(self) -> bytes:
        """A time-ordered UUID, version 7 (RFC 9562 §5.7), in its text form."""
        if not self._tails:
            self._tails = [
                b"-7%b-%b%b-%b" % (noise[:3], _VARIANT[noise[3:4]], noise[4:7], noise[7:]) for noise in _noise(19)
            ]
        if monotonic() >= self._next_millisecond:
            self._restamp()
        return self._stamp + self._tails.pop()

    def uuid4(self) -> bytes:
        """A random UUID, version 4 (RFC 9562 §5.4), in its text form."""
        noise = hexlify(os.urandom(16))
        groups = (noise[:8], noise[8:12], noise[13:16], _VARIANT[noise[16:17]], noise[17:20], noise[20:])
        return b"%b-%b-4%b-%b%b-%b" % groups

    def traceparent(self) -> bytes:
        """A new W3C trace context (trace-context §3.2): fresh trace and parent ids, not sampled.

        Nobody records this span yet, so claiming `sampled` would be untrue and would switch on tracing
        at full rate in every service behind.
        """
        if not self._traceparents:
            self._traceparents = [b"00-%b-%b-00" % (noise[:32], noise[32:]) for noise in _noise(48)]
        return self._traceparents.pop()

    def _restamp(self) -> None:
        now = time() * 1000
        self._next_millisecond = monotonic() + (1 - now % 1) / 1000
        digits = b"%012x" % int(now)
        self._stamp = b"%b-%b" % (digits[:8], digits[8:])


def _noise(digits: int) -> list[bytes]:
    """A batch of strings of so many random hexadecimal digits."""
    block = hexlify(os.urandom(_BATCH * digits // 2 + 1))
    return [block[start : start + digits] for start in range(0, _BATCH * digits, digits)]


ENTROPY: Final = Entropy()

ID_FORMATS: Final[dict[str, Callable[[], bytes]]] = {"uuid7": ENTROPY.uuid7, "uuid4": ENTROPY.uuid4}
