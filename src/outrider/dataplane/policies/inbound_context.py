"""The context of an inbound call: kept while it lives, and given back to the app's own calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from outrider.dataplane.inbound_context import Context, ContextStore, trace_id
from outrider.dataplane.policies.criticality import CRITICAL, said_not_critical
from outrider.dataplane.policy import Policy
from outrider.model.failure import Failure, Kind
from outrider.model.outcome import Outcome
from outrider.model.patterns import HeaderNames

if TYPE_CHECKING:
    from outrider.dataplane.call import Call


class Keep(Policy):
    """Inbound: keeps the context of a call for as long as it lives. Stands behind the guard, which has taken off what
    the caller may not say."""

    __slots__ = ("_identity", "_store")

    def __init__(self, store: ContextStore, identity: Sequence[str]) -> None:
        """`identity` are names of headers, or beginnings with `*`, that say who somebody is."""
        super().__init__()
        self._store = store
        self._identity = HeaderNames(identity)

    def admit(self, call: Call) -> None:
        context = Context(call, self._identity)
        self._store.keep(context)
        call.contexts = (context,)
        call.permits.append(self)

    def observe(self, call: Call, outcome: Outcome) -> None:
        """The call is over. If its caller has left, nobody waits for what the app asks others on its behalf, unless
        another call has the same ids."""
        for context in call.contexts:
            self._store.drop(context)
            context.end()
            outbounds, context.calls = context.calls, None
            if not outbounds:
                continue
            for outbound in outbounds:
                outbound.contexts = tuple(one for one in outbound.contexts if one is not context)
                left = call.failure is not None and call.failure.kind is Kind.CANCELLED
                if left and not outbound.contexts:
                    outbound.app.give_up(outbound, Failure(Kind.CALLER_LEFT, "the caller of the app has left"))


class Restore(Policy):
    """Outbound: gives a call back what its inbound call came with, as far as the app has not said it itself."""

    __slots__ = ("_correlation", "_store")

    def __init__(self, store: ContextStore, correlation: bytes) -> None:
        """`correlation` is the name of the correlation header, lower case."""
        super().__init__()
        self._store = store
        self._correlation = correlation

    def admit(self, call: Call) -> Failure | None:
        if not self._store.size:
            return None
        contexts = self._store.find(call.correlation_id, trace_id(call.traceparent))
        if not contexts:
            return None
        latest = contexts[0]
        call.ends = min(call.ends, max(context.ends for context in contexts))
        # Once the head of the answer is on its way, only what bounds the whole of it still counts.
        deadline = max(one.ends if one.inbound.committed else one.deadline for one in contexts)
        if deadline < call.deadline:
            call.deadline = deadline
            if deadline <= call.started:
                return Failure(Kind.DEADLINE, "the time of the app's own caller is used up")
        self._complete(call, latest)
        if CRITICAL not in call.noted and all(said_not_critical(context.inbound) for context in contexts):
            call.fields.append((CRITICAL, CRITICAL, b"false"))
            call.noted[CRITICAL] = b"false"
        for context in contexts:
            if context.calls is None:
                context.calls = set()
            context.calls.add(call)
        call.contexts = contexts
        call.permits.append(self)
        return None

    def observe(self, call: Call, outcome: Outcome) -> None:
        for context in call.contexts:
            if context.calls is not None:
                context.calls.discard(call)

    def _complete(self, call: Call, context: Context) -> None:
        """Add what the app has not said."""
        noted = call.noted
        inbound = context.inbound
        said = {lower for lower, _, _ in call.fields}
        wanted = call.app.shared.noted
        for field in context.fields:
            if field[0] not in said:
                call.fields.append(field)
                if field[0] in wanted:
                    noted[field[0]] = field[2]
        if self._correlation not in noted:
            call.correlation_id = inbound.correlation_id
        if b"traceparent" not in noted:
            call.traceparent = inbound.traceparent
        if b"x-outrider-attempt" in inbound.noted and b"x-outrider-attempt" not in noted:
            noted[b"x-outrider-attempt"] = inbound.noted[b"x-outrider-attempt"]
