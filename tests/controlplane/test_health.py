"""Health checks: how many answers it takes to believe that an endpoint is ill, or well again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from outrider.config.schema import HealthCheck
from outrider.controlplane import health
from outrider.controlplane.health import HealthChecks
from outrider.dataplane.upstream.cluster import Endpoint
from tests.fakes import make_cluster


class Ward:
    """The checks of a cluster of two, whose answers are given by hand: a complaint by endpoint, or none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.cluster = make_cluster(endpoints=2)
        self.checks = HealthChecks(self.cluster, HealthCheck(**settings))
        self.complaints: dict[Endpoint, str] = {}

        async def ask(session: object, endpoint: Endpoint, path: str) -> str | None:
            return self.complaints.get(endpoint)

        monkeypatch.setattr(health, "ask", ask)

    async def rounds(self, times: int = 1) -> list[bool]:
        for _ in range(times):
            for endpoint in self.cluster.endpoints:
                await self.checks._check(cast(Any, None), endpoint)
        return [endpoint.healthy for endpoint in self.cluster.endpoints]


async def test_one_failure_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes three in a row by default; the other endpoint is judged by itself."""
    ward = Ward(monkeypatch)
    ward.complaints[ward.cluster.endpoints[0]] = "500"
    assert await ward.rounds(2) == [True, True]
    assert await ward.rounds() == [False, True]
    assert ward.cluster.stats.unhealthy == 1


async def test_a_success_in_between_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a row means in a row."""
    ward = Ward(monkeypatch)
    first = ward.cluster.endpoints[0]
    for _ in range(4):
        ward.complaints[first] = "500"
        await ward.rounds(2)
        del ward.complaints[first]
        assert await ward.rounds() == [True, True]


async def test_well_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After as many successes as `healthy_after` says, and slowly; each change is told once, with the reason."""
    ward = Ward(monkeypatch, unhealthy_after=1, healthy_after=2)
    first = ward.cluster.endpoints[0]
    ward.complaints[first] = "/health answered 500"
    assert await ward.rounds(5) == [False, True]
    del ward.complaints[first]
    assert await ward.rounds() == [False, True]
    assert await ward.rounds() == [True, True]
    assert first.share(first.since) == pytest.approx(0.1)
    assert ward.cluster.stats.unhealthy == 0
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "127.0.0.1:3001 of user is unhealthy: /health answered 500"
    ]


async def test_an_endpoint_that_has_gone_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found about it counts for nobody."""
    ward = Ward(monkeypatch, unhealthy_after=1)
    gone = ward.cluster.endpoints[0]
    ward.complaints[gone] = "500"
    ward.cluster.replace(ward.cluster.endpoints[1:])
    await ward.checks._check(cast(Any, None), gone)
    assert ward.cluster.stats.unhealthy == 0
