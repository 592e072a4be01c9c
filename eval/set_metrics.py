"""Do prediction sets hold the truth as often as they promise, and how large are they for it.

A set is a row of booleans over the K labels. Every figure of no case is nan, with its n beside it.

References
----------
- Angelopoulos and Bates, A Gentle Introduction to Conformal Prediction, 2021, https://arxiv.org/abs/2107.07511
- Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers, 2019, https://arxiv.org/abs/1609.00451
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from secondlook.eval.arrays import Bools, Floats, Ints, indices, mean


class Strata(NamedTuple):
    """Coverage of the cases taken apart; arrays of one length."""

    value: Ints
    """What they were taken apart by: the true label's index, or the size of the set."""
    n: Ints
    coverage: Floats
    """Share of sets that hold the truth; nan where n is 0."""

    @property
    def least(self) -> float:
        """The worst coverage of any stratum that has cases; nan where none has."""
        known = self.coverage[self.n > 0]
        return float(known.min()) if len(known) else float("nan")


def set_coverage(members: ArrayLike, truth: ArrayLike) -> float:
    """Share of the sets that hold the truth.

    Parameters
    ----------
    members : array_like of shape (N, K)
        Booleans: which labels are in each case's set.
    truth : array_like of shape (N,)
        Indices of the true labels.

    Returns
    -------
    float
        0 to 1; 1 - alpha is what conformal sets promise, as a mean over draws of calibration and test cases.

    Examples
    --------
    >>> set_coverage([[True, True, False], [False, True, False]], [0, 0])
    0.5
    """
    return mean(covered(*checked_sets(members, truth)))


def set_size(members: ArrayLike) -> float:
    """Mean number of labels in a set.

    Examples
    --------
    >>> set_size([[True, True, False], [False, True, False]])
    1.5
    """
    return mean(checked_members(members).sum(axis=1))


def coverage_by_label(members: ArrayLike, truth: ArrayLike) -> Strata:
    """Coverage of each true label's cases, K strata; parameters as for `set_coverage`.

    Sets may cover nine in ten overall and miss a rare label every time; here it shows.

    Examples
    --------
    >>> coverage_by_label([[True, False], [True, False], [True, True]], [0, 1, 0]).coverage.tolist()
    [1.0, 0.0]
    """
    sets, y = checked_sets(members, truth)
    return _strata(y, covered(sets, y), np.arange(sets.shape[1]))


def coverage_by_size(members: ArrayLike, truth: ArrayLike) -> Strata:
    """Coverage of the sets of each size that occurs, smallest first; parameters as for `set_coverage`.

    Where large sets cover more than small ones, doubt is measured but not fully spoken out.

    Examples
    --------
    >>> strata = coverage_by_size([[True, False], [True, False], [True, True]], [0, 1, 0])
    >>> strata.value.tolist(), strata.n.tolist(), strata.coverage.tolist()
    ([1, 2], [2, 1], [0.5, 1.0])
    """
    sets, y = checked_sets(members, truth)
    size = sets.sum(axis=1)
    return _strata(size, covered(sets, y), np.unique(size))


def checked_members(members: ArrayLike) -> Bools:
    """Check N sets over K labels, given as booleans or as zeros and ones, shape (N, K)."""
    array = np.asarray(members)
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"members: expected [N, K], got {array.shape}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise ValueError("members: expected booleans or zeros and ones, got other numbers")
    return array.astype(np.bool_)


def checked_sets(members: ArrayLike, truth: ArrayLike) -> tuple[Bools, Ints]:
    """Check N sets and the N true labels."""
    sets = checked_members(members)
    return sets, indices("truth", truth, *sets.shape)


def covered(sets: Bools, y: Ints) -> Bools:
    """Which of N sets hold the truth."""
    return np.asarray(sets[np.arange(len(y)), y])


def _strata(place: Ints, held: Bools, values: Ints) -> Strata:
    n = np.array([np.count_nonzero(place == value) for value in values], dtype=np.int64)
    hit = np.array([np.count_nonzero(held[place == value]) for value in values])
    return Strata(values, n, hit / np.where(n > 0, n, np.nan))
