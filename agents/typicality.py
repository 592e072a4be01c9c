"""How typical an embedding is of what the model was fitted on; strangers are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Typicality:
    """Turns the scores into one share: how many held-out own images are at least as unusual.

    Each score becomes its upper-tail share among the reference; the product of an image's shares, once more ranked
    among those of the reference, is the typicality: a multiple of 1 / (R + 1), never 0. For one score it is exactly
    uniform on own images, for several it is a little low where R is small.

    Attributes
    ----------
    reference : ndarray of shape (R, S)
        Scores of R held-out own images, each column sorted.
    combined : ndarray of shape (R,)
        Their summed log tail shares, sorted.

    References
    ----------
    Fisher (1932), Statistical Methods for Research Workers, for the product of tail shares.
    """

    reference: Floats
    combined: Floats

    @classmethod
    def fit(cls, scores: Floats) -> Typicality:
        """Fit on the scores, of shape (R, S), of held-out own images."""
        reference = np.sort(scores, axis=0)
        return cls(reference, np.sort(_log_tails(reference, scores)))

    def of(self, scores: Floats) -> Floats:
        """Typicality of shape (N,) for scores of shape (N, S)."""
        rank = np.searchsorted(self.combined, _log_tails(self.reference, scores), side="right")
        share: Floats = (1 + rank) / (1 + len(self.combined))
        return share


def _log_tails(reference: Floats, scores: Floats) -> Floats:
    """Sum of log upper-tail shares, of shape (N,); rounded, so that equal products are equal numbers."""
    tails = [
        len(reference) - np.searchsorted(reference[:, j], scores[:, j], side="left") for j in range(scores.shape[1])
    ]
    total: Floats = np.log((1 + np.array(tails)) / (1 + len(reference))).sum(axis=0).round(12)
    return total
