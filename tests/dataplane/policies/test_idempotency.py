"""Keyed calls: executed once, and answered from memory after that."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

import pytest

from outrider.dataplane.call import Call
from outrider.dataplane.engine.accounting import release
from outrider.dataplane.policies.idempotency import Entry, Idempotency, Lookup, StoreError
from outrider.dataplane.runtime.timers import NEVER
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Response
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS
from outrider.model.patterns import PathPattern
from outrider.model.reply import Reply
from tests.fakes import make_attempt, make_call, make_response


class Memory:
    """A store that can be broken."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.broken = False
        self.begun = 0
        self.failures = 0  # how many ends cannot be written

    def token(self) -> str:
        self.begun += 1
        return f"t{self.begun}"

    async def begin(self, key: bytes, new: Entry, instead_of: str = "") -> Entry | None:
        if self.broken:
            raise StoreError("disk full", "its disk is full")
        known = self.entries.get(key)
        if known is not None and known.lost and known.token == instead_of:
            known = None
        if known is None:
            self.entries[key] = new
        return known

    async def finish(self, key: bytes, entry: Entry) -> None:
        self._fail()
        self.entries[key] = entry

    async def forget(self, key: bytes, token: str) -> None:
        self._fail()
        assert self.entries[key].token == token
        del self.entries[key]

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("locked", "it is locked")


class Place:
    """The policy, and its store."""

    def __init__(
        self, *, strict: bool = True, repeat: bool = False, exempt: str = "", lookup: Lookup | None = None
    ) -> None:
        self.store = Memory()
        self.policy = Idempotency(
            self.store,
            max_answer=100,
            strict=strict,
            repeat=repeat,
            lookup=lookup,
            exempt=[PathPattern(exempt)] if exempt else (),
        )

    async def comes(
        self, key: bytes = b"k", *, path: bytes = b"/pay", caller: str = "shop", method: bytes = b"POST"
    ) -> tuple[Call, Failure | Reply | None]:
        """A keyed call, and what is said to it."""
        call = make_call(method, {b"Idempotency-Key": key})
        call.path, call.caller, call.deadline = path, caller, NEVER
        verdict = self.policy.admit(call)
        if isinstance(verdict, Awaitable):
            verdict = await cast("Awaitable[Failure | Reply | None]", verdict)
        return call, verdict

    async def ends(self, call: Call, status: int = 200, body: bytes = b"paid") -> None:
        """The app has answered, and the answer has passed."""
        answer: Response = make_response(status)
        answer.lines += [b"x-a", b": ", b"1", b"\r\n", b"date", b": ", b"now", b"\r\n"]
        call.attempt = make_attempt(call, answer)
        assert call.recorder is not None
        call.recorder.add([body])
        call.recorder.keep(call, answer, call.recorder)
        release(call, SUCCESS if status < 500 else FAILURE)
        await self.policy.settle()


async def test_a_repetition_is_answered_from_memory() -> None:
    """Status, fields and body as they were, and marked."""
    place = Place()
    first, verdict = await place.comes()
    assert verdict is None
    await place.ends(first, 201)
    _, again = await place.comes()
    assert isinstance(again, Reply)
    assert (again.status, again.body) == (201, b"paid")
    assert again.headers == [(b"x-a", b"1"), (b"idempotent-replayed", b"true")]
    assert (place.policy.counts["executed"], place.policy.counts["replayed"]) == (1, 1)


async def test_what_is_under_way_is_not_begun_again() -> None:
    """The second hears 409, and when to come back."""
    place = Place()
    await place.comes()
    _, verdict = await place.comes()
    assert isinstance(verdict, Failure)
    assert verdict.kind is Kind.IN_PROGRESS
    assert verdict.retry_after == 1.0


@pytest.mark.parametrize(
    "other", [{"key": b"l"}, {"path": b"/refund"}, {"caller": "stock"}, {"method": b"PATCH"}], ids=str
)
async def test_another_call_is_another_call(other: dict[str, bytes]) -> None:
    """A key belongs to one caller and one operation."""
    place = Place()
    await place.comes()
    _, verdict = await place.comes(**other)
    assert verdict is None


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
async def test_only_post_and_patch_are_remembered(method: bytes) -> None:
    """The others may be repeated anyway."""
    place = Place()
    await place.comes(method=method)
    assert place.store.entries == {}


@pytest.mark.parametrize("key", [b""])
async def test_an_empty_key_is_none(key: bytes) -> None:
    """It identifies nothing."""
    place = Place()
    assert (await place.comes(key))[1] is None
    assert place.store.entries == {}


async def test_a_key_without_end_is_refused() -> None:
    """At most 255 characters."""
    place = Place()
    assert (await place.comes(b"k" * 255))[1] is None
    _, verdict = await place.comes(b"k" * 256)
    assert isinstance(verdict, Failure)
    assert verdict.kind is Kind.BAD_REQUEST


async def test_another_body_is_a_mistake() -> None:
    """The key stands for the call that it came with first."""
    place = Place()
    first, _ = await place.comes()
    await place.ends(first)
    (name,) = place.store.entries
    place.store.entries[name] = Entry(b"another", True, False, 200)
    _, verdict = await place.comes()
    assert isinstance(verdict, Failure)
    assert verdict.kind is Kind.KEY_REUSED


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_failure_of_the_app_may_be_tried_again(status: int) -> None:
    """It is not what anybody wants to hear again."""
    place = Place()
    first, _ = await place.comes()
    await place.ends(first, status)
    assert place.store.entries == {}
    assert (await place.comes())[1] is None


@pytest.mark.parametrize("status", [408, 425, 429])
async def test_a_refusal_for_now_may_be_tried_again(status: int) -> None:
    """The app has not executed it, and says that it may come again."""
    place = Place()
    first, _ = await place.comes()
    await place.ends(first, status)
    assert (await place.comes())[1] is None


@pytest.mark.parametrize("status", [200, 204, 302, 400, 404, 422])
async def test_an_answer_is_an_answer(status: int) -> None:
    """A refusal for good is one, too."""
    place = Place()
    first, _ = await place.comes()
    await place.ends(first, status)
    _, again = await place.comes()
    assert isinstance(again, Reply)
    assert again.status == status


async def test_what_never_got_there_may_be_tried_again() -> None:
    """Refused behind us, or nobody was listening: it was not executed."""
    for attempted in (False, True):
        place = Place()
        call, _ = await place.comes()
        if attempted:
            call.attempt = make_attempt(call, Failure(Kind.CONNECT_REFUSED, ""))
        release(call, NEUTRAL)
        await place.policy.settle()
        assert place.store.entries == {}


@pytest.mark.parametrize("repeat", [False, True])
async def test_what_a_crash_left_behind(repeat: bool) -> None:
    """It may have been executed: only where the app knows repetitions itself is it executed again."""
    place = Place(repeat=repeat)
    await place.comes()
    (name,) = place.store.entries
    place.store.entries[name] = Entry(place.store.entries[name].fingerprint, lost=True, token="t", age=9.0)
    _, verdict = await place.comes()
    if repeat:
        assert verdict is None
    else:
        assert isinstance(verdict, Failure)
        assert (verdict.kind, verdict.retry_after) == (Kind.IN_PROGRESS, None)


async def test_a_large_answer_is_only_said_to_have_been_given() -> None:
    """It was executed, and is not executed again."""
    place = Place()
    first, _ = await place.comes()
    await place.ends(first, 200, b"x" * 101)
    _, again = await place.comes()
    assert isinstance(again, Reply)
    assert b"ANSWER_NOT_KEPT" in again.body


@pytest.mark.parametrize("strict", [True, False])
async def test_a_broken_store(strict: bool) -> None:
    """Nobody can tell repetitions: refused, or let through as if there were no key."""
    place = Place(strict=strict)
    place.store.broken = True
    call, verdict = await place.comes()
    assert isinstance(verdict, Failure) == strict
    assert call.permits == []
    assert place.policy.counts["unavailable"] == 1


async def test_exempt_operations() -> None:
    """Nothing is stored of an operation whose answers are secrets, however its path is written."""
    place = Place(exempt="POST /login")
    for path in (b"/login", b"/login/", b"/%6cogin", b"/x/../login"):
        assert (await place.comes(path=path))[1] is None
    assert place.store.entries == {}


@pytest.mark.parametrize("status", [200, 503])
async def test_an_end_is_written_until_it_is(status: int) -> None:
    """While the store is locked the call counts as under way; then its answer is there, or it may be tried again."""
    place = Place()
    first, _ = await place.comes()
    place.store.failures = 2
    await place.ends(first, status)
    assert place.store.failures == 0
    _, again = await place.comes()
    assert isinstance(again, Reply) if status == 200 else again is None


@pytest.mark.parametrize("strict", [True, False])
async def test_an_answer_of_the_app_is_given_even_if_it_cannot_be_kept(strict: bool) -> None:
    """The app has said that it has executed the call: it is not executed again because a disk is full."""

    async def answered(call: Call, key: bytes) -> Reply | None:
        return Reply(201, [(b"x-receipt", b"r1"), (b"Date", b"then")], b"paid")

    place = Place(strict=strict, lookup=answered)
    await place.comes()
    (name,) = place.store.entries
    place.store.entries[name] = Entry(place.store.entries[name].fingerprint, lost=True, token="t", age=9.0)
    place.store.failures = 1
    _, verdict = await place.comes()
    assert isinstance(verdict, Reply)
    assert (verdict.status, verdict.body) == (201, b"paid")
    assert verdict.headers == [(b"x-receipt", b"r1"), (b"idempotent-replayed", b"true")]
    await place.policy.settle()


async def test_without_memory_a_call_can_be_stopped() -> None:
    """Nobody will want its answer later."""
    place = Place(strict=False)
    place.store.broken = True
    call, verdict = await place.comes()
    assert verdict is None
    assert not call.unstoppable
