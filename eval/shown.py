"""The records that a judge is shown, measured on held-out answers in the agents' own words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.prediction import Outcome
from secondlook.eval.reliability import ccc, ece, ocr
from secondlook.orchestrator.shown_record import Mask, ShownRecord
from secondlook.orchestrator.statements import statements


def shown_records(
    outcomes: Mapping[str, Sequence[Outcome]], truth: NDArray[np.intp], labels: Sequence[str]
) -> Callable[[Mask], tuple[ShownRecord, ...]]:
    """Prepare to measure what agents said of N cases, on any part of them.

    Parameters
    ----------
    outcomes : mapping of str to sequence of Outcome
        By column, N each, of one look.
    truth : ndarray of shape (N,)
    labels : sequence of str

    Returns
    -------
    callable
        Of a mask of shape (N,) to the records of all agents on those cases.
    """
    said = {name: statements(row, labels) for name, row in outcomes.items()}
    names = np.array(labels)[truth]
    right = {name: np.array([s.label == y for s, y in zip(row, names, strict=True)]) for name, row in said.items()}
    sure = {
        name: np.array([np.nan if s.label is None or s.confidence is None else s.confidence for s in row])
        for name, row in said.items()
    }

    def measure(mask: Mask) -> tuple[ShownRecord, ...]:
        found = []
        for name, row in said.items():
            inside = mask & ~np.isnan(sure[name])
            confidence, correct = sure[name][inside], right[name][inside]
            found.append(
                ShownRecord(
                    agent=row[0].agent,
                    look=row[0].look,
                    n=int(inside.sum()),
                    accuracy=float(correct.mean()) if len(correct) else float("nan"),
                    ece=ece(confidence, correct),
                    overconfidence=ocr(confidence, correct),
                    ccc=ccc(confidence, correct),
                )
            )
        return tuple(found)

    return measure
