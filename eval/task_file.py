"""The words for a task's labels, and what errors cost, from a YAML file."""

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
MOST = 1e9
"""Largest cost of an error."""
KEYS = ("labels", "negatives", "costs", "aliases")
COSTS_FORM = "Write `costs: {TRUTH: {LABEL: cost}}`: what it costs to call a TRUTH a LABEL; 1 where it is not said."
ALIASES_FORM = "Write `aliases: {LABEL: [another word for it, ...]}`; put words such as yes and 1.50 in quotes."
FORM = "Write it as `labels: {LABEL: [a description, ...]}`, and if need be `negatives: [what the images are not]`."


def read_task(labels: Sequence[str], descriptions: Path | None) -> Task:
    """Make the task of a data set's labels, with descriptions from a YAML file.

    Parameters
    ----------
    labels : sequence of str
    descriptions : Path, optional
        YAML with `labels`, a list of descriptions per label, and optionally `negatives`, `costs` and `aliases`, the
        other words for a label that a model may reply with; with one of the last two the labels may be left out.
        Without a file, the packaged descriptions are taken where they know every label, else each label is described
        by its name.

    Raises
    ------
    ConfigError
        When the file is missing, is not such YAML, or names other labels.
    """
    found = _read_yaml(descriptions)
    known = found.get("labels") if isinstance(found, dict) else None
    costs = _costs(found.get("costs"), labels, f"{descriptions}: costs") if isinstance(found, dict) else None
    aliases = _aliases(found.get("aliases"), f"{descriptions}: aliases") if isinstance(found, dict) else {}
    if (costs or aliases) and known is None:
        known = {label: [] for label in labels}
    if not isinstance(known, dict) or not known:
        raise ConfigError(f"{descriptions} has no `labels:` with a list per label.", FORM)
    if foreign := [str(name)[:80] for name in found if name not in KEYS]:
        # A word misspelt must not be a table of costs that nobody misses.
        raise ConfigError(f"{descriptions}: {foreign[0]!r} stands for nothing.", f"It can hold {', '.join(KEYS)}.")
    phrases = {str(label): _texts(texts, f"{descriptions}: {label}") for label, texts in known.items()}
    if descriptions is None:
        if not set(labels) <= set(phrases):
            return Task(labels=tuple(labels))
        phrases = {label: phrases[label] for label in labels}
    negatives = _texts(found.get("negatives") or [], f"{descriptions}: negatives")
    try:
        return Task(labels=tuple(labels), phrases=phrases, negatives=negatives, costs=costs, aliases=aliases)
    except ConfigError as error:
        raise ConfigError(f"{descriptions}: {error.what}", error.remedy) from None


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


def _texts(found: object, where: str, form: str = FORM) -> tuple[str, ...]:
    # Not bool: YAML reads `no` as false, which would become the word "False", and nobody wrote that.
    if not isinstance(found, list) or not all(type(text) in (str, int, float) for text in found):
        raise ConfigError(f"{where} is not a list of texts.", form)
    return tuple(str(text) for text in found)


def _aliases(found: object, where: str) -> dict[str, tuple[str, ...]]:
    """Read the other words for labels; `Task` checks that there are such labels, and no word stands for two."""
    if not isinstance(found, dict | None):
        raise ConfigError(f"{where} is not a table of words by label.", ALIASES_FORM)
    words = {label: _texts(each, f"{where}: {label}", ALIASES_FORM) for label, each in (found or {}).items()}
    if blank := [str(label) for label, each in words.items() if not all(map(str.strip, each))]:
        raise ConfigError(f"{where}: {blank[0]} has an empty word.", ALIASES_FORM)
    return {str(label): tuple(map(str.strip, each)) for label, each in words.items()}


def _costs(found: object, labels: Sequence[str], where: str) -> tuple[tuple[float, ...], ...] | None:
    """Read what it costs to call one label another, by name; `Task` checks the amounts."""
    if found is None:
        return None
    place = {label: k for k, label in enumerate(labels)}
    costs = [[float(k != j) for j in range(len(labels))] for k in range(len(labels))]
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise ConfigError(f"{where} is not a table of costs by truth and label.", COSTS_FORM)
    for truth, row in found.items():
        for label, cost in row.items():
            if unknown := [str(name) for name in (truth, label) if str(name) not in place]:
                raise ConfigError(f"{where}: there is no label {unknown[0]!r}.", f"The labels are {list(labels)}.")
            number = isinstance(cost, int | float) and not isinstance(cost, bool)
            if not number or not 0 <= cost <= MOST:
                raise ConfigError(f"{where}: {truth!r} called {label!r} cannot cost {str(cost)[:40]!r}.", COSTS_FORM)
            costs[place[str(truth)]][place[str(label)]] = float(cost)
    return tuple(map(tuple, costs))
