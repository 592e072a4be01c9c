"""A linear head on frozen features: logistic regression, its strength chosen by grouped cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.folds import grouped_folds
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, check_embeddings

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""Candidates for C, the inverse of the L2 penalty; unit vectors want far larger ones than standardised features."""
UNKNOWN = 1.0
"""C where no fold can be made, and so nothing be measured."""


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
    """Logistic regression; its strength is chosen by grouped cross-validation.

    References
    ----------
    Radford et al. (2021), https://arxiv.org/abs/2103.00020: the linear probe, whose C a validation set chooses.
    """

    kind: Literal["linear"] = "linear"
    name: str = "linear-head"
    trains: ClassVar[bool] = True

    def fit(self, lessons: Lessons) -> LinearHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)
        rng = np.random.default_rng(lessons.seed)
        return fit_linear_head(lessons.vectors, lessons.truth, lessons.groups, lessons.n_labels, rng)

    def load(self, tensors: Tensors) -> LinearHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        weights, bias = tensors["weights"], tensors["bias"]
        if weights.ndim != 2 or bias.shape != weights.shape[:1]:
            raise ValueError(f"weights, bias: expected [K, D] and [K], got {weights.shape} and {bias.shape}")
        return LinearHead(weights, bias, float(tensors["strength"]))


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
    strength = UNKNOWN if folds is None else _choose(embeddings, truth, folds, n_labels)
    model = _model(strength)
    mean = _teach(model, embeddings, truth)
    weights, bias = model.coef_, model.intercept_
    if n_labels == 2:  # scikit-learn keeps one row for two labels: the log-odds of the second
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return LinearHead(weights, bias - weights @ mean, strength)


def _model(strength: float) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=5000, tol=1e-6, warm_start=True)


def _teach(model: LogisticRegression, embeddings: NDArray[np.float32], truth: NDArray[np.intp]) -> Floats:
    """Fit on centred embeddings, and return their mean, of shape (D,).

    The bias is not penalised, so that a shift changes no prediction; but L-BFGS needs about a third fewer steps where
    the embeddings do not all lie on one side of the origin.
    """
    rows = embeddings.astype(np.float64)
    mean: Floats = rows.mean(axis=0)
    model.fit(rows - mean, truth)
    return mean


def _choose(embeddings: NDArray[np.float32], truth: NDArray[np.intp], folds: NDArray[np.intp], n_labels: int) -> float:
    """Find the C of the lowest held-out NLL: from the smallest on, until it rises, each starting at the last."""
    insides = [folds != fold for fold in np.unique(folds)]
    if any(len(np.unique(truth[inside])) < n_labels for inside in insides):
        return UNKNOWN
    models = [_model(UNKNOWN) for _ in insides]
    best, least = UNKNOWN, np.inf
    for strength in STRENGTHS:
        loss = sum(
            _held_out_nll(model.set_params(C=strength), embeddings, truth, inside)
            for model, inside in zip(models, insides, strict=True)
        )
        if loss > 1.1 * least:
            break
        if loss < least:
            best, least = strength, loss
    return best


def _held_out_nll(
    model: LogisticRegression, embeddings: NDArray[np.float32], truth: NDArray[np.intp], inside: NDArray[np.bool_]
) -> float:
    from scipy.special import log_softmax

    mean = _teach(model, embeddings[inside], truth[inside])
    scores = model.decision_function(embeddings[~inside].astype(np.float64) - mean)
    logits = scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1) / 2
    return -float(log_softmax(logits, axis=1)[np.arange(len(logits)), truth[~inside]].sum())
