"""Sessions of TLS to targets: kept and offered again, and looked at seldom."""

from __future__ import annotations

import ssl
from types import SimpleNamespace
from typing import Any, cast

import pytest

from outrider.dataplane.upstream import tls
from outrider.dataplane.upstream.tls import ClientTls, ResumingContext
from tests.fakes import Clock


class Connection:
    """A connection whose session is looked at so many times."""

    def __init__(self, *, ticket: bool = True) -> None:
        self.looks = 0
        self._ticket = ticket

    @property
    def session(self) -> Any:
        self.looks += 1
        return SimpleNamespace(has_ticket=self._ticket)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tls, "monotonic", clock)
    return clock


def keep(client: ClientTls, connection: Connection, times: int = 1) -> None:
    for _ in range(times):
        client.remember(cast(ssl.SSLObject, connection))


@pytest.mark.parametrize(("ticket", "most"), [(True, 13), (False, 61)])
def test_a_session_is_looked_at_seldom(clock: Clock, ticket: bool, most: int) -> None:
    """Each look at one leaks it (CPython 3.11): an hour of connections, ten a second, takes a few."""
    client, connection = ClientTls(ResumingContext(), "user.internal"), Connection(ticket=ticket)
    for _ in range(36_000):
        keep(client, connection)
        clock.advance(0.1)
    assert 1 <= connection.looks <= most
    assert ("user.internal" in client.context.sessions) is ticket


def test_a_session_is_replaced_in_time(clock: Clock) -> None:
    """It does not live for ever."""
    client = ClientTls(ResumingContext(), "user.internal")
    keep(client, Connection())
    first = client.context.sessions["user.internal"]
    clock.advance(400.0)
    keep(client, Connection())
    assert client.context.sessions["user.internal"] is not first


def test_no_more_names_are_kept_than_a_context_has_room_for(clock: Clock) -> None:
    """Services share contexts, so each has a session of its own, up to a limit."""
    context = ResumingContext()
    for number in range(600):
        keep(ClientTls(context, f"service-{number}.internal"), Connection())
    assert len(context.sessions) == 512
