"""What a case is made of: the steps of the app, what the target does, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from tests.wire.strict import Request, Response

# The credential that the proxy adds to every request, and that no app may ever see.
CREDENTIAL = "x-api-key"
SECRET = b"only-the-sidecar-knows-this-key"


class Await(Enum):
    """What the app waits for before its next step."""

    ANSWER = "a further final answer"
    INTERIM = "a 1xx answer"
    UPSTREAM = "a further head at the target"
    END = "the end of the connection"
    ECHO = "further bytes out of the tunnel"


# The app sends bytes, one segment each, sleeps for some seconds, or waits for something.
Step = bytes | float | Await


class Own(Enum):
    """Stands in the script of a target for the answer that belongs to the request, and to no other."""

    ANSWER = "own"


@dataclass(frozen=True)
class Say:
    """What the target does with one request: it reads `body`, `head` or, without a `100 Continue`, the body
    `silently`; sends the pieces, pausing where a number stands; and then keeps the connection, closes or resets it,
    holds it until the other side ends it, or echoes all further bytes as a `tunnel`."""

    pieces: tuple[bytes | float | Own, ...]
    then: str = "keep"
    read: str = "body"


def say(*pieces: bytes | float | Own, then: str = "keep", read: str = "body") -> Say:
    """A Say, written shorter."""
    return Say(pieces, then, read)


OWN = say(Own.ANSWER)


@dataclass
class Observed:
    """All that could be seen of a case from outside, up to the follow-up requests."""

    seen: list[Request] = field(default_factory=list)
    partial_heads: int = 0
    answers: list[Response] = field(default_factory=list)
    interims: list[Response] = field(default_factory=list)
    raw: bytes = b""
    end: str = "open"  # open, eof, reset
    closed: bool = False  # ended, or announced as ended, and nothing more was served on it
    tunnel: bytes | None = None
    sent: int = 0  # bytes the app had sent when the answer or the end came
    connections: int = 0
    tunnelled: bytes = b""  # what reached the target through a tunnel

    @property
    def status(self) -> int:
        """Of the first answer; 0 if there is none that came to its end."""
        return self.answers[0].status if self.answers and self.answers[0].complete else 0


# Says what is wrong, or nothing.
Expectation = Callable[[Observed], str]


@dataclass(frozen=True)
class Case:
    """One exchange on one connection. `paths` are the requests that the app legitimately makes, in order, and `also`
    what a proxy may make of their paths: every other path at the target means that bytes of one request were read as
    another."""

    name: str
    group: str
    rfc: str
    app: tuple[Step, ...]
    expect: Expectation
    target: tuple[Say, ...] = (OWN,)
    paths: tuple[str, ...] = ("/x",)
    also: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    minor: int = 1
    patience: float = 2.0
    # What may come of the next request on the connection: its `own` answer; `refused`, if the app sent rubbish before
    # it; `skip` if the app still owes a body, so that it may not make one. It may always be closed.
    after: str = "own"
    limits: str = "usual"  # or short: the proxy waits 300 ms for heads and bodies


# ---------------------------------------------------------------- expectations


def refuse(*statuses: int) -> Expectation:
    """The target gets nothing; the app gets an error (one of these, if any are named), or is hung up on."""

    def check(it: Observed) -> str:
        if it.seen or it.partial_heads:
            return f"the target got {it.seen or 'the beginning of a head'}"
        if statuses:
            return "" if it.status in statuses else f"expected {statuses}, got {it.answers} ({it.end})"
        return _refusal(it)

    return check


def refuse_early(most: int, *statuses: int) -> Expectation:
    """As `refuse`, before the app has sent this many bytes."""
    plain = refuse(*statuses)

    def check(it: Observed) -> str:
        return plain(it) or ("" if it.sent < most else f"it took {it.sent} bytes")

    return check


def abort(*statuses: int) -> Expectation:
    """The target may have got a part of the request, never a complete one; the app hears of it."""

    def check(it: Observed) -> str:
        if any(request.complete for request in it.seen):
            return f"the target got {it.seen}"
        if statuses:
            return "" if it.status in statuses else f"expected {statuses}, got {it.answers} ({it.end})"
        return _refusal(it)

    return check


def clean(
    body: bytes | None = b"",
    *,
    closes: bool = False,
    absent: tuple[str, ...] = (),
    fields: dict[str, bytes] | None = None,
    method: str = "",
) -> Expectation:
    """Exactly one request that a strict parser accepts, with this body and these fields, and its own answer."""

    def check(it: Observed) -> str:
        if len(it.seen) != 1 or not it.seen[0].complete:
            return f"expected one whole request, the target got {it.seen}"
        request = it.seen[0]
        wrong = _wrong_request(request, body, absent, fields or {}, method)
        if wrong:
            return wrong
        if it.status != 200 or not it.answers[0].values("x-own"):
            return f"expected its own answer, got {it.answers} ({it.end})"
        return "the connection stayed open" if closes and not it.closed else ""

    return check


def _wrong_request(
    request: Request, body: bytes | None, absent: tuple[str, ...], fields: dict[str, bytes], method: str
) -> str:
    if body is not None and request.body != body:
        return f"expected the body {body[:60]!r}, the target got {request.body[:60]!r}"
    if method and request.method != method:
        return f"expected {method}, the target got {request.method}"
    if left := request.names() & set(absent):
        return f"these reached the target: {sorted(left)}"
    for name, value in fields.items():
        if request.values(name) != [value]:
            return f"{name} at the target: {request.values(name)}"
    return ""


def served(*, connections: int = 0) -> Expectation:
    """Every request of the app gets its own 200, in order."""

    def check(it: Observed) -> str:
        if not it.answers or any(answer.status != 200 or not answer.values("x-own") for answer in it.answers):
            return f"expected own answers only, got {it.answers} ({it.end})"
        if not all(answer.complete for answer in it.answers):
            return f"an answer broke off: {it.answers}"
        if connections and it.connections != connections:
            return f"expected {connections} connections to the target, got {it.connections}"
        return ""

    return check


def statuses(*wanted: int) -> Expectation:
    """The statuses of the answers, in order."""

    def check(it: Observed) -> str:
        got = tuple(answer.status for answer in it.answers if answer.complete)
        return "" if got == wanted else f"expected {wanted}, got {it.answers} ({it.end})"

    return check


def status(*allowed: int) -> Expectation:
    """The first answer has one of these statuses."""

    def check(it: Observed) -> str:
        return "" if it.status in allowed else f"expected one of {allowed}, got {it.answers} ({it.end})"

    return check


def answer(code: int, body: bytes | None = None, *, absent: tuple[str, ...] = (), framing: str = "") -> Expectation:
    """The first answer has this status, this body and none of these fields."""

    def check(it: Observed) -> str:
        if it.status != code:
            return f"expected {code}, got {it.answers} ({it.end})"
        first = it.answers[0]
        if body is not None and first.body != body:
            return f"expected {body[:60]!r}, got {first.body[:60]!r}"
        if left := first.names() & set(absent):
            return f"these reached the app: {sorted(left)}"
        return "" if framing in ("", first.framing) else f"framed as {first.framing}"

    return check


def bad_gateway() -> Expectation:
    """502 or its like, a hang-up, or an answer that visibly breaks off; none of what the target sent passes whole."""

    def check(it: Observed) -> str:
        if not it.answers:
            return "" if it.end != "open" else "no answer"
        first = it.answers[0]
        if first.complete:
            return "" if first.status >= 500 and not first.values("x-poison") else f"passed on: {first}"
        return "" if it.end != "open" else f"the answer neither ends nor breaks off: {first}"

    return check


def waits() -> Expectation:
    """The message is not whole: nobody answers as if it were, and the target never has a complete request."""

    def check(it: Observed) -> str:
        if any(request.complete for request in it.seen):
            return f"the target got {it.seen}"
        good = [answer for answer in it.answers if answer.status < 400]
        return f"answered: {good}" if good else ""

    return check


def at_most(number: int, path: str, then: Expectation) -> Expectation:
    """The target got this path no more often than this."""

    def check(it: Observed) -> str:
        times = sum(request.target.endswith(path) for request in it.seen)
        return then(it) if times <= number else f"the target got {path} {times} times"

    return check


def either(*options: Expectation) -> Expectation:
    """Several behaviours are safe."""

    def check(it: Observed) -> str:
        wrong = [option(it) for option in options]
        return "" if not all(wrong) else "; or ".join(wrong)

    return check


def both(*parts: Expectation) -> Expectation:
    """All of these hold."""

    def check(it: Observed) -> str:
        return "; ".join(filter(None, (part(it) for part in parts)))

    return check


def closes(it: Observed) -> str:
    """Nothing more is served on the connection."""
    return "" if it.closed else "the connection stayed open"


def stays_open(it: Observed) -> str:
    """The connection can be used for the next request."""
    return "the connection was closed" if it.closed else ""


def nothing_upstream(it: Observed) -> str:
    """The target got nothing at all."""
    return f"the target got {it.seen}" if it.seen or it.partial_heads else ""


def _refusal(it: Observed) -> str:
    if not it.answers:
        return "" if it.end != "open" else "neither answered nor closed"
    first = it.answers[0]
    if first.complete:
        return "" if first.status >= 400 else f"answered {first}"
    return "" if it.end != "open" else f"an answer without end: {first}"
