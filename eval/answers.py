"""Every figure of one agent's answers, or of the system's, in the form that `intervals` resamples."""

from __future__ import annotations

from numpy.typing import ArrayLike

from secondlook.eval.arrays import Floats, indices, shares, simplexes
from secondlook.eval.proper_scores import brier_of_each, nll_of_each
from secondlook.eval.ranked import Ranked
from secondlook.eval.resample import Figures, Resamples
from secondlook.eval.set_metrics import checked_sets, covered
from secondlook.eval.summed import BinGaps, ClassWise, Confusions, Correlation, Means, Summed, Sums

TAU = 0.8
"""Confidence from which a wrong answer counts as overconfident."""
CLASS_WISE = 5_000_000
"""Most probabilities (N times K) for which the class-wise ECE is resampled: 60 MB, and some seconds a 1,000 draws."""


def answer_figures(
    probs: ArrayLike,
    truth: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    trust: ArrayLike | None = None,
    sets: ArrayLike | None = None,
    coverage: float = 0.9,
    risk: float = 0.05,
) -> Figures:
    """Prepare the figures of N answers about K labels.

    Parameters
    ----------
    probs : array_like of shape (N, K)
        Distributions; what calibration is measured of.
    truth : array_like of shape (N,)
        Indices of the true labels.
    labels : array_like of shape (N,), optional
        Indices of the labels given, -1 where there is none, which is wrong; else the most probable ones.
    trust : array_like of shape (N,), optional
        0 to 1: what selection goes by, where it is not the top probability.
    sets : array_like of shape (N, K), optional
        Prediction sets, as booleans.
    coverage, risk : float
        Of `sel/risk_at_N`, N being the coverage in per cent, and of `sel/coverage_at_target`.

    Returns
    -------
    callable
        For `secondlook.eval.resample.intervals`. Its names are ``acc/top1``, ``acc/balanced``, ``acc/macro_f1``;
        ``cal/`` with ece, ece_mass, ece_classwise (left out above `CLASS_WISE`), mce, direction, nll, brier, ocr, ccc;
        ``sel/`` with auroc, aurc, eaurc, risk_at_90, coverage_at_target; with `sets` also ``set/coverage``,
        ``set/size``.

    Examples
    --------
    >>> import numpy as np
    >>> from secondlook.eval.resample import intervals
    >>> figures = answer_figures([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1])
    >>> found = intervals({"agent": figures}, 3, rng=np.random.default_rng(0))
    >>> round(found["agent/acc/top1"].value, 3), round(found["agent/cal/direction"].value, 3)
    (0.667, 0.1)
    """
    p = simplexes("probs", probs)
    n, k = p.shape
    y = indices("truth", truth, n, k)
    said = p.argmax(axis=1) if labels is None else indices("labels", labels, n, k, low=-1)
    confidence, right = p.max(axis=1), said == y
    by_confidence = Ranked(confidence, right, coverage=coverage, risk=risk)
    by_trust = by_confidence
    if trust is not None:
        by_trust = Ranked(shares("trust", trust, n), right, coverage=coverage, risk=risk)
    columns = {
        "acc/top1": right,
        "cal/direction": confidence - right,
        "cal/nll": nll_of_each(p, y),
        "cal/brier": brier_of_each(p, y),
        "cal/ocr": ~right & (confidence >= TAU),
    }
    if sets is not None:
        members, _ = checked_sets(sets, y)
        if members.shape != p.shape:
            raise ValueError(f"sets: expected [N={n}, K={k}], got {members.shape}")
        columns |= {"set/coverage": covered(members, y), "set/size": members.sum(axis=1)}
    kinds: list[tuple[str, Sums]] = [
        ("", Means(columns)),
        ("acc/", Confusions(said, y, k)),
        ("cal/", BinGaps(confidence, right)),
        ("cal/", Correlation(confidence, right)),
    ]
    if p.size <= CLASS_WISE:
        kinds.append(("cal/", ClassWise(p, y)))
    summed = Summed(kinds)

    def compute(drawn: Resamples) -> dict[str, Floats]:
        found = summed(drawn)
        trusted = by_trust(drawn)
        sure = trusted if by_trust is by_confidence else by_confidence(drawn)
        return found | {
            "cal/ece_mass": sure.ece_mass,
            "sel/auroc": trusted.auroc,
            "sel/aurc": trusted.aurc,
            "sel/eaurc": trusted.excess_aurc,
            f"sel/risk_at_{100 * coverage:.3g}": trusted.risk_at_coverage,
            "sel/coverage_at_target": trusted.coverage_at_risk,
        }

    return compute
