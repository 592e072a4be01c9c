"""The question about a case as a typed decision: a state, a choice between the labels, and the pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from secondlook.agents.case import Case, Evidence, Frozen, Neighbour, Statement, Task
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo
from secondlook.agents.vlm_question import earlier, read_prompt, summarise
from secondlook.prompts import BELL, data

NAME = "label"
"""Of the question in a request."""


class DecisionWording(Frozen):
    """Which files the question is made of; each may be a packaged name or a path of one's own."""

    state: str = "decision.md"
    """What is known of the case."""
    question: str = "decision_question.md"
    """What is asked about it."""


class Similar(NamedTuple):
    """A picture of known label that stands beside the one in question."""

    picture: str
    """What stands in the text where the picture is put."""
    label: str


class DecisionQuestion:
    """Writes the state and the question.

    Parameters
    ----------
    task : Task
    agent : str
        Whose earlier answer is shown.
    wording : DecisionWording, optional

    Raises
    ------
    ConfigError
        When a file is missing, is no template or writes texts from outside without the filter `data`.

    Examples
    --------
    >>> question = DecisionQuestion(Task(labels=("cat", "dog")), "eye")
    >>> question.questions["label"]["criteria"]
    {'cat': '"cat"', 'dog': '"dog"'}
    >>> print(question.state(Case(id="a", photo=Photo.of(b"")), ["picture-1"]).splitlines()[0])
    The picture in question: picture-1
    """

    def __init__(self, task: Task, agent: str, wording: DecisionWording | None = None) -> None:
        wording = wording or DecisionWording()
        self._task, self._agent = task, agent
        self._state, self._question = read_prompt(wording.state), read_prompt(wording.question)
        self._check(f"One of {wording.state}, {wording.question}")

    def _check(self, which: str) -> None:
        """Write states of every kind once; no text from outside may stand in them unquoted."""
        said = Statement(agent=self._agent, look=1, label=BELL, confidence=0.5, reason=BELL)
        found = Evidence(neighbours=(Neighbour(id=BELL, label=BELL, similarity=0.5),))
        try:
            for evidence in (None, Evidence(), found):
                heard = (said,) if evidence is found else ()
                case = Case(id=BELL, photo=Photo.of(b""), evidence=evidence, heard=heard)
                if BELL in self.state(case, ["picture", "similar"], [BELL]):
                    raise ValueError("it writes a text from outside without the filter `data`")
            self._question.render()
        except ValueError as error:
            raise ConfigError(f"{which}: {error}.", "See docs/vlm.md.") from error

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the files."""
        return hashlib.sha256(f"{self._state.sha256} {self._question.sha256}".encode()).hexdigest()

    def state(self, case: Case, pictures: Sequence[str], labels: Sequence[str] = ()) -> str:
        """Write what is known of a case.

        Parameters
        ----------
        case : Case
        pictures : sequence of str
            Names of the pictures, the one in question first, as they stand among the assets of the request.
        labels : sequence of str
            Of the other pictures.
        """
        neighbours = case.evidence.neighbours if case.evidence else ()
        return self._state.render(
            picture=pictures[0],
            evidence=summarise(neighbours),
            n_neighbours=len(neighbours),
            similar=[Similar(*each) for each in zip(pictures[1:], labels, strict=True)],
            earlier=earlier(case.heard, self._agent) if case.evidence else None,
        )

    @cached_property
    def questions(self) -> dict[str, dict[str, object]]:
        """The choice between the labels, each with its descriptions."""
        criteria = {label: data("; ".join(self._task.phrases_of(label))) for label in self._task.labels}
        return {NAME: {"type": "choice", "instructions": self._question.render(), "criteria": criteria}}
