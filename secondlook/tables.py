"""Lines and tables on a console, whole whatever its width."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from secondlook.console import visible

WIDEST = 1000
"""Columns that a table may take where its longest words need them."""


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: names of labels and files may look like markup."""
    console.print(visible(line), markup=False, highlight=False)


def plain(text: str) -> Text:
    """Return a table's cell that shows a text as it is."""
    return Text(visible(text))


def print_whole(console: Console, table: Table) -> None:
    """Print a table, wider than a narrow console if need be: a number that is cut is a wrong number."""
    for column in table.columns:
        column.min_width = max(len(word) for cell in (column.header, *column.cells) for word in str(cell).split())
    # Columns that Rich would narrow to nothing are left out whatever their least width, so the table gets its own.
    least = Measurement.get(console, console.options.update(max_width=WIDEST), table).minimum
    table.width = least if least > console.width else None
    console.print(table, crop=False)


def wide_console() -> Console:
    """Return the terminal, or a wide page where there is none."""
    # Without a terminal, nothing is cut to 80 columns: the output is then read from a file or by a program.
    return Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=140)
