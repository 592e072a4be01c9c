"""A head for labels that have an order, such as degrees of severity: cumulative logits on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Task
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, check_embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""Candidates for C, the inverse of the L2 penalty."""
FAR = 500.0
"""Steps between thresholds of which the exponential is still a number; so far apart they are independent."""
UNKNOWN = 1.0
"""C where no fold can be made, and so nothing be measured."""


@dataclass(frozen=True)
class OrdinalHead:
    """One direction of embeddings, and the thresholds on it.

    Attributes
    ----------
    direction : ndarray of shape (D,)
    thresholds : ndarray of shape (K - 1,)
        Rising; between one rank and the next.
    order : ndarray of intp of shape (K,)
        Label index of each rank.
    strength : float
        The C that cross-validation chose.
    """

    direction: Floats
    thresholds: Floats
    order: Ints
    strength: float

    def logits(self, embeddings: NDArray[np.float32]) -> Floats:
        """Log-probabilities of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, len(self.direction))
        ranked = rank_log_probs(embeddings.astype(np.float64) @ self.direction, self.thresholds)
        logits = np.empty_like(ranked)
        logits[:, self.order] = ranked
        return logits

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        return {
            "direction": self.direction,
            "thresholds": self.thresholds,
            "order": self.order,
            "strength": np.array(self.strength),
        }


class OrdinalSpec(HeadSpec):
    """Proportional odds: the log-odds of a rank or below are a threshold less one direction of the embedding.

    ::

        P(rank <= j | f) = sigmoid(thresholds_j - direction . f)

    The direction is penalised by its squared length and the thresholds are not; the strength of the penalty is chosen
    by grouped cross-validation. With two labels it is logistic regression.

    References
    ----------
    McCullagh (1980), Regression models for ordinal data, Journal of the Royal Statistical Society B 42.
    """

    kind: Literal["ordinal"] = "ordinal"
    name: str = "ordinal-head"
    trains: ClassVar[bool] = True

    order: tuple[str, ...] | None = None
    """The labels from the first to the last rank; None where the task lists them in that order."""

    def fit(self, lessons: Lessons) -> OrdinalHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)
        order = self._order(lessons.task)
        ranks = np.argsort(order)[lessons.truth]
        rows = lessons.vectors.astype(np.float64)
        folds = lessons.folds()
        strength = UNKNOWN if folds is None else _choose(rows, ranks, folds, len(order))
        direction, thresholds = fit_proportional_odds(rows, ranks, len(order), strength)
        return OrdinalHead(direction, thresholds, order, strength)

    def _order(self, task: Task) -> Ints:
        names = task.labels if self.order is None else self.order
        if sorted(names) != sorted(task.labels):
            raise ConfigError(
                f"{self.name}: order lists {list(names)}, and the labels are {list(task.labels)}.",
                "List every label once, from the first rank to the last.",
            )
        return np.array([task.labels.index(name) for name in names], dtype=np.intp)

    def load(self, tensors: Tensors) -> OrdinalHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        direction, thresholds, order = tensors["direction"], tensors["thresholds"], tensors["order"]
        if direction.ndim != 1 or thresholds.ndim != 1 or not (np.diff(thresholds) > 0).all():
            raise ValueError(f"direction, thresholds: expected [D] and rising [K - 1], got {thresholds}")
        if not np.array_equal(np.sort(order), np.arange(len(thresholds) + 1)):
            raise ValueError(f"order: expected each of 0..{len(thresholds)} once, got {order}")
        return OrdinalHead(direction, thresholds, order.astype(np.intp), float(tensors["strength"]))


def rank_log_probs(height: Floats, thresholds: Floats) -> Floats:
    """Log-probabilities of each rank, of shape (N, K), for N heights and K - 1 rising thresholds.

    Between thresholds b < a it is the difference of two sigmoids; written as their product it neither cancels nor
    overflows::

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))

    Examples
    --------
    >>> rank_log_probs(np.array([0.0]), np.log([1 / 3, 3])).round(3)  # 1/4, 1/2, 1/4
    array([[-1.386, -0.693, -1.386]])
    """
    upper = np.logaddexp(0, height[:, None] - thresholds)
    lower = np.logaddexp(0, thresholds - height[:, None])
    gap = np.log(-np.expm1(-np.diff(thresholds)))
    logs = np.zeros((len(height), len(thresholds) + 1))
    logs[:, :-1] -= upper
    logs[:, 1:] -= lower
    logs[:, 1:-1] += gap
    return logs


def fit_proportional_odds(
    rows: Floats, ranks: Ints, n_ranks: int, strength: float, start: Floats | None = None
) -> tuple[Floats, Floats]:
    """Fit direction and thresholds by L-BFGS.

    Parameters
    ----------
    rows : ndarray of shape (N, D)
    ranks : ndarray of shape (N,)
        0 to K - 1; each must occur.
    n_ranks : int
        K.
    strength : float
        C in ``|direction|^2 / 2 + C * NLL``.
    start : ndarray of shape (D,), optional
        A direction near the one to be found.

    Returns
    -------
    direction : ndarray of shape (D,)
    thresholds : ndarray of shape (K - 1,)
    """
    from scipy.optimize import minimize

    mean = rows.mean(axis=0)
    centred = rows - mean
    first = np.zeros(rows.shape[1]) if start is None else start
    # Thresholds stand as the first of them and the logarithms of the steps up from it, and so can only rise. The loss
    # is convex in the thresholds themselves, and every one of them has its own logarithms: no minimum is added.
    shares = np.clip(np.cumsum(np.bincount(ranks, minlength=n_ranks))[:-1] / len(ranks), 1e-3, 1 - 1e-3)
    log_odds = np.log(shares / (1 - shares))
    steps = np.log(np.maximum(np.diff(log_odds), 1e-2))
    found = minimize(
        _loss_and_slope,
        np.concatenate([first, log_odds[:1], steps]),
        args=(centred, ranks, strength),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-9, "gtol": 1e-5, "maxcor": 20},
    )
    direction, thresholds = found.x[: rows.shape[1]], _rising(found.x[rows.shape[1] :])
    return direction, thresholds + mean @ direction


def _rising(free: Floats) -> Floats:
    """Thresholds of shape (K - 1,) of the first one and the logarithms of the steps."""
    # A step that the data would shrink to nothing, or stretch without end, stays a number.
    return np.cumsum(np.concatenate([free[:1], np.exp(np.clip(free[1:], -15, 15))]))


def _loss_and_slope(x: Floats, rows: Floats, ranks: Ints, strength: float) -> tuple[float, Floats]:
    """Penalised NLL of a mean case, and its slope in direction, first threshold and logarithms of steps.

    With a and b the thresholds above and below a case's rank, less its height, and g = 1 / (exp(a - b) - 1)::

        d log p / da = sigmoid(-a) + g,    d log p / db = -sigmoid(b) - g
    """
    from scipy.special import expit

    dim, n = rows.shape[1], len(rows)
    direction, thresholds = x[:dim], _rising(x[dim:])
    height = rows @ direction
    log_p = rank_log_probs(height, thresholds)[np.arange(n), ranks]
    padded = np.concatenate([[-np.inf], thresholds, [np.inf]])
    above, below = padded[ranks + 1] - height, padded[ranks] - height
    between = np.concatenate([[0.0], 1 / np.expm1(np.minimum(np.diff(thresholds), FAR)), [0.0]])[ranks]
    up, down = expit(-above) + between, -expit(below) - between
    slopes = np.bincount(ranks, up, len(thresholds) + 1)[:-1] + np.bincount(ranks, down, len(thresholds) + 1)[1:]
    tails = np.cumsum(slopes[::-1])[::-1]  # a step moves every threshold above it
    tails[1:] *= np.diff(thresholds)
    weight = 1 / (strength * n)
    loss = direction @ direction * weight / 2 - log_p.mean()
    slope = np.concatenate([direction * weight + rows.T @ (up + down) / n, -tails / n])
    return float(loss), slope


def _choose(rows: Floats, ranks: Ints, folds: Ints, n_ranks: int) -> float:
    """Find the C of the lowest held-out NLL: from the smallest on, each fit starting at the last."""
    insides = [folds != fold for fold in np.unique(folds)]
    if any(len(np.unique(ranks[inside])) < n_ranks for inside in insides):
        return UNKNOWN
    starts: list[Floats | None] = [None] * len(insides)
    best, least = UNKNOWN, np.inf
    for strength in STRENGTHS:
        loss = 0.0
        for i, inside in enumerate(insides):
            direction, thresholds = fit_proportional_odds(rows[inside], ranks[inside], n_ranks, strength, starts[i])
            starts[i] = direction
            log_probs = rank_log_probs(rows[~inside] @ direction, thresholds)
            loss -= float(log_probs[np.arange(len(log_probs)), ranks[~inside]].sum())
        if loss < least:
            best, least = strength, loss
    return best
