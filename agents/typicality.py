"""How typical an embedding is of what the model was fitted on; strangers are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import TextClassifier

Floats = NDArray[np.float64]
SCORES = ("mahalanobis", "negatives")


@dataclass(frozen=True)
class StrangerScores:
    """Two scores of an embedding, each higher for strangers.

    ``mahalanobis``: squared distance to the nearest label's mean under a shared, shrunken covariance.
    ``negatives``: log-odds of the negative prompts against the labels' prompts, at the checkpoint's scale.

    Attributes
    ----------
    means : ndarray of shape (K, D)
    whitener : ndarray of shape (D, D)
        W with W W^T the inverse covariance.
    classifier : TextClassifier
    """

    means: Floats
    whitener: Floats
    classifier: TextClassifier

    def of(self, embeddings: NDArray[np.float32]) -> Floats:
        """Scores of shape (N, 2), in the order of `SCORES`."""
        x = embeddings.astype(np.float64) @ self.whitener
        centres = self.means @ self.whitener
        squared = (x**2).sum(1, keepdims=True) - 2 * x @ centres.T + (centres**2).sum(1)
        return np.stack([squared.min(axis=1), self._negatives(embeddings)], axis=1)

    def _negatives(self, embeddings: NDArray[np.float32]) -> Floats:
        if not len(self.classifier.negatives):
            return np.zeros(len(embeddings))
        scale = self.classifier.logit_scale
        against = scale * (embeddings @ self.classifier.negatives.T).astype(np.float64)
        own = self.classifier.logits(embeddings)
        odds: Floats = np.logaddexp.reduce(against, 1) - np.logaddexp.reduce(own, 1)
        return odds


def fit_stranger_scores(
    embeddings: NDArray[np.float32], truth: NDArray[np.intp], classifier: TextClassifier
) -> StrangerScores:
    """Fit the scores on train embeddings of shape (N, D) with label indices of shape (N,).

    References
    ----------
    Lee et al. (2018), https://arxiv.org/abs/1807.03888 (Mahalanobis, tied covariance); Jiang et al. (2024),
    https://arxiv.org/abs/2403.20078 (negative labels); Ledoit and Wolf (2004) for the shrinkage.
    """
    from sklearn.covariance import LedoitWolf

    x = embeddings.astype(np.float64)
    means = np.stack([x[truth == label].mean(axis=0) for label in range(int(truth.max()) + 1)])
    covariance = LedoitWolf(assume_centered=True).fit(x - means[truth]).covariance_
    floor = 1e-9 * np.trace(covariance) / len(covariance) + 1e-12
    values, vectors = np.linalg.eigh(covariance)
    whitener = vectors / np.sqrt(np.maximum(values, floor))
    return StrangerScores(means, whitener, classifier)


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
