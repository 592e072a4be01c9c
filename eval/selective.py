"""Answering only where trust is high: risk against coverage.

Cases of equal trust are accepted together, since no threshold can part them. What is computed here describes the
cases at hand; it promises nothing about new ones (that is what the gate's threshold is fitted for). Every function is
O(N log N); every figure of no case is nan.

References
----------
- Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017, https://arxiv.org/abs/1705.08500
- Geifman et al., Bias-Reduced Uncertainty Estimation (E-AURC), 2019, https://arxiv.org/abs/1805.08206
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from secondlook.eval.arrays import Floats, flags, vector

NAN = float("nan")


class Curve(NamedTuple):
    """One point per distinct trust, strictest first; arrays of shape (T,), empty where there is no case."""

    coverage: Floats
    """Share of cases with trust at or above the threshold; the last is 1."""
    risk: Floats
    """Share of those that are wrong; the last is the error rate of all cases."""
    threshold: Floats


def risk_coverage(trust: ArrayLike, correct: ArrayLike) -> Curve:
    """Walk the thresholds from the strictest to none.

    Parameters
    ----------
    trust : array_like of shape (N,)
        Any finite score, higher for what is rather believed.
    correct : array_like of shape (N,)
        Booleans.

    Returns
    -------
    Curve
        Coverage ascending.

    Examples
    --------
    >>> curve = risk_coverage([0.9, 0.9, 0.5, 0.1], [True, True, False, True])
    >>> curve.coverage.tolist(), curve.threshold.tolist()
    ([0.5, 0.75, 1.0], [0.9, 0.5, 0.1])
    >>> [round(r, 3) for r in curve.risk.tolist()]
    [0.0, 0.333, 0.25]
    """
    score = vector("trust", trust)
    right = flags("correct", correct, len(score))
    if not len(score):
        return Curve(score, score, score)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    accepted = ends + 1
    return Curve(accepted / len(score), np.cumsum(~right[order])[ends] / accepted, score[order][ends])


def aurc(trust: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean over cases of the risk at which each is first accepted.

    Parameters
    ----------
    trust, correct
        As for `risk_coverage`.

    Returns
    -------
    float
        0 to 1, lower is better; the error rate where all trusts are equal.

    Examples
    --------
    >>> round(aurc([0.9, 0.5, 0.1], [True, False, True]), 4)
    0.2778
    """
    curve = risk_coverage(trust, correct)
    # sum_t (coverage_t - coverage_{t-1}) risk_t
    return float(np.diff(curve.coverage, prepend=0.0) @ curve.risk) if len(curve.risk) else NAN


def best_aurc(correct: ArrayLike) -> float:
    """Least AURC any trust could reach with these answers: all right ones before all wrong ones."""
    right = flags("correct", correct)
    if not len(right):
        return NAN
    rank = np.arange(1, len(right) + 1)
    return float(np.mean(np.maximum(0, rank - right.sum()) / rank))


def excess_aurc(trust: ArrayLike, correct: ArrayLike) -> float:
    """AURC above the best possible: what is lost by the order of trust alone, 0 or more.

    Examples
    --------
    >>> round(excess_aurc([0.9, 0.5, 0.1], [True, False, True]), 4)
    0.1667
    """
    # np.maximum keeps nan, and hides the last digit's rounding below 0
    return float(np.maximum(aurc(trust, correct) - best_aurc(correct), 0.0))


def risk_at_coverage(trust: ArrayLike, correct: ArrayLike, coverage: float) -> float:
    """Share wrong among the most trusted cases, as few of them as thresholds allow but at least `coverage` of all.

    Examples
    --------
    >>> round(risk_at_coverage([0.9, 0.9, 0.5, 0.1], [True, True, False, True], coverage=0.6), 3)
    0.333
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage: expected above 0 up to 1, got {coverage}")
    curve = risk_coverage(trust, correct)
    if not len(curve.risk):
        return NAN
    # The slack lets a coverage of .3 be reached by 3 of 10.
    return float(curve.risk[np.searchsorted(curve.coverage, coverage - 1e-9)])


def coverage_at_risk(trust: ArrayLike, correct: ArrayLike, risk: float) -> float:
    """Largest share of cases that a threshold accepts with at most `risk` of them wrong; 0 where none does.

    Chosen in hindsight on these very cases, hence optimistic: what could have been, not what is promised.

    Examples
    --------
    >>> coverage_at_risk([0.9, 0.9, 0.5, 0.1], [True, True, False, True], risk=0.3)
    1.0
    >>> coverage_at_risk([0.9, 0.9, 0.5, 0.1], [True, True, False, True], risk=0.1)
    0.5
    """
    if math.isnan(risk) or risk < 0:
        raise ValueError(f"risk: expected 0 or more, got {risk}")
    curve = risk_coverage(trust, correct)
    if not len(curve.risk):
        return NAN
    return float(np.max(curve.coverage, where=curve.risk <= risk + 1e-12, initial=0.0))
