"""Loss: what a wrong label costs, and which label costs least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
UNKNOWN = -1
"""The label of a case of which nothing is believed."""


class Loss(Frozen):
    """A task's costs as a rule of decision; without costs every error is as bad as any other.

    Examples
    --------
    >>> missed = Loss(costs=((0, 1), (10, 0)))  # to call a 1 a 0 is ten times as bad as to call a 0 a 1
    >>> belief = np.array([[0.8, 0.2], [0.95, 0.05]])
    >>> Loss().labels(belief), missed.labels(belief)
    (array([0, 0]), array([1, 0]))
    >>> missed.of(np.array([1, 0]), np.array([0, 1]))
    array([0.1, 1. ])
    """

    costs: tuple[tuple[float, ...], ...] | None = None
    """costs[truth][label], as in `secondlook.agents.case.Task.costs`."""

    @property
    def graded(self) -> bool:
        """Whether some errors are worse than others."""
        if self.costs is None:
            return False
        return len({cost for k, row in enumerate(self.costs) for cost in (*row[:k], *row[k + 1 :])}) > 1

    def labels(self, belief: Floats) -> Ints:
        """Labels of least expected cost, of shape (N,); without costs the most probable. `UNKNOWN` for rows of nan.

        The expected cost of a label is sum_k p(k) costs[k][label]; of equals the first is taken.

        Parameters
        ----------
        belief : ndarray of shape (N, K)
        """
        known = np.nan_to_num(belief)
        best = (known @ np.array(self.costs)).argmin(axis=1) if self.graded else known.argmax(axis=1)
        return np.where(np.isnan(belief).any(axis=1), UNKNOWN, best)

    def of(self, labels: Ints, truth: Ints) -> NDArray[np.bool_] | Floats:
        """Loss of each case, of shape (N,), as a share of the largest cost; 1 where nothing is believed.

        Booleans where a loss can only be 0 or 1, which is what makes an exact test possible.
        """
        if not self.graded:
            return np.asarray(labels != truth)
        costs = np.array(self.costs)
        return np.where(labels == UNKNOWN, 1.0, costs[truth, labels] / costs.max())
