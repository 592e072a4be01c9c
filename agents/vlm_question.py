"""The question that a vision-language model is asked about a case, in words."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from secondlook.agents.case import Case, Evidence, Frozen, Neighbour, Statement, Task
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo
from secondlook.prompts import BELL, Prompt, load

Marks = Literal["dashes", "letters"]
"""What stands before each label: ``dashes`` where the label itself is the answer, ``letters`` where its letter is."""


MAX_CHARACTERS = 100_000
"""Of a prompt file."""


class Wording(Frozen):
    """Which files the question is made of; each may be a packaged name or a path of one's own."""

    first: str = "classify.md"
    """Asked without evidence."""
    second: str = "second_look.md"
    """Asked with evidence."""
    answer: str = "answer_json.md"
    """How to answer; the end of both."""


class Option(NamedTuple):
    """A label as it stands in the question."""

    mark: str
    label: str
    description: str


@dataclass(frozen=True)
class Found:
    """What the similar pictures say of a label."""

    label: str
    count: int
    similarity: float
    """Mean over the pictures of that label."""


class VlmQuestion:
    """Writes the question about a case.

    Parameters
    ----------
    task : Task
    agent : str
        Whose earlier answer is shown.
    wording : Wording
    marks : {"dashes", "letters"}

    Raises
    ------
    ConfigError
        When a file is missing, is no template or writes texts from outside without the filter `data`, or there are
        more labels than letters.

    Examples
    --------
    >>> from secondlook.agents.photo import Photo
    >>> question = VlmQuestion(Task(labels=("cat", "dog")), "eye")
    >>> print(question.text(Case(id="a", photo=Photo.of(b""))).splitlines()[1])
    - "cat": "cat"
    """

    def __init__(
        self, task: Task, agent: str, wording: Wording | None = None, marks: Marks = "dashes", n_pictures: int = 0
    ) -> None:
        wording = wording or Wording()
        if marks == "letters" and len(task.labels) > len(string.ascii_uppercase):
            raise ConfigError(
                f"{len(task.labels)} labels are more than there are letters.", "Ask for the label itself instead."
            )
        self._task, self._agent, self._marks = task, agent, marks
        self._first_texts: dict[tuple[int, ...] | None, str] = {}
        self._n_pictures = n_pictures
        self._first, self._second, self._answer = map(read_prompt, (wording.first, wording.second, wording.answer))
        self._check(f"One of {wording.first}, {wording.second}")

    def _check(self, which: str) -> None:
        """Write questions of every kind once; in those that quote bells, none may ring."""
        said = Statement(agent=self._agent, look=1, label=BELL, confidence=0.5, reason=BELL)
        found = Evidence(neighbours=(Neighbour(id=BELL, label=BELL, similarity=0.5, path=BELL),))
        photo, options = Photo.of(b""), [Option(mark, BELL, BELL) for mark, _, _ in self.options()]
        try:
            for evidence in (None, Evidence(), found):
                heard = (said,) if evidence is found else ()
                text = self._written(Case(id=BELL, photo=photo, evidence=evidence, heard=heard), options)
                if BELL in text:
                    raise ValueError("it writes a text from outside without the filter `data`")
        except ValueError as error:
            raise ConfigError(f"{which}: {error}.", "See docs/vlm.md.") from error

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the files."""
        parts = (self._first.sha256, self._second.sha256, self._answer.sha256)
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def text(self, case: Case, order: Sequence[int] | None = None) -> str:
        """Write the question.

        Parameters
        ----------
        case : Case
            Its evidence and what the agent itself said before enter the second look.
        order : sequence of int, optional
            Positions of the labels in the order they are listed; the task's own by default.
        """
        if case.evidence is not None:
            return self._written(case, self.options(order))
        # On a first look every case is asked the same.
        key = tuple(order) if order is not None else None
        if key not in self._first_texts:
            self._first_texts[key] = self._written(case, self.options(order))
        return self._first_texts[key]

    def _written(self, case: Case, options: Sequence[Option]) -> str:
        answer = self._answer.text.strip()
        if case.evidence is None:
            return self._first.render(options=options, answer=answer)
        pictures = self.pictures(case)
        return self._second.render(
            options=options,
            answer=answer,
            evidence=summarise(case.evidence.neighbours),
            n_neighbours=len(case.evidence.neighbours),
            n_pictures=len(pictures),
            picture_labels=[found.label for found in pictures],
            earlier=earlier(case.heard, self._agent),
        )

    def options(self, order: Sequence[int] | None = None) -> list[Option]:
        """List the labels in an order, with their marks."""
        listed = [self._task.labels[k] for k in (order if order is not None else range(len(self._task.labels)))]
        marks = [f"{c}." for c in string.ascii_uppercase] if self._marks == "letters" else ["-"] * len(listed)
        return [
            Option(mark, label, "; ".join(self._task.phrases_of(label)))
            for mark, label in zip(marks, listed, strict=False)
        ]

    def pictures(self, case: Case) -> tuple[Neighbour, ...]:
        """Neighbours whose pictures are shown beside the case's own: the most similar that have a file."""
        if case.evidence is None:
            return ()
        return tuple(n for n in case.evidence.neighbours if n.path)[: self._n_pictures]


def summarise(neighbours: Sequence[Neighbour]) -> list[Found]:
    """Count the labels of neighbours, the commonest first; of equals, the more similar first."""
    similar: dict[str, list[float]] = {}
    for neighbour in neighbours:
        similar.setdefault(neighbour.label, []).append(neighbour.similarity)
    found = [Found(label, len(each), sum(each) / len(each)) for label, each in similar.items()]
    return sorted(found, key=lambda f: (-f.count, -f.similarity, f.label))


def earlier(heard: Sequence[Statement], agent: str) -> Statement | None:
    """Return the last thing that an agent said; None where it said nothing that names a label."""
    own = [s for s in heard if s.agent == agent and s.label is not None and s.confidence is not None]
    return own[-1] if own else None


def read_prompt(name: str) -> Prompt:
    """Load a prompt file for a user.

    Raises
    ------
    ConfigError
        When it is missing, too large, or not text.
    """
    try:
        found = load(name)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no prompt file {name}.", "Give the path of a text file.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"The prompt {name} cannot be read: {error}.", "Give a UTF-8 text file.") from error
    if len(found.text) > MAX_CHARACTERS:
        raise ConfigError(f"The prompt {name} holds more than {MAX_CHARACTERS:,} characters.", "Shorten it.")
    return found
