"""Pages of metrics: both formats as the library's own parsers read them, in pieces, kept for a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from outrider.controlplane.telemetry import pages, text
from outrider.controlplane.telemetry.pages import OPENMETRICS, PLAIN, Page, Pages, merged, render, wanted

AWKWARD = 'a "quoted"\\path\nwith a line'


class Some(Collector):
    """A counter, a histogram and a gauge; `many` is how many series the counter has."""

    def __init__(self, many: int = 3) -> None:
        self._many = many

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("calls", f"Calls, {AWKWARD}", labels=["route"])
        for number in range(self._many):
            calls.add_metric([f"{AWKWARD} {number}"], number)
        yield calls
        took = HistogramMetricFamily("took_seconds", "How long", labels=["route"])
        took.add_metric(["x"], [("0.5", 1.0), ("+Inf", 3.0)], 2.5)
        yield took
        yield GaugeMetricFamily("lag_seconds", "Lag", value=0.25)


def registry(many: int = 3) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(Some(many))
    return made


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain;version=0.0.4", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.3", OPENMETRICS),
        ("text/plain, Application/OpenMetrics-Text; version=0.0.1", OPENMETRICS),
        ("application/openmetrics-text;q=0, text/plain", PLAIN),
        ("application/openmetrics-text; q=0.0", PLAIN),
        ("application/openmetrics-text-not", PLAIN),
        (";;,,=", PLAIN),
    ],
)
def test_the_format_is_what_the_scraper_wants(accept: str, form: str) -> None:
    """OpenMetrics for those who know it, the older text for all others."""
    assert wanted(accept) == form


@pytest.mark.parametrize("many", [0, 1, 200, 201, 650])
async def test_pieces_make_the_same_page(many: int) -> None:
    """However it is cut, the page is byte for byte what the library writes at once."""
    assert (await render(registry(many).collect(), PLAIN)) == (generate_latest(registry(many)), PLAIN)
    assert (await render(registry(many).collect(), OPENMETRICS)) == (
        openmetrics.generate_latest(registry(many)),
        OPENMETRICS,
    )


async def test_others_get_their_turn_between_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long page does not hold the event loop: other work runs while it is written."""
    monkeypatch.setattr(text, "_SAMPLES_PER_TURN", 10)
    turns = 0
    done = False

    async def other() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    await render(registry(200).collect(), PLAIN)
    done = True
    await beside
    assert turns >= 20


@pytest.mark.parametrize("form", [PLAIN, OPENMETRICS])
def test_several_pages_are_one_with_a_label(form: str) -> None:
    """Names, types, help, values and escapes are kept, and each series says whose it is."""
    page = openmetrics.generate_latest(registry()).decode()
    body, kind = merged({"0": page, "3": page}, form)
    assert kind == form
    parse = openmetrics_families if form == OPENMETRICS else text_string_to_metric_families
    families = {family.name: family for family in parse(body.decode())}
    calls = families["calls"]
    assert (calls.type, calls.documentation) == ("counter", f"Calls, {AWKWARD}")
    assert {(one.name, one.labels["worker"], one.labels["route"], one.value) for one in calls.samples} == {
        ("calls_total", worker, f"{AWKWARD} {number}", float(number)) for worker in "03" for number in range(3)
    }
    assert families["took_seconds"].type == "histogram"
    assert [one.labels["worker"] for one in families["lag_seconds"].samples] == ["0", "3"]


class Rendering:
    """Counts pages, and makes one when it is told to."""

    def __init__(self, page: Page | None) -> None:
        self.page = page
        self.count = 0
        self.go = asyncio.Event()

    async def __call__(self, form: str) -> Page | None:
        self.count += 1
        await self.go.wait()
        return self.page


async def test_those_who_ask_at_the_same_time_share_a_page() -> None:
    """One rendering for all of them, also if the first one leaves; and it is kept for a moment."""
    rendering = Rendering((b"x", PLAIN))
    kept = Pages(rendering)
    asking = [asyncio.create_task(kept.get("")) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    rendering.go.set()
    assert [await one for one in asking[1:]] == [(b"x", PLAIN)] * 4
    assert await kept.get("") == (b"x", PLAIN)
    assert rendering.count == 1
    await kept.get("application/openmetrics-text")
    assert rendering.count == 2


async def test_a_page_becomes_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second, a new one is made; and nothing is kept where there was nothing to show."""
    monkeypatch.setattr(pages, "_FRESH", 0.0)
    rendering = Rendering((b"x", PLAIN))
    rendering.go.set()
    kept = Pages(rendering)
    await kept.get("")
    await kept.get("")
    assert rendering.count == 2
    monkeypatch.undo()
    nothing = Rendering(None)
    nothing.go.set()
    kept = Pages(nothing)
    assert await kept.get("") is None
    assert await kept.get("") is None
    assert nothing.count == 2


async def test_a_page_that_fails_is_tried_again() -> None:
    """The next one who asks gets a new try."""
    fails = True

    async def make(form: str) -> Page:
        if fails:
            raise ValueError
        return b"x", form

    kept = Pages(make)
    with pytest.raises(ValueError):
        await kept.get("")
    fails = False
    assert await kept.get("") == (b"x", PLAIN)
