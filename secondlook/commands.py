"""How commands end: the user's mistakes and a full disk with a message and an exit code, never with a traceback."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from secondlook.console import complain

MISTAKE, STOPPED = 2, 130
"""Exit codes: something the user can put right, and Ctrl-C."""


class Commands(TyperGroup):
    """All commands: the user's mistakes, and a full disk, end with a message instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("Stopped.", ONWARD.get(ctx.invoked_subcommand, "Give the same command again: nothing is kept."))
            raise typer.Exit(STOPPED) from None
        except Exception as error:
            # Imported here: `--help` must not wait for pydantic.
            from secondlook.agents.errors import ConfigError, SecondlookError

            if isinstance(error, ConfigError):
                complain(error.what, error.remedy)
            elif isinstance(error, SecondlookError):
                complain(str(error))
            elif isinstance(error, OSError) and error.errno in PLACES:
                where = f"{error.filename}: " if error.filename else ""
                complain(f"{where}{error.strerror}.", "Put that right, then give the same command again.")
            else:
                raise
            raise typer.Exit(MISTAKE) from error


ONWARD = dict.fromkeys(("triage", "evaluate"), "The same command goes on where it stopped.") | dict.fromkeys(
    ("fit", "demo", "feedback"), "Give the same command again: what is in its cache or ledger is not done twice."
)
"""What the same command does after Ctrl-C."""
PLACES = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
"""What the system says of a disk that is full or a place that is not one's own."""
