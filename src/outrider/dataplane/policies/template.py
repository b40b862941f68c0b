"""Header values with request-time variables: `{service} {target} {instance}` are known when the configuration is
compiled, `{request_id} {correlation_id} {attempt} {header:NAME}` with each attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from outrider.dataplane.runtime.ids import ENTROPY
from outrider.model.variables import VARIABLE

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt

Part = Callable[["Attempt"], bytes]


class Template:
    """A compiled value. `constant` holds it when no request-time variable occurs."""

    __slots__ = ("_parts", "constant")

    def __init__(self, text: str, known: Mapping[str, str]) -> None:
        parts: list[bytes | Part] = []
        for index, piece in enumerate(VARIABLE.split(text)):
            if index % 2 and piece not in known:
                parts.append(_variable(piece))
            else:
                parts.append((known[piece] if index % 2 else piece).encode("latin-1"))
        texts = [part for part in parts if isinstance(part, bytes)]
        self.constant = b"".join(texts) if len(texts) == len(parts) else None
        self._parts = parts

    def render(self, attempt: Attempt) -> bytes:
        """The value for one attempt."""
        if self.constant is not None:
            return self.constant
        return b"".join(part if isinstance(part, bytes) else part(attempt) for part in self._parts)


def _variable(name: str) -> Part:
    if name.startswith("header:"):
        field = name[7:].lower().encode()
        return lambda attempt: attempt.call.noted.get(field, b"")
    if name == "request_id":
        return lambda attempt: attempt.call.request_id(ENTROPY.uuid4)
    if name == "correlation_id":
        return lambda attempt: attempt.call.correlation_id
    return lambda attempt: b"%d" % attempt.number
