"""What the command line shows while it works: progress with an ETA on stderr, and errors without tracebacks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, int, int | None], None]
PLAIN_EVERY_S = 5.0


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """Give a function to report progress to: a live bar on a terminal, a line now and then elsewhere."""
    if quiet:
        yield lambda what, done, total: None
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _Lines()


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}
        current: list[str] = []

        def report(what: str, done: int, total: int | None) -> None:
            # Steps of one stage have names of their own and a common count: they share one bar.
            key = what.split()[0] if total is None or total > 20 else "steps"
            if key not in tasks:
                tasks[key] = bars.add_task(what, total=total)
                current.append(key)
            bars.update(tasks[key], description=what, completed=done, total=total)

        yield report


class _Lines:
    """Plain lines for logs: each stage when it starts, then one every few seconds."""

    def __init__(self) -> None:
        self._what = ""
        self._start = self._last = 0.0
        self._before = 0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._start, self._last = what, now, now
            self._before = done
            print(f"{what}{f' ({total})' if total and total > 20 else ''} ...", file=sys.stderr, flush=True)
        elif done and not self._before:
            # The first ones waited for models to load: the pace is counted from here.
            self._start = self._last = now
            self._before = done
        elif now - self._last >= PLAIN_EVERY_S:
            self._last = now
            since = done - self._before
            left = f", about {(now - self._start) / since * (total - done):.0f} s left" if total and since else ""
            print(f"{what}: {done}{f' of {total}' if total else ''}{left}", file=sys.stderr, flush=True)


def complain(what: str, remedy: str = "") -> None:
    """Print an error: the thing, then the remedy, on stderr. What could steer a terminal is made visible."""
    print(f"error: {_plain(what)}", file=sys.stderr)
    if remedy:
        print(f"  try: {_plain(remedy)}", file=sys.stderr)


def _plain(text: str) -> str:
    return "\n       ".join(map(visible, text.strip().splitlines()))


def visible(text: str) -> str:
    r"""Return a text with what could steer a terminal made visible.

    Examples
    --------
    >>> visible("red \x1b[31m, äöü")
    'red \\x1b[31m, äöü'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
