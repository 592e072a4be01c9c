"""The yardstick, measured: held-out errors, beliefs and agreement, one value a group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secondlook.orchestrator.drift import DIGITS
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.yardstick import ErrorRate, Yardstick

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
MOST = 1000
"""Reference values kept of each kind, drawn at random where there are more."""


def measure_yardstick(
    first: Opinions,
    second: Opinions,
    belief: Floats,
    truth: Ints,
    groups: Sequence[str],
    asked_again: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Yardstick:
    """Measure what later figures are held against.

    Parameters
    ----------
    first, second : Opinions
        Cross-fitted, of N held-out cases, at the first and the second look.
    belief : ndarray of shape (N, K)
        Cross-fitted, after the first look.
    truth : ndarray of shape (N,)
    groups : sequence of str
        N names.
    asked_again : ndarray of shape (N,)
        Which cases look again.
    rng : numpy.random.Generator

    Returns
    -------
    Yardstick
    """
    unit = np.unique(np.asarray(groups), return_inverse=True)[1]
    errors = {
        name: _error_rate(opinions.probs[m], truth, unit, where)
        for opinions, where in ((first, np.ones(len(truth), dtype=np.bool_)), (second, asked_again))
        for m, name in enumerate(opinions.columns)
    }
    top = np.nan_to_num(belief).argmax(axis=1)
    given = first.probs[:, np.arange(len(top)), top]
    answered = ~np.isnan(given)
    known = np.asarray((answered.sum(axis=0) > 0) & ~np.isnan(belief).any(axis=1))
    agreement = np.nansum(given, axis=0) / np.maximum(answered.sum(axis=0), 1)
    kept = np.unique(unit[known])
    if len(kept) > MOST:
        kept = np.sort(rng.choice(kept, MOST, replace=False))
    values = (belief[np.arange(len(top)), top], agreement)
    confidence, agreed = (np.round(_mean_by(unit, known, value)[kept], DIGITS).tolist() for value in values)
    return Yardstick(errors=errors, confidence=tuple(confidence), agreement=tuple(agreed))


def _error_rate(probs: Floats, truth: Ints, unit: Ints, where: NDArray[np.bool_]) -> ErrorRate:
    """Sum over groups of the share of their cases wrong; a failure is wrong."""
    wrong = (np.nan_to_num(probs, nan=-1.0).argmax(axis=1) != truth) | np.isnan(probs).any(axis=1)
    present = np.unique(unit[where])
    return ErrorRate(wrong=float(_mean_by(unit, where, wrong.astype(np.float64))[present].sum()), n=len(present))


def _mean_by(unit: Ints, where: NDArray[np.bool_], values: Floats) -> Floats:
    """Mean over the chosen cases of each group; 0 for groups without one."""
    total = np.bincount(unit, weights=np.where(where, values, 0.0))
    return np.asarray(total / np.maximum(np.bincount(unit, weights=where), 1))
