"""Trust: the calibrated probability that the belief's top label is right, for this case."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from secondlook.agents.case import Frozen

Floats = NDArray[np.float64]
FEATURES = ("top", "margin", "agreement", "typicality", "consistency")
"""Log-odds of the top label; log-ratio of it to the best other; mean log-probability the agents give the top label;
log typicality; mean log-odds that the views of an agent give the top label. Trust never falls when one of them
rises."""
SHRINKAGE = 8.0
"""Pull of the coefficients towards (0; 1, 0, 0, 0, 0), where trust is the belief's own top probability."""
START = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
LIMIT = 1e-6
LEAST = 1e-3
"""What a lower probability that an agent, or its views, give the top label counts as; of views, a higher than
1 - LEAST too."""


def features(
    belief: Floats,
    probs: Floats,
    typicality: Floats,
    labels: NDArray[np.intp] | None = None,
    consistency: Floats | None = None,
) -> Floats:
    """Compute what trust rests on.

    Parameters
    ----------
    belief : ndarray of shape (N, K)
    probs : ndarray of shape (M, N, K)
        The fused agents' calibrated distributions, nan for failures.
    typicality : ndarray of shape (N,)
        In (0, 1].
    labels : ndarray of shape (N,), optional
        The labels whose rightness is asked about, any where belief is nan; by default the most probable.
    consistency : ndarray of shape (M, N), optional
        See `secondlook.orchestrator.opinions.Opinions`. The views of an agent of another top label give this one what
        is left of 1, at most. Where no agent looked at several views the feature is 0.

    Returns
    -------
    ndarray of shape (N, 5)
        In the order of `FEATURES`; rows of nan where nobody answered.
    """
    top = np.nan_to_num(belief).argmax(axis=1) if labels is None else labels
    each = np.arange(len(top))
    others = belief.copy()
    others[each, top] = -np.inf
    first, second = np.clip(belief[each, top], LIMIT, 1 - LIMIT), np.maximum(others.max(axis=1), LIMIT)
    agreement, steady = _mean(np.log(np.maximum(probs[:, each, top], LEAST))), np.zeros(len(top))
    if consistency is not None:
        own = np.clip(consistency, LEAST, 1 - LEAST)
        same = np.nan_to_num(probs).argmax(axis=2) == top
        steady = _mean(np.where(same, 1, -1) * np.log(own / (1 - own)))
    x = np.stack([np.log(first / (1 - first)), np.log(first / second), agreement, np.log(typicality), steady], axis=1)
    x[np.isnan(belief).any(axis=1)] = np.nan
    return cast("Floats", x)


def _mean(values: Floats) -> Floats:
    """Mean over M agents, of shape (N,); nan is left out, and 0 where all are."""
    known = ~np.isnan(values)
    return cast("Floats", np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


class Trust(Frozen):
    """A logistic model of the features with non-negative coefficients, so that it is monotone in each."""

    intercept: float = 0.0
    coefficients: tuple[float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 0.0)
    n: int = 0
    """Held-out cases it was fitted on."""
    n_wrong: int = 0
    """How many of them the belief got wrong."""

    @field_validator("coefficients", mode="before")
    @classmethod
    def _of_four(cls, given: object) -> object:
        """Read a model that was fitted before the last feature was known."""
        return (*given, 0.0) if isinstance(given, list | tuple) and len(given) == len(FEATURES) - 1 else given

    def of(self, x: Floats) -> Floats:
        """Trust of shape (N,) for features of shape (N, 5); 0 where nobody answered."""
        known = ~np.isnan(x).any(axis=1)
        trust = np.zeros(len(x))
        z = self.intercept + x[known] @ np.array(self.coefficients)
        trust[known] = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
        return trust


def fit_trust(x: Floats, right: NDArray[np.bool_], folds: NDArray[np.intp] | None) -> tuple[Trust, Floats]:
    """Fit on held-out cases.

    Parameters
    ----------
    x : ndarray of shape (N, 5)
        Features of cross-fitted beliefs.
    right : ndarray of shape (N,)
        Whether the belief's top label is the truth.
    folds : ndarray of shape (N,) or None
        None where no fold can be made.

    Returns
    -------
    trust : Trust
        Fitted on all cases.
    held_out : ndarray of shape (N,)
        Cross-fitted trust of the same cases; without folds, what the fitted model says of its own.
    """
    model = _fit(x, right)
    if folds is None:
        return model, model.of(x)
    held_out = np.zeros(len(x))
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        held_out[outside] = _fit(x[inside], right[inside]).of(x[outside])
    return model, held_out


def _fit(x: Floats, right: NDArray[np.bool_]) -> Trust:
    from scipy.optimize import minimize

    known = ~np.isnan(x).any(axis=1)
    x, y = x[known], right[known].astype(np.float64)
    bounds = [(None, None)] + [(0.0, None)] * len(FEATURES)
    found = minimize(penalised_nll, START, args=(x, y), jac=True, method="L-BFGS-B", bounds=bounds)
    intercept, *coefficients = found.x.tolist()
    return Trust(intercept=intercept, coefficients=tuple(coefficients), n=len(y), n_wrong=int(len(y) - y.sum()))


def penalised_nll(c: Floats, x: Floats, y: Floats) -> tuple[float, Floats]:
    """Compute what the fit minimises, and its gradient of shape (6,).

    Parameters
    ----------
    c : ndarray of shape (6,)
        Intercept and coefficients.
    x : ndarray of shape (N, 5)
        Features.
    y : ndarray of shape (N,)
        1 where the belief is right, else 0.
    """
    z = c[0] + x @ c[1:]
    away = c - START
    value = np.logaddexp(0, z).sum() - (y * z).sum() + SHRINKAGE * (away**2).sum()
    error = 1 / (1 + np.exp(-np.clip(z, -500, 500))) - y
    return float(value), np.concatenate([[error.sum()], error @ x]) + 2 * SHRINKAGE * away
