"""How long work tells whoever waits for it how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many are done, and how many there are (None where unknown)."""


def silent(what: str, done: int, total: int | None) -> None:
    """Tell nobody."""


def tracked(items: Iterable[T], what: str, total: int | None, progress: Progress) -> Iterator[T]:
    """Pass items through and report each."""
    progress(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        progress(what, done, total)
