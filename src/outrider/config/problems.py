"""Complaints about the configuration, and how they are shown: place, sentence, the line itself, a remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from outrider.config.redaction import without
from outrider.model.addresses import HIDDEN, hide_in_urls


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a configuration file; line and column count from 1. Line 0: the file as a whole."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint. `path` is the dotted key it is about, `hint` what to do about it; `hidden` are texts that must not
    be shown of the line it is about. `unread`: the line could not be read, so it is not known what of it is secret."""

    mark: Mark
    path: str
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"
    hidden: tuple[str, ...] = field(default=(), repr=False, compare=False)
    unread: bool = False

    def as_dict(self) -> dict[str, object]:
        """For `--format json`."""
        return {
            "file": self.mark.file,
            "line": self.mark.line,
            "column": self.mark.column,
            "severity": self.severity,
            "path": self.path,
            "message": self.message,
            "hint": self.hint,
        }

    def render(self) -> str:
        """For people: the place and the sentence, then the offending line with a caret under the column."""
        where = f"{self.path}: " if self.path else ""
        lines = [f"{self.mark}  {self.severity}  {where}{self.message}"]
        text = _line(self.mark)
        if text is not None:
            number = f"{self.mark.line:>5} | "
            before, text = self._shown(text)
            lines.append(number + text)
            lines.append(" " * (len(number) - 2) + "| " + " " * before + "^")
        if self.hint:
            lines.append(f"      {self.hint}")
        return "\n".join(lines)

    def _shown(self, text: str) -> tuple[int, str]:
        """How many characters stand before the place, and the line without what must not be shown."""
        before = self.mark.column - 1
        if self.unread:
            key = _KEY.match(text)
            begin = key.end() if key is not None else len(text) - len(text.lstrip())
            return min(before, begin), text[:begin] + (HIDDEN if text[begin:].strip() else "")
        return before, hide_in_urls(without(text, self.hidden))


# A key at the beginning of a line, with what stands before its value.
_KEY = re.compile(r"\s*(?:- +)*[A-Za-z_][\w.-]*\s*:\s*")


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """By file and place, each once."""
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda problem: (problem.mark.file, problem.mark.line, problem.mark.column))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean "timeout"?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else ""


def _line(mark: Mark) -> str | None:
    if not mark.line:
        return None
    try:
        return Path(mark.file).read_text(encoding="utf-8", errors="replace").splitlines()[mark.line - 1]
    except (OSError, IndexError):
        return None
