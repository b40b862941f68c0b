"""No cliff at 2,000 routes, 1,000 services and 5,000 series: calls go on, whatever is looked at, and the start takes as
long as what is written is long."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import process_time, thread_time

import pytest

from outrider.config.load import load
from outrider.controlplane.compile import compile_config
from tests.integration.conftest import Outrider
from tests.integration.harness import Answer, Client, Sidecar, Target, exchange, get, plain

BUDGET = 0.010  # seconds of CPU that one turn of the event loop may take
TIMES = 3  # the least of several times is without what others do on this machine
SERVICES = 1000
ROUTES = 2000


def configuration(services: int, routes: int, url: str = "http://127.0.0.1:9") -> str:
    """So many services, and one more with so many routes."""
    many = "".join(f"      - match: GET /r{number}/**\n" for number in range(routes))
    others = "".join(f"  s{number}: '{url}'\n" for number in range(services))
    return f"services:\n  many:\n    url: {url}\n    routes:\n{many}{others}"


class Turns:
    """Measures the turns of the event loop it runs in: `longest` in seconds of CPU."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._on = True
        self._loop = asyncio.get_running_loop()
        self._last = thread_time()
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        now = thread_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        if self._on:
            self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._on = False


async def longest_turn(work: Callable[[], Awaitable[object]]) -> float:
    """The longest turn while this is done, the least of several times."""
    found = []
    for _ in range(TIMES):
        turns = Turns()
        await work()
        await asyncio.sleep(0.01)
        turns.stop()
        found.append(turns.longest)
    return min(found)


@contextmanager
def no_collecting() -> Iterator[None]:
    """Without garbage collection, which in production passes over everything that has been there since the start."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@asynccontextmanager
async def large(outrider: Outrider) -> AsyncIterator[tuple[Sidecar, Client]]:
    """A sidecar with everything large, of which every service has been called."""
    async with Target(plain()) as target, outrider(configuration(SERVICES, ROUTES, target.url)) as proxy:
        async with Client(proxy.port) as client:
            for number in range(0, SERVICES, 10):
                await client.call(get(f"/s{number}/x"))
            with no_collecting():
                yield proxy, client


async def look(port: int, path: str, *fields: str, host: str = "127.0.0.1") -> Answer:
    answer = await exchange(port, get(path, "Connection: close", *fields, host=host))
    assert answer.status == 200
    return answer


async def test_no_turn_is_long_however_much_there_is(outrider: Outrider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, probes, scrapes in both formats and looks at the admin port: no turn of the loop takes 10 ms."""
    monkeypatch.setattr("outrider.controlplane.telemetry.pages._FRESH", 0.0)
    async with large(outrider) as (proxy, client):
        openmetrics = "Accept: application/openmetrics-text"
        page = await look(proxy.telemetry, "/metrics")
        assert 4900 < sum(not line.startswith(b"#") for line in page.body.splitlines()) < 5200
        await look(proxy.admin, "/api/v1/status", host="localhost")  # imports what serves it
        looks: dict[str, Callable[[], Awaitable[object]]] = {
            "the last route": lambda: client.call(get(f"/many/r{ROUTES - 1}/x")),
            "the last service": lambda: client.call(get(f"/s{SERVICES - 1}/x")),
            "readiness": lambda: look(proxy.telemetry, "/readyz"),
            "metrics": lambda: look(proxy.telemetry, "/metrics"),
            "OpenMetrics": lambda: look(proxy.telemetry, "/metrics", openmetrics),
            "upkeep": lambda: asyncio.sleep(0.7),
            **{
                path: lambda path=path: look(proxy.admin, path, host="localhost")  # type: ignore[misc]
                for path in ("/api/v1/status", "/api/v1/circuits", "/api/v1/keys", "/config")
            },
        }
        took = {what: await longest_turn(work) for what, work in looks.items()}
        assert max(took.values()) < BUDGET, {what: f"{one * 1000:.1f} ms" for what, one in took.items()}


def seconds_to_prepare(folder: Path, text: str) -> float:
    """CPU seconds until a configuration is read, checked and compiled."""
    file = folder / "outrider.yaml"
    file.write_text(f"service: booking\n{text}")
    best = 60.0
    for _ in range(2):
        started = process_time()
        resolved, _ = load([str(file)], environment={})
        compile_config(resolved)
        best = min(best, process_time() - started)
    return best


ONE_WARNING_EACH = "services:\n  user:\n    url: http://127.0.0.1:9\n    routes:\n" + "      - match: GET /same\n"


@pytest.mark.parametrize(
    "text",
    [
        lambda count: configuration(0, count),
        lambda count: configuration(count, 1),
        lambda count: configuration(count, 1, "https://example.test"),
        lambda count: ONE_WARNING_EACH + "      - match: GET /same\n" * count,
        lambda count: (
            "policies:\n" + "".join(f"  p{n}: {{ timeout: 1s }}\n" for n in range(count)) + configuration(1, 1)
        ),
        lambda count: (
            "credentials:\n"
            + "".join(f"  c{n}: {{ header: x-k, value: {'v' * 20}{n} }}\n" for n in range(count))
            + configuration(1, 1)
        ),
    ],
    ids=["routes", "services", "https services", "warnings", "policies", "credentials"],
)
def test_what_is_written_takes_time_by_its_length(tmp_path: Path, text: Callable[[int], str]) -> None:
    """Four times as much takes about four times as long to read, check and compile, not sixteen times."""
    with no_collecting():
        few = seconds_to_prepare(tmp_path, text(500))
        assert seconds_to_prepare(tmp_path, text(2000)) < 9 * few
