"""Last good: an earlier answer stands in, never another user's, never an old one, within its memory."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.body import RequestBody
from outrider.dataplane.call import Call
from outrider.dataplane.policies import last_good as module
from outrider.dataplane.policies.last_good import LastGood, Recorder
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Response
from outrider.model.reply import Reply
from tests.fakes import Clock, make_call, make_response

BROKEN = Failure(Kind.CONNECT_REFUSED, "")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "monotonic", made)
    return made


def make_answer(status: int = 200, length: int | None = None, **headers: str) -> Response:
    response = make_response(status)
    response.length = length
    response.chunked = length is None
    for name, value in headers.items():
        response.lines += (name.replace("_", "-").encode(), b": ", value.encode(), b"\r\n")
    return response


def asking(path: bytes = b"/", method: bytes = b"GET", **headers: str) -> Call:
    call = make_call(method, {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()})
    call.path = path
    return call


def keep(store: LastGood, call: Call, answer: Response | None = None, body: bytes = b"body") -> bool:
    """Let an answer pass; whether it was taken down."""
    answer = answer or make_answer()
    recorder = store.recorder(call, answer)
    if recorder is None:
        return False
    recorder.add([body])
    store.keep(call, answer, recorder)
    return True


def roomy() -> LastGood:
    return LastGood(600.0, 100_000, 50_000, frozenset((b"x-trace",)))


def body_of(reply: Reply | None) -> bytes | None:
    return None if reply is None else reply.body


def test_an_earlier_answer_stands_in(clock: Clock) -> None:
    """Status, fields and body are as they were; it says that it is stale, how old, and what it covers up."""
    store = roomy()
    keep(store, asking(), make_answer(content_type="text/plain", etag='"1"'))
    clock.advance(12.4)
    reply = store.reply(asking(), BROKEN)
    assert reply is not None
    assert (reply.status, reply.body) == (200, b"body")
    assert reply.headers == [
        (b"content-type", b"text/plain"),
        (b"etag", b'"1"'),
        (b"x-outrider-degraded", b"last-good; age=12; cause=connect-failed"),
        (b"warning", b'110 - "Response is Stale"'),
    ]


def test_its_length_is_counted_anew() -> None:
    """`Content-Length` is written by whoever sends the reply."""
    store = roomy()
    keep(store, asking(), make_answer(Content_Length="4"))
    reply = store.reply(asking(), make_response(503))
    assert reply is not None
    assert [name for name, _ in reply.headers] == [b"x-outrider-degraded", b"warning"]


def test_replies_do_not_add_up() -> None:
    """However often it stands in, an answer carries its marks once."""
    store = roomy()
    keep(store, asking())
    for _ in range(3):
        reply = store.reply(asking(), BROKEN)
        assert reply is not None
        assert len(reply.headers) == 2


def test_the_latest_answer_counts() -> None:
    """A newer one takes the place of an older one, and its room."""
    store = roomy()
    keep(store, asking(), body=b"a" * 1000)
    keep(store, asking(), body=b"b")
    assert body_of(store.reply(asking(), BROKEN)) == b"b"
    assert store.size < 1000


def test_nothing_kept_is_nothing_to_say() -> None:
    """A call that never went well has no earlier answer."""
    assert roomy().reply(asking(), BROKEN) is None


# ---------------------------------------------------------------- whose answer


def test_another_path_is_another_question() -> None:
    """The query is part of it."""
    store = roomy()
    keep(store, asking(b"/users?id=1"))
    for path in (b"/users?id=2", b"/users", b"/Users?id=1"):
        assert store.reply(asking(path), BROKEN) is None


@pytest.mark.parametrize(
    "name", ["authorization", "cookie", "x-user-id", "x-tenant", "accept", "accept_language", "x_whatever_comes"]
)
def test_another_user_is_another_question(name: str) -> None:
    """Any field that could make a difference keeps answers apart: another value, none, or one more."""
    store = roomy()
    keep(store, asking(**{name: "ada"}), body=b"for ada")
    assert body_of(store.reply(asking(**{name: "ada"}), BROKEN)) == b"for ada"
    assert store.reply(asking(**{name: "bob"}), BROKEN) is None
    assert store.reply(asking(), BROKEN) is None
    assert store.reply(asking(**{name: "ada"}, x_more="1"), BROKEN) is None


@given(
    st.dictionaries(st.sampled_from(["cookie", "authorization", "x-a", "x-b"]), st.sampled_from("123"), max_size=4),
    st.dictionaries(st.sampled_from(["cookie", "authorization", "x-a", "x-b"]), st.sampled_from("123"), max_size=4),
)
def test_only_the_same_question_gets_the_answer(kept: dict[str, str], asked: dict[str, str]) -> None:
    """Whatever two calls say of themselves, one's answer is the other's only if they say the same."""
    store = roomy()
    keep(store, asking(**kept))
    assert (store.reply(asking(**asked), BROKEN) is not None) == (kept == asked)


@pytest.mark.parametrize("name", ["traceparent", "x-request-id", "x-correlation-id", "x-outrider-attempt", "x-trace"])
def test_what_is_only_about_the_way_makes_no_difference(name: str) -> None:
    """Ids of calls and traces, and the fields that the configuration names, are different every time."""
    store = roomy()
    keep(store, asking(**{name: "1"}, cookie="a"))
    assert store.reply(asking(**{name: "2"}, cookie="a"), BROKEN) is not None


def test_the_order_of_fields_makes_no_difference() -> None:
    """Two spellings of the same question are one; of one field, the order of its values does make a difference."""
    store = roomy()
    keep(store, asking(x_a="1", x_b="2"))
    assert store.reply(asking(x_b="2", x_a="1"), BROKEN) is not None
    one, other = asking(), asking()
    one.fields = [(b"x-a", b"x-a", b"1"), (b"x-a", b"x-a", b"2")]
    other.fields = one.fields[::-1]
    keep(store, one)
    assert store.reply(one, BROKEN) is not None
    assert store.reply(other, BROKEN) is None


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"get"])
def test_only_get_is_kept_and_answered(method: bytes) -> None:
    """Nothing that acts is ever answered from memory."""
    store = roomy()
    assert not keep(store, asking(method=method))
    keep(store, asking())
    assert store.reply(asking(method=method), BROKEN) is None


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("status", [201, 203, 204, 206, 301, 304, 404, 500, 503])
def test_only_200_is_kept(status: int) -> None:
    """Parts, redirects and failures are no good answers."""
    assert not keep(roomy(), asking(), make_answer(status))


@pytest.mark.parametrize(
    "headers",
    [
        {"Cache_Control": "no-store"},
        {"cache_control": "max-age=60, Private"},
        {"cache_control": 'private="x-user"'},
        {"Set_Cookie": "id=1"},
        {"vary": "*"},
        {"vary": "a," * 200},
        {"Vary": "accept, *"},
        {"Vary": "x-trace"},
        {"Vary": "accept, User-Agent"},
        {"Vary": "Accept,X-Forwarded-For"},
    ],
    ids=str,
)
def test_what_must_not_be_kept(headers: dict[str, str]) -> None:
    """The target's word on storing, and whatever is made for one user, is respected."""
    assert not keep(roomy(), asking(), make_answer(**headers))


@pytest.mark.parametrize(
    "headers", [{"cache_control": "no-cache"}, {"cache_control": "max-age=0, public"}, {"vary": "accept"}], ids=str
)
def test_what_may_be_kept(headers: dict[str, str]) -> None:
    """Something that must be asked for again each time is still better than nothing."""
    assert keep(roomy(), asking(), make_answer(**headers))


def test_an_answer_that_may_be_cut_short_is_not_kept() -> None:
    """Where only the end of the connection ends the body, nobody can tell whether that was all of it."""
    endless = make_answer()
    endless.chunked = False
    assert not keep(roomy(), asking(), endless)


def test_an_app_that_wants_nothing_stored_is_obeyed() -> None:
    """`no-store` of a request holds for its answer, and none is given to it (RFC 9111 §5.2.1.5)."""
    store = roomy()
    assert not keep(store, asking(cache_control="no-store"))
    assert store.reply(asking(cache_control="no-store"), BROKEN) is None


def test_a_question_with_a_body_is_not_kept() -> None:
    """A search by GET says in its body what it asks for."""
    store = roomy()
    keep(store, asking())
    call = asking()
    call.body = RequestBody(cast(Any, None), 100, chunked=False)
    assert not keep(store, call)
    assert store.reply(call, BROKEN) is None


def test_an_answer_that_may_not_be_kept_does_not_remove_an_earlier_one() -> None:
    """What was good before is still there."""
    store = roomy()
    keep(store, asking())
    assert not keep(store, asking(), make_answer(Cache_Control="no-store"))
    assert store.reply(asking(), BROKEN) is not None


# ---------------------------------------------------------------- how old


def test_an_answer_that_is_too_old_is_let_go(clock: Clock) -> None:
    """At `max_age` it still counts, after it neither stands in nor takes room."""
    store = roomy()
    keep(store, asking())
    clock.advance(600)
    assert store.reply(asking(), BROKEN) is not None
    clock.advance(0.1)
    assert store.reply(asking(), BROKEN) is None
    assert store.size == 0


def test_standing_in_does_not_make_it_younger(clock: Clock) -> None:
    """Its age is counted from when it was good."""
    store = roomy()
    keep(store, asking())
    for _ in range(6):
        clock.advance(99)
        assert store.reply(asking(), BROKEN) is not None
    clock.advance(99)
    assert store.reply(asking(), BROKEN) is None


# ---------------------------------------------------------------- how large


def test_an_answer_that_is_too_large_is_not_begun() -> None:
    """If its length is known, nothing is taken down at all."""
    store = LastGood(600.0, 100_000, 1000)
    assert keep(store, asking(), make_answer(length=1000))
    assert not keep(store, asking(), make_answer(length=1001))


def test_an_answer_that_turns_out_too_large_is_dropped() -> None:
    """Nothing more of it is held once it has outgrown the limit, and nothing of it is kept."""
    recorder = Recorder(10, lambda call, answer, taken: None)
    recorder.add([b"12345", b"67890"])
    assert b"".join(recorder.pieces) == b"1234567890"
    recorder.add([b"1"])
    assert recorder.pieces == []
    recorder.add([b"23"])
    assert recorder.pieces == []
    store = LastGood(600.0, 100_000, 10)
    keep(store, asking(), body=b"x" * 11)
    assert store.reply(asking(), BROKEN) is None
    assert store.size == 0


def test_the_longest_unused_goes_first() -> None:
    """An answer that stands in stays; one that nobody has needed makes room."""
    store = LastGood(600.0, 4000, 1000)
    for number in range(3):
        keep(store, asking(b"/%d" % number), body=b"x" * 700)
    assert store.reply(asking(b"/0"), BROKEN) is not None
    keep(store, asking(b"/3"), body=b"x" * 700)
    kept = [path for path in (b"/0", b"/1", b"/2", b"/3") if store.reply(asking(path), BROKEN) is not None]
    assert kept == [b"/0", b"/2", b"/3"]


def test_one_that_fills_the_room_alone_does_not_empty_it() -> None:
    """An answer that can never be kept takes nothing from the others, and what a question says counts as well."""
    store = LastGood(600.0, 4000, 4000)
    keep(store, asking(b"/small"))
    keep(store, asking(b"/large"), body=b"x" * 3900)
    keep(store, asking(b"/wordy", cookie="x" * 4000))
    assert store.reply(asking(b"/small"), BROKEN) is not None
    assert store.reply(asking(b"/large"), BROKEN) is None
    assert store.reply(asking(b"/wordy", cookie="x" * 4000), BROKEN) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 1500), st.sampled_from(["keep", "reply", "wait"])), max_size=60
    )
)
def test_the_size_is_the_sum_of_what_is_kept(steps: list[tuple[int, int, str]]) -> None:
    """Whatever comes, goes and grows old, the books are right and the memory is bounded."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(module, "monotonic", clock)
        store = LastGood(100.0, 4000, 1400)
        for number, size, what in steps:
            call = asking(b"/%d" % number)
            if what == "keep":
                keep(store, call, make_answer(x_n="1" * number), b"x" * size)
            elif what == "reply":
                store.reply(call, BROKEN)
            else:
                clock.advance(size / 10)
            assert store.size == sum(kept.size for kept in store._kept.values())
            assert 0 <= store.size <= 4000
