"""Pool: last in, first out; what is gone or suspect is never handed out."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from outrider.dataplane.pool import Pool


class Connection:
    """A connection to a target, as its pool sees it."""

    def __init__(self, pool: Pool, *, alive: bool = True, gone: bool = False) -> None:
        self.alive = alive
        self.gone = gone
        self.asked = False
        self._pool = pool
        pool.open += 1

    def peek_closed(self) -> bool:
        self.asked = True
        return self.gone

    def close(self) -> None:
        self.alive = False
        self._pool.forget(cast(Any, self))


@pytest.fixture
def pool() -> Pool:
    return Pool()


def idle(pool: Pool, **state: bool) -> Any:
    connection = Connection(pool, **state)
    pool.idle.append(cast(Any, connection))
    return connection


def test_an_empty_pool_has_nothing(pool: Pool) -> None:
    """Without an idle connection there is nothing to lease."""
    assert pool.lease(False) is None
    assert pool.lease(True) is None


def test_last_in_first_out(pool: Pool) -> None:
    """The most recently used connection is used again, so that spare ones age and leave."""
    older, newer = idle(pool), idle(pool)
    assert [pool.lease(False), pool.lease(False), pool.lease(False)] == [newer, older, None]


def test_a_leased_connection_is_leased_once(pool: Pool) -> None:
    """Nobody else gets a connection that is in use, and it still counts as open."""
    connection = idle(pool)
    assert pool.lease(False) is connection
    assert pool.lease(False) is None
    assert pool.open == 1


def test_a_dead_connection_is_passed_over(pool: Pool) -> None:
    """A connection that was lost while idle is not handed out."""
    alive = idle(pool)
    idle(pool, alive=False)
    assert pool.lease(False) is alive


def test_a_certain_lease_asks_the_kernel_first(pool: Pool) -> None:
    """For a request that cannot be repeated, a connection the target has closed meanwhile is closed, not used."""
    good, gone = idle(pool), idle(pool, gone=True)
    assert pool.lease(True) is good
    assert gone.asked
    assert not gone.alive
    assert pool.open == 1


def test_a_plain_lease_does_not_ask(pool: Pool) -> None:
    """The system call is saved where a stale connection can be replaced."""
    connection = idle(pool, gone=True)
    assert pool.lease(False) is connection
    assert not connection.asked


def test_forget_works_for_idle_and_for_leased(pool: Pool) -> None:
    """A lost connection leaves the count, and the idle ones if it was among them."""
    kept, leased = idle(pool), idle(pool)
    assert pool.lease(False) is leased
    pool.forget(leased)
    assert (pool.open, pool.idle) == (1, [kept])
    pool.forget(kept)
    assert (pool.open, pool.idle) == (0, [])


def test_close_closes_every_idle_connection(pool: Pool) -> None:
    """Closing the pool leaves none of the idle connections open."""
    connections = [idle(pool) for _ in range(3)]
    pool.close()
    assert not any(connection.alive for connection in connections)
    assert (pool.open, pool.idle) == (0, [])


class Transport:
    """A transport that only knows its socket."""

    def __init__(self, sock: socket.socket | None) -> None:
        self._sock = sock

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self._sock


def test_readable_sees_bytes_and_the_end_of_the_stream() -> None:
    """The kernel knows of bytes nobody asked for, and of a close, before we read anything."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = cast(Any, Transport(ours))
        assert not Pool.readable(transport)
        theirs.send(b"x")
        assert Pool.readable(transport)
        ours.recv(1)
        assert not Pool.readable(transport)
        theirs.close()
        assert Pool.readable(transport)


def test_a_transport_without_a_socket_counts_as_closed() -> None:
    """When the kernel cannot be asked, the connection is not trusted."""
    assert Pool.readable(cast(Any, Transport(None)))
