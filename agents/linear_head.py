"""A linear head on frozen features: logistic regression, its strength chosen by grouped cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.folds import grouped_folds
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, check_embeddings

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Candidates for C, the inverse of the L2 penalty; unit vectors want far larger ones than standardised features."""


@dataclass(frozen=True)
class LinearHead:
    """Weights of a linear classifier on unit embeddings.

    Attributes
    ----------
    weights : ndarray of shape (K, D)
    bias : ndarray of shape (K,)
    strength : float
        The C that cross-validation chose.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.weights.shape[1])
        return embeddings.astype(np.float64) @ self.weights.T + self.bias

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        return {"weights": self.weights, "bias": self.bias, "strength": np.array(self.strength)}


class LinearSpec(HeadSpec):
    """Logistic regression; its strength is chosen by grouped cross-validation."""

    kind: Literal["linear"] = "linear"
    name: str = "linear-head"

    def fit(self, lessons: Lessons) -> LinearHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)
        rng = np.random.default_rng(lessons.seed)
        return fit_linear_head(lessons.vectors, lessons.truth, lessons.groups, lessons.n_labels, rng)

    def load(self, tensors: Tensors) -> LinearHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return LinearHead(tensors["weights"], tensors["bias"], float(tensors["strength"]))


def fit_linear_head(
    embeddings: NDArray[np.float32],
    truth: NDArray[np.intp],
    groups: Sequence[str],
    n_labels: int,
    rng: np.random.Generator,
) -> LinearHead:
    """Fit a head.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
        Unit vectors.
    truth : ndarray of shape (N,)
        Label indices; each of the K labels must occur.
    groups : sequence of str
        N group names; no group is on both sides of a fold.
    n_labels : int
        K.
    rng : numpy.random.Generator
        Makes the folds.

    Returns
    -------
    LinearHead
        Refitted on all cases with the C of lowest grouped cross-validated NLL; C = 1 where no fold can be made.

    Raises
    ------
    ValueError
        When the shapes do not fit together, or a label has no case.
    """
    if embeddings.ndim != 2 or not len(embeddings) == len(truth) == len(groups):
        shapes = (embeddings.shape, truth.shape, len(groups))
        raise ValueError(f"embeddings, truth, groups: expected [N, D], [N] and N, got {shapes}")
    if (found := np.unique(truth).tolist()) != list(range(n_labels)):
        raise ValueError(f"truth: expected each of 0..{n_labels - 1}, found {found}")
    folds = grouped_folds(truth, groups, rng)
    strength = 1.0
    if folds is not None:
        losses = {c: _held_out_nll(embeddings, truth, folds, n_labels, c) for c in STRENGTHS}
        strength = min(losses, key=lambda c: losses[c]) if np.isfinite(losses[1.0]) else 1.0
    return _fit(embeddings, truth, n_labels, strength)


def _fit(embeddings: NDArray[np.float32], truth: NDArray[np.intp], n_labels: int, strength: float) -> LinearHead:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-5).fit(embeddings.astype(np.float64), truth)
    weights, bias = model.coef_, model.intercept_
    if n_labels == 2:  # scikit-learn keeps one row for two labels: the log-odds of the second
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return LinearHead(weights, bias, strength)


def _held_out_nll(
    embeddings: NDArray[np.float32], truth: NDArray[np.intp], folds: NDArray[np.intp], n_labels: int, strength: float
) -> float:
    """Sum the NLL over the folds; infinite where a label has cases in one fold only."""
    from scipy.special import log_softmax

    total = 0.0
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        if len(np.unique(truth[inside])) < n_labels:
            return float("inf")
        logits = _fit(embeddings[inside], truth[inside], n_labels, strength).logits(embeddings[outside])
        total -= float(log_softmax(logits, axis=1)[np.arange(outside.sum()), truth[outside]].sum())
    return total
