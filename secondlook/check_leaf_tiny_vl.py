"""How good leaf-tiny-vl is: by label likelihoods, by letters, by what it writes, at both looks."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt

from secondlook.agents.case import Case, Evidence, Neighbour, Statement, Task
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Outcome
from secondlook.agents.qwen_vl import QwenBelief, QwenSpec, QwenVl
from secondlook.check_leaf_tiny import LeafTiny, balanced_accuracy
from secondlook.eval.reliability import ece
from secondlook.leaf_dialogues import VlTexts
from secondlook.leaf_pool import read_split
from secondlook.leaves import LABELS

NEIGHBOURS = 10
NAME = "leaf-tiny-vl"


def apple_task() -> Task:
    """Return the task of the four labels with their usual descriptions.

    Examples
    --------
    >>> apple_task().phrases_of("scab")
    ('an apple leaf with apple scab',)
    """
    return Task(labels=LABELS, phrases={label: (text,) for label, text in VlTexts.load().plain.items()})


def read_cases(root: Path, split: str) -> tuple[list[Case], npt.NDArray[np.intp]]:
    """Read the photographs of a split as cases, with their truths."""
    with (root / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    cases = [Case(id=row["path"], photo=Photo.of(root / row["path"]), group=row["group"]) for row in rows]
    return cases, np.array([LABELS.index(row["label"]) for row in rows])


def ask(folder: Path, cases: Sequence[Case], belief: QwenBelief) -> list[Outcome]:
    """Ask the model about cases."""
    spec = QwenSpec(name=NAME, model=str(folder), belief=belief, batch_size=16)
    return anyio.run(QwenVl(spec, apple_task(), "cpu").predict, cases)


def figures(outcomes: Sequence[Outcome], truths: npt.NDArray[np.intp]) -> dict[str, Any]:
    """Return accuracy, recalls, mean confidence and ECE; a failure is an error."""
    rows = np.zeros((len(outcomes), len(LABELS)))
    failures = 0
    for row, said in zip(rows, outcomes, strict=True):
        if isinstance(said, Failure):
            failures += 1
            continue
        row[:] = said.scores
        if said.scale == "logit":
            row[:] = np.exp(row - row.max())
            row /= row.sum()
    answered = rows.max(axis=1) > 0
    said_labels = np.where(answered, rows.argmax(axis=1), -1)
    correct = said_labels == truths
    return {
        "n": len(truths),
        "failures": failures,
        "accuracy": round(float(correct.mean()), 4),
        "balanced accuracy": round(balanced_accuracy(said_labels, truths), 4),
        "recall": {label: round(float(correct[truths == k].mean()), 3) for k, label in enumerate(LABELS)},
        "mean confidence": round(float(rows.max(axis=1).mean()), 4),
        "ECE, 15 bins": round(float(ece(rows.max(axis=1), correct)), 4),
    }


def second_look(root: Path, split: str, cases: Sequence[Case], first: Sequence[Outcome], tiny: LeafTiny) -> list[Case]:
    """Give cases their nearest training photographs, by the embeddings of leaf-tiny, and their own first answer."""
    index, own = read_split(root, "train", 256), read_split(root, split, 256)
    similarity = tiny.embed(own.images) @ tiny.embed(index.images).T
    found = []
    for case, row, said in zip(cases, similarity, first, strict=True):
        nearest = np.argsort(-row)[:NEIGHBOURS]
        evidence = Evidence(
            neighbours=tuple(
                Neighbour(id=str(i), label=LABELS[index.classes[i]], similarity=float(row[i])) for i in nearest
            )
        )
        heard: tuple[Statement, ...] = ()
        if not isinstance(said, Failure):
            shares = np.exp(np.array(said.scores) - max(said.scores))
            sure = float(shares.max() / shares.sum())
            heard = (Statement(agent=NAME, look=1, label=LABELS[said.top], confidence=sure),)
        found.append(case.model_copy(update={"evidence": evidence, "heard": heard}))
    return found


def check(root: Path, folder: Path, split: str, teacher: Path | None, most: int | None = None) -> dict[str, Any]:
    """Measure the folder on a split.

    Parameters
    ----------
    root : Path
        Holds `index.csv`.
    folder : Path
        The model.
    split : str
    teacher : Path, optional
        Folder of leaf-tiny, whose embeddings find the neighbours of second looks; none are taken without it.
    most : int, optional
        So many photographs of the split, evenly chosen; all by default.
    """
    cases, truths = read_cases(root, split)
    chosen = np.arange(len(cases))
    if most is not None and most < len(cases):
        chosen = np.linspace(0, len(cases) - 1, most).round().astype(np.intp)
    asked, truths = [cases[i] for i in chosen], truths[chosen]
    begin = time.monotonic()
    first = ask(folder, asked, "likelihood")
    found: dict[str, Any] = {"split": split, "likelihood": figures(first, truths)}
    found["seconds per picture"] = round((time.monotonic() - begin) / len(asked), 3)
    found["letters"] = figures(ask(folder, asked, "letters"), truths)
    found["stated"] = figures(ask(folder, asked, "stated"), truths)
    if teacher is not None and most is None:
        again = second_look(root, split, asked, first, LeafTiny.load(teacher))
        votes = [max(LABELS, key=[n.label for n in case.evidence.neighbours].count) for case in again if case.evidence]
        found["neighbours, majority"] = round(float(np.mean(np.array(votes) == np.array(LABELS)[truths])), 4)
        found["second look, likelihood"] = figures(ask(folder, again, "likelihood"), truths)
    return found
