"""Who asks and on whose behalf: correlation id and trace context, created where the app sent none.

`x-user-*`, `baggage` and `tracestate` need no code: like every end-to-end field they are passed on untouched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from outrider.dataplane.policy import Policy
from outrider.dataplane.runtime.ids import ENTROPY

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

# W3C trace-context §3.2.2. Version ff and all-zero ids are invalid; later versions may append fields.
_IDS: Final = rb"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_WITHOUT_STATE: Final = frozenset((b"tracestate",))
_TRACEPARENT: Final = re.compile(rb"00%b|(?!ff|00)[0-9a-f]{2}%b(?:-.{0,200})?" % (_IDS, _IDS))


# Bytes of an id: it is logged, echoed, and kept while its call lives.
_LONGEST_ID: Final = 256


def is_id(value: bytes) -> bool:
    """Whether a correlation id of the app's is taken: some visible ASCII. Otherwise the call gets one from us."""
    return 0 < len(value) <= _LONGEST_ID and value.isascii() and value.decode().isprintable()


class Context(Policy):
    """Gives every call a correlation id and a `traceparent`, the same on every attempt."""

    __slots__ = ("_generate", "_header", "_line")

    def __init__(self, header: bytes, generate: Callable[[], bytes]) -> None:
        self._header = header.lower()
        self._line = header + b": %b\r\ntraceparent: %b\r\n"
        self._generate = generate
        self.owned = frozenset((self._header, b"traceparent"))

    def admit(self, call: Call) -> None:
        noted = call.noted
        sent = noted.get(self._header)
        call.correlation_id = sent if sent is not None and is_id(sent) else self._generate()
        if b"traceparent" in noted and _TRACEPARENT.fullmatch(noted[b"traceparent"]):
            call.traceparent = noted[b"traceparent"]
        else:
            call.traceparent = ENTROPY.traceparent()
            # The state of a trace that has not been kept would be wrong in the new one (trace-context §4.3).
            call.nominated = _WITHOUT_STATE | call.nominated if call.nominated else _WITHOUT_STATE

    def stamp(self, attempt: Attempt) -> bytes:
        call = attempt.call
        return self._line % (call.correlation_id, call.traceparent)
