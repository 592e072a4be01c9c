"""What a run measured, read back from its metrics.json."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from secondlook.agents.errors import ConfigError

Metrics = dict[str, float | int | str | None]
"""What metrics.json holds, by the name of the figure; None where one is undefined."""


class Figure(NamedTuple):
    """A measured number and the ends of its interval; None where undefined."""

    value: float
    lo: float | None = None
    hi: float | None = None


class Measured(NamedTuple):
    """What metrics.json holds: finite numbers, and texts."""

    numbers: dict[str, float]
    texts: dict[str, str]

    def figure(self, key: str) -> Figure | None:
        """Look up a number with its interval; None where it is missing or undefined."""
        if key not in self.numbers:
            return None
        return Figure(self.numbers[key], self.numbers.get(f"{key}/lo"), self.numbers.get(f"{key}/hi"))

    def names(self, prefix: str, *suffixes: str) -> list[str]:
        """List the NAMEs of the keys ``prefix/NAME/suffix``, or without suffixes ``prefix/NAME``, in their order."""
        form = rf"{prefix}/(.+)/(?:{'|'.join(suffixes)})" if suffixes else rf"{prefix}/([^/]+)"
        return list(dict.fromkeys(m[1] for key in self.numbers if (m := re.fullmatch(form, key))))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", "Run the same command again.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object.", "Run the same command again.")
    return value


def read_measured(path: Path) -> Measured:
    """Read metrics.json; nothing is known where it is absent, and null stands for undefined."""
    raw = read_object(path)
    numbers = {k: float(v) for k, v in raw.items() if isinstance(v, int | float) and math.isfinite(v)}
    return Measured(numbers, {k: v for k, v in raw.items() if isinstance(v, str)})
