"""One normal distribution a label, all of one shape: distances, logits and angles of embeddings under it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TiedGaussian:
    """Means of K labels and what makes their shared covariance the identity.

    Attributes
    ----------
    means : ndarray of shape (K, D)
    whitener : ndarray of shape (D, D)
        W with W W^T the inverse covariance.
    """

    means: Floats
    whitener: Floats

    def squared_distances(self, embeddings: NDArray[np.float32]) -> Floats:
        """Squared Mahalanobis distances to each mean, of shape (N, K)."""
        x, centres = self._whitened(embeddings)
        squared: Floats = (x**2).sum(1, keepdims=True) - 2 * x @ centres.T + (centres**2).sum(1)
        return np.maximum(squared, 0.0)

    def logits(self, embeddings: NDArray[np.float32]) -> Floats:
        """Log-densities but for a constant, of shape (N, K): those of the labels, were they equally frequent."""
        return -0.5 * self.squared_distances(embeddings)

    def cosines(self, embeddings: NDArray[np.float32]) -> Floats:
        """Cosines to each mean, of shape (N, K), in whitened space and seen from the mean of the means; 0 for K = 1."""
        x, centres = self._whitened(embeddings)
        middle = centres.mean(axis=0)
        return _unit(x - middle) @ _unit(centres - middle).T

    def _whitened(self, embeddings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        # Relative to the means: squares of nearly equal large numbers would lose digits.
        origin = self.means.mean(axis=0)
        return (embeddings.astype(np.float64) - origin) @ self.whitener, (self.means - origin) @ self.whitener


def fit_tied_gaussian(embeddings: NDArray[np.float32], truth: NDArray[np.intp]) -> TiedGaussian:
    """Fit means and one shrunken covariance.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
    truth : ndarray of shape (N,)
        Label indices 0 to K - 1, each at least once.

    References
    ----------
    Ledoit and Wolf (2004), https://doi.org/10.1016/S0047-259X(03)00096-4, for the shrinkage.
    """
    from sklearn.covariance import LedoitWolf

    x = embeddings.astype(np.float64)
    means = np.stack([x[truth == label].mean(axis=0) for label in range(int(truth.max()) + 1)])
    covariance = LedoitWolf(assume_centered=True).fit(x - means[truth]).covariance_
    floor = 1e-9 * np.trace(covariance) / len(covariance) + 1e-12
    values, vectors = np.linalg.eigh(covariance)
    return TiedGaussian(means, vectors / np.sqrt(np.maximum(values, floor)))


def _unit(rows: Floats) -> Floats:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norm > 1e-12, rows / np.maximum(norm, 1e-12), 0.0)
