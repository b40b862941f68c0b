"""Headers that the configuration sets or removes on every attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from outrider.dataplane.policies.deciders.retry import ATTEMPT_HEADER, again
from outrider.dataplane.policies.template import Template
from outrider.dataplane.policy import Policy

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt


_MOST_ATTEMPTS: Final = 32


class Headers(Policy):
    """`set` replaces what the app sent under these names; a template that comes out empty writes no line.

    `x-outrider-attempt` is always written: a receiving sidecar does not retry onward what is itself a retry.
    """

    __slots__ = ("_dynamic", "_lines")

    def __init__(self, set_: Mapping[str, Template], remove: Iterable[str]) -> None:
        constant = b"".join(
            b"%b: %b\r\n" % (name.encode(), template.constant) for name, template in set_.items() if template.constant
        )
        # One block per attempt number, ready to send.
        self._lines = [b"%bx-outrider-attempt: %d\r\n" % (constant, number) for number in range(_MOST_ATTEMPTS + 1)]
        self._dynamic = [(name.encode(), template) for name, template in set_.items() if template.constant is None]
        self.owned = frozenset(name.lower().encode() for name in (*set_, *remove, "x-outrider-attempt"))

    def stamp(self, attempt: Attempt) -> bytes:
        number = attempt.number
        if ATTEMPT_HEADER in attempt.call.noted and again(attempt.call.noted[ATTEMPT_HEADER]):
            number += 1  # what is a retry for the app's own caller is one for everybody behind us
        lines = self._lines[min(number, _MOST_ATTEMPTS)]
        for name, template in self._dynamic:
            value = template.render(attempt)
            if value:
                lines += b"%b: %b\r\n" % (name, value)
        return lines
