"""Pool: last in, first out; what is gone or suspect is never handed out."""

from __future__ import annotations

from typing import Any, cast

import pytest

from outrider.dataplane.upstream.pool import Pool


class Connection:
    """A connection to a target, as its pool sees it."""

    def __init__(self, pool: Pool, *, alive: bool = True, gone: bool = False) -> None:
        self.alive = alive
        self.gone = gone
        self.asked = self.retired = False
        self._pool = pool
        pool.open += 1

    def disturbed(self) -> bool:
        self.asked = True
        return self.gone

    def retire(self) -> None:
        self.retired = True

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
    assert pool.lease() is None


def test_last_in_first_out(pool: Pool) -> None:
    """The most recently used connection is used again, so that spare ones age and leave."""
    older, newer = idle(pool), idle(pool)
    assert [pool.lease(), pool.lease(), pool.lease()] == [newer, older, None]


def test_a_leased_connection_is_leased_once(pool: Pool) -> None:
    """Nobody else gets a connection that is in use, and it still counts as open."""
    connection = idle(pool)
    assert pool.lease() is connection
    assert pool.lease() is None
    assert pool.open == 1


def test_a_dead_connection_is_passed_over(pool: Pool) -> None:
    """A connection that was lost while idle is not handed out."""
    alive = idle(pool)
    idle(pool, alive=False)
    assert pool.lease() is alive


def test_a_lease_asks_the_kernel_first(pool: Pool) -> None:
    """A connection on which something has arrived meanwhile, an end or stray bytes, is closed, not used."""
    good, gone = idle(pool), idle(pool, gone=True)
    assert pool.lease() is good
    assert gone.asked
    assert not gone.alive
    assert pool.open == 1


def test_forget_works_for_idle_and_for_leased(pool: Pool) -> None:
    """A lost connection leaves the count, and the idle ones if it was among them."""
    kept, leased = idle(pool), idle(pool)
    assert pool.lease() is leased
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


def test_connections_to_addresses_that_are_gone_are_retired(pool: Pool) -> None:
    """Only those that lead to an address that the host name no longer has; what is closed is not remembered."""
    old, kept, literal, closed, dead = (idle(pool) for _ in range(5))
    pool.note_address(old, "10.0.0.1")
    pool.note_address(kept, "10.0.0.2")
    pool.note_address(closed, "10.0.0.1")
    closed.close()
    dead.alive = False
    pool.note_address(dead, "10.0.0.1")
    pool.retire_all_but(frozenset(("10.0.0.2", "10.0.0.3")))
    assert [one for one in (old, kept, literal, closed, dead) if one.retired] == [old]
