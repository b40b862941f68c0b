"""What a policy is: a small synchronous object between a call and its attempts.

Three verbs. `admit(call)` says whether a call may go: None to go on, a `Failure` or a `Reply` to answer from here,
an awaitable when it must wait first. `observe(call, outcome)` hears exactly once how each admission ended, in
reverse order. Policies that write into the outgoing head have a third: `stamp(attempt)` returns a header line.

Expected events are values; an exception escaping a policy is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from outrider.model.failure import Failure
from outrider.model.outcome import Outcome
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

Verdict = Failure | Reply | None


class Policy(Protocol):
    """What stands between a call and its attempts. One that gives out a permit puts itself into `call.permits`,
    and only those are observed: most policies have nothing to take back."""

    def admit(self, call: Call) -> Verdict | Awaitable[Verdict]: ...

    def observe(self, call: Call, outcome: Outcome) -> None: ...


class Stamp(Protocol):
    """What writes into the head of every attempt. `owned` are the header names it writes, lower case:
    what the app sends under them is dropped."""

    @property
    def owned(self) -> frozenset[bytes]: ...

    def stamp(self, attempt: Attempt) -> bytes: ...
