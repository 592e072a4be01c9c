"""Folds for cross-fitting: no group on both sides, labels spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def grouped_folds(
    truth: NDArray[np.intp], groups: Sequence[str], rng: np.random.Generator, most: int = 5
) -> NDArray[np.intp] | None:
    """Assign each case to a fold.

    Parameters
    ----------
    truth : ndarray of shape (N,)
        Label indices.
    groups : sequence of str
        N group names.
    rng : numpy.random.Generator
        Shuffles.
    most : int
        Largest number of folds; fewer where a label has fewer groups.

    Returns
    -------
    ndarray of shape (N,) or None
        Fold of each case; None where a label has only one group, so that no fold can be made.

    Examples
    --------
    >>> folds = grouped_folds(np.array([0, 0, 0, 1, 1, 1]), list("abcdef"), np.random.default_rng(0))
    >>> sorted(folds[:3].tolist()), sorted(folds[3:].tolist())
    ([0, 1, 2], [0, 1, 2])
    """
    if len(set(groups)) == len(groups):
        return _dealt(truth, rng, most)
    from sklearn.model_selection import StratifiedGroupKFold

    names = np.asarray(groups)
    fewest = min(len(np.unique(names[truth == label])) for label in np.unique(truth))
    if fewest < 2:
        return None
    splitter = StratifiedGroupKFold(min(most, fewest), shuffle=True, random_state=int(rng.integers(2**31)))
    folds = np.zeros(len(truth), dtype=np.intp)
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(truth)), truth, names)):
        folds[held_out] = number
    return folds


def _dealt(truth: NDArray[np.intp], rng: np.random.Generator, most: int) -> NDArray[np.intp] | None:
    """Shuffle each label's cases and deal them like cards: a hundred times as fast where no cases share a group."""
    count = np.bincount(truth)
    number = min(most, int(count[count > 0].min()))
    if number < 2:
        return None
    # Label after label, each shuffled: the next card always goes to the next fold, so all folds are of one size.
    order = np.lexsort((rng.random(len(truth)), truth))
    folds = np.empty(len(truth), dtype=np.intp)
    folds[order] = np.arange(len(truth)) % number
    return folds
