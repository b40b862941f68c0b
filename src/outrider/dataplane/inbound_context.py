"""What came in with a call that the app is working on: whose call it is, how much time is left, who waits for it.

The guard keeps it for as long as the inbound call lives. An outbound call that carries nothing but the correlation id,
or the trace id, gets the rest back. Two live calls with the same id but not the same content are ambiguous, and restore
nothing: who invents ids must not find somebody else's context behind one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from outrider.model.messages import Field
from outrider.model.patterns import HeaderNames

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

_OF_THE_TRACE: Final = frozenset((b"baggage", b"tracestate"))
_MOST_CALLS: Final = 10_000
# Calls under way with one id that are compared; more of them restore nothing.
_MOST_ALIKE: Final = 128
_MOST_BYTES: Final = 8192  # of the fields of one call; a context is not a place to keep things


class Context:
    """Of one inbound call, which it only looks at when somebody asks: most calls make none of their own. `ids` are its
    correlation id and its trace id; `deadline` and `ends` are its own, `calls` are outbound ones under way."""

    __slots__ = ("_fields", "_identity", "_inbound", "calls", "deadline", "ends", "ids", "kept", "proven")

    def __init__(self, inbound: Call, identity: HeaderNames) -> None:
        """Once `inbound` is over, nothing but `calls` may be asked for. `identity` are the names of headers that are
        part of it, beside those of the trace."""
        one, other = inbound.correlation_id, trace_id(inbound.traceparent)
        self.ids = (one, other) if one != other else (one,)
        self.deadline = inbound.deadline
        self.ends = inbound.ends
        self.calls: set[Call] | None = None  # most calls make none of their own
        self._inbound: Call | None = inbound
        self._identity = identity
        self._fields: list[Field] | None = None
        self.proven = inbound.caller != ""
        self.kept = False  # whether it can be found

    @property
    def inbound(self) -> Call:
        """The call, as long as it lives."""
        assert self._inbound is not None
        return self._inbound

    @property
    def fields(self) -> list[Field]:
        """What its caller said of itself, its user and its trace; nothing if that is too much to be kept."""
        if self._fields is None:
            call = self.inbound
            fields = [one for one in call.fields if self._is_part(one[0]) and one[0] not in call.nominated]
            if sum(len(name) + len(value) for name, _, value in fields) > _MOST_BYTES:
                call.note("its context is too large to be kept for the app's own calls")
                fields = []
            self._fields = fields
        return self._fields

    def end(self) -> None:
        """The inbound call is over; it is not held any longer."""
        self._inbound = None

    def _is_part(self, name: bytes) -> bool:
        # Strangers say nothing about who they are, and would like us to look at all that they say for each other.
        return name in _OF_THE_TRACE or (self.proven and self._identity.have(name))


class ContextStore:
    """The contexts of inbound calls under way, by correlation id and by trace id; bounded by their number, of which the
    unproven get half."""

    def __init__(self, most: int = _MOST_CALLS) -> None:
        self._most = most
        self._by_id: dict[bytes, dict[Context, None]] = {}
        self._unkept: dict[bytes, int] = {}  # how many calls under way there was no room for, by id
        self.size = 0
        self._unproven = 0
        self.left_out = 0  # calls whose context was not kept, for want of room

    def keep(self, context: Context) -> None:
        """From now on the context can be found. If there is no room for it, nothing is found with its ids for as long
        as it lives: that could be the context of another call."""
        if self.size >= self._most or not (context.proven or self._unproven < self._most // 2):
            self.left_out += 1
            for one in context.ids:
                self._unkept[one] = self._unkept.get(one, 0) + 1
            return
        context.kept = True
        self.size += 1
        if not context.proven:
            self._unproven += 1
        for one in context.ids:
            if one in self._by_id:
                self._by_id[one][context] = None
            else:
                self._by_id[one] = {context: None}

    def drop(self, context: Context) -> None:
        """The inbound call is over."""
        if not context.kept:
            for one in context.ids:
                self._unkept[one] -= 1
                if not self._unkept[one]:
                    del self._unkept[one]
            return
        self.size -= 1
        if not context.proven:
            self._unproven -= 1
        for one in context.ids:
            found = self._by_id[one]
            if len(found) > 1:
                del found[context]
            else:
                del self._by_id[one]

    def find(self, *ids: bytes) -> tuple[Context, ...]:
        """The contexts that these ids stand for, the latest first; nothing if they are not all of one content, or too
        many to be compared."""
        for one in ids:
            found = self._by_id.get(one)
            if one in self._unkept:
                return ()
            if found:
                if len(found) > _MOST_ALIKE:
                    return ()
                contexts = tuple(reversed(found))
                alike = all(other.fields == contexts[0].fields for other in contexts)
                return contexts if alike else ()
        return ()


def trace_id(traceparent: bytes) -> bytes:
    """The trace id of a `traceparent` (W3C Trace Context §3.2.2.3)."""
    return traceparent[3:35]
