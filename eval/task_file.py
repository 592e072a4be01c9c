"""The words for a task's labels, from a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from secondlook import prompts
from secondlook.agents.case import Task
from secondlook.agents.errors import ConfigError

PACKAGED_DESCRIPTIONS = "apple_leaf.yaml"


def read_task(labels: Sequence[str], descriptions: Path | None) -> Task:
    """Make the task of a data set's labels, with descriptions from a YAML file.

    Parameters
    ----------
    labels : sequence of str
    descriptions : Path, optional
        YAML with `labels`, a list of descriptions per label, and optionally `negatives`. Without one, the packaged
        descriptions are taken where they know every label, else each label is described by its name.

    Raises
    ------
    ConfigError
        When the file is missing, is not such YAML, or names other labels.
    """
    try:
        found = yaml.safe_load(prompts.load(descriptions or PACKAGED_DESCRIPTIONS).text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The descriptions {descriptions} cannot be read: {error}", "Give a YAML file.") from error
    known = found.get("labels") if isinstance(found, dict) else None
    if not isinstance(known, dict) or not all(isinstance(v, list) for v in known.values()):
        raise ConfigError(f"{descriptions} has no `labels:` with a list per label.", "See prompts/apple_leaf.yaml.")
    if descriptions is None and not set(labels) <= set(known):
        return Task(labels=tuple(labels))
    phrases = {str(label): tuple(map(str, texts)) for label, texts in known.items() if descriptions or label in labels}
    return Task(labels=tuple(labels), phrases=phrases, negatives=tuple(map(str, found.get("negatives") or ())))
