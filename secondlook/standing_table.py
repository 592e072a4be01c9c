"""Living standings, alarms and what is unknown, for a terminal."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from secondlook.agents.errors import ConfigError
from secondlook.eval.feedback import Feedback, open_feedback
from secondlook.orchestrator.track_record import Measure
from secondlook.orchestrator.trust import FINAL, Standing
from secondlook.tables import plain, print_line, print_whole, wide_console

KINDS = {"all": "all", "accepted": "accepted only", "review": "reviewed only"}


def print_feedback(found: Feedback, console: Console | None = None) -> None:
    """Print what feedback brought and how things stand."""
    console = console or wide_console()
    if found.n or found.seen:
        print_line(
            console,
            f"{found.n} cases, {found.known} with a known truth ({found.accepted_known} of {found.accepted} that the "
            f"gate accepts); {found.written} lines are new.",
        )
    print_standings(found, console)


def print_ledger(model: Path) -> None:
    """Print the living standings of a model folder."""
    console = wide_console()
    try:
        print_standings(open_feedback(model), console)
    except ConfigError as error:
        # An encoder that is not on this machine, for instance: the model itself can be shown all the same.
        print_line(console, f"The living track records cannot be shown: {error.what}")


def print_standings(found: Feedback, console: Console) -> None:
    """Print the standings of a ledger, and whatever it holds back."""
    title = f"Living track records, {found.entries} entries (95 % intervals)"
    table = Table(title=title, title_justify="left")
    for name in ("agent", "look", "cases", "n", "effective n", "failed", "accuracy", "over-confidence", "precision"):
        table.add_column(name, justify="left" if name in ("agent", "cases", "precision") else "right")
    for standing in found.standings:
        table.add_row(*_row(standing))
    print_whole(console, table)
    for column in found.unproven:
        print_line(console, f"Unproven, so nothing is accepted with it: {column.why}")
    for alarm in found.alarms:
        print_line(console, f"Drift, so nothing is accepted until it is acknowledged: {alarm.why}")
    for note in found.notes:
        print_line(console, f"- {note}")


def _row(s: Standing) -> tuple[str | Text, ...]:
    look = "verdict" if s.look == FINAL else str(s.look)
    over = "-" if math.isnan(s.overconfidence) else f"{s.overconfidence:+.3f}"
    precision = ", ".join(f"{label} {m.value:.2f}" for label, m in s.precision.items() if m.n)
    figures = (str(s.n), f"{s.n_effective:.1f}", str(s.n_failed), _with_interval(s.accuracy), over)
    return (plain(s.agent), look, KINDS[s.scope], *figures, plain(precision or "-"))


def _with_interval(m: Measure) -> str:
    return "-" if math.isnan(m.value) else f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]"
