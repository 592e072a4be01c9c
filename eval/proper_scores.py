"""Scores that only the true probabilities minimise: NLL and Brier, and what a Brier score is made of.

Every score is a mean over N cases; of no case it is nan.

References
----------
- Brier, Verification of forecasts expressed in terms of probability, 1950
- Murphy, A new vector partition of the probability score, 1973
- Stephenson, Coelho and Jolliffe, Two extra components in the Brier score decomposition, 2008,
  https://doi.org/10.1175/2007WAF2006116.1
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from secondlook.eval.arrays import Floats, Ints, indices, mean, simplexes
from secondlook.eval.bins import Scheme, place_in_bins

NLL_FLOOR = 1e-12
"""Probabilities below this count as this in `nll`, so that one zero costs 27.6 nats and not infinity."""


def nll(probs: ArrayLike, truth: ArrayLike) -> float:
    """Mean negative log-likelihood of the truth, in nats: ``-mean log max(p_y, NLL_FLOOR)``.

    Parameters
    ----------
    probs : array_like of shape (N, K)
        Distributions.
    truth : array_like of shape (N,)
        Indices of the true labels.

    Returns
    -------
    float
        0 or more; log K for a uniform distribution.

    Examples
    --------
    >>> round(nll([[0.5, 0.5], [0.25, 0.75]], [0, 1]), 4)
    0.4904
    """
    p = simplexes("probs", probs)
    return mean(nll_of_each(p, indices("truth", truth, *p.shape)))


def nll_of_each(p: Floats, y: Ints) -> Floats:
    """Compute what `nll` is the mean of, shape (N,), from arrays that were checked."""
    return np.asarray(-np.log(np.maximum(p[np.arange(len(y)), y], NLL_FLOOR)))


def brier(probs: ArrayLike, truth: ArrayLike) -> float:
    """Brier score in its multi-class sum form: mean over cases of ``sum_k (p_k - [y = k])^2``.

    Twice the two-label form that weather forecasters use.

    Parameters
    ----------
    probs : array_like of shape (N, K)
        Distributions.
    truth : array_like of shape (N,)
        Indices of the true labels.

    Returns
    -------
    float
        0 to 2, lower is better; 1 - 1/K for a uniform distribution.

    Examples
    --------
    >>> brier([[0.5, 0.5], [0.25, 0.75]], [0, 1])
    0.3125
    """
    p = simplexes("probs", probs)
    return mean(brier_of_each(p, indices("truth", truth, *p.shape)))


def brier_of_each(p: Floats, y: Ints) -> Floats:
    """Compute what `brier` is the mean of, shape (N,), from arrays that were checked."""
    # sum_k (p_k - [y = k])^2 = sum_k p_k^2 - 2 p_y + 1
    return np.asarray(np.square(p).sum(axis=1) - 2 * p[np.arange(len(y)), y] + 1)


class BrierParts(NamedTuple):
    """A Brier score taken apart: ``reliability - resolution + uncertainty + within`` is the score."""

    reliability: float
    """Squared gaps between what was said and what happened, bin by bin; 0 is best."""
    resolution: float
    """Squared distances of what happened in the bins from what happens overall; more is better."""
    uncertainty: float
    """What always saying the labels' shares would score: ``1 - sum_k share_k^2``."""
    within: float
    """Variance of what was said within bins less twice its covariance with what happened; 0 without bins."""

    @property
    def score(self) -> float:
        """The Brier score that they sum to."""
        return self.reliability - self.resolution + self.uncertainty + self.within


def brier_parts(probs: ArrayLike, truth: ArrayLike, bins: int | None = 15, scheme: Scheme = "width") -> BrierParts:
    """Take the Brier score apart.

    The score of K labels is the sum of the scores of K yes-or-no forecasts, "is it label k"; each is taken apart over
    bins of its own probability, and the parts are summed over the labels. Exactly, up to rounding::

        Brier = reliability - resolution + uncertainty + within

    Parameters
    ----------
    probs : array_like of shape (N, K)
        Distributions.
    truth : array_like of shape (N,)
        Indices of the true labels.
    bins : int or None
        None puts only equal probabilities together: `within` is then 0 and this is Murphy's decomposition, but where
        no two cases are said the same, reliability is the whole score and resolution the whole uncertainty.
    scheme : {"width", "mass"}
        See `secondlook.eval.bins.Scheme`.

    Returns
    -------
    BrierParts
        All nan of no case.

    Examples
    --------
    >>> parts = brier_parts([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]], [0, 0, 0, 1])
    >>> [round(part, 4) for part in parts]
    [0.005, 0.0, 0.375, 0.0]
    """
    p = simplexes("probs", probs)
    y = indices("truth", truth, *p.shape)
    if not len(y):
        return BrierParts(*[float("nan")] * 4)
    parts = np.array([_parts_of_label(p[:, k], y == k, bins, scheme) for k in range(p.shape[1])]).sum(axis=0)
    return BrierParts(*parts.tolist())


def _parts_of_label(p: Floats, happened: Floats, bins: int | None, scheme: Scheme) -> Floats:
    """Take a yes-or-no forecast apart; p and happened of shape (N,), result of shape (4,)."""
    place = np.unique(p, return_inverse=True)[1] if bins is None else place_in_bins(p, bins, scheme)
    n = np.bincount(place)
    weight, held = n / len(p), np.maximum(n, 1)
    said, share, overall = np.bincount(place, p) / held, np.bincount(place, happened) / held, happened.mean()
    away = p - said[place]
    within = np.mean(away * (away - 2 * (happened - share[place]))) if bins is not None else 0.0
    return np.array([weight @ (said - share) ** 2, weight @ (share - overall) ** 2, overall * (1 - overall), within])
