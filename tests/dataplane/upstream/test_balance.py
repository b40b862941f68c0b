"""Balance: which of several endpoints gets the next attempt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.dataplane.call import Call
from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream import balance
from outrider.dataplane.upstream.balance import BALANCERS, chooser, cost, learn, learn_failure
from outrider.dataplane.upstream.cluster import Endpoint
from tests.fakes import make_call

NOW = 1000.0
STATS = ClusterStats()
every_balance = pytest.mark.parametrize("name", [*BALANCERS, "hash:header:x-user-id"])


def make_endpoints(count: int, weights: Sequence[float] = ()) -> list[Endpoint]:
    return [
        Endpoint(
            f"10.0.0.{index}",
            80,
            authority="user",
            stats=STATS,
            weight=weights[index] if weights else 1.0,
        )
        for index in range(count)
    ]


def in_use(endpoint: Endpoint, latency: float, in_flight: int = 0, now: float = NOW) -> Endpoint:
    """An endpoint that has answered before."""
    endpoint.latency, endpoint.learned_at, endpoint.in_flight = latency, now, in_flight
    return endpoint


def user(name: str | int) -> Call:
    return make_call(headers={b"x-user-id": str(name).encode()})


# ---------------------------------------------------------------- all of them


@every_balance
@given(st.integers(1, 12), st.integers(0, 3))
def test_one_of_those_offered_is_chosen(name: str, count: int, in_flight: int) -> None:
    """Whatever is known of the endpoints, the choice is among those that were offered."""
    endpoints = make_endpoints(count)
    choose = chooser(name)
    for endpoint in endpoints:
        in_use(endpoint, 0.01 * endpoint.host.count("1"), in_flight)
    for number in range(5):
        assert choose(endpoints, user(number), NOW) in endpoints


@every_balance
def test_everybody_gets_something(name: str) -> None:
    """With many callers, no endpoint of three equal ones stays idle."""
    endpoints = make_endpoints(3)
    choose = chooser(name)
    assert {choose(endpoints, user(number), NOW) for number in range(300)} == set(endpoints)


# ---------------------------------------------------------------- what is learned


def test_a_slower_answer_counts_at_once() -> None:
    """The peak: one slow answer is believed immediately."""
    (endpoint,) = make_endpoints(1)
    learn(endpoint, 0.01, NOW)
    learn(endpoint, 0.5, NOW + 0.001)
    assert endpoint.latency == 0.5


def test_a_faster_answer_counts_gradually() -> None:
    """A lucky one does not make a slow endpoint fast; ten seconds of them nearly do."""
    (endpoint,) = make_endpoints(1)
    learn(endpoint, 1.0, NOW)
    learn(endpoint, 0.01, NOW + 0.1)
    assert endpoint.latency == pytest.approx(1.0, rel=0.02)
    for step in range(100):
        learn(endpoint, 0.01, NOW + 0.1 * (step + 2))
    assert endpoint.latency == pytest.approx(0.01 + 0.99 / math.e, rel=0.02)


@given(st.lists(st.tuples(st.floats(0.0001, 10), st.floats(0, 30)), min_size=1, max_size=50))
def test_what_is_known_stays_within_what_was_measured(steps: list[tuple[float, float]]) -> None:
    """However answers come, the latency is between the fastest and the slowest of them."""
    (endpoint,) = make_endpoints(1)
    now = NOW
    for seconds, pause in steps:
        now += pause
        learn(endpoint, seconds, now)
        measured = [one for one, _ in steps]
        assert min(measured) * 0.999 <= endpoint.latency <= max(measured) * 1.001


@given(st.floats(0.0001, 10), st.floats(0.0001, 10), st.floats(-1e6, 0))
def test_time_that_runs_backwards_is_no_time(first: float, second: float, back: float) -> None:
    """A stream that ends long after its head teaches what was measured at its head, and does not blow anything up."""
    (endpoint,) = make_endpoints(1)
    learn(endpoint, first, NOW)
    learn(endpoint, second, NOW + back)
    assert min(first, second) * 0.999 <= endpoint.latency <= max(first, second) * 1.001
    assert endpoint.learned_at == NOW
    assert 0 < cost(endpoint, NOW) <= endpoint.latency * 1.001


@given(st.floats(1e-6, 60), st.floats(0, 60), st.floats(-1e6, 1e6))
def test_a_failure_makes_nobody_faster(known: float, seconds: float, pause: float) -> None:
    """Whatever is refused at once is not thereby the best place to go, up to the second that an unknown one counts."""
    (endpoint,) = make_endpoints(1)
    in_use(endpoint, known)
    learn_failure(endpoint, seconds, NOW + pause)
    assert endpoint.latency >= min(known, 1.0)
    assert endpoint.latency <= max(known, seconds, 1.0)


@given(st.floats(0, 0.5))
def test_failing_from_the_beginning_is_not_fast(seconds: float) -> None:
    """An endpoint that has done nothing but fail counts as one that nobody knows."""
    (endpoint,) = make_endpoints(1)
    learn_failure(endpoint, seconds, NOW)
    assert endpoint.latency == 1.0


def test_failures_drive_calls_away() -> None:
    """One that refuses everything in no time gets next to nothing beside one that answers."""
    broken, well = make_endpoints(2)
    choose = chooser("least-latency")
    chosen = Counter[Endpoint]()
    for step in range(200):
        now = NOW + step * 0.01
        endpoint = choose([broken, well], make_call(), now)
        chosen[endpoint] += 1
        if endpoint is broken:
            learn_failure(endpoint, 0.0001, now)
        else:
            learn(endpoint, 0.05, now)
    assert chosen[broken] <= 3


def test_an_endpoint_that_never_answered_costs_by_what_it_owes() -> None:
    """An unknown endpoint is tried at once, but does not get everybody before its first answer."""
    fresh, known = make_endpoints(2)
    in_use(known, 0.01)
    assert cost(fresh, NOW) == 0.0
    fresh.in_flight = 1
    assert cost(fresh, NOW) > cost(known, NOW)


def test_what_nobody_has_measured_for_long_is_forgotten() -> None:
    """An endpoint that was slow a minute ago is tried again."""
    slow, fast = make_endpoints(2)
    in_use(slow, 1.0)
    in_use(fast, 0.01, now=NOW + 60)
    assert cost(slow, NOW + 0.5) == 1.0
    assert cost(slow, NOW + 60) < cost(fast, NOW + 60)


# ---------------------------------------------------------------- least latency


@given(st.lists(st.tuples(st.floats(0.001, 1), st.integers(0, 9)), min_size=1, max_size=8))
def test_up_to_eight_the_best_of_all_is_chosen(loads: list[tuple[float, int]]) -> None:
    """No endpoint with a lower expected time is passed over."""
    endpoints = make_endpoints(len(loads))
    for endpoint, (latency, in_flight) in zip(endpoints, loads, strict=True):
        in_use(endpoint, latency, in_flight)
    chosen = chooser("least-latency")(endpoints, make_call(), NOW)
    assert cost(chosen, NOW) == min(cost(endpoint, NOW) for endpoint in endpoints)


def test_ties_are_spread() -> None:
    """Of endpoints that cost the same, the first is not preferred."""
    endpoints = [in_use(endpoint, 0.01) for endpoint in make_endpoints(4)]
    choose = chooser("least-latency")
    chosen = Counter(choose(endpoints, make_call(), NOW) for _ in range(2000))
    assert min(chosen.values()) > 300


def test_beyond_eight_the_better_of_two_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two different ones are looked at, and no more."""
    endpoints = [in_use(endpoint, 0.01 * (index + 1)) for index, endpoint in enumerate(make_endpoints(20))]
    choose = chooser("least-latency")
    for first in range(20):
        for step in range(19):
            drawn = iter((first, step))
            monkeypatch.setattr(balance, "randrange", lambda count, drawn=drawn: next(drawn))
            second = (first + 1 + step) % 20
            assert second != first
            assert choose(endpoints, make_call(), NOW) is endpoints[min(first, second)]


def test_beyond_eight_the_worst_is_never_chosen() -> None:
    """The most expensive endpoint loses against any other."""
    endpoints = [in_use(endpoint, 0.01) for endpoint in make_endpoints(9)]
    in_use(endpoints[4], 9.0)
    choose = chooser("least-latency")
    assert endpoints[4] not in {choose(endpoints, make_call(), NOW) for _ in range(500)}


def test_a_slow_endpoint_gets_little() -> None:
    """With one attempt after the other, calls go where answers come fast."""
    endpoints = [in_use(endpoint, seconds) for endpoint, seconds in zip(make_endpoints(2), (0.1, 0.01), strict=True)]
    choose = chooser("least-latency")
    assert {choose(endpoints, make_call(), NOW) for _ in range(50)} == {endpoints[1]}


def test_calls_in_flight_are_shared_in_proportion_to_speed() -> None:
    """An endpoint that is three times as fast holds three times as many."""
    slow, fast = make_endpoints(2)
    in_use(slow, 0.03)
    in_use(fast, 0.01)
    choose = chooser("least-latency")
    for _ in range(40):
        choose([slow, fast], make_call(), NOW).in_flight += 1
    assert fast.in_flight == pytest.approx(30, abs=1)


# ---------------------------------------------------------------- weights and slow start


@pytest.mark.parametrize("name", ["least-requests", "least-latency"])
def test_weights_share_what_is_in_flight(name: str) -> None:
    """An endpoint with three times the weight holds three times as many."""
    endpoints = make_endpoints(2, (1.0, 3.0))
    for endpoint in endpoints:
        in_use(endpoint, 0.01)
    choose = chooser(name)
    for _ in range(40):
        choose(endpoints, make_call(), NOW).in_flight += 1
    assert endpoints[1].in_flight == pytest.approx(30, abs=1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_round_robin_by_weight(weights: list[int]) -> None:
    """Over as many turns as the weights add up to, each endpoint gets exactly its weight."""
    endpoints = make_endpoints(len(weights), [float(weight) for weight in weights])
    choose = chooser("round-robin")
    chosen = Counter(choose(endpoints, make_call(), NOW) for _ in range(2 * sum(weights)))
    assert [chosen[endpoint] for endpoint in endpoints] == [2 * weight for weight in weights]


def test_round_robin_is_smooth() -> None:
    """A heavy endpoint's turns are spread between the others', not taken in one go."""
    endpoints = make_endpoints(3, (5.0, 1.0, 1.0))
    choose = chooser("round-robin")
    turns = [endpoints.index(choose(endpoints, make_call(), NOW)) for _ in range(7)]
    assert turns == [0, 0, 1, 0, 2, 0, 0]


def test_round_robin_forgets_those_that_have_gone() -> None:
    """Endpoints that come and go do not pile up."""
    choose = chooser("round-robin")
    for _ in range(100):
        choose(make_endpoints(3), make_call(), NOW)
    owed = next(cell.cell_contents for cell in choose.__closure__ or ())
    assert len(owed) <= 2 * 3 + 16


def test_round_robin_takes_whoever_is_left_in_turn() -> None:
    """While one endpoint is not offered, the others share its turns evenly."""
    endpoints = make_endpoints(3)
    choose = chooser("round-robin")
    choose(endpoints, make_call(), NOW)
    chosen = Counter(choose(endpoints[1:], make_call(), NOW) for _ in range(20))
    assert chosen[endpoints[1]] == chosen[endpoints[2]] == 10


@pytest.mark.parametrize(("age", "share"), [(0.0, 0.2), (0.5, 0.2), (5.0, 1.0), (9.0, 1.8), (10.0, 2.0), (1e6, 2.0)])
def test_a_new_endpoint_comes_to_its_share_slowly(age: float, share: float) -> None:
    """From a tenth of its weight to all of it, over ten seconds."""
    (endpoint,) = make_endpoints(1, (2.0,))
    endpoint.begin_slowly(make_endpoints(1), NOW)
    assert endpoint.share(NOW + age) == pytest.approx(share)


def test_the_first_endpoints_start_at_once() -> None:
    """Beside nobody there is no reason to be careful."""
    (endpoint,) = make_endpoints(1)
    endpoint.begin_slowly([], NOW)
    assert endpoint.share(NOW) == endpoint.share(0.0) == 1.0


@pytest.mark.parametrize("name", ["least-requests", "least-latency", "round-robin"])
def test_slow_start_is_respected(name: str) -> None:
    """An endpoint that is just new gets about a tenth of what the other one gets."""
    old, new = make_endpoints(2)
    in_use(old, 0.01)
    in_use(new, 0.01)
    new.begin_slowly([old], NOW)
    choose = chooser(name)
    chosen: Counter[Endpoint] = Counter()
    for _ in range(110):
        endpoint = choose([old, new], make_call(), NOW)
        endpoint.in_flight += 1
        chosen[endpoint] += 1
    assert chosen[new] == pytest.approx(10, abs=1)


# ---------------------------------------------------------------- by hash


def homes(endpoints: Sequence[Endpoint], choose: Callable[..., Endpoint], users: int = 2000) -> dict[int, Endpoint]:
    """Where each user goes."""
    return {number: choose(endpoints, user(number), NOW) for number in range(users)}


def test_the_same_value_goes_to_the_same_endpoint() -> None:
    """However busy it is, in whatever order the endpoints stand, and in every sidecar alike."""
    endpoints = make_endpoints(5)
    before = homes(endpoints, chooser("hash:header:X-User-Id"), 200)
    for endpoint in endpoints[:2]:
        in_use(endpoint, 5.0, 99)
    again = homes(endpoints[::-1], chooser("hash:header:x-user-id"), 200)
    others = homes(make_endpoints(5), chooser("hash:header:x-user-id"), 200)
    assert again == before
    assert {number: one.name for number, one in others.items()} == {number: one.name for number, one in before.items()}


def test_only_the_callers_of_an_endpoint_that_has_gone_move() -> None:
    """Everybody else stays where they were, and those who move are spread over all that are left."""
    endpoints = make_endpoints(5)
    choose = chooser("hash:header:x-user-id")
    before = homes(endpoints, choose)
    after = homes(endpoints[1:], choose)
    moved = [number for number in before if before[number] is not after[number]]
    assert moved == [number for number in before if before[number] is endpoints[0]]
    assert {after[number] for number in moved} == set(endpoints[1:])


def test_hashing_is_even() -> None:
    """Of equal endpoints, none has far more callers than its share."""
    chosen = Counter(homes(make_endpoints(4), chooser("hash:header:x-user-id"), 4000).values())
    assert min(chosen.values()) > 850
    assert max(chosen.values()) < 1150


def test_hashing_respects_weights() -> None:
    """An endpoint with three times the weight has three times as many callers, about."""
    endpoints = make_endpoints(3, (1.0, 3.0, 1.0))
    chosen = Counter(homes(endpoints, chooser("hash:header:x-user-id"), 5000).values())
    assert chosen[endpoints[1]] == pytest.approx(3000, abs=200)
    assert chosen[endpoints[0]] == pytest.approx(1000, abs=200)


def test_more_weight_moves_callers_only_there() -> None:
    """Nobody changes between two endpoints whose weights stay as they are."""
    choose = chooser("hash:header:x-user-id")
    light, heavy = make_endpoints(3), make_endpoints(3, (1.0, 1.0, 2.0))
    before, after = homes(light, choose, 1000), homes(heavy, choose, 1000)
    for number in before:
        assert before[number].name == after[number].name or after[number] is heavy[2]


@pytest.mark.parametrize("headers", [{}, {b"x-user-id": b""}], ids=["without", "empty"])
def test_without_the_header_the_least_busy_is_chosen(headers: dict[bytes, bytes]) -> None:
    """A call that cannot be assigned does not pile up on one endpoint."""
    endpoints = make_endpoints(3)
    for index, endpoint in enumerate(endpoints):
        endpoint.in_flight = 2 - index
    assert chooser("hash:header:x-user-id")(endpoints, make_call(headers=headers), NOW) is endpoints[2]


@given(st.binary(min_size=1, max_size=200))
def test_any_value_can_be_hashed(value: bytes) -> None:
    """Whatever stands in the header, there is one place for it."""
    endpoints = [*make_endpoints(3), Endpoint("a" * 200, 80, authority="a", stats=STATS)]
    choose = chooser("hash:header:x-user-id")
    call = make_call(headers={b"x-user-id": value})
    assert choose(endpoints, call, NOW) is choose(endpoints, call, NOW)
