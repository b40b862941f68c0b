"""Mints an `Idempotency-Key` for calls that have none, so that a receiver which knows it can tell a repetition.

The key is the call's, not the attempt's: the same on every try. It is what makes a POST repeatable (draft-ietf-httpapi-
idempotency-key-header), and the guard in front of the next service remembers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from outrider.dataplane.policy import Policy
from outrider.dataplane.runtime.ids import ENTROPY

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

KEY: Final = b"idempotency-key"
_REPEATABLE_ANYWAY: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"CONNECT"))


class MintKey(Policy):
    """Gives a key to every POST and PATCH that comes without one, or with an empty one."""

    __slots__ = ()

    def admit(self, call: Call) -> None:
        if call.method in _REPEATABLE_ANYWAY:
            return
        if call.noted.get(KEY) and KEY not in call.nominated:
            return
        key = ENTROPY.uuid4()
        call.fields = [field for field in call.fields if field[0] != KEY]
        call.nominated = call.nominated - {KEY}
        call.fields.append((KEY, b"Idempotency-Key", key))
        call.noted[KEY] = key
