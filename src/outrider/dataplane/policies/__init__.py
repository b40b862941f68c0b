"""One file per policy, each a small synchronous object.

Two verbs. `admit(call)` says whether a call may go: None to go on, a `Failure` or a `Reply` to answer from here,
an awaitable when it must wait first. `observe(call, outcome)` hears exactly once how each admission ended, in
reverse order. Policies that write into the outgoing head have a third: `stamp(attempt)` returns a header line.

Expected events are values; an exception escaping a policy is a bug of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol, cast

from outrider.model.failure import Failure
from outrider.model.outcome import Outcome
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call


def _import_pybreaker_alone() -> None:
    """pybreaker imports Redis and Tornado wherever they are installed, for storages and coroutines that we do not use.
    That takes a third of the whole start, and 10 MiB. While it is imported, they look as if they were not there."""
    modules = cast("dict[str, Any]", sys.modules)
    hidden = [name for name in ("redis", "tornado") if name not in modules]
    for name in hidden:
        modules[name] = None
    try:
        import pybreaker  # noqa: F401 # for the side effect: it is the one that breaker.py gets
    finally:
        for name in hidden:
            del modules[name]


_import_pybreaker_alone()

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
