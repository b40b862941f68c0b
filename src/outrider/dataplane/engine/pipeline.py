"""The ordered list of policies, with the reason for every position.

Around the whole call, outermost first:

1. deadline     everything after it spends the call's time
2. context      a refusal must already carry the correlation id the app will look for
   restore      outbound: what the inbound call brought, before anything reads or spends it
   mint key     outbound: before anybody asks whether the call may be repeated
   fetched      outbound: a call whose credential has not been fetched yet is refused before it uses up any limit
   guard        inbound: nobody else is let any further; behind the context, so that its refusals carry an id
   forwarded    inbound: what only a proven caller may say, so behind the guard
   incoming     inbound: the caller's deadline, and whether the app is well enough to be asked
3. rate limit   cheapest refusal, and it must count arrivals, not survivors
   throttle     after our own limits, because it compares what we would send with what the service takes
4. concurrency  holds a permit for as long as the call lives, so only for calls that were let through so far
   idempotency  inbound, last: what is answered from memory must have passed everything before it
   keep         inbound: the context of a call that the app will work on, for its own calls

Then the retry loop, and around each attempt:

5. breaker      inside the loop, because it judges attempts; before balancing, because an open circuit needs
                no endpoint

and into the head of each attempt, in this order:

6. credentials  first among the stamps, so that a header set by hand cannot come before the proof of who we are
7. headers      what the configuration sets
8. context      correlation id and trace context
9. deadline     last, because it tells the time that is left now

A fallback covers whatever comes out of all this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from outrider.dataplane.http1.heads import REQUEST_OWNED
from outrider.dataplane.policies.concurrency.limit import ConcurrencyLimit
from outrider.dataplane.policies.context import Context
from outrider.dataplane.policies.credentials import Credential, FetchedCredentials, TokenCredential
from outrider.dataplane.policies.deadline import Deadline
from outrider.dataplane.policies.forwarded import Forwarded
from outrider.dataplane.policies.guard.guard import Guard
from outrider.dataplane.policies.headers import Headers
from outrider.dataplane.policies.idempotency import Idempotency
from outrider.dataplane.policies.idempotency_key import MintKey
from outrider.dataplane.policies.inbound_context import Keep, Restore
from outrider.dataplane.policies.incoming import AppHealth, IncomingDeadline
from outrider.dataplane.policies.rate_limit import RateLimit
from outrider.dataplane.policies.throttle import Throttle
from outrider.dataplane.policy import Policy
from outrider.model.patterns import dashed

# Positions 1 and 2 act on the call as such; what follows protects one service, also when it stands in for another.
FOR_EVERY_CALL: Final = 2


@dataclass(slots=True)
class Parts:
    """What the configuration asks for on one route; None is what it does not ask for."""

    deadline: Deadline
    context: Context
    headers: Headers
    credentials: Sequence[Credential | TokenCredential] = ()
    fetched: FetchedCredentials | None = None
    restore: Restore | None = None
    guard: Guard | None = None
    forwarded: Forwarded | None = None
    incoming: IncomingDeadline | None = None
    health: AppHealth | None = None
    keep: Keep | None = None
    mint_key: MintKey | None = None
    idempotency: Idempotency | None = None
    rate_limit: RateLimit | None = None
    throttle: Throttle | None = None
    concurrency: ConcurrencyLimit | None = None


def around_the_call(parts: Parts) -> tuple[Policy, ...]:
    """Positions 1 to 4. What is not configured is not on the path."""
    ordered: tuple[Policy | None, ...] = (
        parts.deadline,
        parts.context,
        parts.restore,
        parts.mint_key,
        parts.fetched,
        parts.guard,
        parts.forwarded,
        parts.incoming,
        parts.health,
        parts.rate_limit,
        parts.throttle,
        parts.concurrency,
        parts.keep,
        parts.idempotency,
    )
    return tuple(policy for policy in ordered if policy is not None)


def into_each_attempt(parts: Parts) -> tuple[Policy, ...]:
    """Positions 6 to 9."""
    guard = (parts.guard,) if parts.guard is not None else ()
    forwarded = (parts.forwarded,) if parts.forwarded is not None else ()
    return (*parts.credentials, *guard, *forwarded, parts.headers, parts.context, parts.deadline)


def owned_by(stamps: Sequence[Policy]) -> frozenset[bytes]:
    """The header names that only Outrider may write on this route, also as they are compared."""
    owned = REQUEST_OWNED.union(*(stamp.owned for stamp in stamps))
    return owned | {dashed(name) for name in owned}
