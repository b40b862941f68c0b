"""The faults of bench/chaos are the faults they say they are, and what it measures is so."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from time import monotonic

import pytest
import pytest_asyncio
from bench.chaos.endpoints import Behaviour, Endpoint, Ledger
from bench.chaos.load import Plan, Record, play
from bench.chaos.measure import Row, Share, percentile, row
from bench.chaos.plot import plot
from bench.chaos.proxies import ENVOY, OUTRIDER
from bench.chaos.report import report
from bench.chaos.run import Result, free_ports
from bench.chaos.timeline import one_endpoint, three_endpoints
from bench.chaos.verdict import fewer, verdicts

POST = b"POST /x HTTP/1.1\r\nhost: user\r\nx-call: 3-7\r\ncontent-length: 4\r\n\r\nbody"


@pytest_asyncio.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """One endpoint that is well."""
    endpoint = Endpoint(free_ports(1)[0], Ledger())
    yield endpoint
    endpoint.behave(Behaviour("refuse"))
    await asyncio.sleep(0)


async def load(endpoint: Endpoint, calls: int = 20, rate: float = 400.0, limit: float = 3.0, **more: float) -> Row:
    """What a client without a proxy makes of an endpoint."""
    plan = Plan(endpoint.port, "", rate, monotonic(), ((0.0, calls / rate),), limit=limit, **more)
    records = await play(plan)
    assert len(records) == calls
    report = endpoint.ledger.report()
    return row(records, report["requests"].get("0", 0), report["duplicates"].get("0", 0))


async def ask(endpoint: Endpoint, request: bytes) -> bytes:
    """One request on a connection of its own; everything that comes until the end or 50 ms of silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    writer.write(request)
    received = b""
    try:
        while part := await asyncio.wait_for(reader.read(65536), 0.05):
            received += part
    except TimeoutError:
        pass  # kept alive
    finally:
        writer.close()
    return received


# ---------------------------------------------------------------- endpoints


async def test_a_well_endpoint_answers_every_call_whole_in_about_its_latency(endpoint: Endpoint) -> None:
    measured = await load(endpoint)
    assert measured.every == Share(20, 20)
    assert measured.p50 is not None
    assert 3 <= measured.p50 < 30
    assert measured.amplification == 1


@pytest.mark.parametrize(
    ("behaviour", "errors"),
    [
        (Behaviour("refuse"), {"connect"}),
        (Behaviour("reset"), {"reset"}),
        (Behaviour("reset-on-accept"), {"reset", "connect"}),  # as quickly as the client looks
        (Behaviour("status", status=500), {"500"}),
        (Behaviour("hang"), {"timeout"}),
        (Behaviour("drip"), {"timeout"}),
        (Behaviour("truncate"), {"truncated"}),
        (Behaviour("tail", extra=1.0), {"timeout"}),
    ],
    ids=lambda value: value.kind if isinstance(value, Behaviour) else "",
)
async def test_a_fault_is_seen_as_what_it_is_and_ends_when_it_is_told_to(
    endpoint: Endpoint, behaviour: Behaviour, errors: set[str]
) -> None:
    await load(endpoint, 5)  # so that there are kept connections, too
    endpoint.behave(behaviour)
    struck = (await load(endpoint, limit=0.15)).errors
    assert struck.total() == 20
    assert set(struck) <= errors
    endpoint.behave(Behaviour())
    assert (await load(endpoint)).every == Share(20, 20)


async def test_only_a_share_of_the_requests_is_struck(endpoint: Endpoint) -> None:
    endpoint.behave(Behaviour("status", status=503, share=0.3))
    measured = await load(endpoint, 200, 1000.0)
    assert set(measured.errors) == {"503"}
    assert 30 <= measured.errors["503"] <= 90


async def test_a_flapping_endpoint_is_down_half_of_the_time(endpoint: Endpoint) -> None:
    endpoint.behave(Behaviour("flap", period=0.1))
    measured = await load(endpoint, 160)
    assert 60 <= measured.every.good <= 100
    assert set(measured.errors) <= {"connect", "reset"}


@pytest.mark.parametrize(("gracefully", "lost"), [(True, 0), (False, 1)])
async def test_only_a_graceful_restart_finishes_what_is_being_worked_on(
    endpoint: Endpoint, gracefully: bool, lost: int
) -> None:
    endpoint.behave(Behaviour("restart", latency=0.08, period=0.03, restarts=((0.03, gracefully),)))
    measured = await load(endpoint, 1)
    assert measured.errors.total() == lost
    await asyncio.sleep(0.04)
    assert (await load(endpoint, 1)).every == Share(1, 1)  # it is up again


async def test_an_overloaded_endpoint_queues_then_refuses_and_does_not_execute_what_it_refuses(
    endpoint: Endpoint,
) -> None:
    endpoint.behave(Behaviour("overload", slots=1, latency=0.03, queue=2))
    measured = await load(endpoint, 10, 1000.0, post_share=1.0)
    assert measured.errors == Counter({"503": 7})
    assert measured.p50 is not None
    assert measured.p50 > 50  # the second of three, one after the other
    assert endpoint.ledger.executed.total() == 3


async def test_a_post_that_comes_twice_is_a_duplicate_of_its_phase(endpoint: Endpoint) -> None:
    endpoint.behave(Behaviour("reset"))
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await ask(endpoint, POST)
    assert endpoint.ledger.report() == {"requests": {"3": 2}, "duplicates": {"3": 1}}


async def test_a_get_that_comes_twice_is_no_duplicate(endpoint: Endpoint) -> None:
    get = POST.replace(b"POST", b"GET")
    assert (await ask(endpoint, get)).endswith(b"}")
    await ask(endpoint, get)
    assert endpoint.ledger.report()["duplicates"] == {}


# ---------------------------------------------------------------- the client


async def test_latency_counts_from_when_a_call_was_due_not_from_when_it_was_sent(endpoint: Endpoint) -> None:
    # A client that comes 100 ms late to its calls, as it would if something held it up.
    records = await play(Plan(endpoint.port, "", 400.0, monotonic() - 0.1, ((0.0, 0.01),)))
    assert len(records) == 4
    assert all(record.latency > 0.09 and record.late > 0.08 for record in records)


async def test_the_client_does_not_wait_for_answers_before_it_goes_on(endpoint: Endpoint) -> None:
    endpoint.behave(Behaviour("hang"))
    began = monotonic()
    measured = await load(endpoint, 40, 400.0, limit=0.1)
    assert measured.errors == Counter({"timeout": 40})
    assert monotonic() - began < 0.5  # one after the other they would take 4 s


async def test_an_answer_to_somebody_else_is_not_good() -> None:
    async def mix_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"call":"9-99"}')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(mix_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        records = await play(Plan(port, "", 400.0, monotonic(), ((0.0, 0.005),)))
    assert [record.kind for record in records] == ["wrong-answer"] * 2


# ---------------------------------------------------------------- numbers


def record(at: float, kind: str = "ok", post: bool = False) -> Record:
    """A call that took 4 ms."""
    return Record(0, post, at, 0.004, 0.0, kind)


def test_whole_after_is_when_the_last_failing_call_was_due() -> None:
    assert row([record(0.0), record(0.1)], 2, 0, lead=0.03).whole_after == 0
    assert row([record(0.0, "503"), record(0.1)], 2, 0, lead=0.03).whole_after == pytest.approx(0.03)
    assert row([record(0.0), record(0.1, "503")], 2, 0).whole_after == math.inf


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([], 0.5) is None
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert percentile([float(value) for value in range(1, 1001)], 0.999) == 999.0


def test_fewer_means_by_more_than_chance() -> None:
    assert not fewer(Share(90, 100), Share(93, 100))
    assert fewer(Share(60, 100), Share(90, 100))
    assert not fewer(Share(1439, 1440), Share(1440, 1440))  # one call
    assert fewer(Share(1400, 1440), Share(1440, 1440))


def test_the_verdict_finds_each_promise_that_is_broken() -> None:
    good = Row(Share(100, 100), Share(80, 80), Share(20, 20), 4.0, 5.0, 6.0, 100, 0, 0.0)
    bad = Row(Share(0, 100), Share(0, 80), Share(0, 20), 4.0, 5.0, 60.0, 300, 1, math.inf)
    for timeline in (three_endpoints(), one_endpoint()):
        everywhere = [good] * len(timeline.phases)
        fine = Result(timeline, {OUTRIDER: everywhere, ENVOY: everywhere}, {OUTRIDER: 1.0, ENVOY: 1.0})
        assert all(verdict.held for verdict in verdicts(fine))
        broken = Result(timeline, fine.rows | {OUTRIDER: [bad] * len(timeline.phases)}, fine.lateness)
        assert not any(verdict.held for verdict in verdicts(broken))
        text = report([broken], 1.0, "")
        assert "recovery" in text
        assert "**no**" in text
        assert plot([broken]).count("<rect") > 2 * len(timeline.phases) - 2


def test_a_shorter_timeline_keeps_its_phases_whole_cycles_and_enough_time_to_heal() -> None:
    for timeline in (three_endpoints(), one_endpoint()):
        for phase, short in zip(timeline.phases[1:], timeline.scaled(0.2).phases[1:], strict=True):
            assert len(phase.faults) == timeline.endpoints
            if phase.cycle:
                assert short.seconds % phase.cycle == pytest.approx(0)
            last = max((at + fault.period for fault in short.faults for at, _ in fault.restarts), default=0.0)
            assert last <= short.seconds
            assert short.seconds >= (1.3 if phase.heals else 0.2 * phase.seconds)
