"""What leaf-tiny-vl is asked in training, and what it is to reply."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case, Evidence, Neighbour, Statement, Task
from secondlook.agents.decision_question import DecisionQuestion
from secondlook.agents.photo import Photo
from secondlook.agents.vlm_question import VlmQuestion, Wording
from secondlook.leaves import LABELS

Kind = Literal["first", "second", "letters"]
"""A first look; a second look; lettered options, at either look."""
KINDS: tuple[Kind, ...] = ("first", "second", "letters")

AGENT = "leaf-tiny-vl"
PICTURE = "<picture>"
"""Stands where the picture is put."""


class Asked(NamedTuple):
    """A question about a picture, and what may be answered."""

    kind: Kind
    before: str
    """Stands before the picture."""
    after: str
    """Stands after it."""
    truth: int
    """Position in `LABELS` of the label that the question was made for."""
    names: tuple[str, ...]
    """For every label of `LABELS` the name it has in the question; empty where it is not offered."""
    answers: tuple[str, ...]
    """And the answer that stands for it: the name, or a letter."""
    counts: tuple[int, ...]
    """Similar pictures of every label; zeros where none is spoken of."""

    def belief(self, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weigh what is seen, a distribution (4,), with the similar pictures, over the offered labels.

        Examples
        --------
        >>> asked = Asked("first", "", "", 0, ("a", "b", "", ""), ("a", "b", "", ""), (3, 1, 0, 0))
        >>> asked.belief(np.array([0.2, 0.4, 0.4, 0.0])).round(2)
        array([0.54, 0.46, 0.  , 0.  ])
        """
        offered = np.array([bool(answer) for answer in self.answers])
        # p(label) ~ seen * (count + 1 / 2); the 1e-6 for the case that nothing offered is seen
        weights = (seen + 1e-6) * (np.array(self.counts) + 0.5) * offered
        return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class VlTexts:
    """The words that questions and replies are made of."""

    names: dict[str, list[str]]
    """Names of every label."""
    phrases: dict[str, list[str]]
    """Descriptions of every label."""
    plain: dict[str, str]
    """The description of every label that is used where nobody gives another."""
    reasons: dict[str, list[str]]
    """What is seen on a leaf of every label."""
    agree: list[str]
    """What is said where the similar pictures have the same label."""
    differ: list[str]
    """And where they do not."""
    drill: list[str]
    """Questions for the letter of a label."""

    @classmethod
    def load(cls) -> VlTexts:
        """Read the words that ship with the package.

        Examples
        --------
        >>> VlTexts.load().plain["scab"]
        'an apple leaf with apple scab'
        """
        folder = resources.files("secondlook") / "assets"
        own = json.loads((folder / "leaf_tiny_vl_texts.json").read_text(encoding="utf-8"))
        tiny = json.loads((folder / "leaf_tiny_texts.json").read_text(encoding="utf-8"))
        phrases = {label: tiny["classes"][label] for label in LABELS}
        return cls(phrases=phrases, plain={label: tiny["prompts"][label][0] for label in LABELS}, **own)


class Asking(NamedTuple):
    """A task and the ways to ask about it."""

    task: Task
    classes: tuple[int, ...]
    """Positions of the task's labels in `LABELS`."""
    words: VlmQuestion
    letters: VlmQuestion
    decision: DecisionQuestion


class Dialogues:
    """Makes questions and replies.

    Parameters
    ----------
    texts : VlTexts
    rng : numpy.random.Generator
    tasks : int
        Different lists of labels with descriptions.

    Examples
    --------
    >>> dialogues = Dialogues(VlTexts.load(), np.random.default_rng(0), tasks=3)
    >>> asked = dialogues.ask("first", truth=3)
    >>> json.loads(dialogues.reply(asked, 3, 0.9))["label"] == asked.answers[3]
    True
    """

    def __init__(self, texts: VlTexts, rng: np.random.Generator, tasks: int = 150) -> None:
        import jinja2
        from transformers.decision.template_utils import DECISION_PROMPT

        self._texts, self._rng = texts, rng
        self._asking = [self._draw_asking(common=n % 5 < 3) for n in range(tasks)]
        self._lettered = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(DECISION_PROMPT)

    def ask(self, kind: Kind, truth: int) -> Asked:
        """Ask about a picture of a label, a position in `LABELS`."""
        fitting = [asking for asking in self._asking if truth in asking.classes]
        asking = fitting[int(self._rng.integers(len(fitting)))]
        second = kind == "second" or (kind == "letters" and self._rng.uniform() < 0.3)
        case, counts = Case(id="", photo=Photo.of(b"")), (0,) * len(LABELS)
        if second:
            counts = self._neighbours(asking.classes, truth)
            found, heard = self._evidence(asking, counts), self._heard(asking.task)
            case = Case(id="", photo=Photo.of(b""), evidence=found, heard=heard)
        order = self._rng.permutation(len(asking.classes)).tolist()
        listed = [asking.classes[k] for k in order]
        names = answers_of(listed, [asking.task.labels[k] for k in order])
        answers = answers_of(listed, string.ascii_uppercase) if kind == "letters" else names
        if kind == "letters" and self._rng.uniform() < 0.6:
            before, _, after = self._decision(asking, case, order).partition(PICTURE)
        else:
            question = asking.letters if kind == "letters" else asking.words
            before, after = "", question.text(case, order)
        return Asked(kind, before, after, truth, names, answers, counts)

    def reply(self, asked: Asked, label: int, confidence: float) -> str:
        """Write the reply that names a label, a position in `LABELS`."""
        if asked.kind == "letters":
            return asked.answers[label]
        reason = self._one(self._texts.reasons[LABELS[label]])
        if any(asked.counts):
            agrees = asked.counts[label] == max(asked.counts)
            reason += " " + self._one(self._texts.agree if agrees else self._texts.differ)
        said = {"label": asked.answers[label], "confidence": round(confidence, 2), "reason": reason}
        return json.dumps(said)

    def drill(self, asked: Asked) -> list[tuple[str, str]]:
        """Ask which letter each label has, in any order: questions and answers that need no picture."""
        offered = [k for k in self._rng.permutation(len(LABELS)) if asked.answers[k]]
        return [(self._one(self._texts.drill).replace("{}", asked.names[k]), asked.answers[k]) for k in offered]

    def _draw_asking(self, common: bool) -> Asking:
        """Draw labels, now and then fewer than four, under their own or other names, with or without descriptions."""
        rng, texts = self._rng, self._texts
        classes = tuple(range(len(LABELS)))
        if rng.uniform() < 0.2:
            kept = rng.choice(len(LABELS), int(rng.integers(2, len(LABELS))), replace=False)
            classes = tuple(sorted(int(k) for k in kept))
        names = tuple(LABELS[k] if common else self._one(texts.names[LABELS[k]]) for k in classes)
        style = rng.choice(3, p=(0.35, 0.5, 0.15))
        phrases: dict[str, tuple[str, ...]] = {}
        for k, name in zip(classes, names, strict=True):
            if style == 0:
                phrases[name] = (texts.plain[LABELS[k]],)
            if style == 1:
                count = 1 if rng.uniform() < 0.75 else 2
                phrases[name] = tuple(rng.choice(texts.phrases[LABELS[k]], count, replace=False).tolist())
        task = Task(labels=names, phrases=phrases)
        letters = VlmQuestion(task, AGENT, Wording(answer="answer_letter.md"), "letters")
        return Asking(task, classes, VlmQuestion(task, AGENT), letters, DecisionQuestion(task, AGENT))

    def _neighbours(self, classes: Sequence[int], truth: int) -> tuple[int, ...]:
        """Count the labels of similar pictures; the commonest is right about nine times out of ten."""
        rng = self._rng
        total = int(rng.choice((5, 8, 10, 10, 10, 12)))
        first = truth
        if rng.uniform() < 0.1:
            first = int(rng.choice([k for k in classes if k != truth]))
        shares = np.full(len(classes), 0.05)
        shares[list(classes).index(truth)] += 0.25
        shares[list(classes).index(first)] += rng.uniform(0.5, 6)
        counts = [0] * len(LABELS)
        for k, count in zip(classes, rng.multinomial(total, shares / shares.sum()), strict=True):
            counts[k] = int(count)
        return tuple(counts)

    def _evidence(self, asking: Asking, counts: Sequence[int]) -> Evidence:
        base = self._rng.uniform(0.55, 0.95)
        return Evidence(
            neighbours=tuple(
                Neighbour(id="", label=name, similarity=float(min(1, base + self._rng.normal(0, 0.02))))
                for k, name in zip(asking.classes, asking.task.labels, strict=True)
                for _ in range(counts[k])
            )
        )

    def _heard(self, task: Task) -> tuple[Statement, ...]:
        """Draw an earlier answer, any: what it is worth is to be seen on the picture."""
        if self._rng.uniform() < 0.15:
            return ()
        said = self._one(task.labels)
        return (Statement(agent=AGENT, look=1, label=said, confidence=float(self._rng.uniform(0.3, 1))),)

    def _decision(self, asking: Asking, case: Case, order: Sequence[int]) -> str:
        """Write the text that transformers makes of a decision: ours, or one that quotes nothing."""
        labels = [asking.task.labels[k] for k in order]
        question: dict[str, Any] = {
            "type": "choice",
            "options": labels,
            "labels": string.ascii_uppercase[: len(labels)],
        }
        asked = asking.decision.questions["label"]
        listed: Any = asked["criteria"]
        if self._rng.uniform() < 0.3:
            listed = {label: "; ".join(asking.task.phrases.get(label, ())) for label in labels}
        question |= {"instructions": asked["instructions"], "descriptions": [listed[label] for label in labels]}
        question["labels"] = list(question["labels"])
        state = asking.decision.state(case, [PICTURE])
        return self._lettered.render(state=state, question=SimpleNamespace(**question))

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
