"""Runs a keyed POST once: what has been answered is answered again from memory, what is under way is not begun twice.

The receiver's half of `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header). A key belongs to one caller and
one operation; with another body it is a mistake (422). While the first call is under way others hear 409 and when to
come back. It goes on to its end even if its caller leaves or runs out of time: the repetition will want the answer. An
answer that says the app itself failed (5xx) is not kept, and neither is a call that provably never reached the app:
both may be tried again.

What a crash leaves behind, or a connection to the app that breaks, is a call that was handed over and whose answer
nobody knows: it is lost. It may have been executed, so it is not executed again: those who ask hear 409 until the entry
expires. An app that keeps account can help: it is asked what became of the call (`after_crash: ask`), or it recognises
repetitions itself (`repeat`).
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from outrider.dataplane.body import Discard
from outrider.dataplane.http1.path_interpretations import readings
from outrider.dataplane.policies.idempotency_key import KEY
from outrider.dataplane.policy import Permit, Policy
from outrider.dataplane.recorder import Recorder
from outrider.dataplane.runtime.timers import TO_THE_END
from outrider.model.failure import Failure, Kind
from outrider.model.messages import Response
from outrider.model.outcome import Outcome
from outrider.model.patterns import HeaderNames, PathPattern, dashed
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.body import RequestBody
    from outrider.dataplane.call import Call

T = TypeVar("T")
_KEYED: Final = frozenset((b"POST", b"PATCH"))
_LONGEST_KEY: Final = 255
# What becomes of keyed calls.
_COUNTED: Final = (
    "executed",
    "replayed",
    "in_progress",
    "mismatch",
    "lost",
    "unavailable",
    "recovered",
    "repeated",
)
# Answers below 500 that ask for another try: kept, they would be given to that one, too.
_LATER: Final = frozenset((401, 408, 409, 425, 429))
# Fields by which an app knows its users, beside those that the configuration calls identity.
_CREDENTIALS: Final = frozenset((b"authorization", b"cookie"))
# Says which instance of a service calls, not for whom: a service has several, and some make an id for each request.
_INSTANCE: Final = frozenset((b"x-service-id",))
# Says which service calls; where one has proven that, its proof says it.
_INSTANCE_AND_NAME: Final = _INSTANCE | {b"x-service-name"}
# Marks the fingerprint of a body of which only the beginning was there when the store was asked.
_BEGINNING: Final = b"\x02"
# Bytes of a length in front of a digest.
_LENGTH: Final = 8
_COME_BACK: Final = 1.0  # seconds
# Seconds that a call waits for the store at most.
_PATIENCE: Final = 5.0
# Seconds before the app is asked about a lost call, which may still be on its way through the kernel.
_ON_ITS_WAY: Final = 0.5
# Seconds between two tries to write down how a call ended, and how many ends may wait for that with their answers.
_WRITE_AGAIN: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_MOST_UNWRITTEN: Final = 200
# Stands for an answer that is not kept.
ANSWER_NOT_KEPT: Final = b'{"error":"ANSWER_NOT_KEPT","message":"executed; there was no room to keep its answer"}\n'
# Seconds that a stop waits for them.
_LAST_WRITES: Final = 5.0
# Fields of an answer that belong to the moment it was given in.
_OF_THE_MOMENT: Final = frozenset((b"date", b"age", b"content-length", b"connection", b"keep-alive"))


@dataclass(slots=True)
class Entry:
    """What is known of a key: `fingerprint` of the request, whether it is `done`, and its answer. `lost`: its end is
    not known. `digest` is of a body that was too large to be kept: its length (8 bytes), as far as that is known, and
    then its digest. `age` is how many seconds ago it was last seen under way; `token` tells it from others of the same
    key."""

    fingerprint: bytes
    done: bool = False
    lost: bool = False
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    age: float = 0.0
    token: str = ""
    digest: bytes = b""
    caller: str = ""


class Store(Protocol):
    """Where keys are remembered. Raises StoreError when it cannot say or keep anything."""

    def token(self) -> str:
        """A new one, for a call to begin: no other call has had it, or will."""

    async def begin(self, key: bytes, new: Entry, instead_of: str = "") -> Entry | None:
        """Take the key for a new call; what is known of it already, or None if it is taken. A lost entry is replaced if
        `instead_of` is its token. Where room is short, what belongs to the caller with the most goes first."""

    async def finish(self, key: bytes, entry: Entry) -> None:
        """Keep how a call ended. The entry has the call's token, and nothing is written over that of another call."""

    async def forget(self, key: bytes, token: str) -> None:
        """The call with this token has not been executed, or has failed: it may be tried again."""


class StoreError(Exception):
    """The store cannot be used; the message says what is wrong, `reason` how a caller is told."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnknownError(Exception):
    """The app does not say whether it has executed a call; the message says why."""


# Of a call and its key: the answer that the app has given to the first one, or None if it has not executed that. Raises
# UnknownError.
Lookup = Callable[["Call", bytes], Awaitable[Reply | None]]


class Idempotency(Policy):
    """Of all keyed calls that reach the app. `max_answer` (bytes) bounds what is kept of one answer; `strict` refuses
    calls while the store cannot be used, otherwise they pass as if they had no key. Counts by what became of calls.

    With `proven_only`, calls of others are not recognised: strangers could fill the store, and one stranger must not
    get the answer to another one's call.
    """

    __slots__ = (
        "_account",
        "_exempt",
        "_identity",
        "_jobs",
        "_lookup",
        "_max_answer",
        "_proofs",
        "_proven_only",
        "_repeat",
        "_service",
        "_store",
        "_strict",
        "counts",
    )

    def __init__(  # noqa: PLR0913 # settings, all but the first few by keyword
        self,
        store: Store,
        *,
        max_answer: int,
        strict: bool = True,
        repeat: bool = False,
        lookup: Lookup | None = None,
        exempt: Sequence[PathPattern] = (),
        service: str = "",
        proven_only: bool = False,
        identity: Sequence[str] = (),
        proofs: Callable[[Call], frozenset[bytes]] | None = None,
        account: Callable[[Call], str] = lambda call: call.caller,
    ) -> None:
        """Lost calls are executed again with `repeat`, and asked after with `lookup`. `exempt`: operations nothing is
        stored of. `service` is whose app this is: guards of several services may share a store. `identity` are names of
        headers, or beginnings with `*`, that say who somebody is: but for those of the calling service, they tell
        users of one caller apart. `proofs` are the headers of a call that reach the app and prove who calls,
        `account` is the name under which its room in the store is counted."""
        super().__init__()
        self._account = account
        self._proofs = proofs
        self._service = service
        self._identity = HeaderNames(identity)
        self._proven_only, self._exempt = proven_only, tuple(exempt)
        self._store = store
        self._max_answer = max_answer
        self._strict, self._repeat, self._lookup = strict, repeat, lookup
        self._jobs: set[asyncio.Task[None]] = set()
        self.counts = dict.fromkeys(_COUNTED, 0)

    def admit(self, call: Call) -> Failure | Awaitable[Failure | Reply | None] | None:
        """Ask the store about a keyed call; everything else passes."""
        key = call.noted.get(KEY, b"")
        if not key or call.method not in _KEYED or KEY in call.nominated or (self._proven_only and not call.caller):
            return None
        if self._exempt:
            paths = readings(call.path)
            if paths is None:
                return Failure(Kind.BAD_REQUEST, "the path can be read in too many ways")
            if any(one.matches(call.method, path) for one in self._exempt for path in paths):
                return None
        if len(key) > _LONGEST_KEY:
            return Failure(Kind.BAD_REQUEST, f"Idempotency-Key is longer than {_LONGEST_KEY} characters")
        return self._ask(call, key)

    async def _ask(self, call: Call, key: bytes) -> Failure | Reply | None:
        fingerprint = await _fingerprint(call, self._credentials_of_user(call))
        if call.deadline <= monotonic():
            return Failure(Kind.DEADLINE, "the caller's time for this call has passed before it could be begun")
        name = self._scope(call, key)
        new = Entry(fingerprint, token=self._store.token(), digest=_length_of_large(call), caller=self._account(call))
        # From here a caller that leaves would leave an entry behind that no call works on.
        call.unstoppable = True
        try:
            known = await self._begin(call, name, new)
            mismatch = await self._other_body(call, known, fingerprint) if known is not None else None
            if known is not None and known.lost and mismatch is None:
                known = await self._recover(call, name, key, known, new)
                if known is not None and known.done:
                    mismatch = await self._other_body(call, known, fingerprint)
        except StoreError as error:
            self.counts["unavailable"] += 1
            call.note(f"the store of idempotency keys cannot be used: {error}")
            if not self._strict:
                call.unstoppable = False
                return None
            detail = f"the store of idempotency keys cannot be used: {error.reason}"
            return Failure(Kind.STORE_UNAVAILABLE, detail, retry_after=_COME_BACK)
        if mismatch is not None:
            self.counts["mismatch"] += 1
            return mismatch
        if known is not None:
            return self._again(known)
        self.counts["executed"] += 1
        call.deadline = max(call.deadline, call.started + TO_THE_END)
        call.ends = max(call.ends, call.deadline)
        for context in call.contexts:
            context.deadline, context.ends = call.deadline, call.ends  # what the app asks others for it goes on, too
        permit = KeyPermit(self, name, new)
        call.permits.append(permit)
        call.recorder = Recorder(self._max_answer, permit.answered)
        return None

    def _credentials_of_user(self, call: Call) -> list[tuple[bytes, bytes]]:
        """What the app gets to know a user by. The proof of the caller is none of it, and may be another one by the
        next try."""
        shown = [(name, value) for name, _, value in call.fields if name in _CREDENTIALS]
        if not shown:
            return shown
        left_out = call.route.owned
        if self._proofs is not None:
            left_out = left_out | self._proofs(call)
        return [field for field in shown if field[0] not in left_out]

    def _scope(self, call: Call, key: bytes) -> bytes:
        """Which call this is a try of: the same for all of its tries, and another one for other calls, or for other
        users of the same caller. The order of fields makes no difference, and credentials are none: they may be other
        ones by the next try."""
        apart = _INSTANCE_AND_NAME if call.caller else _INSTANCE
        taken_off = call.nominated if call.caller else ()  # what strangers claim tells them apart, if nothing else
        users = sorted(
            (name, value)
            for name, _, value in call.fields
            if self._identity.have(name) and dashed(name) not in apart and name not in taken_off
        )
        scope = blake2b(digest_size=24)
        for part in (self._service.encode(), call.caller.encode(), call.method, call.path, key):
            scope.update(b"%d:%b" % (len(part), part))
        for name, value in users:
            scope.update(b"%d:%b%d:%b" % (len(name), name, len(value), value))
        return scope.digest()

    async def _other_body(self, call: Call, known: Entry, fingerprint: bytes) -> Failure | None:
        """The failure of a call whose key came with another body before. Of a body that was too large to be kept, the
        rest is read, and digested, before the call is taken for a repetition."""
        body = call.body
        same = known.fingerprint == fingerprint
        if same and known.digest and body is not None and body.digest is not None:
            length = int.from_bytes(known.digest[:_LENGTH], "big")
            same = call.length is None or call.length == length
            # Only of an answered call: another one may have to be executed with this body, which is read only once.
            if same and known.done and len(known.digest) > _LENGTH:
                await _read_to_the_end(body)
                same = _digest_of(call) == known.digest
        if same:
            return None
        return Failure(Kind.KEY_REUSED, "this Idempotency-Key came with another body or for another user before")

    async def _recover(self, call: Call, name: bytes, key: bytes, lost: Entry, new: Entry) -> Entry | None:
        """What can be done about a lost call: None if it is to be executed now, its answer, or nothing."""
        if self._lookup is not None:
            try:
                if 0 <= lost.age < _ON_ITS_WAY:  # less than 0: a clock was set back, so it is long ago
                    raise UnknownError("it has just been handed over")
                answer = await _in_a_task(self._lookup(call, key))
            except UnknownError as error:
                call.note(f"what became of the first call is not known: {error}")
                return lost
            if answer is not None:
                self.counts["recovered"] += 1
                call.note("the app has said what it had answered")
                kept = tuple(header for header in answer.headers if header[0].lower() not in _OF_THE_MOMENT)
                entry = replace(lost, done=True, lost=False, status=answer.status, headers=kept, body=answer.body)
                self.keep(name, entry)
                return entry
        elif not self._repeat:
            return lost
        known = await self._begin(call, name, new, lost.token)
        if known is None:
            self.counts["repeated"] += 1
        return known

    async def _begin(self, call: Call, name: bytes, new: Entry, instead_of: str = "") -> Entry | None:
        """Take the key, within the time that the call has. A call that is cancelled meanwhile, or has no time left,
        gives it back. Raises StoreError."""
        asking = asyncio.ensure_future(self._store.begin(name, new, instead_of))
        try:
            patience = min(_PATIENCE, max(0.0, call.deadline - monotonic()))
            done, _ = await asyncio.wait((asking,), timeout=patience)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda begun: self._give_back(name, new.token, begun))
            raise
        if not done:
            asking.add_done_callback(lambda begun: self._give_back(name, new.token, begun))
            raise StoreError("it has not answered within the time of the call", "it does not answer")
        return asking.result()

    def _give_back(self, name: bytes, token: str, begun: Future[Entry | None]) -> None:
        if not begun.cancelled() and begun.exception() is None and begun.result() is None:
            self.forget(name, token)

    def _again(self, known: Entry) -> Failure | Reply:
        if known.done:
            self.counts["replayed"] += 1
            headers = [*known.headers, (b"idempotent-replayed", b"true")]
            return Reply(known.status, headers, known.body, of_target=True)
        if known.lost:
            self.counts["lost"] += 1
            detail = "this call was handed to the app, and nobody heard its end; whether it was executed is not known"
            return Failure(Kind.IN_PROGRESS, detail, retry_after=_COME_BACK if self._lookup is not None else None)
        self.counts["in_progress"] += 1
        return Failure(
            Kind.IN_PROGRESS, "the first call with this Idempotency-Key is under way", retry_after=_COME_BACK
        )

    def keep(self, name: bytes, entry: Entry) -> None:
        """Write down how a call ended. Beside the call, which has been answered."""
        if len(self._jobs) >= _MOST_UNWRITTEN and entry.done:
            entry = replace(entry, headers=(), body=ANSWER_NOT_KEPT)
        self._write_down(lambda: self._store.finish(name, entry))

    def forget(self, name: bytes, token: str) -> None:
        """Write down that a call may be tried again. Beside the call."""
        self._write_down(lambda: self._store.forget(name, token))

    def _write_down(self, write: Callable[[], Awaitable[None]]) -> None:
        job = asyncio.ensure_future(_until_written(write))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    @property
    def strict(self) -> bool:
        """Whether calls are refused while the store cannot be used."""
        return self._strict

    @property
    def asks(self) -> bool:
        """Whether the app is asked about what is not known."""
        return self._lookup is not None

    async def settle(self) -> None:
        """Wait until everything has been written down, or cannot be in time."""
        while self._jobs:
            _, late = await asyncio.wait(self._jobs, timeout=_LAST_WRITES)
            for job in late:
                job.cancel()
            await asyncio.gather(*late, return_exceptions=True)


class KeyPermit(Permit):
    """One keyed call under way."""

    __slots__ = ("_answer", "_name", "_new", "_owner")

    def __init__(self, owner: Idempotency, name: bytes, new: Entry) -> None:
        """`new` is the entry that the call was begun with."""
        self._owner = owner
        self._name = name
        self._new = new
        self._answer: Entry | None = None

    def answered(self, call: Call, response: Response, recorder: Recorder) -> None:
        """The app's answer has passed whole."""
        lines = response.lines
        headers = tuple(
            (lines[at], lines[at + 2])
            for at in range(0, len(lines), 4)
            if lines[at].lower() not in _OF_THE_MOMENT and not lines[at].lower().startswith(b"x-outrider-")
        )
        body = b"".join(recorder.pieces)
        if recorder.size > recorder.limit:
            headers, body = (), ANSWER_NOT_KEPT
        self._answer = replace(self._new, done=True, status=response.status, headers=headers, body=body)

    def observe(self, call: Call, outcome: Outcome) -> None:
        attempt = call.attempt
        answer = self._answer
        digest = _digest_of(call) or self._new.digest
        if answer is not None and answer.status < 500 and answer.status not in _LATER:
            self._owner.keep(self._name, replace(answer, digest=digest))
        elif attempt is None or not attempt.admitted or attempt.unsent:
            self._owner.forget(self._name, self._new.token)  # it never got there
        elif answer is not None and not (self._owner.asks and answer.status >= 500):
            self._owner.forget(self._name, self._new.token)  # the app has said that nothing came of it
        else:
            # It was handed to the app, and its end is not known: the caller left, or the answer broke off. And where
            # the app can be asked, a failure need not be believed: something in between may have made it.
            self._owner.keep(self._name, replace(self._new, lost=True, digest=digest))


def identity_of(call: Call, identity: HeaderNames) -> list[tuple[bytes, bytes]]:
    """The fields that say who calls and on whose behalf, as the app gets them."""
    taken_off = call.nominated | call.route.owned
    return [
        (name, value)
        for name, _, value in call.fields
        if (identity.have(name) or name in _CREDENTIALS) and name not in taken_off
    ]


async def _until_written(write: Callable[[], Awaitable[None]]) -> None:
    """Again and again until it is written: meanwhile the call counts as under way, which runs nothing twice."""
    pause = _WRITE_AGAIN
    while True:
        try:
            await write()
            return
        except StoreError:  # the store has logged it itself
            await asyncio.sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 2)


async def _fingerprint(call: Call, credentials: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A digest of the body, for which it must be here, and of the credentials of a user. Of a body that is too large to
    be kept, of its beginning; the digest of the rest is made while it passes.

    What a user shows to the app is not ours to read, so it cannot tell users apart in the scope. But a repetition with
    other credentials gets neither the answer nor a second execution.
    """
    digest = blake2b(digest_size=16)
    mark = b""
    body = call.body
    if body is not None:
        if not body.complete and body.replayable:
            there: Future[None] = asyncio.get_running_loop().create_future()
            body.whole_or_too_large = lambda: there.set_result(None) if not there.done() else None
            body.writable()  # nothing is sent before all of it is here, however much that is
            try:
                await there
            finally:
                body.whole_or_too_large = None  # from here the app is slowed down again while nothing is sent
        if body.replayable:
            for piece in body.kept:
                digest.update(piece)
        else:
            mark = _BEGINNING
            digest.update(body.begin_digest(body.limit))
    for name, value in credentials:
        digest.update(b"\n%b:%b" % (name, value))
    return mark + digest.digest()


def _length_of_large(call: Call) -> bytes:
    """Length (8 bytes) of a body that is too large to be kept, if the caller has declared it."""
    if call.body is None or call.body.digest is None or call.length is None:
        return b""
    return call.length.to_bytes(_LENGTH, "big")


def _digest_of(call: Call) -> bytes:
    """Length (8 bytes) and digest of a body that was too large to be kept; nothing for others, or before its end."""
    body = call.body
    if body is None or body.digest is None or not body.complete:
        return b""
    return body.size.to_bytes(_LENGTH, "big") + body.digest.digest()


async def _read_to_the_end(body: RequestBody) -> None:
    """Let the rest of a body come, and go."""
    if body.complete:
        return
    there: Future[None] = asyncio.get_running_loop().create_future()
    body.whole_or_too_large = lambda: there.set_result(None) if not there.done() else None
    body.attach(Discard())
    try:
        await there
    finally:
        body.whole_or_too_large = None


async def _in_a_task(work: Awaitable[T]) -> T:
    """Calls are not tasks, and libraries want to run in one."""
    task = asyncio.ensure_future(work)
    try:
        return await task
    except asyncio.CancelledError:
        task.cancel()
        raise
