"""What is asked: a task, and cases of it with the evidence gathered so far."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from secondlook.agents.crop import Sides, check_sides
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo

MOST_BOXES = 32
"""Boxes of one image."""
MOST_WORD = 100
"""Characters of what a box shows."""


class Frozen(BaseModel):
    """Base of every value that enters graph state or a log: immutable, closed, by keyword."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


def _undefined(value: object) -> object:
    return float("nan") if value is None else value


MaybeNan = Annotated[float, BeforeValidator(_undefined)]
"""A number that may be undefined: nan here, null in JSON."""


def digest_of(value: BaseModel) -> str:
    """SHA-256 of a value's canonical JSON, as 16 hexadecimal digits.

    Fields at their defaults are left out: a field that a later version adds, with a default, changes no digest.
    """
    text = json.dumps(value.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Task(Frozen):
    """The closed list of K labels and the words that describe them.

    Examples
    --------
    >>> task = Task(labels=("cat", "dog"), phrases={"cat": ("a tabby cat",)})
    >>> task.phrases_of("cat"), task.phrases_of("dog")
    (('a tabby cat',), ('dog',))
    """

    labels: tuple[str, ...]
    """The K labels, in the order of every array's last axis."""
    phrases: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Descriptions of a label, put into prompt templates; a label without any is described by its own name."""
    negatives: tuple[str, ...] = ()
    """Descriptions of what the images are not; used to recognise strangers, never as labels."""
    costs: tuple[tuple[float, ...], ...] | None = None
    """K rows of K: costs[truth][label] of calling a truth by a label, in any unit; None where all errors are alike."""
    aliases: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Other words for a label that are accepted in a reply: synonyms, other case; no other word is."""

    @model_validator(mode="after")
    def _closed_list(self) -> Self:
        if len(self.labels) < 2:
            raise ConfigError(
                f"A task needs at least two labels, found {list(self.labels)}.",
                "Give one folder per label, or a CSV whose label column holds at least two values.",
            )
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"A label stands twice in {list(self.labels)}.", "Name every label once.")
        unknown = sorted(set(self.phrases) - set(self.labels))
        if unknown:
            raise ConfigError(f"Descriptions of unknown labels: {unknown}.", f"The labels are {list(self.labels)}.")
        if self.costs is not None:
            _check_costs(self.costs, self.labels)
        _check_aliases(self.aliases, self.labels)
        return self

    def phrases_of(self, label: str) -> tuple[str, ...]:
        """Return the descriptions of a label, or its name with dashes and underscores read as spaces."""
        return self.phrases.get(label) or (label.replace("-", " ").replace("_", " "),)


def _check_aliases(aliases: dict[str, tuple[str, ...]], labels: tuple[str, ...]) -> None:
    if unknown := sorted(set(aliases) - set(labels)):
        raise ConfigError(f"Aliases of unknown labels: {unknown}.", f"The labels are {list(labels)}.")
    words = [word for label in aliases for word in {*aliases[label]} - {label}] + list(labels)
    if twice := sorted({word for word in words if words.count(word) > 1}):
        raise ConfigError(f"The alias {twice[0]!r} stands for more than one label.", "Give it to one of them.")


def _check_costs(costs: tuple[tuple[float, ...], ...], labels: tuple[str, ...]) -> None:
    k = len(labels)
    form = "Give for each truth the cost of each label: 0 or more, 0 where they are the same, some above 0."
    if len(costs) != k or any(len(row) != k for row in costs):
        raise ConfigError(f"costs: expected {k} rows of {k}, got rows of {[len(row) for row in costs]}.", form)
    for truth, row in zip(labels, costs, strict=True):
        for label, cost in zip(labels, row, strict=True):
            if not math.isfinite(cost) or cost < 0 or (label == truth and cost):
                raise ConfigError(f"costs: to call {truth!r} {label!r} cannot cost {cost:g}.", form)
    if not any(map(any, costs)):
        raise ConfigError("costs: no error costs anything.", form)


class Neighbour(Frozen):
    """A labelled image of the index that resembles a case."""

    id: str
    label: str
    similarity: float
    """Cosine of the two embeddings, -1 to 1."""
    group: str | None = None
    path: str | None = None


class Evidence(Frozen):
    """What a second look is given that the first had not."""

    neighbours: tuple[Neighbour, ...] = ()
    """Most similar first."""
    views: tuple[str, ...] = ()
    """Names of the crops to look at (see `secondlook.agents.crop`)."""


class Statement(Frozen):
    """What an agent said of a case, in the words in which other agents, or itself, are told of it."""

    agent: str
    look: int
    label: str | None = None
    """None where the agent failed."""
    confidence: float | None = None
    """Its own, 0 to 1, never calibrated."""
    reason: str = ""
    """Why, in its own words; or why it failed. Text of a model: data, never an instruction."""


class Box(Frozen):
    """A part of an image that somebody, or a detector, has marked; its sides as fractions of width and height."""

    left: float
    top: float
    right: float
    bottom: float
    word: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST_WORD)] | None = None
    """What it shows, where that is known. Text from outside: data, never an instruction."""

    @property
    def sides(self) -> Sides:
        """Left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    @model_validator(mode="after")
    def _inside(self) -> Self:
        check_sides(*self.sides)
        return self


class Case(Frozen):
    """One image to be judged. The truth and the split never enter it."""

    id: str
    photo: Photo
    group: str | None = None
    """The leaf, patient or part the image shows; the leak guard never shows a case its own group."""
    evidence: Evidence | None = None
    """None on the first look."""
    heard: tuple[Statement, ...] = ()
    """What was said of it so far: a language model is shown its own, a judge everybody's."""
    boxes: Annotated[tuple[Box, ...], Field(max_length=MOST_BOXES)] = ()
    """Parts of the image that were marked beforehand, for agents that look at parts."""
    draw: int = 0
    """Which of several draws from the same model this question is for."""

    @property
    def look(self) -> int:
        """1 without evidence, 2 with."""
        return 1 if self.evidence is None else 2
