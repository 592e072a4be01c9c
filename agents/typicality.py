"""How typical an embedding is of what the model was fitted on; strangers are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import TextClassifier

Floats = NDArray[np.float64]
NEIGHBOURS = 5
MOST_KEPT = 5000
"""Train embeddings kept for the nearest-neighbour score; more are thinned evenly."""
SCORES = ("mahalanobis", "nearest", "negatives")


@dataclass(frozen=True)
class StrangerScores:
    """Three scores of an embedding, each higher for strangers.

    ``mahalanobis``: squared distance to the nearest label's mean under a shared, shrunken covariance.
    ``nearest``: one minus the mean cosine to the five most similar train cases.
    ``negatives``: log-odds of the negative prompts against the labels' prompts, at the checkpoint's scale.

    Attributes
    ----------
    means : ndarray of shape (K, D)
    whitener : ndarray of shape (D, D)
        W with W W^T the inverse covariance.
    train : ndarray of shape (N, D)
    classifier : TextClassifier
    """

    means: Floats
    whitener: Floats
    train: NDArray[np.float32]
    classifier: TextClassifier

    def of(self, embeddings: NDArray[np.float32]) -> Floats:
        """Scores of shape (N, 3), in the order of `SCORES`."""
        x = embeddings.astype(np.float64) @ self.whitener
        centres = self.means @ self.whitener
        squared = (x**2).sum(1, keepdims=True) - 2 * x @ centres.T + (centres**2).sum(1)
        cosines = embeddings @ self.train.T
        k = min(NEIGHBOURS, cosines.shape[1])
        nearest = 1 - np.partition(cosines, -k, axis=1)[:, -k:].mean(axis=1).astype(np.float64)
        return np.stack([squared.min(axis=1), nearest, self._negatives(embeddings)], axis=1)

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
    Lee et al. (2018), https://arxiv.org/abs/1807.03888 (Mahalanobis, tied covariance); Sun et al. (2022),
    https://arxiv.org/abs/2204.06507 (nearest neighbours); Jiang et al. (2024), https://arxiv.org/abs/2403.20078
    (negative labels); Ledoit and Wolf (2004) for the shrinkage.
    """
    from sklearn.covariance import LedoitWolf

    x = embeddings.astype(np.float64)
    means = np.stack([x[truth == label].mean(axis=0) for label in range(int(truth.max()) + 1)])
    covariance = LedoitWolf(assume_centered=True).fit(x - means[truth]).covariance_
    floor = 1e-9 * np.trace(covariance) / len(covariance) + 1e-12
    values, vectors = np.linalg.eigh(covariance)
    whitener = vectors / np.sqrt(np.maximum(values, floor))
    step = max(1, -(-len(embeddings) // MOST_KEPT))
    return StrangerScores(means, whitener, embeddings[::step], classifier)


@dataclass(frozen=True)
class Typicality:
    """Turns the scores into one share: how many held-out own images are at least as unusual.

    Each score becomes its upper-tail share among the reference; the smallest of an image's shares, once more ranked
    among those of the reference, is the typicality: a multiple of 1 / (R + 1), never 0. For one score it is exactly
    uniform on own images. For three independent scores it is a little low where R is small: a limit of .05 sends 5.2 %
    of own images to review with R = 300, and 7.1 % with R = 84 (simulated).

    Attributes
    ----------
    reference : ndarray of shape (R, S)
        Scores of R held-out own images, each column sorted.
    smallest : ndarray of shape (R,)
        Their smallest tail shares, sorted.
    """

    reference: Floats
    smallest: Floats

    @classmethod
    def fit(cls, scores: Floats) -> Typicality:
        """Fit on the scores, of shape (R, S), of held-out own images."""
        reference = np.sort(scores, axis=0)
        return cls(reference, np.sort(_smallest_tail(reference, scores)))

    def of(self, scores: Floats) -> Floats:
        """Typicality of shape (N,) for scores of shape (N, S)."""
        rank = np.searchsorted(self.smallest, _smallest_tail(self.reference, scores), side="right")
        share: Floats = (1 + rank) / (1 + len(self.smallest))
        return share


def _smallest_tail(reference: Floats, scores: Floats) -> Floats:
    tails = [
        len(reference) - np.searchsorted(reference[:, j], scores[:, j], side="left") for j in range(scores.shape[1])
    ]
    share: Floats = (1 + np.min(tails, axis=0)) / (1 + len(reference))
    return share
