"""A service's endpoints and how they are doing, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

from outrider.dataplane.ports import Target
from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream.balance import chooser, learn, learn_failure
from outrider.dataplane.upstream.ejection import Ejection
from outrider.dataplane.upstream.pool import Pool
from outrider.dataplane.upstream.tls import ClientTls
from outrider.model.outcome import FAILURE, SUCCESS, Outcome

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.route import RepeatRules

# Seconds over which a new or recovered endpoint comes to its full share.
_SLOW_START = 10.0
# Failures in a row that one counts for which is set aside for something else.
_AS_BAD_AS = 5
# Seconds that a suspect waits for a call that can be repeated; after that, one that cannot must find out.
_NOBODY_ELSE = 1.0


# Scheme, host and port of a URL, comparable: lower case, without brackets, the port of the scheme if none is named.
Origin = tuple[bytes, bytes, int]
STANDINGS: Final = ("ready", "suspect", "ejected", "unhealthy")


class Endpoint(Target):
    """One address that can serve a cluster.

    `authority` goes into `Host`; `base_path` (no trailing slash) stands before every path; `idle_timeout`
    is in seconds; `max_head_bytes` and `max_fields` bound what
    a response head may be. `secure` is for https, whose `tls` is
    set before the first call, and again when certificates change; None is plain HTTP. `tier`: endpoints of a higher one
    are only used when no lower one has anybody fit.

    How it is doing: `latency` (seconds, as balance.py learns it), `run` of failures, `out` until `out_until` (monotonic
    seconds) as ejection.py decides, `healthy` as active checks say, `since` when it (again) takes part; `attempts` and
    `failures` as compared with other endpoints.
    """

    __slots__ = (
        "attempts",
        "authority",
        "base_path",
        "counted_from",
        "detour",
        "ejections",
        "failed_at",
        "failures",
        "hash_key",
        "healthy",
        "host",
        "host_line",
        "idle_timeout",
        "in_flight",
        "latency",
        "learned_at",
        "look_at",
        "max_fields",
        "max_head_bytes",
        "origin",
        "out",
        "out_since",
        "out_until",
        "pool",
        "port",
        "probing",
        "retired",
        "run",
        "since",
        "slow_run",
        "stats",
        "tier",
        "tls",
        "weight",
    )

    def __init__(  # noqa: PLR0913 # settings, all but the first few by keyword
        self,
        host: str,
        port: int,
        *,
        authority: str,
        stats: ClusterStats,
        base_path: str = "",
        idle_timeout: float = 4.0,
        max_head_bytes: int = 65536,
        max_fields: int = 100,
        secure: bool = False,
        weight: float = 1.0,
        tier: int = 0,
    ) -> None:
        self.host = host
        self.port = port
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.authority = authority.encode()
        self.host_line = b" HTTP/1.1\r\nhost: %b\r\n" % self.authority
        self.origin = (b"https://" if secure else b"http://") + self.authority
        self.tls: ClientTls | None = None
        self.detour: tuple[str, int] | None = None  # where to connect instead, while faults are made on purpose
        self.base_path = base_path.encode()
        self.stats = stats
        self.idle_timeout = idle_timeout
        self.max_head_bytes = max_head_bytes
        self.max_fields = max_fields
        self.weight = weight
        self.tier = tier
        self.hash_key = self.name.encode()[:64]
        self.in_flight = 0
        self.pool = Pool()
        self.latency = self.learned_at = 0.0
        self.run = 0
        self.look_at = self.out_until = self.out_since = self.failed_at = self.counted_from = 0.0
        self.out = self.probing = self.retired = False
        self.healthy = True
        self.since = -_SLOW_START
        self.ejections = self.attempts = self.failures = self.slow_run = 0

    def begin_slowly(self, others: Sequence[Endpoint], now: float | None = None) -> None:
        """It is new beside others that have been in use: it starts with less than its share."""
        if others:
            self.since = monotonic() if now is None else now

    @property
    def standing(self) -> str:
        """How it is doing, as one of STANDINGS."""
        if not self.healthy:
            return "unhealthy"
        return "ejected" if self.out else "suspect" if self.run else "ready"

    @property
    def doubtful(self) -> bool:
        """Whether its latest attempt failed, or it is set aside."""
        return self.out or self.run > 0

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against it."""
        return self.healthy and not self.doubtful

    def share(self, now: float) -> float:
        """Its weight, less while it is new or has just come back."""
        age = now - self.since
        return self.weight if age >= _SLOW_START else self.weight * max(0.1, age / _SLOW_START)


class Cluster:
    """A logical service: its endpoints, and how one is chosen for an attempt."""

    __slots__ = (
        "_choose",
        "balance",
        "by_origin",
        "ejection",
        "endpoints",
        "name",
        "probe_given",
        "several",
        "shown",
        "stats",
        "tiered",
    )

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        balance: str,
        stats: ClusterStats,
        ejection: Ejection | None = None,
        shown: str = "",
    ) -> None:
        """Without `ejection`, no endpoint is ever set aside. `shown` is its name in answers, if another one."""
        self.name = name
        self.shown = shown or name
        self.endpoints = tuple(endpoints)
        self.by_origin: dict[Origin, Endpoint] | None = None  # of relocation.py, once it is asked for
        self.several = len(self.endpoints) > 1
        self.tiered = False
        self.probe_given = False  # the endpoint picked last is in doubt, and this attempt is to find out about it
        self.balance = balance
        self.stats = stats
        self.ejection = ejection
        self._choose = chooser(balance)

    def pick(self, call: Call, rules: RepeatRules, now: float) -> Endpoint | None:
        """An endpoint for the next attempt: a good one, and one not yet tried in this call, while there is one."""
        endpoints = self.endpoints
        if not self.several:
            return endpoints[0] if endpoints else None
        ejection = self.ejection
        untroubled = (ejection is None or not ejection.troubled) and self.stats.unhealthy == 0
        if untroubled and not call.tried and not self.tiered:
            return self._choose(endpoints, call, now)
        candidates = self._candidates(call, rules, now)
        if len(candidates) == 1:
            return candidates[0]
        return self._choose(candidates, call, now)

    def observe(self, endpoint: Endpoint, outcome: Outcome, started: float, seconds: float, now: float) -> None:
        """An attempt at one of several endpoints, begun at `started`, answered or given up after `seconds`, is over.
        One that was given up only shows that the endpoint is slower than that."""
        if endpoint.retired:
            return  # nobody asks any more
        if outcome is FAILURE:
            learn_failure(endpoint, seconds, now)
        elif outcome is SUCCESS or seconds > endpoint.latency:
            learn(endpoint, seconds, now)
        if self.ejection is not None:
            self.ejection.observe(endpoint, outcome, started, seconds, now, self.endpoints)

    def has_healthy(self) -> bool:
        """Whether an endpoint is healthy, as far as active checks say."""
        return any(endpoint.healthy for endpoint in self.endpoints)

    def has_better_than(self, endpoint: Endpoint) -> bool:
        """Whether another endpoint is in good standing: then a failure at this one is not the service's."""
        if self.ejection is None:
            return False  # nobody keeps account of who is
        return any(other.sound for other in self.endpoints if other is not endpoint)

    def untried(self, tried: Sequence[Target]) -> bool:
        """Whether an endpoint is left that this call has not tried."""
        return any(endpoint not in tried for endpoint in self.endpoints)

    def replace(self, endpoints: Sequence[Endpoint]) -> None:
        """Other endpoints from now on. Those that stay are the same objects and keep what is known of them; calls
        under way at those that go are finished, and their idle connections closed."""
        gone = [endpoint for endpoint in self.endpoints if endpoint not in endpoints]
        self.endpoints = tuple(endpoints)
        self.by_origin = None
        self.several = len(self.endpoints) > 1
        for endpoint in gone:
            endpoint.retired = True
            endpoint.pool.close()
            if self.ejection is not None:
                self.ejection.forget(endpoint)
        self.tiered = len({endpoint.tier for endpoint in endpoints}) > 1
        self.stats.unhealthy = sum(not endpoint.healthy for endpoint in endpoints)

    def found_healthy(self, endpoint: Endpoint, healthy: bool, now: float) -> None:
        """What an active check has found. One that has come back starts slowly."""
        if healthy and not endpoint.healthy:
            endpoint.since = now
        endpoint.healthy = healthy
        self.stats.unhealthy = sum(not one.healthy for one in self.endpoints)

    def _candidates(self, call: Call, rules: RepeatRules, now: float) -> Sequence[Endpoint]:
        """The endpoints that are fit and untried. A call that could go elsewhere afterwards may have to find out about
        one that is in doubt. If nobody is fit, the one with the fewest failures in a row: it may have recovered."""
        tried = call.tried
        fit: list[Endpoint] = []
        doubtful: list[Endpoint] = []
        repeatable = -1  # asked only if somebody is in doubt
        for endpoint in self.endpoints:
            if not endpoint.healthy or endpoint in tried:
                continue
            if not endpoint.doubtful:
                fit.append(endpoint)
                continue
            doubtful.append(endpoint)
            look_at = max(endpoint.out_until if endpoint.out else 0.0, endpoint.look_at)
            if not endpoint.probing and now >= look_at:
                if repeatable < 0:
                    may = rules.retries and rules.repeatable(call) and call.may_repeat()
                    repeatable = int(may and rules.forbidden(call) is None)
                if (repeatable or now >= look_at + _NOBODY_ELSE) and not self._spare(endpoint):
                    endpoint.probing = self.probe_given = True
                    return (endpoint,)
        if not fit:
            return self._last_resort(doubtful)
        if self.tiered:
            lowest = min(endpoint.tier for endpoint in fit)
            return [endpoint for endpoint in fit if endpoint.tier == lowest]
        return fit

    def _last_resort(self, doubtful: list[Endpoint]) -> Sequence[Endpoint]:
        """Nobody is both fit and untried: of those in doubt the least bad, but rather one that is fit and tried than
        one that is set aside; and in the end anybody."""
        least = _least_failing(doubtful) if doubtful else ()
        if not least or least[0].out:
            sound = [one for one in self.endpoints if one.sound]
            if sound:
                return sound
        return least or _least_failing([one for one in self.endpoints if one.healthy] or self.endpoints)

    def _spare(self, endpoint: Endpoint) -> bool:
        """Whether it belongs to a tier that is not in use, because a lower one has somebody in good standing."""
        return self.tiered and any(one.tier < endpoint.tier and one.sound for one in self.endpoints)


def _least_failing(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    least = min(_badness(endpoint) for endpoint in endpoints)
    return [endpoint for endpoint in endpoints if _badness(endpoint) == least]


def _badness(endpoint: Endpoint) -> int:
    return max(endpoint.run, _AS_BAD_AS) if endpoint.out else endpoint.run
