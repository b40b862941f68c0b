"""What policies and connections may know of the route of a call."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider.dataplane.http1.heads import REQUEST_OWNED
from outrider.dataplane.runtime.counters import RouteStats
from outrider.dataplane.runtime.timers import NEVER

if TYPE_CHECKING:
    from outrider.dataplane.call import Call


class RepeatRules:
    """Whether a call may be made more than once. `max_retries` counts the attempts after the first."""

    __slots__ = ()

    @property
    def retries(self) -> bool:
        """Whether there is a second attempt at all."""
        raise NotImplementedError

    def repeatable(self, call: Call) -> bool:
        """Whether the request may be sent again although the target may have acted on it."""
        raise NotImplementedError

    def forbidden(self, call: Call) -> str | None:
        """Who has said that this call is not to be repeated, as a metric label; None if nobody has."""
        raise NotImplementedError

    def may_follow(self, call: Call, number: int) -> bool:
        """Whether the `number`-th attempt may be followed by another one if it gets no answer in time."""
        raise NotImplementedError

    def holds(self, call: Call) -> bool:
        """Whether the app should not see any of an answer before it is whole."""
        raise NotImplementedError


@dataclass(slots=True, kw_only=True)
class RouteFacts:
    """One route, as far as policies and connections know it.

    `service` is the name of its service, `shown` the name that answers tell. `rules` say whether its calls may be
    repeated. With `last_takes_all`, an attempt that no other may follow is not bound by `attempt_timeout` (seconds).
    `owned` are the header names this route writes, lower case. `upgrade` lets an app switch to another protocol,
    `allow_connect` lets it CONNECT to an endpoint. `inbound`: it leads to our own app. `critical` is None where nothing
    is said. `max_body` bounds request bodies, in bytes; `body_idle` is how long a body may stand still, either way, in
    seconds. `passes_host`: the target gets the `Host` of the call instead of its own.
    """

    name: str
    service: str = ""
    shown: str = ""
    stats: RouteStats
    rules: RepeatRules = field(init=False)
    attempt_timeout: float = NEVER
    last_takes_all: bool = False
    body_idle: float = 30.0
    upgrade: bool = True
    allow_connect: bool = False
    critical: bool | None = None
    inbound: bool = False
    max_body: int = sys.maxsize
    passes_host: bool = False
    owned: frozenset[bytes] = REQUEST_OWNED
    timing_name: bytes = b""
    pseudonym: bytes = b""
    via_1_1: bytes = b""
    via_1_0: bytes = b""

    def be_named(self, pseudonym: bytes) -> None:
        """Take this name in `Via` (RFC 9110 §7.6.3): a call that comes with it has been here before."""
        self.pseudonym = pseudonym
        self.via_1_1 = b"via: 1.1 %b\r\n\r\n" % pseudonym
        self.via_1_0 = b"via: 1.0 %b\r\n\r\n" % pseudonym
