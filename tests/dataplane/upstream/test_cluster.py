"""Cluster: how one endpoint is chosen, and what an endpoint knows of itself."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream.balance import BALANCERS
from outrider.dataplane.upstream.cluster import Endpoint
from outrider.dataplane.upstream.ejection import Ejection, EjectionSettings
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, Outcome
from tests.fakes import make_call, make_cluster, make_route, pick

NOW = 1000.0

balances = pytest.mark.parametrize("balance", sorted(BALANCERS))


@balances
def test_the_only_endpoint_is_always_chosen(balance: str) -> None:
    """With one endpoint there is no choice, tried or not."""
    cluster = make_cluster(balance=balance)
    (only,) = cluster.endpoints
    call = make_call()
    assert pick(cluster, call, NOW) is only
    call.tried = (only,)
    assert pick(cluster, call, NOW) is only


@balances
def test_no_endpoint_is_a_value(balance: str) -> None:
    """A cluster without endpoints picks None."""
    assert pick(make_cluster(endpoints=0, balance=balance), make_call(), NOW) is None


@balances
@given(count=st.integers(2, 6))
def test_a_call_tries_every_endpoint_before_one_twice(balance: str, count: int) -> None:
    """A retry goes where the call has not been while there is such a place."""
    cluster = make_cluster(endpoints=count, balance=balance)
    call = make_call()
    for _ in range(count):
        assert cluster.untried(call.tried)
        picked = pick(cluster, call, NOW)
        assert picked is not None
        assert picked not in call.tried
        call.tried += (picked,)
    assert not cluster.untried(call.tried)
    assert pick(cluster, call, NOW) in cluster.endpoints


@given(st.lists(st.integers(0, 5), min_size=2, max_size=6))
def test_least_requests_takes_one_of_the_least_busy(loads: list[int]) -> None:
    """No endpoint with more attempts in flight than another is chosen."""
    cluster = make_cluster(endpoints=len(loads))
    for endpoint, load in zip(cluster.endpoints, loads, strict=True):
        endpoint.in_flight = load
    picked = pick(cluster, make_call(), NOW)
    assert picked is not None
    assert picked.in_flight == min(loads)


def test_least_requests_spreads_ties() -> None:
    """Idle endpoints all get something; the first is not preferred."""
    cluster = make_cluster(endpoints=3)
    assert len({pick(cluster, make_call(), NOW) for _ in range(200)}) == 3


@given(st.integers(2, 6), st.integers(1, 5))
def test_round_robin_is_fair(count: int, rounds: int) -> None:
    """Over whole rounds every endpoint gets the same number of attempts."""
    cluster = make_cluster(endpoints=count, balance="round-robin")
    picked = Counter(pick(cluster, make_call(), NOW) for _ in range(count * rounds))
    assert set(picked.values()) == {rounds}
    assert len(picked) == count


def test_clusters_do_not_share_their_turn() -> None:
    """Two round-robin clusters each keep their own turn."""
    one, other = (make_cluster(endpoints=2, balance="round-robin") for _ in range(2))
    first = pick(one, make_call(), NOW)
    pick(other, make_call(), NOW)
    assert pick(one, make_call(), NOW) is not first


# ---------------------------------------------------------------- what an attempt teaches


@pytest.mark.parametrize("ejection", [None, Ejection(EjectionSettings())], ids=["without", "with"])
def test_a_failure_never_makes_an_endpoint_the_fastest(ejection: Ejection | None) -> None:
    """Refusing at once is not answering fast, whether or not endpoints are set aside."""
    cluster = make_cluster(endpoints=2, balance="least-latency", ejection=ejection)
    broken, well = cluster.endpoints
    for step in range(20):
        now = NOW + step
        cluster.observe(well, SUCCESS, now - 0.05, 0.05, now)
        cluster.observe(broken, FAILURE, now - 0.0001, 0.0001, now)
        assert broken.latency > well.latency
    assert pick(cluster, make_call(route=make_route(cluster)), NOW + 20) is well


@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE, NEUTRAL])
def test_a_stream_that_ends_long_after_its_head(outcome: Outcome) -> None:
    """Hours later what its head had taken neither overflows nor makes the endpoint slow."""
    cluster = make_cluster(endpoints=2, ejection=Ejection(EjectionSettings()))
    endpoint, _ = cluster.endpoints
    cluster.observe(endpoint, SUCCESS, NOW, 0.02, NOW + 86400)
    cluster.observe(endpoint, outcome, NOW, 0.01, NOW + 0.01)
    assert 0.009 < endpoint.latency < 0.05
    assert endpoint.learned_at == NOW + 86400


def test_what_was_given_up_only_shows_that_it_is_slower() -> None:
    """An attempt that nobody waited for counts as an answer only if that makes the endpoint slower."""
    cluster = make_cluster(endpoints=2)
    endpoint, _ = cluster.endpoints
    cluster.observe(endpoint, SUCCESS, NOW, 0.1, NOW)
    cluster.observe(endpoint, NEUTRAL, NOW, 0.01, NOW + 100)
    assert endpoint.latency == 0.1
    cluster.observe(endpoint, NEUTRAL, NOW, 5.0, NOW + 100)
    assert endpoint.latency == 5.0


# ---------------------------------------------------------------- the last resort

# The standing of each endpoint: failures in a row, whether it is out, whether the call has tried it; and who gets it.
LAST_RESORTS: dict[str, tuple[list[tuple[int, bool, bool]], set[int]]] = {
    "an untried suspect before a good one that was tried": ([(0, False, True), (1, False, False)], {1}),
    "the least bad of untried suspects": ([(0, False, True), (3, False, False), (2, False, False)], {2}),
    "several that are equally bad": ([(0, False, True), (2, False, False), (2, False, False)], {1, 2}),
    "a good one that was tried before one that is out": ([(0, False, True), (5, True, False)], {0}),
    "all good ones that were tried": ([(0, False, True), (0, False, True), (5, True, False)], {0, 1}),
    "an untried suspect before one that is out": ([(4, False, False), (1, True, False)], {0}),
    "one that is out counts as five failures at least": ([(0, True, False), (4, False, False)], {1}),
    "a long run of a suspect is worse than being out": ([(0, True, False), (9, False, False)], {0}),
    "out is out, tried or not": ([(5, True, True), (5, True, False)], {1}),
    "nobody else is left": ([(5, True, True), (6, True, True)], {0}),
}


@pytest.mark.parametrize("name", LAST_RESORTS)
def test_last_resort(name: str) -> None:
    """Untried suspects come before tried endpoints in good standing, and those before endpoints that are out."""
    standings, expected = LAST_RESORTS[name]
    cluster = make_cluster(endpoints=len(standings), ejection=Ejection(EjectionSettings()))
    call = make_call(b"POST", route=make_route(cluster))
    for endpoint, (run, out, tried) in zip(cluster.endpoints, standings, strict=True):
        endpoint.run, endpoint.out = run, out
        endpoint.look_at = endpoint.out_until = NOW + 60  # nobody may find out yet
        if tried:
            call.tried += (endpoint,)
    assert cluster.ejection is not None
    cluster.ejection.troubled = sum(bool(run or out) for run, out, _ in standings)
    picked = {pick(cluster, call, NOW) for _ in range(100)}
    assert picked == {cluster.endpoints[index] for index in expected}


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
