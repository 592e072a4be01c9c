"""How often a label is right, over all cases and label by label. A missing answer (-1) is wrong, never left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from secondlook.eval.arrays import Floats, Ints, indices, mean

NAN = float("nan")


def confusion(labels: ArrayLike, truth: ArrayLike, k: int) -> Ints:
    """Count the cases of each true label by what they were called.

    Parameters
    ----------
    labels : array_like of shape (N,)
        Indices of the labels given, -1 where there was no answer.
    truth : array_like of shape (N,)
        Indices of the true labels.
    k : int
        How many labels there are.

    Returns
    -------
    ndarray of shape (K, K + 1)
        Rows are true labels, columns given ones; the last column counts the missing answers.

    Examples
    --------
    >>> confusion([0, 1, -1], [0, 0, 1], k=2).tolist()
    [[1, 1, 0], [0, 0, 1]]
    """
    said = indices("labels", labels, None, k, low=-1)
    y = indices("truth", truth, len(said), k)
    return np.bincount(y * (k + 1) + np.where(said < 0, k, said), minlength=k * (k + 1)).reshape(k, k + 1)


def accuracy(labels: ArrayLike, truth: ArrayLike) -> float:
    """Share of cases called by their true label; nan of no case."""
    said, y = np.asarray(labels), np.asarray(truth)
    if said.ndim != 1 or said.shape != y.shape:
        raise ValueError(f"labels, truth: expected [N] both, got {said.shape} and {y.shape}")
    return mean(said == y)


def recalls(labels: ArrayLike, truth: ArrayLike, k: int) -> Floats:
    """Share found of each label's cases, shape (K,); nan for a label without cases."""
    table = confusion(labels, truth, k)
    n = table.sum(axis=1)
    return np.diag(table) / np.where(n > 0, n, np.nan)


def balanced_accuracy(labels: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Mean recall of the labels that occur; nan of no case.

    Examples
    --------
    >>> balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 1], k=2)
    0.5
    """
    found = recalls(labels, truth, k)
    return mean(found[~np.isnan(found)])


def f1_scores(labels: ArrayLike, truth: ArrayLike, k: int) -> Floats:
    """F1 of each label, shape (K,): 2 right / (given + true); nan for a label neither given nor true."""
    table = confusion(labels, truth, k)
    touched = table[:, :k].sum(axis=0) + table.sum(axis=1)
    return 2 * np.diag(table) / np.where(touched > 0, touched, np.nan)


def macro_f1(labels: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Mean F1 of the labels that are given or true; nan of no case."""
    scores = f1_scores(labels, truth, k)
    return mean(scores[~np.isnan(scores)])


def matthews(labels: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Matthews correlation of labels and truth over K labels, -1 to 1; nan where either is constant.

    Missing answers count as one more label.
    """
    table = confusion(labels, truth, k).astype(np.float64)
    n, right = table.sum(), np.trace(table)
    true, given = np.append(table.sum(axis=1), 0.0), table.sum(axis=0)
    # (n right - sum_k true_k given_k) / sqrt((n^2 - sum given_k^2) (n^2 - sum true_k^2))
    spread = (n * n - given @ given) * (n * n - true @ true)
    return float((n * right - true @ given) / np.sqrt(spread)) if spread > 0 else NAN
