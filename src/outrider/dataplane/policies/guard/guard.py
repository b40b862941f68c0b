"""The guard in front of the app: who calls, and may they?

Any one of the `accept`ed proofs is enough; with none, or none with a usable secret, everybody is refused. The caller is
told nothing but 401: why goes to the log and to a metric. What is not protected passes, but nobody unproven may bring
headers that say who they are.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, Protocol

from outrider.dataplane.http1.path_interpretations import readings
from outrider.dataplane.policy import Policy
from outrider.model.failure import Failure, Kind, body_too_large
from outrider.model.messages import is_field_value
from outrider.model.patterns import HeaderNames, comparable, covering, is_named
from outrider.model.variables import VARIABLE

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

CALLER_HEADER: Final = b"x-outrider-caller"
OPERATION_HEADER: Final = b"x-outrider-operation"
# What only Outrider says to an app, and what it says in answers. Of what a sidecar says to the guard, the number of the
# try and that a call is not critical count from proven callers.
_OURS: Final = frozenset((CALLER_HEADER, OPERATION_HEADER, b"x-outrider-attempts", b"x-outrider-degraded"))
_READ_FROM_SIDECARS: Final = frozenset((b"x-outrider-attempt", b"x-outrider-critical"))
# What strangers say in our name is taken off, whatever it is.
_IN_OUR_NAME: Final = "x-outrider-*"
# What some frameworks take for the real path or method: with these, one thing would be asked for and another one done
# (CVE-2018-14773).
_OTHER_PATHS: Final = frozenset((b"x-original-url", b"x-rewrite-url"))
_OTHER_METHODS: Final = frozenset((b"x-http-method-override", b"x-http-method", b"x-method-override"))
# One label of a DNS name.
_LABEL: Final = re.compile(r"[A-Za-z0-9_-]+")
_COMMA: Final = 0x2C  # a number, as in wire.py
# Callers whose header is kept ready.
_MOST_LINES: Final = 1024
# Characters of a name that is kept.
_LONGEST_KEPT: Final = 256
# Callers of one key that are counted; those beyond them are counted together.
_MOST_USES: Final = 128
_OTHERS: Final = "others"
# Bytes of a name that is shown in a log: it comes from who has not proven anything.
_SHOWN: Final = 64


class Proof(Protocol):
    """One way to prove who calls. `headers` are those it reads, and that the app does not get to see; `require` are
    further ones without which even who has proven it is refused; `forwarded` is the header of the proof if the app gets
    it, else nothing. `name` is where it stands in the configuration, `key` which of its keys the latest proven caller
    has shown."""

    headers: frozenset[bytes]
    forwarded: bytes
    require: tuple[bytes, ...]
    name: str
    key: str

    def prove(self, call: Call) -> tuple[str, str]:
        """`(caller, "")`, or `("", why not)`; the reason is a metric label."""


class CallerName:
    """How a caller with the right key is called: text with `{header:NAME}`, which are `headers`."""

    __slots__ = ("_known", "_only", "_parts", "headers")

    def __init__(self, text: str) -> None:
        self._known: dict[bytes, str] = {}  # where the text is one header, what its values have come to
        parts = VARIABLE.split(text)
        self.headers = tuple(name.removeprefix("header:").lower().encode() for name in parts[1::2])
        self._only = self.headers[0] if len(self.headers) == 1 else b""
        self._parts = parts

    def of(self, call: Call) -> str:
        """The name of this call's caller; `unnamed` if nothing is left of the text."""
        noted = call.noted
        value = noted.get(self._only)
        if value is not None and value in self._known:
            return self._known[value]
        text = self._parts[0]
        for index, name in enumerate(self.headers):
            if name in noted:
                text += noted[name].decode("latin-1")
            text += self._parts[2 * index + 2]
        text = text or "unnamed"
        if value is not None and len(self._known) < _MOST_LINES and len(value) <= _LONGEST_KEPT:
            self._known[value] = text
        return text


class KeyProof:
    """A secret in a header. All values are compared, in a time that does not tell how much of a guess was right."""

    __slots__ = ("_caller", "_header", "_values", "forwarded", "headers", "key", "name", "names_itself", "require")

    def __init__(
        self,
        header: str,
        values: Sequence[str],
        caller: CallerName,
        require: Sequence[str] = (),
        forward: bool = False,
        name: str = "",
    ) -> None:
        """Empty values are no secrets, and prove nobody."""
        self.name = self.key = name
        self.names_itself = bool(caller.headers)
        self._header = header.lower().encode()
        self._caller = caller
        self._values: tuple[tuple[bytes, str], ...] = ()
        self.require = tuple(name.lower().encode() for name in require)
        self.headers = frozenset() if forward else frozenset((self._header,))
        self.forwarded = self._header if forward else b""
        self.replace(values)

    def replace(self, values: Sequence[str]) -> None:
        """Accept these values from now on."""
        self._values = tuple(
            (value.encode(), f"{self.name}.values[{number}]") for number, value in enumerate(values) if value
        )

    def prove(self, call: Call) -> tuple[str, str]:
        if self._header not in call.noted:
            return "", "no_key"
        given = call.noted[self._header]
        if _COMMA in given and sum(lower == self._header for lower, _, _ in call.fields) > 1:
            return "", "key_twice"
        if not self._values:
            return "", "not_configured"
        proven = False
        for value, key in self._values:  # all of them: time does not tell either which it was
            if compare_digest(value, given):
                proven = True
                self.key = key
        return (self._caller.of(call), "") if proven else ("", "wrong_key")


class CertificateProof:
    """A client certificate, whose names the TLS listener has verified. `names` are exact, or begin with `*.`."""

    __slots__ = ("_names", "forwarded", "headers", "key", "name", "require")

    def __init__(self, names: Sequence[str], name: str = "") -> None:
        self.name = self.key = name
        self._names = tuple(names)
        self.headers: frozenset[bytes] = frozenset()
        self.forwarded = b""
        self.require: tuple[bytes, ...] = ()

    def prove(self, call: Call) -> tuple[str, str]:
        shown = call.app.peer_names
        if not shown:
            return "", "no_certificate"
        for name in shown:
            if is_field_value(name) and any(_certifies(known, name) for known in self._names):
                return name, ""
        return "", "other_certificate"


def caller_value(caller: str) -> bytes:
    """The value of `x-outrider-caller`: the name, which may come out of a header of the caller's, if it can be one."""
    return caller.encode() if is_field_value(caller) else b"unnamed"


def _certifies(known: str, name: str) -> bool:
    """Whether a name is the one that is wanted, or one label below it where that begins with `*.`."""
    if not known.startswith("*."):
        return name == known
    label, dot, rest = name.partition(".")
    return bool(dot) and rest == known[2:] and _LABEL.fullmatch(label) is not None


class Rule:
    """An operation that a caller may use; `caller` may end with `*`."""

    __slots__ = ("_caller", "pattern")

    def __init__(self, caller: str, match: str) -> None:
        self._caller = caller
        self.pattern = comparable(match)

    def allows(self, caller: str, method: bytes, path: bytes) -> bool:
        """Whether this rule lets the caller do that."""
        return is_named(self._caller, caller) and self.pattern.matches(method, path)


class Guard(Policy):
    """Admits inbound calls. `refused` counts refusals by reason, `key_uses` who has shown which of several keys: one
    that nobody shows any more can be taken away."""

    __slots__ = (
        "_all_protected",
        "_counts_keys",
        "_lines",
        "_max_unproven_body",
        "_proofs",
        "_protected",
        "_rules",
        "_strangers_may_not_say",
        "key_uses",
        "proven",
        "public",
        "refused",
    )

    def __init__(
        self,
        proofs: Sequence[Proof],
        *,
        protect: Sequence[str],
        rules: Sequence[Rule] | None = None,
        identity: Sequence[str] = (),
        several_keys: bool = False,
        max_unproven_body: int = sys.maxsize,
    ) -> None:
        """`protect` are paths that are protected with all below them, `rules` None where any proven caller may do
        anything. `identity` are names of headers, or beginnings with `*`, that say who somebody is: from the unproven
        they are taken off. A caller that has not proven itself may send at most `max_unproven_body` bytes."""
        self._proofs = tuple(proofs)
        self._protected = tuple(covering(path) for path in protect)
        self._all_protected = any(pattern.any_path for pattern in self._protected)
        self._rules = None if rules is None else tuple(rules)
        self._strangers_may_not_say = HeaderNames((*identity, _IN_OUR_NAME))
        self._lines: dict[str, bytes] = {}  # by caller
        taken = _OTHER_PATHS if rules is None else _OTHER_PATHS | _OTHER_METHODS
        self.owned = (_OURS | taken).union(*(proof.headers for proof in proofs))
        self.refused: Counter[str] = Counter()
        self.key_uses: dict[str, dict[str, int]] = {}  # by key, then by caller
        self._counts_keys = several_keys
        self.proven = self.public = 0
        self._max_unproven_body = max_unproven_body

    def admit(self, call: Call) -> Failure | None:
        # Proof comes first, and the path is read only where something hangs on it: strangers choose it.
        caller, require, reason = self._proven(call)
        if not caller:
            return self._admit_unproven(call, reason)
        call.caller = caller
        self.proven += 1
        rules = self._rules
        if rules is None and not require:
            return None
        paths: tuple[bytes, ...] = ()
        if rules is not None or not self._all_protected:
            read = readings(call.path)
            if read is None:
                return self._ambiguous(call)
            if not self._protects(call.method, read):
                return None
            paths = read
        missing = [name.decode() for name in require if name in call.nominated or not call.noted.get(name)]
        if missing:
            return self._refuse(call, Kind.UNIDENTIFIED, "not_identified", f"missing headers: {', '.join(missing)}")
        if rules is not None:
            for path in paths:
                if not any(rule.allows(caller, call.method, path) for rule in rules):
                    return self._refuse(call, Kind.FORBIDDEN, "not_allowed", f"{caller} may not do that")
        return None

    def stamp(self, attempt: Attempt) -> bytes:
        """Who calls, for the app: ours to say, and nobody else's."""
        caller = attempt.call.caller
        if not caller:
            return b""
        if caller in self._lines:
            return self._lines[caller]
        line = b"%b: %b\r\n" % (CALLER_HEADER, caller_value(caller))
        if len(self._lines) < _MOST_LINES and len(caller) <= _LONGEST_KEPT:
            self._lines[caller] = line
        return line

    def forwarded_proofs(self, call: Call) -> frozenset[bytes]:
        """The headers of this call that reach the app and prove who calls, whether or not another one was taken for the
        proof: what they hold says nothing about a user."""
        return frozenset(proof.forwarded for proof in self._proofs if proof.forwarded and proof.prove(call)[0])

    def account(self, call: Call) -> str:
        """Under which name is counted what this call's caller takes of something that is bounded. It is the proof where
        the caller chooses its own name, which it could do several times; else the name that it has proven."""
        for proof in self._proofs:
            if isinstance(proof, KeyProof) and proof.names_itself and proof.prove(call)[0]:
                return proof.key
        return call.caller

    def _proven(self, call: Call) -> tuple[str, tuple[bytes, ...], str]:
        """Who calls, and what else must be there; or why the caller is not known."""
        why = ""
        for proof in self._proofs:
            caller, reason = proof.prove(call)
            if caller:
                if self._counts_keys:
                    self._count(proof.key, caller)
                return caller, proof.require, ""
            # What was tried and failed says more than what was not even tried.
            if not why or (why.startswith("no_") and not reason.startswith("no_")):
                why = reason
        return "", (), why or "no_proof"

    def _count(self, key: str, caller: str) -> None:
        uses = self.key_uses.get(key)
        if uses is None:
            uses = self.key_uses[key] = {}
        if caller in uses:
            uses[caller] += 1
        elif len(uses) < _MOST_USES and len(caller) <= _LONGEST_KEPT:
            uses[caller] = 1
        else:
            uses[_OTHERS] = uses.get(_OTHERS, 0) + 1

    def _admit_unproven(self, call: Call, reason: str) -> Failure | None:
        """Let a call pass that proves nothing, to what is not protected."""
        self._unidentify(call)
        if not self._all_protected:
            read = readings(call.path)
            if read is None:
                return self._ambiguous(call)
            if not self._protects(call.method, read):
                self.public += 1
                return self._bound_body(call) if call.body is not None else None
        return self._refuse(call, Kind.UNAUTHENTICATED, reason, "the caller is not authenticated")

    def _protects(self, method: bytes, paths: tuple[bytes, ...]) -> bool:
        """Whether any reading of a path is protected."""
        if self._all_protected:
            return True
        return any(pattern.matches(method, path) for pattern in self._protected for path in paths)

    def _ambiguous(self, call: Call) -> Failure:
        return self._refuse(call, Kind.BAD_REQUEST, "path_ambiguous", "the path can be read in too many ways")

    def _refuse(self, call: Call, kind: Kind, reason: str, detail: str) -> Failure:
        self.refused[reason] += 1
        claimed = call.noted.get(b"x-service-name", b"")[:_SHOWN].decode("latin-1")
        call.note(f"guard: {reason}; the caller {f'claims to be {claimed!r}' if claimed else 'gives no name'}")
        return Failure(kind, detail)

    def _bound_body(self, call: Call) -> Failure | None:
        """The limit for bodies of callers that have not proven themselves; the failure if this one is over it."""
        limit, body = self._max_unproven_body, call.body
        if body is None or limit >= body.max_size:
            return None
        body.max_size = limit  # holds for what is still to come
        declared = call.length is not None
        size = call.length if call.length is not None else body.size
        if size <= limit:
            return None
        call.app.shared.stats.reached["body_bytes"] += 1
        return body_too_large(size, limit, inbound=True, complete=declared)

    def _unidentify(self, call: Call) -> None:
        """Take off what only a proven caller may say: about itself or a user, or in our name. The latter counts for
        nothing here either."""
        taken = frozenset(lower for lower, _, _ in call.fields if self._strangers_may_not_say.have(lower))
        if taken:
            call.nominated = call.nominated | taken
            for name in _READ_FROM_SIDECARS & taken:
                call.noted.pop(name, None)
