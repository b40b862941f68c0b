"""Pages of metrics: which format somebody wants, rendered piece by piece, kept for a second, and several as one.

The metrics library is imported with the first page, not at start-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prometheus_client.core import Metric

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
END: Final = {OPENMETRICS: b"# EOF\n", PLAIN: b""}  # of a page

# The metric of log lines that were dropped, which every process has, and its help.
DROPPED_LINES: Final = ("outrider_log_lines_dropped", "Log lines that were not taken in time")

# Seconds for which a page is good: several scrapers, or an impatient one, cost no more than one a second.
_FRESH = 1.0

Page = tuple[bytes, str]  # with its content type


def wanted(accept: str) -> str:
    """The format to answer with, OPENMETRICS or PLAIN, by an `Accept` field (RFC 9110 §12.5.1). All that scrapers say
    about versions and escaping comes to the same for names like ours."""
    for choice in accept.split(","):
        name, *parameters = choice.lower().split(";")
        refused = any(one.strip() in ("q=0", "q=0.0", "q=0.00", "q=0.000") for one in parameters)
        if name.strip() == "application/openmetrics-text" and not refused:
            return OPENMETRICS
    return PLAIN


class Pages:
    """Pages by format. Those who ask for one that is being rendered share it."""

    def __init__(self, render: Callable[[str], Awaitable[Page | None]]) -> None:
        """`render` makes a page in a format; None if there is nothing to show, which is not kept."""
        self._render = render
        self._kept: dict[str, tuple[float, Page]] = {}
        self._under_way: dict[str, asyncio.Task[Page | None]] = {}

    async def get(self, accept: str) -> Page | None:
        """The page for somebody who sends this `Accept` field, no older than a second."""
        form = wanted(accept)
        at, page = self._kept.get(form, (0.0, None))
        if page is not None and monotonic() - at < _FRESH:
            return page
        task = self._under_way.get(form)
        if task is None:
            task = self._under_way[form] = asyncio.create_task(self._make(form))
            task.add_done_callback(lambda _: self._under_way.pop(form))
        return await asyncio.shield(task)  # others may want it although this one has left

    async def _make(self, form: str) -> Page | None:
        began = monotonic()
        page = await self._render(form)
        if page is not None:
            self._kept[form] = began, page
        return page


async def render(parts: Iterable[Metric], form: str) -> Page:
    """Families as a page; those with the same name that follow each other are parts of one. Other things get their
    turn between the parts, and between pieces of a long one."""
    from outrider.controlplane.telemetry.text import Writer

    writer = Writer(form)
    pieces = []
    name = None
    for part in parts:
        for piece in writer.pieces(part, head=part.name != name):
            pieces.append(piece)
            await asyncio.sleep(0)
        name = part.name
    return b"".join(pieces) + END[form], form


def counter_page(name: str, text: str, count: int) -> str:
    """A page in OpenMetrics format that holds one counter without labels."""
    return f"# HELP {name} {text}\n# TYPE {name} counter\n{name}_total {count}\n# EOF\n"


def merged(pages: dict[str, str], form: str) -> Page:
    """Pages in OpenMetrics format as one in the given format, every series labelled with the process that it is of."""
    from prometheus_client.core import Metric
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    from outrider.controlplane.telemetry.text import Writer

    families: dict[str, Metric] = {}
    for process, text in pages.items():
        for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call] # it has no types
            whole = families.get(family.name)
            if whole is None:
                whole = families[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
            whole.samples += [one._replace(labels={"worker": process, **one.labels}) for one in family.samples]
    writer = Writer(form)
    return b"".join(piece for family in families.values() for piece in writer.pieces(family)) + END[form], form
