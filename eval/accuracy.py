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
    return recalls_in(confusion(labels, truth, k))


def balanced_accuracy(labels: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Mean recall of the labels that occur; nan of no case.

    Examples
    --------
    >>> balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 1], k=2)
    0.5
    """
    return float(mean_of_known(recalls(labels, truth, k)))


def f1_scores(labels: ArrayLike, truth: ArrayLike, k: int) -> Floats:
    """F1 of each label, shape (K,): 2 right / (given + true); nan for a label neither given nor true."""
    return f1_in(confusion(labels, truth, k))


def macro_f1(labels: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Mean F1 of the labels that are given or true; nan of no case."""
    return float(mean_of_known(f1_scores(labels, truth, k)))


def recalls_in(tables: ArrayLike) -> Floats:
    """Recall of each label in tables such as `confusion` counts, shape (..., K, K + 1) to (..., K)."""
    counts = np.asarray(tables, dtype=np.float64)
    n = counts.sum(axis=-1)
    return _diagonals(counts) / np.where(n > 0, n, np.nan)


def f1_in(tables: ArrayLike) -> Floats:
    """F1 of each label in tables such as `confusion` counts, shape (..., K, K + 1) to (..., K)."""
    counts = np.asarray(tables, dtype=np.float64)
    touched = counts[..., :-1].sum(axis=-2) + counts.sum(axis=-1)
    return 2 * _diagonals(counts) / np.where(touched > 0, touched, np.nan)


def _diagonals(tables: Floats) -> Floats:
    return np.asarray(np.diagonal(tables, axis1=-2, axis2=-1))


def mean_of_known(values: Floats) -> Floats:
    """Mean over the last axis of what is not nan; nan where nothing is."""
    known = np.count_nonzero(~np.isnan(values), axis=-1)
    return np.asarray(np.nansum(values, axis=-1) / np.where(known > 0, known, np.nan))


def kappa(labels: ArrayLike, truth: ArrayLike, k: int, power: int = 2) -> float:
    """Cohen's kappa of labels that have an order: agreement beyond chance, near misses costing less than far ones.

    Parameters
    ----------
    labels : array_like of shape (N,)
        Places of the labels given in that order, -1 where there was no answer: that costs as much as the label
        farthest from the true one.
    truth : array_like of shape (N,)
        Places of the true labels.
    k : int
        How many labels there are.
    power : int
        A miss by d places costs ``d ** power``: 2 for the quadratic weights that are usual, 1 for linear ones, 0 for
        the kappa of labels without an order.

    Returns
    -------
    float
        At most 1; 0 for what chance would reach; nan where chance cannot miss, or of no case.

    References
    ----------
    Cohen, Weighted kappa, 1968, https://doi.org/10.1037/h0026256

    Examples
    --------
    >>> kappa([0, 1, 2, 2], [0, 1, 2, 1], k=3)
    0.8
    """
    if power < 0:
        raise ValueError(f"power: expected 0 or more, got {power}")
    table = confusion(labels, truth, k)
    farthest = np.where(np.arange(k) < k / 2, k - 1, 0)
    answered = table[:, :k].astype(np.float64)
    np.add.at(answered, (np.arange(k), farthest), table[:, k])
    cost = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(np.float64)
    cost = np.where(cost > 0, cost**power, 0.0)
    # 1 - sum cost observed / sum cost expected, expected_ij = true_i given_j / n
    expected = answered.sum(axis=1) @ cost @ answered.sum(axis=0)
    return float(1 - (cost * answered).sum() * answered.sum() / expected) if expected > 0 else NAN


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
