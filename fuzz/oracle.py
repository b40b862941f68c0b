"""The verdict on one case: what a careful reader says went in, against what came out at both ends."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fuzz.mutate import Case, Script
from fuzz.strict import HOP_BY_HOP, Fields, Message, Reader

SECRET = b"s3cr3t-0f-the-sidecar"
CANARY_REQUEST = b"GET /user/canary HTTP/1.1\r\nHost: app.test\r\n\r\n"
CANARY_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ncanary"

# Outrider writes these into requests; whatever the app sent under the names is gone. `_` counts as `-`, because
# servers in the manner of CGI read both as one.
_ONCE = (b"host", b"x-api-key", b"x-service-name", b"x-correlation-id", b"traceparent", b"x-request-timeout-ms")
_OWNED = HOP_BY_HOP | frozenset(
    (
        *_ONCE,
        b"content-length",
        b"expect",
        b"via",
        b"tracestate",
        b"x-service-id",
        b"x-outrider-attempt",
        b"x-outrider-retry",
        b"x-outrider-service",
        b"x-outrider-timeout",
        b"x-request-total-timeout-ms",
        b"dapr-app-id",
    )
)
_OWNED_IN_ANSWERS = HOP_BY_HOP | frozenset(
    (
        b"content-length",
        b"content-location",
        b"link",
        b"location",
        b"proxy-status",
        b"refresh",
        b"server-timing",
        b"set-cookie",
        b"x-outrider-attempts",
        b"x-outrider-degraded",
        b"x-outrider-retry",
    )
)
_ABSOLUTE = re.compile(rb"[a-z]+://[^/?#]*(.*)", re.IGNORECASE | re.DOTALL)
_LATE = ("neither answered nor closed", "urn:outrider:timeout", "urn:outrider:request-timeout")
_MOST_FIELDS = 36  # comfortably below limits.headers of the lab
_MOST_HEAD_BYTES = 3500  # and below limits.header_bytes


@dataclass(slots=True)
class Seen:
    """A request as the target read it, what it was to answer, and what came when it had answered 101."""

    message: Message
    script: Script
    tunnelled: bytearray | None = None


@dataclass(slots=True)
class Answered:
    """What the app got on the connection of the case, and what another app got that called afterwards."""

    reader: Reader
    raw: bytes
    ended: str
    canary: Reader | None


def only_late(problems: list[str]) -> bool:
    """Whether these may be the fault of a machine that stood still for a moment: then they do not come again."""
    return all(any(word in problem for word in _LATE) for problem in problems)


def judge(
    case: Case, reference: Reader, answered: Answered, seen: list[Seen], targets: list[Reader], authority: bytes
) -> list[str]:
    """Everything that is wrong."""
    problems: list[str] = []
    for target in targets:
        if target.error is not None:
            problems.append(f"the target received {target.error}")
        elif target.rest:
            problems.append(f"the target received an unfinished head: {target.rest[:300]!r}")
        for message in target.messages:
            problems += _unclean_request(message, authority)
    if answered.reader.error is not None:
        problems.append(f"the app received {answered.reader.error}")
    if SECRET in answered.raw:
        problems.append("the app received the secret")
    for message in answered.reader.messages:
        problems += _unclean_answer(message)
    if answered.canary is not None:
        problems += _canary(answered.canary)
    if not problems:
        problems += _compare(
            case, reference, answered, [one for one in seen if one.message.target != b"/canary"], targets
        )
    return problems


# ---------------------------------------------------------------- each side by itself


def _unclean_request(message: Message, authority: bytes) -> list[str]:
    names = [name.lower().replace(b"_", b"-") for name, _ in message.fields]
    counts = {name: names.count(name) for name in _ONCE}
    problems = [f"the target received {name.decode()} {count} times" for name, count in counts.items() if count != 1]
    if message.get_all(b"x-api-key") != [SECRET]:
        problems.append(f"the target received x-api-key {message.get_all(b'x-api-key')}")
    if message.get_all(b"host") != [authority]:
        problems.append(f"the target received Host {message.get_all(b'host')}")
    expected = {b"transfer-encoding"}
    if message.get_all(b"connection") == [b"upgrade"] and len(message.get_all(b"upgrade")) == 1:
        expected |= {b"connection", b"upgrade"}
    elif message.get_all(b"connection") == [b"te"] and message.get_all(b"te") == [b"trailers"]:
        expected |= {b"connection", b"te"}
    unexpected = (HOP_BY_HOP - expected) & set(names)
    problems += [f"the target received the hop-by-hop field {name.decode()}" for name in unexpected]
    protocols = {protocol.partition(b"/")[0] for protocol in message.tokens(b"upgrade")}
    if carriers := protocols & {b"h2c", b"h2", b"http", b"tls"}:
        problems.append(f"the target was asked to switch to {carriers}")
    return problems


def _unclean_answer(message: Message) -> list[str]:
    problems = []
    for name, value in message.fields:
        lower = name.lower()
        if message.status == 101 and lower in (b"connection", b"upgrade"):
            if message.get_all(b"connection") != [b"upgrade"] or len(message.get_all(b"upgrade")) != 1:
                problems.append(f"the app received 101 with {message.fields}")
        elif lower == b"connection":
            if value not in (b"close", b"keep-alive") or len(message.get_all(b"connection")) > 1:
                problems.append(f"the app received Connection {message.get_all(b'connection')}")
        elif (
            lower in HOP_BY_HOP
            and lower != b"transfer-encoding"
            and (lower, message.framing) != (b"trailer", "chunked")
        ):
            problems.append(f"the app received the hop-by-hop field {name!r}")
    return problems


def _canary(canary: Reader) -> list[str]:
    """Whoever calls next, on whatever connection, gets an answer to his own question."""
    answers = [message for message in canary.messages if message.status >= 200]
    if len(answers) == 1 and answers[0].complete and answers[0].status == 200 and answers[0].body == b"canary":
        return [] if len(canary.messages) == 1 else [f"another app received {canary.messages}"]
    return [f"another app received {canary.messages or canary.rest!r}"]


# ---------------------------------------------------------------- one side against the other


def _compare(case: Case, reference: Reader, answered: Answered, seen: list[Seen], targets: list[Reader]) -> list[str]:
    asked = reference.messages
    problems: list[str] = []
    answers_to: dict[tuple[bytes, bytes, bytes], list[Seen]] = {}  # the same request may be sent twice
    at = -1
    known = {id(one.message) for one in seen}
    unanswered = [
        Seen(message, Script(()))
        for target in targets
        for message in target.messages
        if id(message) not in known and message.target != b"/canary"
    ]
    for one in seen + unanswered:
        found = _find(asked, one.message, at)
        if found is None:
            problems.append(
                f"the target received {_short(one.message)}, which the app did not send"
                f" (it sent {[_short(message) for message in asked]}, {reference.error or 'nothing malformed'})"
            )
            continue
        if one.tunnelled and not b"".join(case.segments)[asked[found].end :].startswith(one.tunnelled):
            problems.append(
                f"the target received {bytes(one.tunnelled)!r} through a tunnel, which the app did not send"
            )
        at = max(at, found)
        answers_to.setdefault(_key(asked[found]), []).append(one)
    finals = [message for message in answered.reader.messages if message.status >= 200 or message.status == 101]
    # Whatever lies behind the last request, if only empty lines, may be refused or timed out, once.
    more = reference.error is not None or reference.partial or reference.offset > (asked[-1].end if asked else 0)
    if len(finals) > len(asked) + more:
        problems.append(f"{len(finals)} answers to {len(asked)} requests")
    # With retries, an answer may be set aside for another one; and what a target sends behind an answer may be taken
    # for the beginning of the next one.
    tidy = case.profile == "plain" and all(_tidy(one) for one in seen)
    for number, answer in enumerate(finals):
        if number >= len(asked):
            if answer.complete and not _made_here(answer):
                problems.append(f"an answer of a target to something malformed: {_short(answer)}")
            continue
        problems += _check_answer(asked[number], answer, answers_to.get(_key(asked[number]), []), tidy)
        if not answer.complete and answer.framing == "close" and answered.ended != "reset" and not problems:
            problems.append("a body that ends with the connection broke off, and the app cannot tell")
    return problems


def _find(asked: list[Message], got: Message, at: int) -> int | None:
    """Which of the requests of the app this is: the last one once more, or a later one."""
    numbers: list[int] = [at, *range(at + 1, len(asked))]
    for number in numbers:
        if number >= 0 and _same_request(asked[number], got):
            return number
    return None


def _key(message: Message) -> tuple[bytes, bytes, bytes]:
    return message.method, message.target, bytes(message.body)


def _tidy(one: Seen) -> bool:
    """Whether the target said one answer, and nothing else."""
    if not one.script.segments:
        return True
    final, reader = _said(one.message, one.script)
    last = reader.messages[-1] if reader.messages else None
    if final is None or final is not last or not final.complete or reader.rest or one.script.early:
        return False
    # One that closes without a word may do so just when the next request is on its way.
    return one.script.then == "keep" or (one.script.then == "close" and not final.lasting)


def _same_request(sent: Message, got: Message) -> bool:
    if got.complete and not sent.complete:
        return False
    body = got.body == sent.body if got.complete else sent.body.startswith(got.body)
    path = got.target in _paths(sent.target)
    if got.get_all(b"upgrade") and not asks_to_switch(sent, got.tokens(b"upgrade")):
        return False
    if got.get_all(b"te") and not takes_trailers(sent):
        return False
    return sent.method == got.method and body and path and _end_to_end(sent) == _end_to_end(got)


def _paths(target: bytes) -> set[bytes]:
    """What a target may see of a request target: the path, with or without the name of the service in front."""
    absolute = _ABSOLUTE.fullmatch(target)
    path = target if absolute is None else absolute[1]
    path = path if path.startswith(b"/") or target == b"*" else b"/" + path
    found = {target, path}
    if path.startswith(b"/user"):
        rest = path.removeprefix(b"/user")
        found.add(rest if rest.startswith(b"/") else b"/" + rest)
    return found


def asks_to_switch(message: Message, protocols: list[bytes]) -> bool:
    """Whether a request offers to go on with one of these very protocols."""
    return b"upgrade" in message.tokens(b"connection") and protocols == message.tokens(b"upgrade")


def takes_trailers(message: Message) -> bool:
    """Whether a request says that trailers behind its answer will be read (RFC 9110 §10.1.4)."""
    return b"te" in message.tokens(b"connection") and any(b"trailers" in token for token in message.tokens(b"te"))


def _end_to_end(message: Message, owned: frozenset[bytes] = _OWNED) -> Fields:
    """The fields that must come through as they are."""
    gone = set(message.tokens(b"connection"))
    return [
        (name, value)
        for name, value in message.fields
        if not _is_owned(name.lower(), owned) and name.lower() not in gone
    ]


def _is_owned(name: bytes, owned: frozenset[bytes]) -> bool:
    """Whether a field is Outrider's to write or to drop. In requests those are all in its name but one."""
    plain = name.replace(b"_", b"-")
    in_its_name = owned is _OWNED and plain.startswith(b"x-outrider-") and name != b"x-outrider-critical"
    return plain in owned or in_its_name


def _check_answer(request: Message, answer: Message, sources: list[Seen], tidy: bool) -> list[str]:
    said = [_said(request, source.script) for source in sources]
    if _made_here(answer):
        if tidy and len(said) == 1 and request.complete:
            final, reader = said[0]
            if final is not None and final.complete and reader.error is None and _ordinary(reader):
                return [f"the target gave a good answer, {_short(final)}, and the app got {_short(answer)}"]
        return []
    for final, _ in said:
        if final is not None and _same_answer(final, answer) and _same_trailers(request, final, answer):
            return []
    return [
        f"the app received {_short(answer)}{'' if answer.complete else ' (broken off)'} to {_short(request)}, but the"
        f" target said {[(_short(final) if final else None, reader.error) for final, reader in said]}"
    ]


def together(request: Message, script: Script) -> list[bytes]:
    """The segments of an answer, with those that follow its end joined to the one it ends in: what comes later still
    may lie between any two exchanges of a connection, and then HTTP has no way to tell whose it is."""
    reader = Reader(responses=True, tolerant=True, methods=[request.method])
    segments = list(script.segments)
    for number, segment in enumerate(segments):
        reader.feed(segment)
        if any(message.status >= 200 and message.complete for message in reader.messages):
            return [*segments[:number], b"".join(segments[number:])]
    return segments


def _said(request: Message, script: Script) -> tuple[Message | None, Reader]:
    """The final answer in what the target said, as a careful reader sees it."""
    reader = Reader(responses=True, tolerant=True, methods=[request.method])
    reader.feed(b"".join(script.segments))
    if script.then == "close":
        reader.end()
    return next((one for one in reader.messages if one.status >= 200 or one.status == 101), None), reader


def _ordinary(reader: Reader) -> bool:
    """Whether nothing but its being good is remarkable about an answer: no limit is near."""
    return (
        len(reader.messages) < 10
        and all(len(message.fields) < _MOST_FIELDS for message in reader.messages)
        and all(_head_size(message) < _MOST_HEAD_BYTES for message in reader.messages)
        and all(message.status != 101 and not message.odd for message in reader.messages)
    )


def _head_size(message: Message) -> int:
    return len(message.reason) + sum(len(name) + len(value) for name, value in message.fields)


def _same_answer(said: Message, got: Message) -> bool:
    if got.complete and not said.complete:
        return False
    if got.status == 101 and not set(got.tokens(b"upgrade")) <= set(said.tokens(b"upgrade")):
        return False
    body = got.body == said.body if got.complete else said.body.startswith(got.body)
    owned = _OWNED_IN_ANSWERS if said.get_all(b"date") else _OWNED_IN_ANSWERS | {b"date"}
    fields = _end_to_end(said, owned) == _end_to_end(got, owned)
    return said.status == got.status and body and fields


def _same_trailers(request: Message, said: Message, got: Message) -> bool:
    """Trailers are for those who ask, and they are what was announced and may come behind the content."""
    gone = set(said.tokens(b"connection"))
    announced = set(said.tokens(b"trailer")) - gone
    passable = [one for one in said.trailers if one[0].lower() in announced]
    if not takes_trailers(request):
        return not got.trailers and not got.get_all(b"trailer")
    return all(trailer in passable for trailer in got.trailers)


def _made_here(answer: Message) -> bool:
    return any(value.startswith(b"outrider; error=") for value in answer.get_all(b"proxy-status"))


def _short(message: Message) -> str:
    if message.status:
        return f"{message.status} {bytes(message.body[:80])!r} ({len(message.body)} bytes)"
    return f"{message.method.decode()} {message.target[:80].decode('latin-1')} + {len(message.body)} bytes"
