"""Goodput per phase as a picture: one group of bars per phase, one bar per lane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from bench.chaos.run import Result

# Pixels.
_LABELS, _BARS, _RIGHT = 190, 560, 60
_BAR, _BETWEEN, _TITLE = 9, 8, 46
# Readable on white and apart from each other for the colour-blind (Okabe and Ito).
_COLOURS = ("#0072b2", "#e69f00", "#999999", "#56b4e9", "#cc79a7")
_FULL = 100.0


def plot(results: Sequence[Result]) -> str:
    """An SVG document."""
    parts: list[str] = []
    top = 10
    for result in results:
        parts += _chart(result, top)
        top += _height(result)
    width = _LABELS + _BARS + _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _height(result: Result) -> int:
    return _TITLE + (len(result.timeline.phases) - 1) * _group(result) + 26


def _group(result: Result) -> int:
    return len(result.rows) * _BAR + _BETWEEN


def _chart(result: Result, top: int) -> Iterator[str]:
    title = escape(result.timeline.title)
    yield f'<text x="10" y="{top + 14}" font-size="14" font-weight="bold">{title}: good %</text>'
    x = 10
    for index, lane in enumerate(result.rows):
        yield f'<rect x="{x}" y="{top + 22}" width="10" height="10" fill="{_COLOURS[index % len(_COLOURS)]}"/>'
        yield f'<text x="{x + 14}" y="{top + 31}">{escape(lane)}</text>'
        x += 30 + 7 * len(lane)
    begin = top + _TITLE
    end = begin + (len(result.timeline.phases) - 1) * _group(result)
    for percent in range(0, 101, 25):
        at = _LABELS + _BARS * percent / _FULL
        yield f'<line x1="{at:g}" y1="{begin - 4}" x2="{at:g}" y2="{end}" stroke="#dddddd"/>'
        yield f'<text x="{at:g}" y="{end + 12}" text-anchor="middle" fill="#555555">{percent}</text>'
    y: float = begin
    for number, phase in enumerate(result.timeline.phases[1:], start=1):
        middle = y + len(result.rows) * _BAR / 2 + 4
        yield f'<text x="{_LABELS - 8}" y="{middle:g}" text-anchor="end">{escape(phase.name)}</text>'
        for index, rows in enumerate(result.rows.values()):
            percent = rows[number].every.percent
            width = _BARS * percent / _FULL
            colour = _COLOURS[index % len(_COLOURS)]
            yield f'<rect x="{_LABELS}" y="{y:g}" width="{width:.1f}" height="{_BAR - 1}" fill="{colour}"/>'
            yield f'<text x="{_LABELS + width + 4:.1f}" y="{y + _BAR - 1:g}" font-size="8">{percent:.1f}</text>'
            y += _BAR
        y += _BETWEEN
