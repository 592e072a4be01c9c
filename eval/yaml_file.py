"""Reading a YAML file of the user's, within limits, with errors that name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from secondlook.agents.errors import ConfigError

MAX_BYTES = 2**20
"""Largest file, in bytes."""
MOST_TOLD = 300
"""Characters of the parser's complaint that are repeated."""


def read_yaml(path: Path, what: str, form: str) -> Any:
    """Read a file as data; nothing in it is run.

    Parameters
    ----------
    path : Path
    what : str
        What it holds, for messages: "the agents".
    form : str
        How it is to be written.

    Raises
    ------
    ConfigError
        When it is missing, too large, not UTF-8 or not YAML.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES // 2**20} MiB.", form)
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what.capitalize()} {path} cannot be read: {error.strerror}.", form) from error
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:MOST_TOLD]
        raise ConfigError(f"{what.capitalize()} {path}: this is not YAML: {said}.", form) from error
