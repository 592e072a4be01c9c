"""The real command line, called in this process: imports are paid for once."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from secondlook.cli import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def run_cli(*arguments: object, cache: Path | None = None, columns: int = 200) -> Ran:
    """Run `secondlook ARGUMENTS`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    environment = {"COLUMNS": str(columns)} | ({"SECONDLOOK_CACHE": str(cache)} if cache else {})
    with mock.patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ran(code, out.getvalue(), err.getvalue())
