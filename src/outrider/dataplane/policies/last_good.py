"""An earlier good answer in place of a failure: stale, and marked as such, but better than nothing.

Answers are kept in memory, bounded in size and age. One user's answer must never reach another, so the key holds
everything in the request that could make a difference to the answer: all of its fields but those that are known to say
something about the way only. What says `no-store` or `private`, sets a cookie, or varies by everything is not kept
(RFC 9111 §3).
"""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Final

from outrider.dataplane.http1.heads import has_at_most
from outrider.dataplane.recorder import Recorder
from outrider.model.failure import Failure
from outrider.model.messages import Response
from outrider.model.reply import Reply

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

# Request fields that differ from call to call without a difference to the answer.
_ABOUT_THE_WAY: Final = frozenset(
    (
        b"connection",
        b"host",
        b"idempotency-key",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-correlation-id",
        b"x-forwarded-for",
        b"x-outrider-attempt",
        b"x-outrider-retry",
        b"x-outrider-service",
        b"x-outrider-timeout",
        b"x-request-id",
        b"x-request-timeout-ms",
    )
)
_NOT_KEPT: Final = frozenset((b"set-cookie", b"set-cookie2"))
_SECRET: Final = (b"no-store", b"private")
_MOST_NAMES: Final = 128  # in a Vary
# What an answer costs beside its body, in bytes, about.
_OVERHEAD: Final = 512

Key = tuple[bytes, tuple[tuple[bytes, bytes], ...]]


def _may_be_kept(call: Call) -> bool:
    """Whether answers to this request may stand in for later ones: a plain GET that does not say otherwise."""
    if call.method != b"GET" or call.body is not None:
        return False
    return not any(lower == b"cache-control" and b"no-store" in value.lower() for lower, _, value in call.fields)


def _name(field: tuple[bytes, bytes]) -> bytes:
    return field[0]


class Kept:
    """One answer. `since` is monotonic seconds."""

    __slots__ = ("body", "headers", "since", "size", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, since: float) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.since = since
        self.size = _OVERHEAD + len(body) + sum(len(name) + len(value) for name, value in headers)


class LastGood:
    """The earlier answers of one route: at most `max_bytes` in all, `max_answer` each, `max_age` seconds old."""

    __slots__ = ("_kept", "_neutral", "_size", "max_age", "max_answer", "max_bytes")

    def __init__(
        self, max_age: float, max_bytes: int, max_answer: int, neutral: frozenset[bytes] = frozenset()
    ) -> None:
        """`neutral` are further request fields that make no difference to an answer, lower case."""
        self.max_age = max_age
        self.max_bytes = max_bytes
        self.max_answer = min(max_answer, max_bytes)
        self._neutral = _ABOUT_THE_WAY | neutral
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes kept, about."""
        return self._size

    def recorder(self, call: Call, response: Response) -> Recorder | None:
        """Where the body of this answer is to be taken down, if it may be kept."""
        if not _may_be_kept(call) or response.status != 200 or (response.length or 0) > self.max_answer:
            return None
        if response.length is None and not response.chunked:
            return None  # it ends with its connection, and nobody can tell whether that is all of it
        lines = response.lines
        for at in range(0, len(lines), 4):
            name = lines[at].lower()
            value = lines[at + 2].lower()
            if (
                name in _NOT_KEPT
                or (name == b"cache-control" and any(word in value for word in _SECRET))
                or (name == b"vary" and self._varies_unseen(value))
            ):
                return None
        return Recorder(self.max_answer, self.keep)

    def _varies_unseen(self, vary: bytes) -> bool:
        """Whether an answer differs by something that the key does not hold."""
        if not has_at_most(_MOST_NAMES, vary):
            return True
        return any(name == b"*" or name in self._neutral for name in map(bytes.strip, vary.split(b",")))

    def keep(self, call: Call, response: Response, recorder: Recorder) -> None:
        """The answer is complete."""
        if recorder.size > recorder.limit:
            return
        lines = response.lines
        headers = [
            (lines[at], lines[at + 2]) for at in range(0, len(lines), 4) if lines[at].lower() != b"content-length"
        ]
        key = self._key(call)
        kept = Kept(response.status, headers, b"".join(recorder.pieces), monotonic())
        kept.size += len(key[0]) + sum(len(name) + len(value) for name, value in key[1])
        if kept.size > self.max_bytes:
            return
        self._forget(key)
        self._kept[key] = kept
        self._size += kept.size
        while self._size > self.max_bytes:
            self._forget(next(iter(self._kept)))

    def reply(self, call: Call, result: Response | Failure) -> Reply | None:
        """An earlier answer to this call, with its age in seconds; None if there is none that is young enough."""
        if not _may_be_kept(call):
            return None
        key = self._key(call)
        kept = self._kept.get(key)
        if kept is None:
            return None
        age = monotonic() - kept.since
        if age > self.max_age:
            self._forget(key)
            return None
        self._kept.move_to_end(key)
        cause = result.kind.slug if isinstance(result, Failure) else str(result.status)
        marked = [
            *kept.headers,
            (b"x-outrider-degraded", f"last-good; age={age:.0f}; cause={cause}".encode()),
            (b"warning", b'110 - "Response is Stale"'),
        ]
        return Reply(kept.status, marked, kept.body, of_target=True)

    def _key(self, call: Call) -> Key:
        neutral = self._neutral
        told = [(lower, value) for lower, _, value in call.fields if lower not in neutral]
        told.sort(key=_name)  # the order of fields with one name may make a difference, that of others not
        return call.path, tuple(told)

    def _forget(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size
