"""From a seed to a case: messages of the corpus, changed in ways that have confused parsers, and cut into segments."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from fuzz.corpus import BYTES, LINES, METHODS, NUMBERS, REQUESTS, RESPONSES
from fuzz.strict import chunked

_LARGEST = 24 * 1024  # of a mutated message; larger ones find nothing that smaller limits do not
_MIX = 0x9E3779B97F4A7C15  # spreads neighbouring case numbers over the seeds of the generator


@dataclass(slots=True, frozen=True)
class Script:
    """What the target does with one request: these segments, at the request's end or as soon as its head is there
    (`early`), and then keep, close or reset the connection."""

    segments: tuple[bytes, ...]
    then: str = "keep"
    early: bool = False

    @property
    def switches(self) -> bool:
        """Whether this answers 101, after which the connection is no longer HTTP for the target."""
        return b" 101" in b"".join(self.segments)[:400]


@dataclass(slots=True, frozen=True)
class Case:
    """What the app sends, in which segments, and what the target answers to the first requests it sees.

    `mutated` counts messages that were changed. `profile` names the configuration of the sidecar. With `reset` the
    app ends its connection with a reset; one that `lingers` waits a while before.
    """

    name: str
    segments: tuple[bytes, ...]
    scripts: tuple[Script, ...]
    profile: str
    mutated: int
    reset: bool
    lingers: bool


Mutation = Callable[[Random, bytes, tuple[bytes, ...]], bytes]


# ---------------------------------------------------------------- mutations


def _somewhere(rng: Random, data: bytes) -> int:
    """A position: anywhere, or more likely in the head, where most of the meaning is."""
    if rng.random() < 0.7:
        head = data.find(b"\r\n\r\n")
        if head > 0:
            return rng.randrange(head + 4)
    return rng.randrange(len(data) + 1)


def _insert(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    at = _somewhere(rng, data)
    return data[:at] + rng.choice(BYTES) * rng.choice((1, 1, 1, 2, 7)) + data[at:]


def _replace(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    at = _somewhere(rng, data)
    return data[:at] + rng.choice(BYTES) + data[at + rng.choice((1, 1, 2, 4)) :]


def _flip(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    at = min(_somewhere(rng, data), len(data) - 1)
    return data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :] if data else data


def _random_byte(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    at = _somewhere(rng, data)
    return data[:at] + bytes((rng.randrange(256),)) + data[at + rng.randrange(2) :]


def _delete(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    at = _somewhere(rng, data)
    return data[:at] + data[at + rng.choice((1, 1, 2, 5, 20)) :]


def _repeat(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    at = _somewhere(rng, data)
    piece = data[at : at + rng.choice((1, 2, 8, 40))]
    times = rng.choice((1, 2, 10, 200, 3000))
    return data[:at] + piece * min(times, _LARGEST // max(1, len(piece))) + data[at:]


def _truncate(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _add_line(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """A line out of the collection, at the end of any line of the message."""
    ends = [match.end() for match in re.finditer(rb"\r\n", data)]
    at = rng.choice(ends[:40]) if ends else 0
    return data[:at] + rng.choice(LINES) + b"\r\n" + data[at:]


def _line_operation(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """A line twice, away, or elsewhere."""
    lines = data.split(b"\r\n")
    at = rng.randrange(len(lines))
    what = rng.randrange(3)
    if what == 0:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif what == 1:
        del lines[at]
    else:
        lines.insert(rng.randrange(len(lines)), lines.pop(at))
    return b"\r\n".join(lines)


def _line_end(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """Another line end, at one line or at all."""
    other = rng.choice((b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n ", b"\r\n\t", b" \r\n", b"\0\r\n", b"", b"xx"))
    if rng.random() < 0.2:
        return data.replace(b"\r\n", other)
    ends = [match.start() for match in re.finditer(rb"\r\n", data)]
    if not ends:
        return data
    at = rng.choice(ends)
    return data[:at] + other + data[at + 2 :]


def _number(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """Another number where one stands: a length, a chunk size, a status, a version."""
    spots = list(re.finditer(rb"[0-9]+|(?<=\r\n)[0-9a-f]+(?=\r\n)", data[:4000]))
    if not spots:
        return data
    spot = rng.choice(spots)
    if rng.random() < 0.4:
        new = b"%d" % max(0, int(spot[0], 16) % 10_000_000 + rng.choice((-2, -1, 1, 2, 10)))
    else:
        new = rng.choice(NUMBERS)
    return data[: spot.start()] + new + data[spot.end() :]


def _token(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """The first word replaced, the case of a word, or space around a colon."""
    what = rng.randrange(3)
    if what == 0:
        return rng.choice(METHODS) + data[data.find(b" ") :]
    spots = list(re.finditer(rb"[A-Za-z-]+(: ?)?", data[:4000]))
    if not spots:
        return data
    spot = rng.choice(spots)
    word = spot[0].swapcase() if what == 1 else spot[0].replace(b":", rng.choice((b" :", b"\t:", b"::", b":\t", b"")))
    return data[: spot.start()] + word + data[spot.end() :]


def _splice(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    other = rng.choice(corpus)
    return data[: _somewhere(rng, data)] + other[_somewhere(rng, other) :]


def _append(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """Another message behind this one."""
    return data + rng.choice(corpus)


def _inject(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """Another message inside this one."""
    at = _somewhere(rng, data)
    return data[:at] + rng.choice(corpus) + data[at:]


def _rechunk(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """The body in chunks of other sizes, with odd extensions, and perhaps with a trailer."""
    head, mark, body = data.partition(b"\r\n\r\n")
    if not mark:
        return data
    body = body[:2000] or b"body"
    head = re.sub(rb"(?i)\r\n(content-length|transfer-encoding):[^\r]*", b"", head) + b"\r\nTransfer-Encoding: chunked"
    size = rng.choice((1, 3, 16, 700))
    wire = bytearray(chunked([body[at : at + size] for at in range(0, len(body), size)]))
    if rng.random() < 0.6:
        extra = rng.choice(
            (b";a=b", b";", b" ", b";a=\n", b";\x00", b"\t;a", b" \r", b"_", b"g", b";" + b"e" * 300, b"\n")
        )
        at = wire.find(b"\r\n", rng.randrange(len(wire)))
        wire[at:at] = extra
    if rng.random() < 0.3:
        wire[-2:] = rng.choice(LINES) + b"\r\n\r\n"
    return head + mark + bytes(wire)


_MUTATIONS: tuple[tuple[Mutation, int], ...] = (
    (_insert, 6),
    (_replace, 4),
    (_flip, 3),
    (_random_byte, 3),
    (_delete, 4),
    (_repeat, 3),
    (_truncate, 2),
    (_add_line, 12),
    (_line_operation, 5),
    (_line_end, 6),
    (_number, 6),
    (_token, 5),
    (_splice, 4),
    (_append, 4),
    (_inject, 2),
    (_rechunk, 5),
)
_KINDS = [mutation for mutation, _ in _MUTATIONS]
_WEIGHTS = [weight for _, weight in _MUTATIONS]


def mutate(rng: Random, data: bytes, corpus: tuple[bytes, ...]) -> bytes:
    """One to four changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        (mutation,) = rng.choices(_KINDS, _WEIGHTS)
        data = mutation(rng, data, corpus)[:_LARGEST]
    return data


# ---------------------------------------------------------------- segments


def segmented(rng: Random, data: bytes) -> tuple[bytes, ...]:
    """The same bytes in one to many writes; the cuts often fall where a parser changes its state."""
    if len(data) < 2:
        return (data,) if data else ()
    how = rng.random()
    if how < 0.4:
        return (data,)
    if how < 0.7:
        cuts = {rng.randrange(1, len(data)) for _ in range(rng.randrange(1, 5))}
    elif how < 0.95:
        marks = [match.start() for match in re.finditer(rb"[\r\n: ]", data[:3000])] or [1]
        cuts = {rng.choice(marks) + rng.randrange(-1, 3) for _ in range(rng.randrange(1, 5))}
    else:
        start = rng.randrange(len(data))
        cuts = set(range(start, min(len(data), start + 60)))
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    return tuple(data[a:b] for a, b in pairwise(edges))


# ---------------------------------------------------------------- cases

# After a valid answer the connection is kept; what a mutated one leads to is anybody's guess.
_ENDINGS = ("keep", "keep", "close", "close", "reset")


def make_case(seed: int, number: int) -> Case:
    """The `number`-th case of a seed: always the same one."""
    rng = Random((seed * 1_000_003 + number) * _MIX)  # to be repeatable is the point
    what = rng.random()
    request = rng.choice(REQUESTS)
    answers = [rng.choice(RESPONSES) for _ in range(rng.choice((0, 1, 1, 2)))]
    scripts: list[Script] = []
    mutated = 0
    if what < 0.55 or what > 0.9:
        request = mutate(rng, request, REQUESTS)
        mutated += 1
    if what >= 0.55:
        bad = mutate(rng, rng.choice(RESPONSES), RESPONSES)
        scripts.append(Script(segmented(rng, bad), rng.choice(_ENDINGS), rng.random() < 0.1))
        mutated += 1
    for answer in answers:
        endless = b"\r\nContent-Length: " not in answer and b"chunked" not in answer
        scripts.append(Script(segmented(rng, answer), "close" if endless else "keep", rng.random() < 0.1))
    return Case(
        name=f"{seed}:{number}",
        segments=segmented(rng, request),
        scripts=tuple(scripts),
        profile="retry" if rng.random() < 0.25 else "plain",
        mutated=mutated,
        reset=rng.random() < 0.5,
        lingers=rng.random() < 0.05,
    )
