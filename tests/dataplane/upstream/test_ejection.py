"""Ejection: an endpoint that does worse than the others is set aside, gently found out about, and taken back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider.dataplane.call import Call
from outrider.dataplane.policies.deciders.retry import Retry
from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream.cluster import Cluster, Endpoint
from outrider.dataplane.upstream.ejection import Ejection, EjectionSettings
from outrider.model.outcome import FAILURE, NEUTRAL, SUCCESS, Outcome
from tests.fakes import Clock, make_call, make_cluster, make_route, pick


class Pool:
    """A cluster whose clock is moved by hand, and what its hook has heard."""

    def __init__(self, endpoints: int = 3, *, spread: float = 0.0, **rules: Any) -> None:
        self.clock = Clock()
        self.heard: list[tuple[Endpoint, bool, str]] = []
        self.ejection = Ejection(
            EjectionSettings(**{"base": 1.0, "cap": 30.0, **rules}),
            hook=lambda *news: self.heard.append(news),
            jitter=lambda low, high: low + (high - low) * spread,
        )
        self.cluster = make_cluster(endpoints=endpoints, ejection=self.ejection)
        self.route = make_route(self.cluster)

    def __getitem__(self, index: int) -> Endpoint:
        return self.cluster.endpoints[index]

    def pick(self, method: bytes = b"GET", tried: tuple[Endpoint, ...] = ()) -> Endpoint:
        """Where an attempt goes that begins now."""
        call = make_call(method, route=self.route, now=self.clock())
        call.tried = tried
        endpoint = pick(self.cluster, call, self.clock())
        assert endpoint is not None
        return endpoint

    def picks(self, method: bytes = b"GET", times: int = 60) -> set[Endpoint]:
        """Who gets attempts that are all still running."""
        return {self.pick(method) for _ in range(times)}

    def ends(self, endpoint: Endpoint, outcome: Outcome, times: int = 1, seconds: float = 0.01) -> None:
        """Attempts one after the other that begin now and take so long; what was probing ends with the first."""
        for _ in range(times):
            self.clock.advance(seconds)
            self.late(endpoint, outcome, self.clock() - seconds)

    def late(self, endpoint: Endpoint, outcome: Outcome, started: float) -> None:
        """The end of an attempt that began at `started`."""
        endpoint.probing = self.cluster.probe_given = False
        self.cluster.observe(endpoint, outcome, started, self.clock() - started, self.clock())

    def put_out(self, endpoint: Endpoint) -> None:
        """Set it aside, and wait until it may be looked at again."""
        self.ends(endpoint, FAILURE, 5)
        assert endpoint.out
        self.clock.now = max(endpoint.out_until, endpoint.look_at)


# ---------------------------------------------------------------- suspects


def test_after_one_failure_an_endpoint_is_a_suspect() -> None:
    """It is not out, but gets nothing that cannot be repeated, and nothing at all for a moment."""
    pool = Pool()
    pool.ends(pool[0], FAILURE)
    assert not pool[0].out
    assert pool.ejection.troubled == 1
    assert pool.picks(b"POST") == pool.picks(b"GET") == {pool[1], pool[2]}
    assert pool.heard == []


def test_a_suspect_is_looked_at_with_a_call_that_can_go_elsewhere() -> None:
    """After a short pause one repeatable call finds out; a POST still does not."""
    pool = Pool()
    pool.ends(pool[0], FAILURE)
    pool.clock.advance(0.05)
    assert pool[0] not in pool.picks(b"POST")
    assert pool.pick(b"GET") is pool[0]


def test_a_post_with_a_key_may_look_too() -> None:
    """What the app has made repeatable can go elsewhere afterwards."""
    pool = Pool()
    pool.ends(pool[0], FAILURE)
    pool.clock.advance(0.05)
    call = make_call(b"POST", {b"idempotency-key": b"k"}, route=pool.route)
    assert pick(pool.cluster, call, pool.clock()) is pool[0]


def test_a_call_that_will_not_be_repeated_does_not_look() -> None:
    """Where nothing is tried again, or our caller has asked for that, a GET would not go elsewhere either."""
    pool = Pool()
    pool.ends(pool[0], FAILURE)
    pool.clock.advance(0.05)
    once = make_call(route=make_route(pool.cluster, retry=Retry(max_retries=0)))
    asked = make_call(headers={b"x-outrider-retry": b"off"}, route=pool.route)
    for call in (once, asked):
        assert {pick(pool.cluster, call, pool.clock()) for _ in range(60)} == {pool[1], pool[2]}
    assert pool.pick(b"GET") is pool[0]


def test_one_look_at_a_time() -> None:
    """While a probe is under way nobody else is sent there; when it has ended somebody may."""
    pool = Pool()
    pool.ends(pool[0], FAILURE)
    pool.clock.advance(0.05)
    assert pool.pick() is pool[0]
    assert pool[0] not in pool.picks()
    pool.ends(pool[0], NEUTRAL)
    assert pool.pick() is pool[0]


def test_a_success_clears_a_suspect() -> None:
    """One good answer, and it is in again, with its full share."""
    pool = Pool()
    pool.ends(pool[0], FAILURE, 4)
    pool.ends(pool[0], SUCCESS)
    assert pool.ejection.troubled == 0
    assert (pool[0].run, pool[0].look_at) == (0, 0.0)
    assert pool[0].share(pool.clock()) == 1.0
    assert pool[0] in pool.picks(b"POST")


def test_a_neutral_end_neither_clears_nor_accuses() -> None:
    """A 404 or an app that hung up says nothing about an endpoint."""
    pool = Pool()
    pool.ends(pool[0], NEUTRAL, 50)
    assert pool.ejection.troubled == 0
    pool.ends(pool[0], FAILURE)
    pool.ends(pool[0], NEUTRAL, 50)
    assert pool[0].run == 1


def test_the_pause_before_the_next_look_doubles_up_to_a_second() -> None:
    """The longer it fails, the less often somebody has to find out."""
    pool = Pool(consecutive_failures=0, failure_rate=0.0, spread=1.0)
    pauses = []
    for _ in range(8):
        pool.ends(pool[0], FAILURE)
        pauses.append(pool[0].look_at - pool.clock())
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])


def test_half_of_the_pause_is_chance() -> None:
    """Many sidecars do not look in step."""
    pool = Pool(spread=0.0)
    pool.ends(pool[0], FAILURE)
    assert pool[0].look_at - pool.clock() == pytest.approx(0.025)


def test_a_thousand_failures_do_not_overflow() -> None:
    """The pause stays at its cap however long it goes on."""
    pool = Pool(consecutive_failures=0, failure_rate=0.0, spread=1.0)
    pool.ends(pool[0], FAILURE, 5000)
    assert pool[0].look_at - pool.clock() == pytest.approx(1.0)


def test_where_nobody_can_repeat_somebody_has_to_find_out() -> None:
    """A service that is only sent POSTs gets its endpoint back, if later: after a second more one of them looks."""
    pool = Pool()
    pool.ends(pool[0], FAILURE)
    pool.clock.now = pool[0].look_at + 0.9
    assert pool[0] not in pool.picks(b"POST")
    pool.clock.advance(0.2)
    assert pool.pick(b"POST") is pool[0]
    assert pool[0] not in pool.picks(b"POST")


def test_suspects_are_better_than_endpoints_that_are_out() -> None:
    """With nobody in good standing, a suspect gets the call."""
    pool = Pool(2)
    pool.ends(pool[0], FAILURE, 5)
    pool.ends(pool[1], FAILURE)
    assert pool.picks(b"POST") == {pool[1]}


def test_what_a_call_has_tried_is_not_its_probe() -> None:
    """A retry is not sent to the suspect that has just failed it."""
    pool = Pool()
    pool.ends(pool[0], FAILURE)
    pool.clock.advance(1)
    for _ in range(20):
        assert pool.pick(tried=(pool[0],)) is not pool[0]


def test_others_stand_ready_or_not() -> None:
    """Whether a failure here is the service's depends on there being somebody better."""
    pool = Pool(2)
    assert pool.cluster.has_better_than(pool[0])
    pool.ends(pool[1], FAILURE)
    assert not pool.cluster.has_better_than(pool[0])
    pool.ends(pool[1], SUCCESS)
    pool.cluster.found_healthy(pool[1], False, pool.clock())
    assert not pool.cluster.has_better_than(pool[0])


# ---------------------------------------------------------------- out, by failures in a row


def test_five_failures_in_a_row_set_aside() -> None:
    """At the fifth it is out, and the hook hears why."""
    pool = Pool()
    pool.ends(pool[0], FAILURE, 4)
    assert not pool[0].out
    pool.ends(pool[0], FAILURE)
    assert pool[0].out
    assert pool[0].out_until - pool.clock() == pytest.approx(1.0)
    assert pool.heard == [(pool[0], True, "5 failures in a row")]


def test_out_means_no_calls_at_all() -> None:
    """Until its time is over neither GET nor POST goes there."""
    pool = Pool()
    pool.ends(pool[0], FAILURE, 5)
    pool.clock.advance(0.99)
    assert pool.picks(b"GET") == pool.picks(b"POST") == {pool[1], pool[2]}


def test_a_success_in_between_starts_the_row_anew() -> None:
    """In a row means in a row."""
    pool = Pool(failure_rate=0.0)
    for _ in range(10):
        pool.ends(pool[0], FAILURE, 4)
        pool.ends(pool[0], SUCCESS)
    assert pool.heard == []


def test_the_row_can_be_switched_off() -> None:
    """With 0 no number of failures in a row sets aside."""
    pool = Pool(consecutive_failures=0, failure_rate=0.0)
    pool.ends(pool[0], FAILURE, 100)
    assert not pool[0].out
    assert pool.ejection.troubled == 1


# ---------------------------------------------------------------- out, by comparison


def mixed(pool: Pool, endpoint: Endpoint, failures: int, successes: int) -> None:
    """So many of each, never five failures in a row; once it is out, nothing more."""
    while (failures or successes) and not endpoint.out:
        if failures:
            pool.ends(endpoint, FAILURE)
            failures -= 1
        if successes and not endpoint.out:
            pool.ends(endpoint, SUCCESS)
            successes -= 1


def test_failing_far_more_often_than_the_others_sets_aside() -> None:
    """Half of its attempts fail and nobody else's: it is the endpoint, and not the service."""
    pool = Pool()
    for other in pool.cluster.endpoints[1:]:
        pool.ends(other, SUCCESS, 50)
    mixed(pool, pool[0], 12, 12)
    assert pool[0].out
    assert "of its attempts fail" in pool.heard[0][2]


def test_failing_as_often_as_the_others_is_the_services_fault() -> None:
    """When everybody fails half of the time, nobody is set aside."""
    pool = Pool()
    for _ in range(30):
        for endpoint in pool.cluster.endpoints:
            mixed(pool, endpoint, 1, 1)
    assert pool.heard == []


def test_nineteen_attempts_say_nothing() -> None:
    """Below twenty, a share of failures may be bad luck."""
    pool = Pool()
    pool.ends(pool[1], SUCCESS, 100)
    mixed(pool, pool[0], 10, 9)
    assert not pool[0].out
    pool.ends(pool[0], FAILURE)
    assert pool[0].out


def test_a_little_more_than_the_others_is_not_enough() -> None:
    """A fifth of failures where others have none stays below `failure_rate`."""
    pool = Pool()
    pool.ends(pool[1], SUCCESS, 100)
    for _ in range(30):
        pool.ends(pool[0], FAILURE)
        pool.ends(pool[0], SUCCESS, 4)
    assert pool.heard == []


def test_without_others_to_compare_with_nobody_stands_out() -> None:
    """Endpoints that have had no attempts are no standard."""
    pool = Pool()
    mixed(pool, pool[0], 50, 50)
    assert pool.heard == []


def test_the_comparison_can_be_switched_off() -> None:
    """With 0 % no share of failures sets aside."""
    pool = Pool(failure_rate=0.0)
    pool.ends(pool[1], SUCCESS, 100)
    mixed(pool, pool[0], 50, 50)
    assert pool.heard == []


def test_old_failures_fade() -> None:
    """What failed minutes ago is not held against an endpoint."""
    pool = Pool()
    pool.ends(pool[1], SUCCESS, 100)
    mixed(pool, pool[0], 9, 10)
    pool.clock.advance(120)
    mixed(pool, pool[0], 9, 10)
    assert pool[0].attempts <= 20
    assert pool.heard == []


def test_counts_of_days_fade_without_end() -> None:
    """A first failure after days of success is looked at in no time, and only recent attempts are compared."""
    pool = Pool()
    pool.ends(pool[0], SUCCESS, 1000)
    pool.clock.advance(1e7)
    pool.ends(pool[0], FAILURE)
    assert (pool[0].attempts, pool[0].failures) == (1, 1)
    assert pool.clock() - pool[0].counted_from <= 10


# ---------------------------------------------------------------- out, by latency


def at_pace(pool: Pool, paces: list[float], times: int = 8) -> None:
    for _ in range(times):
        for endpoint, seconds in zip(pool.cluster.endpoints, paces, strict=True):
            if not endpoint.out:
                pool.ends(endpoint, SUCCESS, seconds=seconds)


def test_far_slower_than_the_others_sets_aside() -> None:
    """More than ten times the median of the others, and more than 250 ms."""
    pool = Pool()
    at_pace(pool, [0.5, 0.01, 0.02])
    assert pool[0].out
    assert not pool[1].out
    assert not pool[2].out
    assert ["far slower than the others" in why for _, out, why in pool.heard if out] == [True]


def test_one_slow_answer_is_no_habit() -> None:
    """A report that takes long, or a pause of the collector, does not set its endpoint aside."""
    pool = Pool()
    at_pace(pool, [0.01, 0.01, 0.01])
    for _ in range(5):
        pool.ends(pool[0], SUCCESS, seconds=3.0)
        pool.ends(pool[0], SUCCESS, seconds=0.01)
    assert pool.heard == []


def test_a_slow_probe_takes_nobody_back() -> None:
    """An endpoint that was set aside for being slow must be fast again, not just answer."""
    pool = Pool()
    at_pace(pool, [0.5, 0.01, 0.02])
    pool.clock.now = pool[0].out_until
    pool.ends(pool[0], SUCCESS, seconds=0.5)
    assert pool[0].out
    pool.clock.now = pool[0].out_until
    pool.ends(pool[0], SUCCESS, seconds=0.01)
    assert not pool[0].out
    assert pool.ejection.troubled == 0


@pytest.mark.parametrize("paces", [[0.24, 0.001, 0.001], [0.5, 0.06, 0.06], [0.5, 0.5, 0.5], [0.5, 0.5, 0.01]], ids=str)
def test_slow_but_no_outlier(paces: list[float]) -> None:
    """Below `slow_call`, or within ten times the others, is the service's usual pace."""
    pool = Pool(slow_factor=10.0)
    at_pace(pool, paces)
    assert not pool[0].out


def test_slowness_can_be_switched_off() -> None:
    """With 0 nobody is set aside for being slow."""
    pool = Pool(slow_factor=0.0)
    at_pace(pool, [5.0, 0.01, 0.01])
    assert pool.heard == []


def test_nobody_to_compare_a_pace_with() -> None:
    """An endpoint beside others that have never answered is not an outlier."""
    pool = Pool()
    pool.ends(pool[0], SUCCESS, 50, seconds=5.0)
    assert pool.heard == []


# ---------------------------------------------------------------- never the last one


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_last_one_stays(count: int) -> None:
    """However badly all of them do, one is left, and calls still go somewhere."""
    pool = Pool(count)
    for _ in range(10):
        for endpoint in pool.cluster.endpoints:
            pool.ends(endpoint, FAILURE)
        pool.clock.advance(0.001)
    assert sum(endpoint.out for endpoint in pool.cluster.endpoints) == count - 1
    assert pool.pick(b"POST") in pool.cluster.endpoints


def test_an_unhealthy_one_is_not_the_one_that_is_left() -> None:
    """If active checks have found the other one dead, this one stays."""
    pool = Pool(2)
    pool.cluster.found_healthy(pool[1], False, pool.clock())
    pool.ends(pool[0], FAILURE, 20)
    assert not pool[0].out
    assert pool.picks(b"POST") == {pool[0]}


def test_a_slow_one_is_not_the_last_to_go() -> None:
    """Slowness does not leave a service without endpoints either."""
    pool = Pool(2)
    pool.ends(pool[1], SUCCESS, 5)
    pool.ends(pool[1], FAILURE, 5)
    pool.ends(pool[0], SUCCESS, 50, seconds=5.0)
    assert not pool[0].out


# ---------------------------------------------------------------- for how long, and back


def test_the_time_doubles_with_every_failed_probe_up_to_the_cap() -> None:
    """1, 2, 4 seconds and so on, never more than thirty."""
    pool = Pool(consecutive_failures=5)
    pool.ends(pool[0], FAILURE, 5)
    periods = []
    for _ in range(8):
        periods.append(pool[0].out_until - pool.clock())
        pool.clock.now = max(pool[0].out_until, pool[0].look_at)
        assert pool.pick() is pool[0]
        pool.ends(pool[0], FAILURE)
    assert periods == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30])


def test_the_time_is_spread_by_a_fifth() -> None:
    """Many sidecars do not come back in step, and none comes early."""
    pool = Pool(spread=1.0)
    pool.ends(pool[0], FAILURE, 5)
    assert pool[0].out_until - pool.clock() == pytest.approx(1.2)


def test_a_probe_that_worked_takes_it_back() -> None:
    """The first call after its time is a probe, and nobody else goes before it has ended well."""
    pool = Pool()
    pool.put_out(pool[0])
    assert pool.pick() is pool[0]
    assert pool[0] not in pool.picks()
    pool.ends(pool[0], SUCCESS)
    assert not pool[0].out
    assert pool.ejection.troubled == 0
    assert pool.heard[-1] == (pool[0], False, "a probe worked")
    pool.clock.advance(10)
    assert pool[0] in pool.picks(b"POST", 200)


def test_it_comes_back_slowly() -> None:
    """At first it gets a tenth of its share, after ten seconds all of it."""
    pool = Pool()
    pool.put_out(pool[0])
    pool.ends(pool[0], SUCCESS)
    assert pool[0].share(pool.clock()) == pytest.approx(0.1)
    assert pool[0].share(pool.clock() + 10) == 1.0


def test_what_failed_before_is_not_counted_again() -> None:
    """One failure after coming back is one failure."""
    pool = Pool()
    pool.put_out(pool[0])
    pool.ends(pool[0], SUCCESS)
    pool.ends(pool[0], FAILURE)
    assert not pool[0].out
    assert (pool[0].attempts, pool[0].failures, pool[0].run) == (1, 1, 1)


def test_failing_again_soon_is_paid_for() -> None:
    """An endpoint that comes and goes is away for longer each time."""
    pool = Pool()
    for expected in (1, 2, 4):
        pool.ends(pool[0], FAILURE, 5)
        assert pool[0].out_until - pool.clock() == pytest.approx(expected)
        pool.clock.now = pool[0].out_until
        pool.ends(pool[0], SUCCESS)


def test_doing_well_for_long_is_rewarded() -> None:
    """After a good while, the next time begins with the first period."""
    pool = Pool()
    for _ in range(3):
        pool.put_out(pool[0])
    pool.ends(pool[0], SUCCESS)
    pool.clock.advance(31)
    pool.ends(pool[0], FAILURE, 5)
    assert pool[0].out_until - pool.clock() == pytest.approx(1.0)


def test_posts_alone_bring_an_endpoint_back() -> None:
    """Where nothing is repeatable, a POST is the probe in the end."""
    pool = Pool(base=0.2)
    pool.put_out(pool[0])
    assert pool[0] not in pool.picks(b"POST")
    pool.clock.advance(2)
    assert pool.pick(b"POST") is pool[0]
    pool.ends(pool[0], SUCCESS)
    assert not pool[0].out


# ---------------------------------------------------------------- stragglers


@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE, NEUTRAL])
def test_late_results_move_nothing(outcome: Outcome) -> None:
    """What was under way when an endpoint was set aside neither prolongs its time nor takes it back."""
    pool = Pool()
    began = pool.clock()
    pool.ends(pool[0], FAILURE, 5)
    before = (pool[0].out, pool[0].out_until, pool[0].ejections, pool.ejection.troubled, len(pool.heard))
    for _ in range(20):
        pool.late(pool[0], outcome, began)
    assert before == (pool[0].out, pool[0].out_until, pool[0].ejections, pool.ejection.troubled, len(pool.heard))


def test_many_that_fail_together_are_one_ejection() -> None:
    """Twenty attempts that run into the same timeout cost one first period, not the cap."""
    pool = Pool()
    began = pool.clock()
    pool.clock.advance(5)
    for _ in range(20):
        pool.late(pool[0], FAILURE, began)
    assert pool[0].out_until - pool.clock() == pytest.approx(1.0)
    assert len(pool.heard) == 1


def test_a_success_from_before_the_failure_does_not_clear() -> None:
    """It says how the endpoint was, and not how it is."""
    pool = Pool()
    began = pool.clock()
    pool.ends(pool[0], FAILURE)
    pool.late(pool[0], SUCCESS, began)
    assert pool.ejection.troubled == 1


@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE, NEUTRAL])
def test_late_results_of_an_endpoint_that_has_gone(outcome: Outcome) -> None:
    """They count for nobody, whatever it had been."""
    for failures in (0, 1, 5):
        pool = Pool()
        gone = pool[0]
        began = pool.clock()
        pool.ends(gone, FAILURE, failures)
        pool.cluster.replace(pool.cluster.endpoints[1:])
        pool.clock.advance(1)
        for started in (began, pool.clock()):
            pool.late(gone, outcome, started)
        assert pool.ejection.troubled == 0


# ---------------------------------------------------------------- coming and going


def test_an_endpoint_that_leaves_takes_its_trouble_with_it() -> None:
    """A suspect and one that was out leave nothing behind."""
    pool = Pool(4)
    gone, out, suspect, well = pool.cluster.endpoints
    pool.ends(out, FAILURE, 5)
    pool.ends(suspect, FAILURE)
    assert pool.ejection.troubled == 2
    pool.cluster.replace([gone, well])
    assert pool.ejection.troubled == 0
    assert (out.retired, suspect.retired, gone.retired, well.retired) == (True, True, False, False)


def test_an_endpoint_that_stays_keeps_its_trouble() -> None:
    """A new list is no amnesty."""
    pool = Pool()
    pool.ends(pool[0], FAILURE, 5)
    pool.cluster.replace(pool.cluster.endpoints[:2])
    assert pool.ejection.troubled == 1
    assert pool.picks(b"POST") == {pool[1]}


def test_without_rules_nobody_is_ever_set_aside() -> None:
    """`ejection: false`: failures are counted by nobody."""
    cluster = make_cluster(endpoints=2)
    for _ in range(50):
        cluster.observe(cluster.endpoints[0], FAILURE, 999.99, 0.01, 1000.0)
    assert not cluster.endpoints[0].run
    route = make_route(cluster)
    assert {pick(cluster, make_call(route=route), 1000.0) for _ in range(100)} == set(cluster.endpoints)


def test_unhealthy_endpoints_get_nothing_while_others_are_well() -> None:
    """What active checks have found holds without any failed call."""
    pool = Pool()
    pool.cluster.found_healthy(pool[0], False, pool.clock())
    assert pool.cluster.stats.unhealthy == 1
    assert pool.picks() == {pool[1], pool[2]}
    pool.cluster.found_healthy(pool[0], True, pool.clock())
    assert pool.cluster.stats.unhealthy == 0
    assert pool[0].share(pool.clock()) == pytest.approx(0.1)


def test_if_all_are_unhealthy_the_checks_are_not_believed() -> None:
    """A call is better tried than refused."""
    pool = Pool()
    for endpoint in pool.cluster.endpoints:
        pool.cluster.found_healthy(endpoint, False, pool.clock())
    assert pool.picks(times=200) == set(pool.cluster.endpoints)


def test_a_higher_tier_waits_for_the_lower_one() -> None:
    """Endpoints of a higher tier get calls only when nobody in a lower one is fit."""
    pool = Pool()
    pool[2].tier = 1
    pool.cluster.replace(pool.cluster.endpoints)
    assert pool.picks(times=200) == {pool[0], pool[1]}
    pool.ends(pool[0], FAILURE, 5)
    pool.cluster.found_healthy(pool[1], False, pool.clock())
    assert pool.picks() == {pool[2]}


def test_a_retry_may_go_to_a_higher_tier() -> None:
    """When the lower one has been tried in this call, the higher one is next."""
    pool = Pool(2)
    pool[1].tier = 1
    pool.cluster.replace(pool.cluster.endpoints)
    assert pool.pick(tried=(pool[0],)) is pool[1]


# ---------------------------------------------------------------- any interleaving


class AnyInterleaving(RuleBasedStateMachine):
    """Attempts begin and end in any order and any way, while time passes and endpoints come and go."""

    @initialize(count=st.integers(0, 4), consecutive=st.integers(0, 3))
    def begin(self, count: int, consecutive: int) -> None:
        self.pool = Pool(count, consecutive_failures=consecutive, spread=0.5)
        self.cluster: Cluster = self.pool.cluster
        self.stats: ClusterStats = self.cluster.stats
        self.running: list[tuple[Call, Endpoint, float, bool]] = []  # when it began, and whether it is a probe
        self.made = count

    def attempt(self, call: Call) -> None:
        now = self.pool.clock()
        probing = {endpoint for endpoint in self.cluster.endpoints if endpoint.probing}
        endpoint = pick(self.cluster, call, now)
        assert (endpoint is None) == (not self.cluster.endpoints)
        if endpoint is None:
            return
        assert endpoint in self.cluster.endpoints
        began = {one for one in self.cluster.endpoints if one.probing} - probing
        assert began <= {endpoint}
        assert self.cluster.probe_given == bool(began)
        self.cluster.probe_given = False
        endpoint.in_flight += 1
        call.tried += (endpoint,)
        self.running.append((call, endpoint, now, bool(began)))

    def end(self, number: int, outcome: Outcome) -> None:
        """As `Attempt.seal` does it."""
        _, endpoint, started, probe = self.running.pop(number)
        now = self.pool.clock()
        endpoint.in_flight -= 1
        if probe:
            endpoint.probing = False
        if self.cluster.several or endpoint.run or endpoint.out:
            self.cluster.observe(endpoint, outcome, started, now - started, now)

    @rule(method=st.sampled_from([b"GET", b"POST"]))
    def call(self, method: bytes) -> None:
        self.attempt(make_call(method, route=self.pool.route, now=self.pool.clock()))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def another_attempt(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.running))[0]
        tried, standing = set(call.tried), set(self.cluster.endpoints)
        good = {one for one in standing if not one.run and not one.out and one.healthy}
        self.attempt(call)
        if good - tried:
            assert call.tried[-1] not in tried

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from([SUCCESS, FAILURE, FAILURE, NEUTRAL]))
    def ends(self, data: st.DataObject, outcome: Outcome) -> None:
        all_out = all(one.out for one in self.cluster.endpoints)
        self.end(data.draw(st.integers(0, len(self.running) - 1)), outcome)
        if self.cluster.endpoints and not all_out:
            assert not all(one.out for one in self.cluster.endpoints)

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 6.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.pool.clock.advance(seconds)

    @rule(data=st.data(), new=st.integers(0, 2))
    def replaced(self, data: st.DataObject, new: int) -> None:
        kept = [one for one in self.cluster.endpoints if data.draw(st.booleans())]
        fresh = [
            Endpoint("10.0.0.1", self.made + number, authority="a", stats=self.stats, tier=number)
            for number in range(new)
        ]
        self.made += new
        self.cluster.replace([*kept, *fresh])
        assert set(kept) <= set(self.cluster.endpoints)

    @precondition(lambda self: self.cluster.endpoints)
    @rule(data=st.data(), healthy=st.booleans())
    def checked(self, data: st.DataObject, healthy: bool) -> None:
        endpoint = data.draw(st.sampled_from(self.cluster.endpoints))
        self.cluster.found_healthy(endpoint, healthy, self.pool.clock())

    @invariant()
    def trouble_is_counted(self) -> None:
        """`troubled` is the number of endpoints that are not plainly in."""
        troubled = sum(bool(one.run or one.out) for one in self.cluster.endpoints)
        assert self.pool.ejection.troubled == troubled

    @invariant()
    def illness_is_counted(self) -> None:
        """`unhealthy` is the number of endpoints that checks have found so."""
        assert self.stats.unhealthy == sum(not one.healthy for one in self.cluster.endpoints)

    @invariant()
    def nothing_is_leaked(self) -> None:
        """Attempts in flight are those that have not ended, and no probe is waited for that has."""
        for endpoint in self.cluster.endpoints:
            running = [probe for _, one, _, probe in self.running if one is endpoint]
            assert endpoint.in_flight == len(running)
            assert endpoint.probing == (sum(running) == 1) == any(running)

    def teardown(self) -> None:
        """Whatever happened, endpoints that are well again all get calls again."""
        if not hasattr(self, "pool"):
            return
        while self.running:
            self.end(0, NEUTRAL)
        for endpoint in self.cluster.endpoints:
            self.cluster.found_healthy(endpoint, True, self.pool.clock())
        for _ in range(2 * len(self.cluster.endpoints) if self.cluster.several else 0):
            self.pool.clock.advance(61)
            call = make_call(b"POST", route=self.pool.route, now=self.pool.clock())
            self.attempt(call)
            self.end(0, SUCCESS)
        if self.cluster.several and not self.cluster.tiered:
            assert self.pool.ejection.troubled == 0


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
