"""Stacking: a logistic regression learns what the agents' answers say together."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.orchestrator.fusion import Fitted, Folds, Fusion, Truth, cross_fit, nll_of, normalised, prior_of
from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]
PENALTIES = (0.03, 0.3, 3.0)
"""Candidates for C, the inverse of the penalty on squared weights; the strongest penalty first."""
LEAST = 1e-3
"""Probabilities below this count as this: a logarithm without a floor would let one case move every weight."""
STEPS = 100
"""Iterations at most."""
SLACK = 5e-4
"""Largest slope left over, a case: fitted to the end it costs twice the time and the held-out NLL is no lower."""


class Stacked(Fusion):
    """p = softmax(W x + b): multinomial logistic regression on what M agents say about K labels.

    x holds, of each agent, its calibrated log-probabilities less their mean, and its confidence at its own label, zeros
    elsewhere; an agent that failed has zeros throughout. A label never seen has its prior.

    References
    ----------
    Wolpert (1992), Stacked generalization, https://doi.org/10.1016/S0893-6080(05)80023-1.
    """

    kind: Literal["stacked"] = "stacked"
    weights: tuple[tuple[float, ...], ...]
    """W, of shape (K, 2 M K)."""
    bias: tuple[float, ...]
    """b, of shape (K,)."""
    penalty: float
    """C."""

    @property
    def fused_by(self) -> str:
        """In words, for trails."""
        return "stacked logistic regression"

    def fuse(self, opinions: Opinions) -> Floats:
        """Fuse; see `Fusion.fuse`."""
        return _beliefs(self.checked(opinions), np.array(self.weights), np.array(self.bias))


def stacked_features(opinions: Opinions) -> Floats:
    """Compute what the regression sees, of shape (N, 2 M K); see `Stacked`."""
    m, n, k = opinions.probs.shape
    probs = np.nan_to_num(opinions.probs)
    log_p = np.log(np.maximum(probs, LEAST))
    said = np.where(probs.argmax(axis=2)[..., None] == np.arange(k), probs, 0.0)
    x = np.concatenate([log_p - log_p.mean(axis=2, keepdims=True), said], axis=2)
    return np.moveaxis(x, 0, 1).reshape(n, 2 * m * k)


def fit_stacked(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Fit the regression, its penalty chosen by cross-validation; the strongest where nothing can be held out."""
    prior = prior_of(truth, opinions.n_labels)
    penalties = PENALTIES if folds is not None else PENALTIES[:1]

    def others(known: Opinions, y: Truth, asked: Opinions) -> Floats:
        return np.stack([_beliefs(asked, *found) for found in _fit(known, y, penalties)], axis=-1)

    tried = np.moveaxis(cross_fit(others, opinions, truth, folds), -1, 0)
    chosen = int(np.argmin([nll_of(probs, truth, prior) for probs in tried]))
    weights, bias = _fit(opinions, truth, penalties[: chosen + 1])[-1]
    stacked = Stacked(
        agents=opinions.columns,
        weights=tuple(map(tuple, weights.tolist())),
        bias=tuple(bias.tolist()),
        penalty=penalties[chosen],
    )
    return Fitted(stacked, tried[chosen])


def _fit(opinions: Opinions, truth: Truth, penalties: tuple[float, ...]) -> list[tuple[Floats, Floats]]:
    """Weights (K, 2 M K) and bias (K,) for each penalty, each fit starting where the one before ended."""
    k = opinions.n_labels
    answered = opinions.answered.any(axis=0)
    x, y = stacked_features(opinions)[answered], truth[answered]
    seen, log_prior = np.unique(y), np.log(prior_of(truth, k))
    weights, bias = np.zeros((k, x.shape[1])), log_prior.copy()
    found = []
    for penalty in penalties:
        weights, bias = weights.copy(), bias.copy()
        if len(seen) > 1:
            weights[seen], intercepts = fit_logistic(
                x, np.searchsorted(seen, y), penalty, weights[seen], bias[seen] - bias[seen].mean()
            )
            # The labels seen keep their odds among each other, and on average their odds to those never seen.
            bias[seen] = intercepts - intercepts.mean() + log_prior[seen].mean()
        found.append((weights, bias))
    return found


def fit_logistic(
    x: Floats, y: Truth, penalty: float, weights: Floats, bias: Floats, slack: float = SLACK
) -> tuple[Floats, Floats]:
    """Minimise the summed NLL of softmax(W x + b) plus |W|^2 / (2 C), beginning at given weights, by L-BFGS.

    The same as scikit-learn's `LogisticRegression`, without what that takes a call: many small ones are fitted here.

    Parameters
    ----------
    x : ndarray of shape (N, F)
    y : ndarray of shape (N,)
        Every label from 0 to K - 1 at least once.
    penalty : float
        C.
    weights, bias : ndarray of shape (K, F) and (K,)
    slack : float
        See `SLACK`.

    Returns
    -------
    weights : ndarray of shape (K, F)
    bias : ndarray of shape (K,)
    """
    from scipy.optimize import minimize

    shape = weights.shape
    onehot = np.eye(shape[0])[y]

    def loss(flat: Floats) -> tuple[float, Floats]:
        w, b = flat[: -shape[0]].reshape(shape), flat[-shape[0] :]
        z = x @ w.T + b
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        total = e.sum(axis=1, keepdims=True)
        error = (e / total - onehot) * penalty
        value = penalty * (np.log(total).sum() - z[onehot > 0].sum()) + (w * w).sum() / 2
        return float(value), np.concatenate([(error.T @ x + w).ravel(), error.sum(axis=0)])

    start = np.concatenate([weights.ravel(), bias])
    options = {"maxiter": STEPS, "gtol": slack * penalty * len(x)}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return found[: -shape[0]].reshape(shape), found[-shape[0] :]


def _beliefs(opinions: Opinions, weights: Floats, bias: Floats) -> Floats:
    belief = normalised(stacked_features(opinions) @ weights.T + bias)
    belief[~opinions.answered.any(axis=0)] = np.nan
    return belief
