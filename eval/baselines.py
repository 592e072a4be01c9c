"""What is always shown beside the system: the same outcomes, put together in the plainest ways."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from secondlook.eval.arrays import Bools, Floats, Ints, indices, mean, simplexes

NO_ANSWER = -1
"""The label of a case for which a baseline has no outcome to go by; always counted as wrong."""


def checked_panel(probs: ArrayLike) -> tuple[Floats, Bools]:
    """Check the calibrated distributions of a panel.

    Parameters
    ----------
    probs : array_like of shape (M, N, K)
        nan all along K where an agent failed.

    Returns
    -------
    probs : ndarray of shape (M, N, K)
        With zeros where an agent failed.
    answered : ndarray of bool, shape (M, N)
        Where it did not.
    """
    array = np.asarray(probs, dtype=np.float64)
    if array.ndim != 3 or array.shape[0] < 1 or array.shape[2] < 2:
        raise ValueError(f"probs: expected [M >= 1, N, K >= 2], got {array.shape}")
    holes = np.isnan(array)
    answered: Bools = np.logical_not(holes.any(axis=2))
    if not np.array_equal(holes.all(axis=2), ~answered):
        raise ValueError("probs: a failed agent's row is nan in every label, found rows that are nan in some")
    filled = np.zeros_like(array)
    filled[answered] = simplexes("probs", array[answered])
    return filled, answered


def accuracies(probs: ArrayLike, truth: ArrayLike) -> Floats:
    """Accuracy of each agent over all N cases, a failure counting as wrong.

    Parameters
    ----------
    probs : array_like of shape (M, N, K)
        As for `checked_panel`.
    truth : array_like of shape (N,)
        Indices of the true labels.

    Returns
    -------
    ndarray of shape (M,)
        nan where N is 0.
    """
    panel, answered = checked_panel(probs)
    y = indices("truth", truth, *panel.shape[1:])
    return np.array([mean(row) for row in _tops(panel, answered) == y])


def baselines(probs: ArrayLike, truth: ArrayLike, best: int) -> dict[str, Ints]:
    """Decide every case in each of the plainest ways.

    Ties go to the higher mean probability, then to the first label.

    Parameters
    ----------
    probs : array_like of shape (M, N, K)
        Calibrated distributions of M agents; nan all along K where an agent failed.
    truth : array_like of shape (N,)
        Indices of the true labels; only `best_in_hindsight` and `oracle` look at them.
    best : int
        Index of the agent that was best on held-out cases.

    Returns
    -------
    dict of str to ndarray of shape (N,)
        Label indices, `NO_ANSWER` where there was no outcome to go by:

        - ``best_agent``: what agent `best` says
        - ``best_in_hindsight``: what the agent with the highest accuracy on these cases says; optimistic
        - ``majority``: the label most agents put first
        - ``mean``: the highest mean probability
        - ``confidence_weighted``: votes weighted by each agent's own top probability
        - ``oracle``: the truth where any agent puts it first, else ``majority``; what a perfect choice would reach

    Examples
    --------
    >>> probs = [[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]]
    >>> {name: int(label[0]) for name, label in baselines(probs, [1], best=0).items()}
    {'best_agent': 0, 'best_in_hindsight': 1, 'majority': 1, 'mean': 0, 'confidence_weighted': 1, 'oracle': 1}
    """
    panel, answered = checked_panel(probs)
    agents, n, k = panel.shape
    y = indices("truth", truth, n, k)
    if not 0 <= best < agents:
        raise ValueError(f"best: expected 0 to {agents - 1}, got {best}")
    tops = _tops(panel, answered)
    said = (tops[..., None] == np.arange(k)) & answered[..., None]
    total = panel.sum(axis=0)
    majority = _decide(said.sum(axis=0), total, answered)
    return {
        "best_agent": tops[best],
        "best_in_hindsight": tops[int(np.argmax((tops == y).sum(axis=1)))],
        "majority": majority,
        "mean": _decide(total, total, answered),
        "confidence_weighted": _decide((said * panel).sum(axis=0), total, answered),
        "oracle": np.where((tops == y).any(axis=0), y, majority),
    }


def _tops(panel: Floats, answered: Bools) -> Ints:
    """Return each agent's label, shape (M, N)."""
    return np.where(answered, panel.argmax(axis=2), NO_ANSWER)


def _decide(score: Floats | Ints, tie: Floats, answered: Bools) -> Ints:
    """Return the label of the highest score [N, K], ties by `tie` [N, K]."""
    leading = score >= score.max(axis=1, keepdims=True) - 1e-12
    return np.where(answered.any(axis=0), np.where(leading, tie, -1.0).argmax(axis=1), NO_ANSWER)
