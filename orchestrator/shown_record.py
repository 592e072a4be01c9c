"""The track record of an agent as a judge is shown it, and who may be shown which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.case import Case, Frozen, MaybeNan

Mask = NDArray[np.bool_]


class ShownRecord(Frozen):
    """How an agent did on cases of known truth, by the confidences it gave itself; nan where undefined.

    References
    ----------
    Ece, overconfidence and ccc are the three measures of trust of https://arxiv.org/abs/2507.10571.
    """

    agent: str
    look: int = 1
    n: Annotated[int, Field(ge=0)]
    """Cases of known truth that it answered."""
    accuracy: MaybeNan = float("nan")
    ece: MaybeNan = float("nan")
    """Expected calibration error, 0 to 1."""
    overconfidence: MaybeNan = float("nan")
    """OCR: share of the cases that it got wrong with high confidence, 0 to 1."""
    ccc: MaybeNan = float("nan")
    """Correlation of its confidence with its being right, -1 to 1."""


Shown = Callable[[Case], Sequence[ShownRecord]]
"""Which records a judge of a case is shown."""


def records_by_fold(
    cases: Sequence[Case], folds: NDArray[np.intp] | None, measure: Callable[[Mask], Sequence[ShownRecord]]
) -> Shown:
    """Measure records so that the judge of a case is never shown one in which that case was counted.

    Parameters
    ----------
    cases : sequence of Case
        N cases of known truth, told apart by id.
    folds : ndarray of shape (N,) or None
        Fold of each; None where nothing can be held out: records are then of all N, those cases included.
    measure : callable
        Of a mask of shape (N,): the records of all agents on those cases. Called once a fold, and once for all.

    Returns
    -------
    callable
        Of one of these cases, by its id: what was measured on the other folds; of any other case: on all N.

    Raises
    ------
    ValueError
        When two cases have one id, or the number of folds is another.

    Examples
    --------
    >>> from secondlook.agents.photo import Photo
    >>> a, b, new = (Case(id=name, photo=Photo.of(b"")) for name in ("a", "b", "new"))
    >>> shown = records_by_fold([a, b], np.array([0, 1]), lambda m: [ShownRecord(agent="eye", n=int(m.sum()))])
    >>> [shown(case)[0].n for case in (a, b, new)]
    [1, 1, 2]
    """
    position = {case.id: i for i, case in enumerate(cases)}
    if len(position) != len(cases) or (folds is not None and folds.shape != (len(cases),)):
        found = f"{len(position)} of {len(cases)} and {None if folds is None else folds.shape}"
        raise ValueError(f"cases, folds: expected N different ids and [N] or None, got {found}")
    whole = tuple(measure(np.ones(len(cases), dtype=np.bool_)))
    if folds is None:
        return lambda case: whole
    others = {fold: tuple(measure(folds != fold)) for fold in np.unique(folds).tolist()}
    by_id = {name: others[folds[i].item()] for name, i in position.items()}
    return lambda case: by_id.get(case.id, whole)
