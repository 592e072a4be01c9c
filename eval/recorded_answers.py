"""Answers that were recorded, as a panel that can be asked again: outcomes, truth, and what each answer cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case, Evidence
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Outcome, Prediction, Scale, stated
from secondlook.agents.recorded import RecordedAgent
from secondlook.eval.answer_rows import PUBLISHED, AnswerRow, AnswerRows, Kind, Probs, read_rows
from secondlook.eval.held_out import ask_blocking
from secondlook.eval.record import degenerate
from secondlook.orchestrator.panel import column
from secondlook.orchestrator.rules import VOTES

Floats = NDArray[np.float64]
MAX_LABELS, MAX_COLUMNS = 1000, 64
NUDGE = 1e-9
"""Added to the share of the label that was said, where another has the same share."""
CALLS: dict[Kind, float] = {"vlm": 1.0, "llm": 1.0, "vote": 0.0, "head": 0.0}
"""Model calls behind an answer of each kind."""


@dataclass(frozen=True)
class Spent:
    """What the answers of one column took, for N cases.

    Attributes
    ----------
    kind : Kind
    calls : ndarray of shape (N,)
        Model calls of that kind. An answer that failed was paid for.
    seconds, usd : ndarray of shape (N,)
        nan where an answer is recorded without; 0 where none is recorded.
    """

    kind: Kind
    calls: Floats
    seconds: Floats
    usd: Floats


@dataclass(frozen=True)
class RecordedAnswers:
    """What M columns said of N cases about K labels, with the truth.

    Attributes
    ----------
    labels : tuple of K str
        The true labels that occur, sorted.
    cases : tuple of N str
        Ids, in the order of the file.
    truth : ndarray of shape (N,)
        Label indices.
    groups : tuple of N str
        The case's own id where the file names no group.
    outcomes : dict of str to list of Outcome
        By column (`name`, then `name@2` for a second look), N outcomes each.
    spent : dict of str to Spent
        By column.
    published : ndarray of shape (N,) or None
        Label indices of an answer to compare with, -1 where it has none; None where the file has no such answer.
    published_spent : Spent or None
        What that answer took beyond the columns' own.
    notes : tuple of str
        What was done about answers that are none.
    """

    labels: tuple[str, ...]
    cases: tuple[str, ...]
    truth: NDArray[np.intp]
    groups: tuple[str, ...]
    outcomes: Mapping[str, list[Outcome]]
    spent: Mapping[str, Spent]
    published: NDArray[np.intp] | None
    published_spent: Spent | None
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The M names."""
        return tuple(self.outcomes)

    @property
    def grouped(self) -> bool:
        """Whether some cases share a group."""
        return len(set(self.groups)) < len(self.groups)

    def agents(self, look: int) -> list[RecordedAgent]:
        """Return the agents that answered at a look, ready to be asked again."""
        rows = [row for row in self.outcomes.values() if row[0].look == look]
        return [RecordedAgent(row[0].agent, {look: dict(zip(self.cases, row, strict=True))}) for row in rows]

    def ask(self) -> dict[str, list[Outcome]]:
        """Ask them all, as every panel is asked; no photo is opened."""
        answers: dict[str, list[Outcome]] = {}
        for look in (1, 2):
            evidence = Evidence() if look == 2 else None
            cases = [Case(id=name, photo=Photo.of(b"", name=name), evidence=evidence) for name in self.cases]
            answers |= ask_blocking(self.agents(look), cases)
        return {name: answers[name] for name in self.columns}


def read_answers(path: Path) -> RecordedAnswers:
    """Read a CSV of recorded answers, in the long format or as a wide table; see `secondlook.eval.answer_rows`.

    Raises
    ------
    ConfigError
        For what cannot be read, contradicts itself, or cannot be replayed.
    """
    return answers_of(read_rows(path))


def answers_of(found: AnswerRows) -> RecordedAnswers:
    """Put rows in order; see `read_answers`."""
    by_column = _by_column(found)
    published = by_column.pop(PUBLISHED, None)
    if not by_column:
        raise ConfigError(f"{found.name} holds no answer of any agent.", "Give one row for each case and agent.")
    cases = tuple(dict.fromkeys(row.case for row in found.rows))
    labels = _labels(found, cases)
    index = {label: k for k, label in enumerate(labels)}
    outcomes: dict[str, list[Outcome]] = {}
    notes: list[str] = []
    if idle := len(found.truth.keys() - set(cases)):
        notes.append(f"Cases of which nothing but the truth is known are left out: {idle}.")
    for name, rows in by_column.items():
        try:
            outcomes[name] = _outcomes(rows, cases, index, notes)
        except ConfigError as error:
            raise ConfigError(f"{found.name}, {error.what}", error.remedy) from None
        given = [outcome.top for outcome in outcomes[name] if isinstance(outcome, Prediction)]
        if not given:
            notes.append(f"{name} never answered and is left out.")
            del outcomes[name]
        elif len(given) > 1 and len(set(given)) == 1:
            notes.append(f"{name} always says {labels[given[0]]!r}, which tells nothing about a case.")
    if not outcomes:
        said = " ".join(notes[:4])
        raise ConfigError(
            f"{found.name}: no agent ever gave one of the labels {', '.join(labels[:10])[:300]}. {said}",
            "Write answers as the true labels are written, and leave out agents that gave none.",
        )
    return RecordedAnswers(
        labels=labels,
        cases=cases,
        truth=np.array([index[found.truth[case]] for case in cases], dtype=np.intp),
        groups=tuple(found.groups.get(case, case) for case in cases),
        outcomes=outcomes,
        spent={name: _spent(by_column[name], cases) for name in outcomes},
        published=None if published is None else _given(published, cases, index),
        published_spent=None if published is None else _spent(published, cases),
        notes=tuple(notes),
    )


def _by_column(found: AnswerRows) -> dict[str, dict[str, AnswerRow]]:
    """Each column's rows by case: first looks, then second looks, in the order of the file."""
    columns: dict[tuple[int, str], dict[str, AnswerRow]] = {}
    for row in found.rows:
        answers = columns.setdefault((1 if row.agent == PUBLISHED else row.look, row.agent), {})
        if row.case in answers:
            raise ConfigError(
                f"{found.name}, lines {answers[row.case].line} and {row.line}: two answers of {row.agent!r} for case "
                f"{row.case!r} at look {row.look}.",
                "Keep one of them.",
            )
        first = next(iter(answers.values()), row)
        if row.kind != first.kind:
            raise ConfigError(
                f"{found.name}, lines {first.line} and {row.line}: {row.agent!r} is of two kinds, "
                f"{first.kind or 'none'} and {row.kind or 'none'}.",
                "Give all answers of an agent one kind.",
            )
        answers[row.case] = row
        if len(columns) > MAX_COLUMNS:
            raise ConfigError(f"{found.name} holds more than {MAX_COLUMNS} agents and looks.", "Give a part of them.")
    order = sorted(columns, key=lambda key: key[0])
    return {column(agent, look): columns[look, agent] for look, agent in order}


def _labels(found: AnswerRows, cases: Iterable[str]) -> tuple[str, ...]:
    unknown = list(islice((case for case in cases if case not in found.truth), 3))
    if unknown:
        raise ConfigError(
            f"{found.name} does not say the true label of {', '.join(map(repr, unknown))}.",
            "Give it in a column truth, or in a row of the agent truth; leave out cases whose truth is unknown.",
        )
    labels = tuple(sorted({found.truth[case] for case in cases}))
    if not 2 <= len(labels) <= MAX_LABELS:
        raise ConfigError(
            f"{found.name} holds {len(labels)} true label{'s' * (len(labels) != 1)}: {', '.join(labels[:3])}.",
            f"Give answers about cases of 2 to {MAX_LABELS} labels.",
        )
    return labels


def _outcomes(
    rows: Mapping[str, AnswerRow], cases: Iterable[str], index: Mapping[str, int], notes: list[str]
) -> list[Outcome]:
    """One column's outcomes, all of one scale; what is no answer becomes a failure and a note."""
    one = next(iter(rows.values()))
    name = column(one.agent, one.look)
    given = [row for row in rows.values() if row.label or row.probs]
    whole = [row for row in given if row.probs]
    scale: Scale = "stated"
    if given and len(whole) == len(given):
        scale = "vote" if kind_of(one) == "vote" else "probability"
    elif whole:
        notes.append(
            f"{name} gives a distribution for {len(whole)} of {len(given)} answers; its label and confidence count."
        )
    spoken = np.array([row.confidence for row in given if row.confidence is not None])
    if scale == "stated" and (constant := degenerate(spoken, 1)):
        notes.append(f"{name} {constant}, which tells nothing beyond its label.")
    failed: Counter[str] = Counter()
    outcomes: list[Outcome] = []
    for case in cases:
        row = rows.get(case)
        said = "no answer is recorded" if row is None else _said(row, index, scale)
        if isinstance(said, str):
            failed[said] += 1
            outcomes.append(Failure(agent=one.agent, look=one.look, error=said))
        else:
            outcomes.append(said)
    notes.extend(f"{name}: {n} of {len(outcomes)} cases failed: {why}." for why, n in failed.most_common(3))
    return outcomes


def _said(row: AnswerRow, index: Mapping[str, int], scale: Scale) -> Prediction | str:
    """Turn a row into a prediction; or say in words why there is none."""
    if not row.label and not row.probs:
        return "it gave no label"
    shares = _shares(row.probs, index) if row.probs else None
    if isinstance(shares, str):
        return shares
    if row.label and row.label not in index:
        return f"it said {row.label[:40]!r}, which is no label here"
    label = index[row.label] if row.label else int(np.argmax(shares)) if shares is not None else 0
    if shares is not None and shares[label] < shares.max():
        raise ConfigError(
            f"line {row.line}: {row.agent!r} says {row.label!r}, which is not the label of its highest share.",
            "Give the label with the highest share, or no label.",
        )
    if shares is not None and scale != "stated":
        shares[label] += NUDGE * (int(np.argmax(shares)) != label)
        scores = tuple((shares / shares.sum()).tolist())
        return Prediction(agent=row.agent, look=row.look, scale=scale, scores=scores)
    confidence = row.confidence if row.confidence is not None or shares is None else float(shares[label])
    return stated(row.agent, row.look, label, confidence, len(index))


def _shares(probs: Probs, index: Mapping[str, int]) -> Floats | str:
    """Shares of shape (K,); in words what is wrong where one belongs to no label."""
    if not isinstance(probs, dict):
        if len(probs) != len(index):
            return f"it gave {len(probs)} shares for {len(index)} labels"
        return np.array([share / sum(probs) for share in probs])
    foreign = [label for label, share in probs.items() if share > 0 and label not in index]
    if foreign:
        return f"it gave a share to {foreign[0][:40]!r}, which is no label here"
    shares = np.zeros(len(index))
    for label, share in probs.items():
        if label in index:
            shares[index[label]] = share
    return np.asarray(shares / shares.sum())


def kind_of(row: AnswerRow) -> Kind:
    """Guess what gave an answer where the row does not say: a vote by its name, a VLM otherwise."""
    guess: Kind = "vote" if row.agent.lower().startswith(VOTES) else "vlm"
    return row.kind or ("llm" if row.agent == PUBLISHED else guess)


def _given(rows: Mapping[str, AnswerRow], cases: Iterable[str], index: Mapping[str, int]) -> NDArray[np.intp]:
    """Label indices of shape (N,), -1 where there is no label."""
    return np.array([index.get(rows[case].label, -1) if case in rows else -1 for case in cases], dtype=np.intp)


def _spent(rows: Mapping[str, AnswerRow], cases: Iterable[str]) -> Spent:
    kind = kind_of(next(iter(rows.values())))
    given = [rows.get(case) for case in cases]

    def amounts(values: Callable[[AnswerRow], float | None], unknown: float, unasked: float = 0.0) -> Floats:
        found = [unasked if row is None else values(row) for row in given]
        return np.array([unknown if amount is None else amount for amount in found])

    return Spent(
        kind,
        calls=amounts(lambda row: row.calls, CALLS[kind], CALLS[kind]),
        seconds=amounts(lambda row: row.seconds, float("nan")),
        usd=amounts(lambda row: row.usd, float("nan")),
    )


def labels_said(outcomes: Sequence[Outcome]) -> NDArray[np.intp]:
    """Return the label indices that were said, of shape (N,), -1 for a failure."""
    return np.array([-1 if isinstance(outcome, Failure) else outcome.top for outcome in outcomes], dtype=np.intp)
