"""What a policy is: a small synchronous object between a call and its attempts.

Three verbs. `admit(call)` says whether a call may go: None to go on, a `Failure` or a `Reply` to answer from here,
an awaitable when it must wait first. `observe(call, outcome)` hears exactly once how each admission ended, in
reverse order. Policies that write into the outgoing head have a third: `stamp(attempt)` returns a header line.

Expected events are values; an exception escaping a policy is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from outrider.model.failure import Failure
from outrider.model.messages import NO_NAMES
from outrider.model.outcome import Outcome
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

Verdict = Failure | Reply | None


@mypyc_attr(allow_interpreted_subclasses=True)
class Permit:
    """What a policy lends to a call. It goes into `call.permits`, and is returned when the call has ended."""

    __slots__ = ()

    def observe(self, call: Call, outcome: Outcome) -> None:
        """The call has ended like this."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Policy(Permit):
    """What stands between a call and its attempts; each verb does nothing unless a policy says otherwise.

    A policy that gives out a permit puts itself into `call.permits`, and only those are observed: most policies have
    nothing to take back. `owned` are the header names that `stamp` writes, lower case: what the app sends under them
    is dropped.
    """

    __slots__ = ("owned",)

    def __init__(self) -> None:
        self.owned: frozenset[bytes] = NO_NAMES

    def admit(self, call: Call) -> Verdict | Awaitable[Verdict]:
        """Whether the call may go on."""
        return None

    def stamp(self, attempt: Attempt) -> bytes:
        """A line of the head of this attempt."""
        return b""
