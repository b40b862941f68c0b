"""Proof of who we are, written into every attempt. The app may send the same header, or name it in `Connection`:
ours replaces it, so the secret can leave the app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.model.messages import is_field_value

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt


class Credential:
    """A header with a secret value. The control plane replaces the value when its source changes."""

    __slots__ = ("_line", "_name", "owned")

    def __init__(self, header: str, value: str) -> None:
        self._name = header.encode()
        self.owned = frozenset((self._name.lower(),))
        self._line = b""
        self.replace(value)

    def replace(self, value: str) -> None:
        """Use this value from the next attempt on. Raises ValueError if it cannot stand in a header."""
        if not value or value != value.strip() or not is_field_value(value):
            raise ValueError("a credential must be one line of printable ASCII without spaces around it")
        self._line = b"%b: %b\r\n" % (self._name, value.encode())

    def stamp(self, attempt: Attempt) -> bytes:
        return self._line

    def __repr__(self) -> str:
        return f"Credential({self._name.decode()}: ***)"
