"""The texts that models are given, kept as files with digests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Prompt(NamedTuple):
    """A text and the SHA-256 of its bytes."""

    text: str
    sha256: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that are neither empty nor comments."""
        return tuple(s for s in map(str.strip, self.text.splitlines()) if s and not s.startswith("#"))


def load(name: str | Path) -> Prompt:
    """Load a prompt by the name of a packaged file, or by a path of one's own.

    Examples
    --------
    >>> load("clip_templates.txt").lines[0]
    'a photo of {}.'
    """
    path = Path(name)
    raw = (path if path.is_absolute() or path.exists() else FOLDER / path).read_bytes()
    return Prompt(raw.decode("utf-8"), hashlib.sha256(raw).hexdigest())
