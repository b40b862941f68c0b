"""Proof of who we are, written into every attempt. The app may send the same header, or name it in `Connection`:
ours replaces it, so the secret can leave the app.

A key that has been replaced is remembered for a while (`overlap`): receivers do not change in the same instant, and one
that answers 401 to the new key is asked once more with the old one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Final, Protocol

from outrider.dataplane.policy import Policy
from outrider.model.failure import Failure, Kind
from outrider.model.messages import is_field_value

if TYPE_CHECKING:
    from outrider.dataplane.attempt import Attempt
    from outrider.dataplane.call import Call

# The share of its life after which a minted token is replaced.
_RENEW_AT: Final = 0.8
_MOST_TARGETS: Final = 256
# Seconds between two fetches that refusals of targets can ask for: at first, and at most. A target that refuses
# whatever it is shown must not turn every one of its answers into a request to the issuer.
_RENEW_PAUSE: Final = 5.0
_MAX_RENEW_PAUSE: Final = 300.0
# Seconds that a refused call waits for a new value; never longer than its own deadline.
_RENEW_PATIENCE: Final = 3.0
# Seconds after which an app may ask again for what was refused because a credential has not been fetched yet.
_FETCHED_SOON: Final = 1.0


class Renewal:
    """Has a fetched value fetched anew because a target has refused it: it may have been revoked before its time. One
    fetch serves all calls that were refused, and refusals that go on ask for fetches ever more rarely."""

    __slots__ = ("_again_at", "_ask", "_pause", "_under_way", "_waiting")

    def __init__(self, ask: Callable[[], None]) -> None:
        """`ask` begins a fetch; `ended` must be called when it is over."""
        self._ask = ask
        self._again_at = 0.0
        self._pause = _RENEW_PAUSE
        self._under_way = False
        self._waiting: list[asyncio.Future[None]] = []

    def begin(self, now: float) -> bool:
        """Ask for a fetch unless one is under way; False when it is too early for another one. `now` is monotonic."""
        if self._under_way:
            return True
        if now < self._again_at:
            return False
        # Refused again soon after the last pause: what is fetched does not help.
        self._pause = min(self._pause * 2, _MAX_RENEW_PAUSE) if now < self._again_at + self._pause else _RENEW_PAUSE
        self._again_at = now + self._pause
        self._under_way = True
        self._ask()
        return True

    async def wait(self, seconds: float) -> None:
        """Wait until the fetch has ended, well or badly, but no longer than so many seconds."""
        if not self._under_way or seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(min(seconds, _RENEW_PATIENCE), _resolve, turn)
        self._waiting.append(turn)
        try:
            await turn
        finally:
            timer.cancel()
            if turn in self._waiting:
                self._waiting.remove(turn)

    def ended(self) -> None:
        """Tell those who wait that a fetch has ended."""
        self._under_way = False
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            _resolve(turn)


class Rotating(Policy):
    """What may be replaced while receivers still want what was there before. `replaced_at` is monotonic seconds,
    `old_uses` counts calls that only the one before got through; not `ready`: there is none yet."""

    __slots__ = ("_overlap", "_previous_until", "old_uses", "ready", "renewal", "replaced_at")

    def __init__(self, header: bytes, overlap: float) -> None:
        """`overlap` is in seconds."""
        self._overlap = overlap
        self._previous_until = 0.0
        self.owned = frozenset((header.lower(),))
        self.old_uses = 0
        self.ready = False
        self.replaced_at = 0.0
        self.renewal: Renewal | None = None  # set where the value is fetched

    def has_previous(self, now: float) -> bool:
        """Whether there is an earlier one that a receiver may still want; `now` is monotonic seconds."""
        return now < self._previous_until

    def _replaced(self) -> None:
        self.replaced_at = monotonic()
        if self._overlap:
            self._previous_until = self.replaced_at + self._overlap

    def _is_old_wanted(self, attempt: Attempt) -> bool:
        return attempt.call.with_old_keys and attempt.started < self._previous_until


class Credential(Rotating):
    """A header with a secret value. The control plane replaces the value when its source changes. With `prefix`, the
    value is what follows it, e.g. `Bearer `."""

    __slots__ = ("_line", "_name", "_prefix", "_previous")

    def __init__(self, header: str, value: str = "", *, overlap: float = 0.0, prefix: str = "") -> None:
        """`overlap` is in seconds. Without a value `FetchedCredentials` refuses calls until there is one."""
        self._name = header.encode()
        super().__init__(self._name, overlap)
        self._prefix = prefix.encode()
        self._line = self._previous = b""
        if value:
            self.replace(value)

    def replace(self, value: str) -> None:
        """Use this value from the next attempt on. Raises ValueError if it cannot stand in a header."""
        if not value or value != value.strip() or not is_field_value(value):
            raise ValueError("a credential must be one line of printable ASCII without spaces around it")
        line = b"%b: %b%b\r\n" % (self._name, self._prefix, value.encode())
        if line == self._line:
            return
        if self._line:
            self._previous = self._line
            self._replaced()
        self._line = line
        self.ready = True

    def stamp(self, attempt: Attempt) -> bytes:
        return self._previous if self._is_old_wanted(attempt) else self._line

    def __repr__(self) -> str:
        return f"Credential({self._name.decode()}: ***)"


class FetchedCredentials(Policy):
    """Refuses the calls of a route while a credential that has to be fetched has never been there: without it the
    target would do the work of a stranger, or say 401 to an app that has done nothing wrong."""

    __slots__ = ("_named",)

    def __init__(self, named: Sequence[tuple[str, Credential]]) -> None:
        """The credentials with their names in the configuration."""
        super().__init__()
        self._named = tuple(named)

    def admit(self, call: Call) -> Failure | None:
        for name, credential in self._named:
            if not credential.ready:
                detail = f"the credential {name} has not been fetched yet, so nothing was sent"
                return Failure(Kind.CREDENTIAL_MISSING, detail, retry_after=_FETCHED_SOON)
        return None


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

    def with_key(self, mint: Mint) -> _Signer:
        """Such tokens, of another key."""
        return _Signer(mint, self._audience, self._ttl, self._header, self._clock)

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


class TokenCredential(Rotating):
    """A short-lived token per target, minted when needed and kept for most of its life. `ttl` in seconds."""

    __slots__ = ("_previous", "_signer")

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
        super().__init__(header.encode(), overlap)
        self._signer = self._previous = _Signer(mint, audience, ttl, header.encode(), clock)
        self.ready = True

    def replace(self, mint: Mint) -> None:
        """Sign with another key from the next attempt on."""
        self._previous, self._signer = self._signer, self._signer.with_key(mint)
        self._replaced()

    def stamp(self, attempt: Attempt) -> bytes:
        signer = self._previous if self._is_old_wanted(attempt) else self._signer
        return signer.line(attempt.call.route.service)


def _resolve(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
