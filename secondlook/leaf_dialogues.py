"""What leaf-tiny-vl is asked in training, and what it is to reply."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case, Evidence, Neighbour, Statement, Task
from secondlook.agents.photo import Photo
from secondlook.agents.vlm_question import VlmQuestion
from secondlook.leaves import LABELS

Kind = Literal["first", "second", "letters", "closed"]
"""A first look; a second look; lettered options; yes or no."""

AGENT = "leaf-tiny-vl"
NOTHING = Photo.of(b"")


class Asked(NamedTuple):
    """A question about a picture, and what may be answered."""

    kind: Kind
    text: str
    """Stands after the picture."""
    truth: int
    """Position in `LABELS` of the label that the question was made for."""
    answers: tuple[str, ...]
    """For every label of `LABELS` the answer that stands for it; empty where the label is not offered."""
    counts: tuple[int, ...]
    """Similar pictures of every label."""

    def belief(self, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weigh what is seen, a distribution (4,), with the similar pictures, over the offered labels.

        Examples
        --------
        >>> asked = Asked("first", "", 0, ("a", "b", "", ""), (3, 1, 0, 0))
        >>> asked.belief(np.array([0.2, 0.4, 0.4, 0.0])).round(2)
        array([0.5, 0.5, 0. , 0. ])
        """
        if self.kind == "closed":
            return seen
        offered = np.array([bool(answer) for answer in self.answers])
        # p(label) ~ seen * (count + 1 / 2), a little above nothing so that it can be normalised
        weights = (seen + 1e-6) * (np.array(self.counts) + (0.5 if self.kind == "second" else 0.0)) * offered
        if self.kind != "second":
            weights = (seen + 1e-6) * offered
        return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class VlTexts:
    """The words that questions and replies are made of."""

    names: dict[str, list[str]]
    """Other names of every label; the first is the label itself."""
    phrases: dict[str, list[str]]
    """Descriptions of every label."""
    reasons: dict[str, list[str]]
    """What is seen on a leaf of every label."""
    agree: list[str]
    differ: list[str]
    states: list[str]
    instructions: list[str]
    closed: list[str]

    @classmethod
    def load(cls) -> VlTexts:
        """Read the words that ship with the package.

        Examples
        --------
        >>> VlTexts.load().names["scab"][0]
        'scab'
        """
        folder = resources.files("secondlook") / "assets"
        own = json.loads((folder / "leaf_tiny_vl_texts.json").read_text(encoding="utf-8"))
        phrases = json.loads((folder / "leaf_tiny_texts.json").read_text(encoding="utf-8"))["classes"]
        return cls(phrases={label: phrases[label] for label in LABELS}, **own)


class Dialogues:
    """Makes questions and replies.

    Parameters
    ----------
    texts : VlTexts
    rng : numpy.random.Generator

    Examples
    --------
    >>> dialogues = Dialogues(VlTexts.load(), np.random.default_rng(0))
    >>> asked = dialogues.ask("first", truth=3)
    >>> json.loads(dialogues.reply(asked, 3, 0.9))["label"] == asked.answers[3]
    True
    """

    def __init__(self, texts: VlTexts, rng: np.random.Generator) -> None:
        self._texts, self._rng = texts, rng
        self._tasks = [self._draw_task(common=True) for _ in range(90)]
        self._tasks += [self._draw_task(common=False) for _ in range(60)]
        self._questions = [VlmQuestion(task, AGENT) for task, _ in self._tasks]

    def ask(self, kind: Kind, truth: int) -> Asked:
        """Ask about a picture of a label, a position in `LABELS`."""
        index = int(self._rng.integers(len(self._tasks)))
        task, classes = self._tasks[index]
        order = self._rng.permutation(len(classes))
        if truth not in classes:
            return self.ask(kind, truth)
        if kind == "letters":
            return self._lettered(task, classes, order, truth)
        if kind == "closed":
            return self._closed(truth)
        counts = self._neighbours(classes, truth) if kind == "second" else (0,) * len(LABELS)
        case = Case(id="", photo=NOTHING)
        if kind == "second":
            case = Case(
                id="", photo=NOTHING, evidence=self._evidence(task, classes, counts), heard=self._heard(task, truth)
            )
        text = self._questions[index].text(case, order.tolist())
        return Asked(kind, text, truth, answers_of(classes, task.labels), counts)

    def reply(self, asked: Asked, label: int, confidence: float) -> str:
        """Write the reply that names a label, a position in `LABELS`."""
        if asked.kind == "letters":
            return asked.answers[label]
        if asked.kind == "closed":
            return "Yes" if label == asked.truth else "No"
        reason = self._one(self._texts.reasons[LABELS[label]])
        if any(asked.counts):
            agrees = asked.counts[label] == max(asked.counts)
            reason += " " + self._one(self._texts.agree if agrees else self._texts.differ)
        said = {"label": asked.answers[label], "confidence": round(confidence, 2), "reason": reason}
        return json.dumps(said)

    def _draw_task(self, common: bool) -> tuple[Task, tuple[int, ...]]:
        """Draw a task: labels in words, how they are described, and their positions in `LABELS`."""
        classes = tuple(range(len(LABELS)))
        if self._rng.uniform() < 0.2:
            kept = self._rng.choice(len(LABELS), int(self._rng.integers(2, len(LABELS))), replace=False)
            classes = tuple(sorted(int(k) for k in kept))
        names = tuple(LABELS[k] if common else self._one(self._texts.names[LABELS[k]]) for k in classes)
        style = self._rng.choice(3, p=(0.3, 0.55, 0.15))
        phrases: dict[str, tuple[str, ...]] = {}
        if style < 2:
            for k, name in zip(classes, names, strict=True):
                listed = self._texts.phrases[LABELS[k]]
                count = 1 if style == 0 or self._rng.uniform() < 0.75 else 2
                plain = f"a healthy apple leaf" if LABELS[k] == "healthy" else f"an apple leaf with {full_name(k)}"
                drawn = [plain] if style == 0 else self._rng.choice(listed, count, replace=False).tolist()
                phrases[name] = tuple(drawn)
        return Task(labels=names, phrases=phrases), classes

    def _neighbours(self, classes: Sequence[int], truth: int) -> tuple[int, ...]:
        """Count the labels of similar pictures; the commonest is right nine times out of ten."""
        total = int(self._rng.choice((5, 8, 10, 10, 10, 12)))
        first = truth
        if self._rng.uniform() < 0.1:
            first = int(self._rng.choice([k for k in classes if k != truth]))
        shares = np.full(len(classes), 0.05)
        shares[list(classes).index(truth)] += 0.25
        shares[list(classes).index(first)] += self._rng.uniform(0.5, 6)
        drawn = self._rng.multinomial(total, shares / shares.sum())
        counts = [0] * len(LABELS)
        for k, count in zip(classes, drawn, strict=True):
            counts[k] = int(count)
        return tuple(counts)

    def _evidence(self, task: Task, classes: Sequence[int], counts: Sequence[int]) -> Evidence:
        base = self._rng.uniform(0.55, 0.95)
        return Evidence(
            neighbours=tuple(
                Neighbour(id="", label=name, similarity=float(min(1, base + self._rng.normal(0, 0.02))))
                for k, name in zip(classes, task.labels, strict=True)
                for _ in range(counts[k])
            )
        )

    def _heard(self, task: Task, truth: int) -> tuple[Statement, ...]:
        if self._rng.uniform() < 0.15:
            return ()
        position = int(self._rng.integers(len(task.labels)))
        del truth
        label = task.labels[position]
        return (Statement(agent=AGENT, look=1, label=label, confidence=float(self._rng.uniform(0.3, 1))),)

    def _lettered(self, task: Task, classes: Sequence[int], order: Sequence[int], truth: int) -> Asked:
        """Ask for a letter, as the decision pipeline of transformers writes it."""
        listed = [(classes[position], task.labels[position]) for position in order]
        letters = string.ascii_uppercase
        lines = []
        for letter, (_, name) in zip(letters, listed, strict=False):
            described = "; ".join(task.phrases_of(name)) if name in task.phrases else ""
            lines.append(f"{letter}. {name}: {described}" if described else f"{letter}. {name}")
        end = f"Answer with the letter of the option that fits best (A to {letters[len(listed) - 1]}) only."
        text = "\n".join([self._head(self._one(self._texts.instructions)), *lines, end])
        return Asked("letters", text, truth, answers_of([k for k, _ in listed], letters), (0,) * len(LABELS))

    def _closed(self, truth: int) -> Asked:
        """Ask for yes or no."""
        described = self._one(self._texts.phrases[LABELS[truth]])
        text = f"{self._head(self._one(self._texts.closed).replace('{}', described))}\nAnswer Yes or No only."
        return Asked("closed", text, truth, ("",) * len(LABELS), (0,) * len(LABELS))

    def _head(self, instruction: str) -> str:
        return f"{self._one(self._texts.states)}\n\n{instruction}"

    def _one(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.integers(len(choices)))]


def answers_of(classes: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    """Put names of some labels at their places in `LABELS`.

    Examples
    --------
    >>> answers_of([2, 0], "AB")
    ('B', '', 'A', '')
    """
    places = dict(zip(classes, names, strict=False))
    return tuple(places.get(k, "") for k in range(len(LABELS)))


def full_name(position: int) -> str:
    """Return the name of a disease as a description writes it."""
    return {"black-rot": "black rot", "rust": "cedar apple rust", "scab": "apple scab"}[LABELS[position]]
