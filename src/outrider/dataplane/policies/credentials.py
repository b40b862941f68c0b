"""Proof of who we are, written into every attempt. The app may send the same header, or name it in `Connection`:
ours replaces it, so the secret can leave the app.

A key that has been replaced is remembered for a while (`overlap`): receivers do not change in the same instant, and one
that answers 401 to the new key is asked once more with the old one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Final, Protocol

from outrider.model.messages import is_field_value

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt

# The share of its life after which a minted token is replaced.
_RENEW_AT: Final = 0.8
_MOST_TARGETS: Final = 256


class Credential:
    """A header with a secret value. The control plane replaces the value when its source changes. With `prefix`, the
    value is what follows it, e.g. `Bearer `."""

    __slots__ = (
        "_line",
        "_name",
        "_overlap",
        "_prefix",
        "_previous",
        "_previous_until",
        "old_uses",
        "owned",
        "ready",
        "replaced_at",
    )

    def __init__(self, header: str, value: str = "", *, overlap: float = 0.0, prefix: str = "") -> None:
        """`overlap` is in seconds. Without a value nothing is written until there is one."""
        self._name = header.encode()
        self._prefix = prefix.encode()
        self.owned = frozenset((self._name.lower(),))
        self._overlap = overlap
        self._line = b""
        self._previous = b""
        self._previous_until = 0.0
        self.old_uses = 0  # calls that only the previous value got through
        self.ready = False
        self.replaced_at = 0.0  # monotonic seconds
        if value:
            self.replace(value)

    def replace(self, value: str) -> None:
        """Use this value from the next attempt on. Raises ValueError if it cannot stand in a header."""
        if not value or value != value.strip() or not is_field_value(value):
            raise ValueError("a credential must be one line of printable ASCII without spaces around it")
        line = b"%b: %b%b\r\n" % (self._name, self._prefix, value.encode())
        if line == self._line:
            return
        if self._line and self._overlap:
            self._previous, self._previous_until = self._line, monotonic() + self._overlap
        if self._line:
            self.replaced_at = monotonic()
        self._line = line
        self.ready = True

    def has_previous(self, now: float) -> bool:
        """Whether there is an earlier value that a receiver may still want; `now` is monotonic seconds."""
        return now < self._previous_until

    def stamp(self, attempt: Attempt) -> bytes:
        if attempt.call.with_old_keys and attempt.started < self._previous_until:
            return self._previous
        return self._line

    def __repr__(self) -> str:
        return f"Credential({self._name.decode()}: ***)"


class Mint(Protocol):
    """Makes a signed token for a target: `(audience, issued at, expires at)`, in Unix time."""

    def __call__(self, audience: str, issued: int, expires: int) -> str: ...


class _Signer:
    """Tokens of one key, one per target, each kept for most of its life."""

    __slots__ = ("_audience", "_clock", "_header", "_kept", "_mint", "_ttl")

    def __init__(self, mint: Mint, audience: str, ttl: float, header: bytes, clock: Callable[[], float]) -> None:
        self._mint = mint
        self._audience = audience
        self._ttl = ttl
        self._header = header
        self._clock = clock
        self._kept: dict[str, tuple[float, float, float, bytes]] = {}

    def line(self, target: str) -> bytes:
        """The header for a call to this service."""
        kept = self._kept.get(target)
        now, moment = self._clock(), monotonic()
        # By both clocks: one that is set back must not keep a token that seems to be from the future.
        if kept is not None and kept[0] <= now < kept[1] and moment < kept[2]:
            return kept[3]
        issued, expires = math.floor(now), math.ceil(now + self._ttl)
        token = self._mint(self._audience.replace("{target}", target), issued, expires)
        line = b"%b: Bearer %b\r\n" % (self._header, token.encode())
        if len(self._kept) >= _MOST_TARGETS:
            self._kept.clear()
        life = self._ttl * _RENEW_AT
        self._kept[target] = (issued, now + life, moment + life, line)
        return line


class TokenCredential:
    """A short-lived token per target, minted when needed and kept for most of its life. `ttl` in seconds."""

    __slots__ = (
        "_audience",
        "_clock",
        "_header",
        "_overlap",
        "_previous",
        "_previous_until",
        "_signer",
        "_ttl",
        "old_uses",
        "owned",
        "ready",
        "replaced_at",
    )

    def __init__(
        self,
        mint: Mint,
        *,
        audience: str,
        ttl: float,
        header: str = "authorization",
        overlap: float = 0.0,
        clock: Callable[[], float] = time,
    ) -> None:
        """`audience` may contain `{target}`; `overlap` is in seconds."""
        self._audience = audience
        self._ttl = ttl
        self._header = header.encode()
        self._overlap = overlap
        self._clock = clock
        self._signer = self._previous = _Signer(mint, audience, ttl, self._header, clock)
        self._previous_until = 0.0
        self.owned = frozenset((self._header.lower(),))
        self.ready = True
        self.replaced_at = 0.0
        self.old_uses = 0

    def replace(self, mint: Mint) -> None:
        """Sign with another key from the next attempt on."""
        now = monotonic()
        if self._overlap:
            self._previous, self._previous_until = self._signer, now + self._overlap
        self.replaced_at = now
        self._signer = _Signer(mint, self._audience, self._ttl, self._header, self._clock)

    def has_previous(self, now: float) -> bool:
        """Whether there is an earlier key that a receiver may still want; `now` is monotonic seconds."""
        return now < self._previous_until

    def stamp(self, attempt: Attempt) -> bytes:
        old = attempt.call.with_old_keys and attempt.started < self._previous_until
        return (self._previous if old else self._signer).line(attempt.call.route.cluster.name)
