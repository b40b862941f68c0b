"""Durations, sizes, rates, shares and ranges, as people write them in the configuration and in headers."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|s|m|h|d))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|s|m|h|d)", re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s?(B|KiB|MiB|GiB|kB|KB|MB|GB)", re.ASCII)
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "kB": 1000, "KB": 1000, "MB": 1000**2,
          "GB": 1000**3}  # fmt: skip

_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h|d)", re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds from `250ms`, `5s`, `1m30s`. Raises ValueError, with the remedy in the message."""
    if _DURATION.fullmatch(text):
        return sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
    hint = f"; did you mean {text}s or {text}ms?" if re.fullmatch(r"\d+(\.\d+)?", text) else ""
    raise ValueError(f"expected a duration like 250ms, 5s or 1m30s, got {text}{hint}")


def parse_size(text: str) -> int:
    """Bytes from `64KiB`, `10MiB`, `512B`. Raises ValueError, with the remedy in the message."""
    if match := _SIZE.fullmatch(text):
        return int(float(match[1]) * _BYTES[match[2]])
    hint = f"; did you mean {text}B or {text}KiB?" if text.isdigit() else ""
    raise ValueError(f"expected a size like 64KiB or 10MiB, got {text}{hint}")


def parse_rate(text: str) -> tuple[float, float]:
    """`(count, period in seconds)` from `50/s`, `100/m`. Raises ValueError, with the remedy in the message."""
    if match := _RATE.fullmatch(text):
        if float(match[1]) <= 0:
            raise ValueError(f"a rate must be above zero, got {text}")
        return float(match[1]), _SECONDS[match[2]]
    raise ValueError(f"expected a rate like 50/s or 100/m, got {text}")


def parse_share(text: str) -> float:
    """A fraction from `20%`. Raises ValueError, with the remedy in the message."""
    if (match := _SHARE.fullmatch(text)) and float(match[1]) <= 100:
        return float(match[1]) / 100
    raise ValueError(f"expected a share between 0% and 100%, like 20%, got {text}")


def parse_duration_range(text: str) -> tuple[float, float]:
    """`(first, cap)` in seconds from `50ms..500ms`. Raises ValueError, with the remedy in the message."""
    first, dots, cap = text.partition("..")
    if not dots:
        raise ValueError(f"expected a range like 50ms..500ms (first..cap), got {text}")
    low, high = parse_duration(first.strip()), parse_duration(cap.strip())
    if low > high:
        raise ValueError(f"the range {text} runs backwards; write the smaller duration first")
    return low, high


def format_duration(seconds: float) -> str:
    """The shortest plain form: `250ms`, `5s`, `1m30s`."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    if minutes and rest:
        return f"{minutes:g}m{rest:g}s"
    return f"{minutes:g}m" if minutes else f"{seconds:g}s"
