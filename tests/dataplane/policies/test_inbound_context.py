"""Contexts: what came in with a call comes back to the app's own calls, to those alone, and for no longer."""

from __future__ import annotations

from collections import Counter
from time import process_time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider.dataplane.call import Call
from outrider.dataplane.engine.accounting import note_cancelled, release
from outrider.dataplane.inbound_context import Context, ContextStore, trace_id
from outrider.dataplane.policies.inbound_context import Keep, Restore
from outrider.model.failure import Failure, Kind
from outrider.model.outcome import NEUTRAL, SUCCESS
from tests.fakes import make_call

IDENTITY = ("x-user-*", "x-tenant")
CORRELATION = b"x-correlation-id"
NOTED = frozenset((CORRELATION, b"traceparent", b"x-outrider-attempt", b"x-tenant"))  # x-user-* is not needed
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER_TRACE = "00112233445566778899aabbccddeeff"


def traceparent(trace: str) -> bytes:
    return f"00-{trace}-00f067aa0ba902b7-01".encode()


class Place:
    """A guard's memory, and both sides of it."""

    def __init__(self, most: int = 100) -> None:
        self.store = ContextStore(most)
        self.keep = Keep(self.store, IDENTITY)
        self.restore = Restore(self.store, CORRELATION)
        self.given_up: list[tuple[Call, Failure]] = []
        self.traces = 0

    def call(
        self,
        correlation: str,
        trace: str = "",
        headers: dict[str, str] | None = None,
        timeout: float = 10.0,
        caller: str = "orders",
    ) -> Call:
        fields = {name.encode(): value.encode() for name, value in (headers or {}).items()}
        call = make_call(headers=fields, timeout=timeout)
        call.correlation_id = correlation.encode()
        call.caller = caller
        self.traces += 1
        call.traceparent = traceparent(trace or f"{self.traces:032x}")  # new where there was none
        app = cast(Any, call.app)
        app.shared = SimpleNamespace(noted=NOTED, stopped=False)
        app.give_up = lambda *what: self.given_up.append(what)
        return call

    def comes_in(self, correlation: str = "c1", trace: str = TRACE, **parts: Any) -> Call:
        """An inbound call that the app is working on from now on."""
        call = self.call(correlation, trace, **parts)
        self.keep.admit(call)
        return call

    def goes_out(self, correlation: str = "c1", trace: str = "", **parts: Any) -> Call:
        """A call of the app's own that must be let through."""
        call = self.call(correlation, trace, **parts)
        assert self.restore.admit(call) is None
        return call


def kept(inbound: Call) -> Context:
    """What is kept of an inbound call: one context, its own."""
    (context,) = inbound.contexts
    return context


def values(call: Call, name: str) -> list[bytes]:
    return [value for lower, _, value in call.fields if lower == name.encode()]


USER = {"X-User-Id": "7"}


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize(("correlation", "trace"), [("c1", ""), ("other", TRACE), ("c1", TRACE)])
def test_one_id_is_enough(correlation: str, trace: str) -> None:
    """The correlation id or the trace id: either says whose call it is."""
    place = Place()
    place.comes_in(headers=USER)
    call = place.goes_out(correlation, trace)
    assert call.fields == [(b"x-user-id", b"X-User-Id", b"7")]


def test_without_an_id_nothing_comes_back() -> None:
    """A call that nobody has asked for is the app's own."""
    place = Place()
    place.comes_in(headers=USER)
    assert place.goes_out("other").fields == []


def test_what_travels() -> None:
    """Who the user is, and what the trace carries; nothing else of the inbound call."""
    place = Place()
    travelling = {"X-User-Id": "7", "X-User-Roles": "a,b", "X-Tenant": "t", "baggage": "k=v", "tracestate": "s=1"}
    staying = {"authorization": "secret", "cookie": "a=b", "x-tenants": "x", "x-users": "x", "accept": "*/*"}
    place.comes_in(headers={**travelling, **staying})
    call = place.goes_out()
    assert {name.decode(): value.decode() for _, name, value in call.fields} == travelling


def test_several_fields_of_one_name_all_come_back() -> None:
    """In their order."""
    place = Place()
    inbound = place.call("c1", TRACE, headers={"baggage": "a=1"})
    inbound.fields.append((b"baggage", b"Baggage", b"b=2"))
    place.keep.admit(inbound)
    assert values(place.goes_out(), "baggage") == [b"a=1", b"b=2"]


def test_what_the_guard_has_taken_off_does_not_come_back() -> None:
    """An unproven caller's word about a user is not believed on the way out either."""
    place = Place()
    inbound = place.call("c1", TRACE, headers={**USER, "x-tenant": "t"})
    inbound.nominated = frozenset((b"x-user-id",))
    place.keep.admit(inbound)
    call = place.goes_out()
    assert values(call, "x-user-id") == []
    assert values(call, "x-tenant") == [b"t"]


def test_what_the_app_says_wins() -> None:
    """It may act for somebody else; only what it leaves out comes back."""
    place = Place()
    place.comes_in(headers={**USER, "x-tenant": "t"})
    call = place.goes_out(headers={"x-USER-id": "8"})
    assert values(call, "x-user-id") == [b"8"]
    assert values(call, "x-tenant") == [b"t"]


def test_even_nothing_is_said() -> None:
    """An empty header of the app's own is its word, too."""
    place = Place()
    place.comes_in(headers=USER)
    assert values(place.goes_out(headers={"x-user-id": ""}), "x-user-id") == [b""]


def test_what_comes_back_to_one_call_is_not_shared() -> None:
    """A call that changes its fields changes nobody else's."""
    place = Place()
    place.comes_in(headers=USER)
    place.goes_out().fields.append((b"x-user-x", b"x-user-x", b"1"))
    assert place.goes_out().fields == [(b"x-user-id", b"X-User-Id", b"7")]


@pytest.mark.parametrize(("correlation", "trace"), [("made up", TRACE), ("c1", "")])
def test_an_id_that_the_app_has_not_sent_comes_back(correlation: str, trace: str) -> None:
    """One of the two is enough to be heard with both: log lines and traces of the next service belong together."""
    place = Place()
    inbound = place.comes_in()
    call = place.goes_out(correlation, trace)
    assert (call.correlation_id, call.traceparent) == (inbound.correlation_id, inbound.traceparent)


@pytest.mark.parametrize(
    ("correlation", "trace", "sent"), [("own", TRACE, CORRELATION), ("c1", OTHER_TRACE, b"traceparent")]
)
def test_an_id_that_the_app_has_sent_stays(correlation: str, trace: str, sent: bytes) -> None:
    """Its word about an id holds as about any other header."""
    place = Place()
    place.comes_in()
    call = place.call(correlation, trace)
    said = (call.correlation_id, call.traceparent)
    call.noted[sent] = said[sent == b"traceparent"]
    assert place.restore.admit(call) is None
    assert (call.correlation_id, call.traceparent)[sent == b"traceparent"] == said[sent == b"traceparent"]


def test_what_comes_back_is_noted_where_policies_want_it() -> None:
    """Keys of limits, routes and stored answers see what comes back as if the app had sent it, and nothing else."""
    place = Place()
    place.comes_in(headers={**USER, "x-tenant": "t"})
    assert place.goes_out().noted == {b"x-tenant": b"t"}
    assert place.goes_out(headers={"x-tenant": "u"}).noted == {b"x-tenant": b"u"}


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(("inbound", "own", "left"), [(3.0, 10.0, 3.0), (10.0, 3.0, 3.0), (5.0, 5.0, 5.0)])
def test_the_shorter_time_holds(inbound: float, own: float, left: float) -> None:
    """A deadline is shortened, never lengthened."""
    place = Place()
    place.comes_in(timeout=inbound)
    call = place.goes_out(timeout=own)
    assert call.deadline - call.started == pytest.approx(left)


def test_a_caller_without_a_deadline_shortens_nothing() -> None:
    """And leaves an app's call without one as it is."""
    place = Place()
    endless = place.comes_in(timeout=0.0)
    assert place.goes_out(timeout=3.0).deadline == pytest.approx(1003.0)
    assert place.goes_out(timeout=0.0).deadline == endless.deadline


def test_no_time_is_left() -> None:
    """Nobody waits any more: the call is not even begun, and leaves nothing behind."""
    place = Place()
    inbound = place.comes_in(timeout=1.0)
    call = place.call("c1")
    call.started = 1001.5
    failure = place.restore.admit(call)
    assert failure is not None
    assert failure.kind is Kind.DEADLINE
    assert call.permits == []
    assert not kept(inbound).calls


# ---------------------------------------------------------------- retries


def test_the_attempt_marker_is_passed_on() -> None:
    """Whoever is asked on behalf of a repetition is told that it is one."""
    place = Place()
    place.comes_in(headers={"x-outrider-attempt": "3"})
    assert place.goes_out().noted[b"x-outrider-attempt"] == b"3"
    assert place.goes_out(headers={"x-outrider-attempt": "1"}).noted[b"x-outrider-attempt"] == b"1"


def test_a_first_attempt_has_no_marker() -> None:
    """Nothing is made up."""
    place = Place()
    place.comes_in()
    assert b"x-outrider-attempt" not in place.goes_out().noted


# ---------------------------------------------------------------- doubt


@pytest.mark.parametrize("other", [{"X-User-Id": "8"}, {}, {"X-User-Id": "7", "x-tenant": "t"}], ids=str)
def test_ambiguous_ids_restore_nothing(other: dict[str, str]) -> None:
    """Two live calls of one id that say different things: whoever invents ids does not find somebody else's user."""
    place = Place()
    first = place.comes_in(headers=USER)
    second = place.comes_in(headers=other)
    call = place.goes_out()
    assert call.fields == []
    assert call.contexts == ()
    place_ends(place, second)
    assert values(place.goes_out(), "x-user-id") == [b"7"]
    place_ends(place, first)


def test_a_doubtful_correlation_id_is_not_made_up_for_by_the_trace() -> None:
    """Doubt is doubt, even if the other id would be clear."""
    place = Place()
    place.comes_in("c1", TRACE, headers=USER)
    place.comes_in("c1", OTHER_TRACE, headers={"x-user-id": "8"})
    assert place.goes_out("c1", TRACE).fields == []


def test_the_same_twice_is_beyond_doubt() -> None:
    """Two calls of one user within one trace restore the same."""
    place = Place()
    first = place.comes_in(headers=USER)
    place.comes_in(headers=USER)
    assert values(place.goes_out(), "x-user-id") == [b"7"]
    place_ends(place, first)
    assert values(place.goes_out(), "x-user-id") == [b"7"]


def test_of_several_the_longest_time_holds() -> None:
    """Which of them the app calls for is not known; none of them must be cut short by another's impatience."""
    place = Place()
    place.comes_in(headers=USER, timeout=1.0)
    place.comes_in(headers=USER, timeout=8.0)
    call = place.goes_out(timeout=10.0)
    assert call.deadline - call.started == pytest.approx(8.0)


def test_of_several_one_that_leaves_takes_nothing_from_the_others() -> None:
    """As long as somebody with the same ids still waits, the app's calls go on."""
    place = Place()
    first = place.comes_in(headers=USER)
    place.comes_in(headers=USER)
    place.goes_out()
    hangs_up(place, first)
    assert place.given_up == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_several_the_last_that_leaves_takes_the_calls_along(order: tuple[int, int]) -> None:
    """Nobody with these ids waits any more, whoever of them went first."""
    place = Place()
    callers = [place.comes_in(headers=USER), place.comes_in(headers=USER)]
    call = place.goes_out()
    hangs_up(place, callers[order[0]])
    assert place.given_up == []
    hangs_up(place, callers[order[1]])
    assert [(given, failure.kind) for given, failure in place.given_up] == [(call, Kind.CALLER_LEFT)]


def test_of_several_the_last_that_is_answered_gives_nothing_up() -> None:
    """One has hung up, the other has got its answer: what the app does after that is its own affair."""
    place = Place()
    first, second = place.comes_in(headers=USER), place.comes_in(headers=USER)
    place.goes_out()
    hangs_up(place, first)
    place_ends(place, second)
    assert place.given_up == []


def test_all_that_match_are_found_the_latest_first() -> None:
    """An outbound call knows everybody it may be for."""
    place = Place()
    inbound = [place.comes_in(headers=USER) for _ in range(3)]
    found = place.store.find(b"c1")
    assert found == tuple(kept(call) for call in reversed(inbound))
    assert place.goes_out().contexts == found


# ---------------------------------------------------------------- bounds


def test_it_is_bounded() -> None:
    """Beyond so many live calls the next ones are let in without being remembered, and that is counted."""
    place = Place(most=2)
    calls = [place.comes_in(f"c{number}", f"{number:032x}", headers=USER) for number in range(3)]
    assert (place.store.size, place.store.left_out) == (2, 1)
    assert place.goes_out("c2", f"{2:032x}").fields == []
    place_ends(place, calls[0])
    assert kept(place.comes_in("c3")).kept


def test_strangers_leave_half_of_the_room_to_the_proven() -> None:
    """However many of them are at work."""
    place = Place(most=10)
    for number in range(20):
        place.comes_in(f"s{number}", f"{number + 1:032x}", caller="")
    assert place.store.size == 5
    assert kept(place.comes_in("c", f"{99:032x}", headers=USER)).kept
    assert values(place.goes_out("c", f"{99:032x}"), "x-user-id") == [b"7"]


def test_an_id_that_there_was_no_room_for_restores_nothing() -> None:
    """It could be the context of another call with that id."""
    place = Place(most=2)
    first = place.comes_in("c", f"{1:032x}", headers=USER)
    place.comes_in("d", f"{2:032x}", headers=USER)
    second = place.comes_in("c", f"{3:032x}", headers={"X-User-Id": "8"})
    assert place.goes_out("c").fields == []
    place_ends(place, second)
    assert values(place.goes_out("c"), "x-user-id") == [b"7"]
    place_ends(place, first)
    assert place.store.size == 1


def test_many_calls_with_one_id_cost_little() -> None:
    """Keeping and dropping each of them takes the same time, and they are not all compared."""
    place = Place(most=10_000)
    began = process_time()
    calls = [place.comes_in("c", headers=USER) for _ in range(3000)]
    assert place.goes_out("c").fields == []
    for call in calls:
        place_ends(place, call)
    assert process_time() - began < 2
    assert place.store.size == 0


def test_what_strangers_say_of_themselves_is_not_even_looked_at() -> None:
    """Whoever has not proven to call has no identity; only its trace comes back."""
    place = Place()
    place.comes_in(headers={"x-user-id": "7", "baggage": "a=b"}, caller="")
    assert place.goes_out().fields == [(b"baggage", b"baggage", b"a=b")]


def test_so_many_calls_with_one_id_are_compared() -> None:
    """More of them restore nothing, and cost nothing."""
    place = Place(most=1000)
    for _ in range(128):
        place.comes_in("c", headers=USER)
    assert values(place.goes_out("c"), "x-user-id") == [b"7"]
    place.comes_in("c", headers=USER)
    assert place.goes_out("c").fields == []


def test_a_large_context_is_not_kept() -> None:
    """More than eight kilobytes of identity is no identity; the time is kept all the same."""
    place = Place()
    inbound = place.comes_in(headers={"x-user-id": "x" * 9000}, timeout=3.0)
    call = place.goes_out()
    assert call.fields == []
    assert call.deadline - call.started == pytest.approx(3.0)
    assert inbound.history == ["its context is too large to be kept for the app's own calls"]


def test_it_is_dropped_with_the_call() -> None:
    """When the inbound call is over, its id stands for nothing any more."""
    place = Place()
    place_ends(place, place.comes_in(headers=USER))
    assert place.goes_out().fields == []
    assert (place.store.size, place.store._by_id) == (0, {})


def test_one_id_for_both() -> None:
    """A correlation id that is the trace id is one id."""
    place = Place()
    inbound = place.comes_in(TRACE, TRACE, headers=USER)
    assert values(place.goes_out(TRACE), "x-user-id") == [b"7"]
    place_ends(place, inbound)
    assert place.store._by_id == {}


# ---------------------------------------------------------------- the end


def place_ends(place: Place, call: Call) -> None:
    """A call has been answered."""
    release(call, SUCCESS)


def hangs_up(place: Place, call: Call) -> None:
    """As `carry` sees it."""
    note_cancelled(call)
    release(call, NEUTRAL)


def test_who_leaves_takes_the_apps_calls_along() -> None:
    """Nobody waits for what the app asks others on behalf of a caller who has hung up."""
    place = Place()
    inbound, other = place.comes_in(headers=USER), place.comes_in("c2", OTHER_TRACE)
    mine = [place.goes_out(), place.goes_out("x", TRACE)]
    place.goes_out("c2")
    hangs_up(place, inbound)
    assert {call for call, _ in place.given_up} == set(mine)
    assert {failure.kind for _, failure in place.given_up} == {Kind.CALLER_LEFT}
    assert len(kept(other).calls or ()) == 1


def test_calls_that_are_over_are_not_given_up() -> None:
    """Only what is still under way."""
    place = Place()
    inbound = place.comes_in()
    place_ends(place, place.goes_out())
    hangs_up(place, inbound)
    assert place.given_up == []


def test_an_answered_call_gives_nothing_up() -> None:
    """What the app goes on to do after its answer is its own affair."""
    place = Place()
    inbound = place.comes_in()
    outbound = place.goes_out()
    place_ends(place, inbound)
    assert place.given_up == []
    place_ends(place, outbound)


def test_a_call_that_failed_gives_nothing_up() -> None:
    """Only the caller's leaving does."""
    place = Place()
    inbound = place.comes_in()
    place.goes_out()
    inbound.failure = Failure(Kind.ATTEMPT_TIMEOUT, "late")
    release(inbound, NEUTRAL)
    assert place.given_up == []


def test_an_outbound_call_outlives_its_inbound_one() -> None:
    """It ends without a trace, too."""
    place = Place()
    inbound = place.comes_in()
    context = kept(inbound)
    outbound = place.goes_out()
    place_ends(place, inbound)
    assert outbound.contexts == ()
    place_ends(place, outbound)
    assert outbound.permits == []
    assert not place.store.find(*context.ids)


def test_the_id_of_a_trace() -> None:
    """The part of a `traceparent` that stays the same from hop to hop."""
    assert trace_id(traceparent(TRACE)) == TRACE.encode()


# ---------------------------------------------------------------- any order


class AnyOrder(RuleBasedStateMachine):
    """Inbound and outbound calls begin and end in any order, with ids that are often the same."""

    @initialize(most=st.integers(1, 6))
    def begin(self, most: int) -> None:
        self.place = Place(most)
        self.inbound: list[Call] = []
        self.outbound: list[Call] = []

    @rule(correlation=st.sampled_from("abc"), trace=st.sampled_from("123"), user=st.sampled_from(["7", "8"]))
    def comes_in(self, correlation: str, trace: str, user: str) -> None:
        self.inbound.append(self.place.comes_in(correlation, trace * 32, headers={"x-user-id": user}))

    @rule(correlation=st.sampled_from("abcd"), trace=st.sampled_from(["", "1" * 32, "2" * 32]))
    def goes_out(self, correlation: str, trace: str) -> None:
        call = self.place.call(correlation, trace)
        ids = {call.correlation_id, trace_id(call.traceparent)}  # before they are completed
        assert self.place.restore.admit(call) is None
        self.outbound.append(call)
        live = [one for one in self.inbound if kept(one).kept]
        without_room = {one for call in self.inbound if not kept(call).kept for one in kept(call).ids}
        users = {
            value
            for one in live
            if {one.correlation_id, trace_id(one.traceparent)} & ids
            for value in values(one, "x-user-id")
        }
        restored = values(call, "x-user-id")
        assert len(restored) <= 1
        assert set(restored) <= users
        if len(users) == 1 and not ids & without_room:
            assert set(restored) == users

    @precondition(lambda self: self.inbound)
    @rule(data=st.data(), hung_up=st.booleans())
    def inbound_ends(self, data: st.DataObject, hung_up: bool) -> None:
        call = self.inbound.pop(data.draw(st.integers(0, len(self.inbound) - 1)))
        alone = {outbound for outbound in self.outbound if outbound.contexts and outbound.contexts == call.contexts}
        (hangs_up if hung_up else place_ends)(self.place, call)
        assert {given for given, _ in self.place.given_up} == (alone if hung_up else set())
        for given in {given for given, _ in self.place.given_up}:
            self.outbound.remove(given)
            release(given, NEUTRAL)
        self.place.given_up.clear()

    @precondition(lambda self: self.outbound)
    @rule(data=st.data())
    def outbound_ends(self, data: st.DataObject) -> None:
        place_ends(self.place, self.outbound.pop(data.draw(st.integers(0, len(self.outbound) - 1))))

    @invariant()
    def what_is_kept_is_what_lives(self) -> None:
        """As many contexts as live calls that have one, found by their ids and by no others."""
        if not hasattr(self, "place"):
            return
        store = self.place.store
        live = [kept(call) for call in self.inbound if kept(call).kept]
        unkept = [one for call in self.inbound if not kept(call).kept for one in kept(call).ids]
        assert store._unkept == Counter(unkept)
        assert store.size == len(live) <= store._most
        assert set(store._by_id) == {one for context in live for one in context.ids}
        found = [context for contexts in store._by_id.values() for context in contexts]
        assert {id(context) for context in found} == {id(context) for context in live}

    @invariant()
    def no_call_is_held(self) -> None:
        """Contexts know outbound calls that are under way, and none that has ended."""
        if not hasattr(self, "place"):
            return
        for call in self.inbound:
            for context in call.contexts:
                assert (context.calls or set()) <= set(self.outbound)

    def teardown(self) -> None:
        """In the end nothing is left."""
        if not hasattr(self, "place"):
            return
        for call in self.inbound:
            place_ends(self.place, call)
        assert (self.place.store.size, self.place.store._by_id) == (0, {})
        assert not any(call.contexts for call in self.outbound)
        for call in self.outbound:
            place_ends(self.place, call)
        assert not any(call.permits for call in (*self.inbound, *self.outbound))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


# ---------------------------------------------------------------- whether anybody needs it


@pytest.mark.parametrize(
    ("words", "restored"),
    [
        ([b"false"], [b"false"]),
        ([b"true"], []),
        ([None], []),
        ([b"false", b"false"], [b"false"]),
        ([b"false", None], []),
    ],
)
def test_what_nobody_needs(words: list[bytes | None], restored: list[bytes]) -> None:
    """Only if nobody for whom the call is made needs it; and it makes nobody's context another one."""
    place = Place()
    for word in words:
        inbound = place.call("c1", TRACE, headers=USER)
        if word is not None:
            inbound.noted[b"x-outrider-critical"] = word
            inbound.fields.append((b"x-outrider-critical", b"x-outrider-critical", word))
        place.keep.admit(inbound)
    call = place.goes_out()
    assert values(call, "x-outrider-critical") == restored
    assert values(call, "x-user-id") == [b"7"]


def test_the_app_may_say_otherwise() -> None:
    """It knows better what it needs."""
    place = Place()
    inbound = place.call("c1", TRACE)
    inbound.noted[b"x-outrider-critical"] = b"false"
    place.keep.admit(inbound)
    call = place.call("c1", headers={"x-outrider-critical": "true"})
    place.restore.admit(call)
    assert values(call, "x-outrider-critical") == [b"true"]
