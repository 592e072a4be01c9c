"""The words for a task's labels, from a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from secondlook import prompts
from secondlook.agents.case import Task
from secondlook.agents.errors import ConfigError

PACKAGED_DESCRIPTIONS = "apple_leaf.yaml"
MAX_BYTES = 2**20
"""Largest file of descriptions or templates, in bytes."""
FORM = "Write it as `labels: {LABEL: [a description, ...]}`, and if need be `negatives: [what the images are not]`."


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
    found = _read_yaml(descriptions)
    known = found.get("labels") if isinstance(found, dict) else None
    if not isinstance(known, dict) or not known:
        raise ConfigError(f"{descriptions} has no `labels:` with a list per label.", FORM)
    phrases = {str(label): _texts(texts, f"{descriptions}: {label}") for label, texts in known.items()}
    if descriptions is None:
        if not set(labels) <= set(phrases):
            return Task(labels=tuple(labels))
        phrases = {label: phrases[label] for label in labels}
    negatives = _texts(found.get("negatives") or [], f"{descriptions}: negatives")
    return Task(labels=tuple(labels), phrases=phrases, negatives=negatives)


def read_templates(name: str) -> prompts.Prompt:
    """Read a file of prompt templates, packaged or one's own.

    Raises
    ------
    ConfigError
        When it is missing, cannot be read, holds none, or one without a place for the description.
    """
    try:
        found = prompts.load(name)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no template file {name}.", "Give a text file: one template a line.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The templates {name} cannot be read: {error}.", "Give a UTF-8 text file.") from error
    bad = [line for line in found.lines if line.count("{}") != 1]
    if bad or not found.lines or len(found.text) > MAX_BYTES:
        what = f"the template {bad[0][:80]!r} does not hold {{}} once" if bad else "it holds no template, or too many"
        raise ConfigError(f"{name}: {what}.", "Write one template a line, such as: a photo of {}.")
    return found


def _read_yaml(descriptions: Path | None) -> Any:
    try:
        if descriptions is not None and descriptions.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{descriptions} is larger than {MAX_BYTES // 2**20} MiB.", FORM)
        return yaml.safe_load(prompts.load(descriptions or PACKAGED_DESCRIPTIONS).text)
    except OSError as error:
        raise ConfigError(f"The descriptions {descriptions} cannot be read: {error.strerror}.", FORM) from error
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"The descriptions {descriptions} are not YAML: {what}.", FORM) from error


def _texts(found: object, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(text, str | int | float) for text in found):
        raise ConfigError(f"{where} is not a list of texts.", FORM)
    return tuple(str(text) for text in found)
