"""The tables and the verdict, as Markdown."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from bench.chaos.measure import Row
from bench.chaos.proxies import OUTRIDER
from bench.chaos.run import Result
from bench.chaos.timeline import Phase
from bench.chaos.verdict import verdicts

_HEADS = (
    "phase",
    "proxy",
    "sent",
    "good %",
    "GET %",
    "POST %",
    "p50",
    "p99",
    "p99.9",
    "ampl.",
    "dup.",
    "whole after",
    "errors",
)


def report(results: Sequence[Result], scale: float, build: str) -> str:
    """Everything that a run has to say; `build` is which Outrider this was, and with which settings."""
    lines = [
        "# Under faults: Outrider beside Envoy",
        "",
        f"Measured on {date.today().isoformat()} by `make chaos`: {_machine()}; phases at {scale:g} of their length;",
        f"Outrider {build}.",
        "",
        "Every proxy has endpoints and a client of its own, and all live through the same script at the same time.",
        "The client sends at a fixed rate whatever happens (open loop), 20 % POST; a call is good when it is answered",
        "2xx, whole, and within 3 s of when it was due, from where its latency (ms, of good calls) also counts. ampl.",
        "is requests that reached the targets per call; dup. is POSTs executed twice; whole after is how many seconds",
        "after the end of a fault the last call failed. Configurations: `bench/chaos/proxies.py`.",
        "",
        "![goodput per phase](results.svg)",
        "",
        "## Verdict",
        "",
        *_verdict(results),
    ]
    for result in results:
        lines += ["", f"## {result.timeline.title}", "", *_table(result), "", _lateness(result)]
    return "\n".join(lines) + "\n"


def _verdict(results: Sequence[Result]) -> list[str]:
    lines = ["| endpoints | promise | held | where not |", "|--:|---|---|---|"]
    for result in results:
        for verdict in verdicts(result):
            held = "yes" if verdict.held else "**no**"
            lines.append(f"| {result.timeline.endpoints} | {verdict.promise} | {held} | {'; '.join(verdict.broken)} |")
    return lines


def _table(result: Result) -> list[str]:
    lines = [_line(_HEADS), _line(["---", "---", *["--:"] * 10, "---"])]
    for number, phase in enumerate(result.timeline.phases):
        if number == 0:
            continue  # the warm-up
        for lane, rows in result.rows.items():
            lines.append(_line(_cells(phase, lane, rows[number])))
    for lane, rows in result.rows.items():
        lines.append(_line(_total(lane, rows[1:])))
    return lines


def _cells(phase: Phase, lane: str, row: Row) -> list[str]:
    return [
        phase.name,
        f"**{lane}**" if lane == OUTRIDER else lane,
        str(row.every.of),
        f"{row.every.percent:.2f}",
        f"{row.gets.percent:.2f}",
        f"{row.posts.percent:.2f}",
        _ms(row.p50),
        _ms(row.p99),
        _ms(row.p999),
        f"{row.amplification:.2f}",
        str(row.duplicates),
        _after(row) if phase.heals else "",
        ", ".join(f"{count} {kind}" for kind, count in row.errors.most_common()),
    ]


def _total(lane: str, rows: Sequence[Row]) -> list[str]:
    calls = sum(row.every.of for row in rows)
    good = 100 * sum(row.every.good for row in rows) / calls
    amplification = sum(row.requests for row in rows) / calls
    duplicates = sum(row.duplicates for row in rows)
    name = f"**{lane}**" if lane == OUTRIDER else lane
    return ["all", name, str(calls), f"{good:.2f}", "", "", "", "", "", f"{amplification:.2f}", str(duplicates), "", ""]


def _lateness(result: Result) -> str:
    late = ", ".join(f"{lane} {milliseconds:.1f}" for lane, milliseconds in result.lateness.items())
    return f"How late the clients sent, p99.9 in ms: {late}. It is part of the latencies above."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _after(row: Row) -> str:
    return f"{row.whole_after:.2f}" if math.isfinite(row.whole_after) else "never"


def _machine() -> str:
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}"
