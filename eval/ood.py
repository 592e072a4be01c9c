"""How well a stranger score tells strangers (outside the task) from the task's own images (inside).

Every score here grows with strangeness. All functions are O(n log n) and return nan where either side is empty.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from secondlook.eval.arrays import vector

NAN = float("nan")


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Chance that a stranger scores above one of the task's own images, ties counting half.

    Parameters
    ----------
    inside, outside : array_like of shape (N,) and (N',)
        Stranger scores of both kinds of images.

    Returns
    -------
    float
        0 to 1; .5 for a score that knows nothing; nan where either side is empty.

    Examples
    --------
    >>> auroc(inside=[0.1, 0.2, 0.3], outside=[0.3, 0.9])
    0.9166666666666666
    """
    low, high = vector("inside", inside), vector("outside", outside)
    if not len(low) or not len(high):
        return NAN
    ranks = rankdata(np.concatenate([low, high]))[len(low) :]
    # Mann-Whitney: (sum of the strangers' ranks - the least it can be) / number of pairs
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))


def fpr_at_recall(inside: ArrayLike, outside: ArrayLike, recall: float = 0.95) -> float:
    """Share of strangers let in by the strictest threshold that lets in `recall` of the task's own images.

    Parameters
    ----------
    inside, outside : array_like of shape (N,) and (N',)
        Stranger scores of both kinds of images.
    recall : float
        Share of the own images to let in, above 0 up to 1; the first threshold that reaches it is taken.

    Returns
    -------
    float
        FPR95 at the default recall: 0 to 1, lower is better; nan where either side is empty.

    Examples
    --------
    >>> fpr_at_recall(inside=[0.1, 0.2, 0.3, 0.4], outside=[0.25, 0.3, 0.9, 0.9], recall=0.75)
    0.5
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall: expected above 0 up to 1, got {recall}")
    low, high = vector("inside", inside), vector("outside", outside)
    if not len(low) or not len(high):
        return NAN
    # The slack keeps .55 * 100 = 55.00000000000001 from asking for a 56th image.
    needed = max(1, math.ceil(recall * len(low) - 1e-9))
    threshold = np.partition(low, needed - 1)[needed - 1]
    return float(np.mean(high <= threshold))


def aupr(inside: ArrayLike, outside: ArrayLike) -> float:
    """Average precision of finding the strangers: sum over thresholds of (recall step) x precision.

    It depends on the mixture: its value for a score that knows nothing is the share of strangers. For the precision
    of finding the task's own images, negate and swap: ``aupr(-outside, -inside)``.

    Parameters
    ----------
    inside, outside : array_like of shape (N,) and (N',)
        Stranger scores of both kinds of images; equal scores are found together.

    Returns
    -------
    float
        0 to 1; nan where either side is empty.

    Examples
    --------
    >>> round(aupr(inside=[0.1, 0.8], outside=[0.9, 0.2]), 4)
    0.8333
    """
    low, high = vector("inside", inside), vector("outside", outside)
    if not len(low) or not len(high):
        return NAN
    scores = np.concatenate([low, high])
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(order >= len(low))
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision, recall = found[ends] / (ends + 1), found[ends] / len(high)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
