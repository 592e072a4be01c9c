"""Do agents err on the same cases: what a panel can gain at most depends on it.

Agents that agree are evidence only as far as their errors are independent.

References
----------
Kuncheva and Whitaker, Measures of Diversity in Classifier Ensembles, 2003,
https://doi.org/10.1023/A:1022859003006
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from secondlook.eval.arrays import Floats, Ints, indices


class ErrorCorrelation(NamedTuple):
    """How M agents err together: symmetric arrays of shape (M, M), over the cases that both answered.

    On the diagonal an agent meets itself. Everything is nan where `n` is 0.
    """

    n: Ints
    """Cases that both answered."""
    phi: Floats
    """Pearson correlation of the two error indicators, -1 to 1; nan where either never errs or always does."""
    both_wrong: Floats
    """Share of cases where both are wrong, with the same label or with two."""
    agree: Floats
    """Share of cases where both give one label."""
    wrong_of_agreed: Floats
    """Share of those where that label is wrong: what agreement of these two is worth; nan where they never agree."""

    @property
    def agree_wrong(self) -> Floats:
        """Share of cases where both give one and the same wrong label."""
        return np.where(self.agree > 0, self.agree * self.wrong_of_agreed, self.agree)


def error_correlation(labels: ArrayLike, truth: ArrayLike) -> ErrorCorrelation:
    """Count errors that agents make together.

    Parameters
    ----------
    labels : array_like of shape (M, N)
        Indices of the labels that M agents give to N cases; -1 where one failed, which is no error of judgement and
        leaves the case out of that agent's pairs.
    truth : array_like of shape (N,)
        Indices of the true labels.

    Returns
    -------
    ErrorCorrelation

    Examples
    --------
    >>> found = error_correlation([[0, 1, 1, 0], [0, 1, 1, 1]], [0, 1, 0, 0])
    >>> round(float(found.phi[0, 1]), 3), float(found.both_wrong[0, 1]), float(found.agree[0, 1])
    (0.577, 0.25, 0.75)
    """
    said = np.asarray(labels)
    if said.ndim != 2 or len(said) < 1:
        raise ValueError(f"labels: expected [M >= 1, N], got {said.shape}")
    m, total = said.shape
    k = int(max(np.max(said, initial=0), np.max(np.asarray(truth), initial=0))) + 1
    said = indices("labels", said.ravel(), m * total, k, low=-1).reshape(m, total)
    y = indices("truth", truth, total, k)
    answered = (said >= 0).astype(np.float64)
    wrong = answered * (said != y)
    n, both, errs = answered @ answered.T, wrong @ wrong.T, wrong @ answered.T
    same = np.array([[np.count_nonzero((a == b) & (a >= 0)) for b in said] for a in said])
    same_wrong = np.array([[np.count_nonzero((a == b) & (a >= 0) & (a != y)) for b in said] for a in said])
    held = np.where(n > 0, n, np.nan)
    # phi = (n both - a b) / sqrt(a (n - a) b (n - b)), a and b the errors of either on the cases that both answered
    spread = errs * (n - errs) * errs.T * (n - errs.T)
    phi = (n * both - errs * errs.T) / np.sqrt(np.where(spread > 0, spread, np.nan))
    return ErrorCorrelation(
        n.astype(np.int64),
        np.clip(phi, -1.0, 1.0),
        both / held,
        same / held,
        same_wrong / np.where(same > 0, same, np.nan),
    )
