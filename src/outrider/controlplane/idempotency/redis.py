"""Where several guards remember keys together: one Redis.

An entry is one string: a line with its state and its token, a line of JSON, and the body of the answer. What must
happen at once is a script. Redis forgets entries by itself when they expire; how many there may be is its own business.

Guards on other machines cannot be looked at, so each of them keeps a key of its own alive. An entry that is under way
and whose guard has no such key any more is `lost`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from time import time
from typing import Any, Final, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotConnectedError
from redis.exceptions import RedisError

from outrider.controlplane.idempotency.fields import as_text, from_text
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.policies.idempotency import Entry, StoreError
from outrider.dataplane.runtime.timers import TO_THE_END
from outrider.model.addresses import hide_in_urls

log = logging.getLogger("outrider")
T = TypeVar("T")

_ALIVE_EVERY: Final = 3.0
_ALIVE_FOR: Final = 15.0  # seconds without a sign after which a guard is taken for dead
_MOST_UNDONE: Final = 10_000

# Whether an entry that is not done has this token. Every script may run twice, when the connection breaks before its
# answer has come: so none of them touches an entry with another token than it has been told.
_HAS: Final = r"""
local function has(known, token)
  return string.sub(known, 1, 1) ~= 'd' and string.sub(known, 3, 3 + #token) == token .. "\n"
end
"""
# KEYS: the entry, and that its guard is alive. ARGV: the new entry, its milliseconds, the token of the lost entry that
# it may replace (or nothing), the milliseconds of being alive.
_BEGIN: Final = (
    _HAS
    + r"""
local known = redis.call('GET', KEYS[1])
if known and not has(known, ARGV[3]) then return known end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[4])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
)
# KEYS: the entry. ARGV: the new entry, its milliseconds, the token that the present one must have if there is one. If
# there is none, a guard that was taken for dead tells late what its call has come to: that call was executed, whatever
# became of the one that took over, so its answer is kept rather than the call made once more.
_FINISH: Final = (
    _HAS
    + r"""
local known = redis.call('GET', KEYS[1])
if known and not has(known, ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)
# KEYS: the entry. ARGV: the token that it must have.
_FORGET: Final = (
    _HAS
    + r"""
local known = redis.call('GET', KEYS[1])
if not known or not has(known, ARGV[1]) then return 0 end
return redis.call('DEL', KEYS[1])
"""
)


class RedisStore:
    """`ttl` and `timeout` (of one exchange with Redis) in seconds. Services do not see each other's keys."""

    def __init__(self, url: str, service: str, ttl: float, timeout: float, clock: Callable[[], float] = time) -> None:
        self._shown = hide_in_urls(url).partition("?")[0]  # there may be a password in the query, too
        self._prefix = f"outrider:idempotency:{service}:"
        self._ttl = round(ttl * 1000)
        self._longest = round(max(ttl, TO_THE_END) * 1000)
        self._clock = clock
        self._guard = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        self._alive = f"{self._prefix}alive:{self._guard}"
        self._begun = 0
        self._complained = ""
        self._unsure: set[tuple[str, str]] = set()  # what may have been begun although we did not hear of it
        # Once more on a connection that Redis has closed meanwhile.
        self._redis = Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 1, (NotConnectedError,)),
            retry_on_timeout=False,
        )
        self._begin_script = self._redis.register_script(_BEGIN)
        self._finish_script = self._redis.register_script(_FINISH)
        self._forget_script = self._redis.register_script(_FORGET)

    async def open(self) -> None:
        """Show that we are alive; if Redis cannot be reached, every use of it fails until it can."""
        try:
            await self._tell()
            await self._do(self._look_at_eviction())
        except StoreError:
            pass  # it has been logged, and calls hear of it

    @property
    def trouble(self) -> str:
        """Why the store cannot be used; nothing if it can."""
        return self._complained

    def token(self) -> str:
        """A new one, for a call to begin."""
        self._begun += 1
        return f"{self._guard}.{self._begun}"

    async def begin(self, key: bytes, new: Entry, instead_of: str = "") -> Entry | None:
        """See `Store`."""
        name = self._prefix + key.hex()
        args = (_written(b"r", new, self._clock()), self._longest, instead_of, round(_ALIVE_FOR * 1000))
        try:
            known: bytes | None = await self._do(self._begin_script(keys=[name, self._alive], args=args))
            if known is None:
                return None
            state, entry = self._read(name, known)
            if entry.token == new.token:  # it is the second time that we ask, and the first one has arrived
                return None
            if state == b"r" and not await self._lives(entry.token):
                state = b"l"
        except (StoreError, asyncio.CancelledError):
            if len(self._unsure) < _MOST_UNDONE:
                self._unsure.add((name, new.token))
            raise
        entry.lost = state == b"l"
        return entry

    async def finish(self, key: bytes, entry: Entry) -> None:
        """See `Store`."""
        written = _written(b"l" if entry.lost else b"d", entry, self._clock())
        await self._do(self._finish_script(keys=[self._prefix + key.hex()], args=[written, self._ttl, entry.token]))

    async def forget(self, key: bytes, token: str) -> None:
        """See `Store`."""
        await self._do(self._forget_script(keys=[self._prefix + key.hex()], args=[token]))

    async def watch(self) -> None:
        """Show again and again that we are alive, and take back what we may have begun without knowing it; until
        cancelled."""
        await repeat("the store of idempotency keys", self._show_life, _ALIVE_EVERY)

    async def _show_life(self) -> float:
        try:
            await self._tell()
            for name, token in list(self._unsure):
                await self._do(self._forget_script(keys=[name], args=[token]))
                self._unsure.discard((name, token))
        except StoreError:
            pass  # it has been logged
        return _ALIVE_EVERY

    async def close(self) -> None:
        """Leave: what is still under way is lost from here."""
        try:
            await self._redis.delete(self._alive)
        except (RedisError, OSError, TimeoutError):
            pass  # it ends by itself
        await self._redis.aclose()

    async def _tell(self) -> None:
        await self._do(self._redis.set(self._alive, b"1", px=round(_ALIVE_FOR * 1000)))

    async def _lives(self, token: str) -> bool:
        guard = token.rpartition(".")[0]
        return guard == self._guard or bool(await self._do(self._redis.exists(f"{self._prefix}alive:{guard}")))

    async def _look_at_eviction(self) -> None:
        """Entries are kept for a time, so that is what Redis takes first when memory runs out."""
        try:
            said = await self._redis.config_get("maxmemory*")
        except RedisError:
            return  # nobody else's business, says this one
        if said.get("maxmemory") != "0" and said.get("maxmemory-policy") != "noeviction":
            log.warning(
                "%s drops keys when its memory is full (maxmemory-policy %s): a repeated call would then be executed "
                "again; set it to noeviction",
                self._shown,
                said.get("maxmemory-policy"),
            )

    async def _do(self, work: Awaitable[T] | Any) -> T:
        try:
            result = await work
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(str(error) or "no answer in time") from None
        self._complained = ""
        return cast(T, result)

    def _failed(self, why: str) -> StoreError:
        if why != self._complained:
            self._complained = why
            remedy = "is it running, reachable and not full? (redis.url)"
            log.error("the store of idempotency keys cannot be used: %s: %s; %s", self._shown, why, remedy)
        return StoreError(f"{self._shown}: {why}", "Redis does not answer, or refuses to write")

    def _read(self, name: str, written: bytes) -> tuple[bytes, Entry]:
        """State and entry. Raises StoreError if it is none."""
        try:
            first, second, body = written.split(b"\n", 2)
            state, token = first[:1], first[2:].decode()
            known = json.loads(second)
            entry = Entry(
                bytes.fromhex(known["fingerprint"]),
                done=state == b"d",
                status=int(known["status"]),
                headers=from_text(known["headers"]),
                body=body,
                age=self._clock() - float(known["since"]),
                token=token,
                digest=bytes.fromhex(known.get("digest", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._failed(f"{name} is not an entry of ours; delete it") from None
        return state, entry


def _written(state: bytes, entry: Entry, now: float) -> bytes:
    facts = {
        "fingerprint": entry.fingerprint.hex(),
        "since": now,
        "status": entry.status,
        "headers": as_text(entry.headers),
        "digest": entry.digest.hex(),
    }
    return b"%b %b\n%b\n%b" % (state, entry.token.encode(), json.dumps(facts).encode(), entry.body)
