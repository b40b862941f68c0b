"""Cluster: how one endpoint is chosen, and what an endpoint knows of itself."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.balance import BALANCERS
from outrider.dataplane.cluster import Endpoint
from outrider.dataplane.stats import ClusterStats
from tests.fakes import make_call, make_cluster

NOW = 1000.0

balances = pytest.mark.parametrize("balance", sorted(BALANCERS))


@balances
def test_the_only_endpoint_is_always_chosen(balance: str) -> None:
    """With one endpoint there is no choice, tried or not."""
    cluster = make_cluster(balance=balance)
    (only,) = cluster.endpoints
    call = make_call()
    assert cluster.pick(call, NOW) is only
    call.tried = (only,)
    assert cluster.pick(call, NOW) is only


@balances
def test_no_endpoint_is_a_value(balance: str) -> None:
    """A cluster without endpoints picks None."""
    assert make_cluster(endpoints=0, balance=balance).pick(make_call(), NOW) is None


@balances
@given(count=st.integers(2, 6))
def test_a_call_tries_every_endpoint_before_one_twice(balance: str, count: int) -> None:
    """A retry goes where the call has not been while there is such a place."""
    cluster = make_cluster(endpoints=count, balance=balance)
    call = make_call()
    for _ in range(count):
        assert cluster.untried(call.tried)
        picked = cluster.pick(call, NOW)
        assert picked is not None
        assert picked not in call.tried
        call.tried += (picked,)
    assert not cluster.untried(call.tried)
    assert cluster.pick(call, NOW) in cluster.endpoints


@given(st.lists(st.integers(0, 5), min_size=2, max_size=6))
def test_least_requests_takes_one_of_the_least_busy(loads: list[int]) -> None:
    """No endpoint with more attempts in flight than another is chosen."""
    cluster = make_cluster(endpoints=len(loads))
    for endpoint, load in zip(cluster.endpoints, loads, strict=True):
        endpoint.in_flight = load
    picked = cluster.pick(make_call(), NOW)
    assert picked is not None
    assert picked.in_flight == min(loads)


def test_least_requests_spreads_ties() -> None:
    """Idle endpoints all get something; the first is not preferred."""
    cluster = make_cluster(endpoints=3)
    assert len({cluster.pick(make_call(), NOW) for _ in range(200)}) == 3


@given(st.integers(2, 6), st.integers(1, 5))
def test_round_robin_is_fair(count: int, rounds: int) -> None:
    """Over whole rounds every endpoint gets the same number of attempts."""
    cluster = make_cluster(endpoints=count, balance="round-robin")
    picked = Counter(cluster.pick(make_call(), NOW) for _ in range(count * rounds))
    assert set(picked.values()) == {rounds}
    assert len(picked) == count


def test_clusters_do_not_share_their_turn() -> None:
    """Two round-robin clusters each keep their own turn."""
    one, other = (make_cluster(endpoints=2, balance="round-robin") for _ in range(2))
    first = one.pick(make_call(), NOW)
    other.pick(make_call(), NOW)
    assert one.pick(make_call(), NOW) is not first


def test_an_endpoint_brings_its_host_line() -> None:
    """The Host of a request is the endpoint's authority, not its address."""
    endpoint = Endpoint("10.0.0.1", 80, authority="user.internal", base_path="/api", stats=ClusterStats())
    assert endpoint.host_line == b" HTTP/1.1\r\nhost: user.internal\r\n"
    assert endpoint.origin == b"http://user.internal"
    assert endpoint.base_path == b"/api"
    assert endpoint.name == "10.0.0.1:80"


def test_an_ipv6_endpoint_is_named_in_brackets() -> None:
    """The name of an IPv6 endpoint can be told from its port."""
    assert Endpoint("::1", 3001, authority="[::1]:3001", stats=ClusterStats()).name == "[::1]:3001"
