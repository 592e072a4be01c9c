"""Does a probability mean what it says: ECE and its kin, OCR and CCC.

`confidence` is always the calibrated probability of the top label and `correct` whether that label is right. Every
metric is O(N log N) at most: 100,000 cases take well under a second. Every metric of no case is nan.

References
----------
- Guo et al., On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599
- Nixon et al., Measuring Calibration in Deep Learning, 2019, https://arxiv.org/abs/1904.01685
- Kull et al., Beyond temperature scaling, 2019, https://arxiv.org/abs/1910.12656
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from secondlook.eval.arrays import Floats, Ints, flags, indices, mean, shares, simplexes
from secondlook.eval.bins import Scheme, bin_edges, place_between
from secondlook.eval.ood import auroc


class Bins(NamedTuple):
    """A reliability diagram: B bins (lo, hi], the first one holding its lower edge too; arrays of shape (B,)."""

    lo: Floats
    hi: Floats
    n: Ints
    confidence: Floats
    """Mean confidence; nan in an empty bin."""
    accuracy: Floats
    """Share correct; nan in an empty bin."""


def reliability_bins(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, scheme: Scheme = "width") -> Bins:
    """Group cases by confidence.

    Parameters
    ----------
    confidence : array_like of shape (N,)
        0 to 1.
    correct : array_like of shape (N,)
        Booleans.
    bins : int
        How many; equal-mass bins may come out fewer, where confidences tie.
    scheme : {"width", "mass"}
        See `secondlook.eval.bins.Scheme`.

    Returns
    -------
    Bins
        Lowest confidence first.

    Examples
    --------
    >>> reliability_bins([0.2, 0.5, 0.9], [False, True, True], bins=2).n.tolist()
    [2, 1]
    """
    conf = shares("confidence", confidence)
    right = flags("correct", correct, len(conf))
    edges = bin_edges(conf, bins, scheme)
    place = place_between(edges, conf)
    n = np.bincount(place, minlength=len(edges) - 1)
    held = np.where(n > 0, n, np.nan)
    return Bins(
        edges[:-1],
        edges[1:],
        n,
        np.bincount(place, conf, minlength=len(n)) / held,
        np.bincount(place, right, minlength=len(n)) / held,
    )


def _gaps(table: Bins) -> tuple[Floats, Floats]:
    """Return the weight n_b / N and the gap |accuracy - confidence| of the bins that hold cases."""
    held = table.n > 0
    weight = table.n[held] / table.n.sum()
    return weight, np.abs(table.accuracy[held] - table.confidence[held])


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, scheme: Scheme = "width") -> float:
    """Return the expected calibration error: the mean gap between confidence and accuracy over the bins.

    Its expectation for a perfectly calibrated agent is above 0, the more so the fewer cases a bin holds.

    Parameters
    ----------
    confidence, correct, bins, scheme
        As for `reliability_bins`.

    Returns
    -------
    float
        0 to 1, lower is better.

    Examples
    --------
    >>> round(ece([0.9, 0.9, 0.9, 0.9], [True, True, True, False]), 3)
    0.15
    """
    table = reliability_bins(confidence, correct, bins, scheme)
    # sum_b n_b / N |acc(b) - conf(b)|
    weight, gap = _gaps(table)
    return float(weight @ gap) if len(gap) else float("nan")


def mce(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, scheme: Scheme = "width") -> float:
    """Return the maximum calibration error: the widest gap of any bin that holds a case; parameters as for `ece`."""
    _, gap = _gaps(reliability_bins(confidence, correct, bins, scheme))
    return float(gap.max()) if len(gap) else float("nan")


def class_wise_ece(probs: ArrayLike, truth: ArrayLike, bins: int = 15, scheme: Scheme = "width") -> float:
    """Mean over the K labels of the ECE of that label's own probability.

    Parameters
    ----------
    probs : array_like of shape (N, K)
        Distributions.
    truth : array_like of shape (N,)
        Indices of the true labels.
    bins, scheme
        As for `reliability_bins`.

    Returns
    -------
    float
        0 to 1, lower is better. Labels that are never true count too.
    """
    p = simplexes("probs", probs)
    y = indices("truth", truth, *p.shape)
    return float(np.mean([ece(p[:, k], y == k, bins, scheme) for k in range(p.shape[1])]))


def ocr(confidence: ArrayLike, correct: ArrayLike, tau: float = 0.8) -> float:
    """Overconfidence ratio: share of all cases that are wrong with a confidence of at least `tau`.

    Examples
    --------
    >>> ocr([0.9, 0.8, 0.7, 0.95], [False, False, False, True])
    0.5
    """
    conf = shares("confidence", confidence)
    return mean(~flags("correct", correct, len(conf)) & (conf >= tau))


def ccc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Confidence-correctness correlation: Pearson's r; nan where either is constant, or below two cases.

    Examples
    --------
    >>> round(ccc([0.9, 0.8, 0.3, 0.4], [True, True, False, False]), 3)
    0.981
    >>> ccc([0.95, 0.95, 0.95], [True, False, True])
    nan
    """
    conf = shares("confidence", confidence)
    right = flags("correct", correct, len(conf))
    # Ranges, not deviations, tell a constant: the mean of many .95 is not always .95.
    if len(conf) < 2 or np.ptp(conf) == 0 or right.all() or not right.any():
        return float("nan")
    # Stretched over [0, 1] first, which changes no correlation: squares of tiny spreads would vanish.
    return float(np.corrcoef((conf - conf.min()) / np.ptp(conf), right)[0, 1])


def auroc_of_confidence(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Chance that a right answer has more confidence than a wrong one; nan where all are right or all wrong."""
    conf = shares("confidence", confidence)
    right = flags("correct", correct, len(conf))
    return auroc(conf[~right], conf[right])


def direction(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean confidence minus accuracy: above 0 overconfident, below 0 underconfident.

    Examples
    --------
    >>> round(direction([0.9, 0.9], [True, False]), 3)
    0.4
    """
    conf = shares("confidence", confidence)
    return mean(conf) - mean(flags("correct", correct, len(conf)))
