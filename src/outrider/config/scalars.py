"""Durations, sizes, rates, shares and ranges as model types: strings in the file, numbers in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from outrider.config.wording import shown
from outrider.model.units import parse_duration, parse_duration_range, parse_rate, parse_share, parse_size

T = TypeVar("T")


def _parsed(parse: Callable[[str], T]) -> Callable[[Any], T]:
    def read(value: Any) -> T:
        text = str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else shown(value)
        try:
            return parse(text)
        except ValueError as error:
            raise PydanticCustomError("scalar", "{message}", {"message": str(error)}) from None

    return read


def _pattern(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


_D = r"(\d+(\.\d+)?(us|ms|s|m|h|d))+"

Duration = Annotated[float, BeforeValidator(_parsed(parse_duration)), _pattern(f"^{_D}$", "5s")]
"""Seconds, written `250ms`, `5s`, `1m30s`."""

DurationRange = Annotated[
    tuple[float, float], BeforeValidator(_parsed(parse_duration_range)), _pattern(rf"^{_D}\.\.{_D}$", "50ms..500ms")
]
"""First and cap in seconds, written `50ms..500ms`."""

Size = Annotated[int, BeforeValidator(_parsed(parse_size)), _pattern(r"^\d+(\.\d+)? ?(B|[KMG]iB|[kKMG]B)$", "64KiB")]
"""Bytes, written `64KiB`, `10MiB`."""

Share = Annotated[float, BeforeValidator(_parsed(parse_share)), _pattern(r"^\d+(\.\d+)?%$", "20%")]
"""A fraction, written `20%`."""

RatePerPeriod = Annotated[
    tuple[float, float], BeforeValidator(_parsed(parse_rate)), _pattern(r"^\d+(\.\d+)?/[smhd]$", "50/s")
]
"""Count and period in seconds, written `50/s`, `100/m`."""


def _not_yet(value: Any) -> Any:
    raise PydanticCustomError("not_yet", "not supported yet by this version of Outrider")


NotYet = Annotated[Any, BeforeValidator(_not_yet), WithJsonSchema({"not": {}, "description": "Not supported yet."})]
"""A key of the contract whose feature arrives later: refused with a clear word, never ignored."""
