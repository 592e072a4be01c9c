"""What a panel says of a batch, as arrays: calibrated, and as it was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
ROUNDING = 1e-3
"""How far from 1 a sum of probabilities may be."""


@dataclass(frozen=True)
class Opinions:
    """M agents' answers to N cases about K labels.

    Attributes
    ----------
    columns : tuple of M str
        `name` for an agent's first look, `name@2` for its second.
    probs : ndarray of shape (M, N, K)
        Calibrated distributions; rows of nan where an agent failed.
    said : ndarray of shape (M, N, K)
        The distributions before calibration, nan in the same rows. A fusion that fits its own model of what an
        agent's words are worth starts here; everything else from `probs`.
    consistency : ndarray of shape (M, N), optional
        How far an agent's views agreed (`Prediction.consistency`), nan where it failed or had one view; None where all
        had. Trust rests on it, no fusion does.

    Raises
    ------
    ValueError
        When the shapes do not fit together.
    """

    columns: tuple[str, ...]
    probs: Floats
    said: Floats
    consistency: Floats | None = None

    def __post_init__(self) -> None:
        shape = self.probs.shape
        if self.probs.ndim != 3 or shape[0] != len(self.columns) or self.said.shape != shape or shape[0] < 1:
            raise ValueError(
                f"opinions: expected probs and said [M={len(self.columns)} >= 1, N, K], "
                f"got {shape} and {self.said.shape}"
            )
        if self.consistency is not None and self.consistency.shape != shape[:2]:
            raise ValueError(f"consistency: expected [M={shape[0]}, N={shape[1]}], got {self.consistency.shape}")

    @classmethod
    def uncalibrated(cls, columns: Sequence[str], probs: Floats) -> Opinions:
        """Take distributions as they were said for calibrated ones."""
        return cls(tuple(columns), probs, probs)

    def __len__(self) -> int:
        """N."""
        return int(self.probs.shape[1])

    @property
    def n_labels(self) -> int:
        """K."""
        return int(self.probs.shape[2])

    @property
    def answered(self) -> Bools:
        """Where an agent did not fail, of shape (M, N)."""
        return np.asarray(~np.isnan(self.probs).any(axis=2))

    def check_held_out(self, truth: NDArray[np.intp], folds: NDArray[np.intp] | None) -> None:
        """Refuse what nothing can be fitted on.

        Parameters
        ----------
        truth : ndarray of shape (N,)
        folds : ndarray of shape (N,) or None

        Raises
        ------
        ValueError
            When there is no case, fewer than two labels, a truth that is no label, another number of truths or folds,
            or probabilities that are no distributions.
        """
        n, k = len(self), self.n_labels
        if n < 1 or k < 2 or truth.shape != (n,) or (folds is not None and folds.shape != (n,)):
            found = truth.shape, None if folds is None else folds.shape
            raise ValueError(f"truth, folds: expected [N={n} >= 1] each or folds None, of K={k} >= 2, got {found}")
        if truth.dtype.kind not in "iu" or not 0 <= truth.min() <= truth.max() < k:
            raise ValueError(
                f"truth: expected whole numbers 0 to {k - 1}, got {truth.dtype} {truth.min()} to {truth.max()}"
            )
        for name, probs in (("probs", self.probs), ("said", self.said)):
            total, least = probs.sum(axis=2), probs.min(axis=2)
            wrong = ~np.isnan(total) & ~((np.abs(total - 1) <= ROUNDING) & (least >= 0))
            if wrong.any():
                m, i = np.argwhere(wrong)[0]
                raise ValueError(
                    f"{name}: expected distributions or nan, got {probs[m, i][:5]} from {self.columns[m]} of case {i}"
                )

    def cases(self, which: Any) -> Opinions:
        """Return the opinions of some cases, by mask, slice or indices."""
        consistency = None if self.consistency is None else self.consistency[:, which]
        return Opinions(self.columns, self.probs[:, which], self.said[:, which], consistency)

    def of(self, columns: Sequence[str]) -> Opinions:
        """Return the opinions of some agents, in the order given.

        Raises
        ------
        ValueError
            When there is no such column.
        """
        rows = [self.columns.index(name) for name in columns]
        consistency = None if self.consistency is None else self.consistency[rows]
        return Opinions(tuple(columns), self.probs[rows], self.said[rows], consistency)
