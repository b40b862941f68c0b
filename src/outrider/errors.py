"""Start-up and control-plane exceptions. On the path of a call failures are values: `outrider.model.failure`.

OutriderError
├── ConfigError     the configuration cannot be used (exit code 78)
└── StartError      the configuration is fine, the machine is not: a port in use, a file that cannot be read
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider.config.problems import Problem

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG = 0, 1, 2, 78


class OutriderError(Exception):
    """Anything that stops Outrider from starting; the message is one clear line."""

    exit_code = EXIT_FAILED


class ConfigError(OutriderError):
    """The configuration has errors. `problems` lists them all, in order of place."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        count = sum(problem.severity == "error" for problem in problems)
        super().__init__(f"{count} error{'s' if count != 1 else ''} in the configuration")


class StartError(OutriderError):
    """Something outside the configuration keeps Outrider from starting."""
