"""Fusion: the calibrated distributions of several agents to one belief."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen

Floats = NDArray[np.float64]
SHRINKAGE = 4.0
"""Strength of the pull towards equal weights, in cases' worth of NLL per squared unit of weight."""
TINY = 1e-9


class Pool(Frozen):
    """The log-linear pool, log p(k) = log prior(k) + sum_m w_m (log p_m(k) - log prior(k)) + const.

    Weights are fitted, so agents with correlated errors share theirs. Where the pool was no better than its best
    member on held-out cases, all the weight is on that member and `best_agent` names it.
    """

    agents: tuple[str, ...]
    """The M columns, in order: `name` for the first look's outcome, `name@2` for the second's."""
    prior: tuple[float, ...]
    weights: tuple[float, ...]
    best_agent: str
    """The member with the lowest held-out NLL."""
    pooled: bool
    """Whether the pool beat it."""
    nll: dict[str, float]
    """Held-out NLL of each agent, and of `pool`."""
    n: int
    """Held-out cases."""

    @property
    def fused_by(self) -> str:
        """In words, for trails."""
        return "log-linear pool" if self.pooled else f"best agent: {self.best_agent}"

    def fuse(self, probs: Floats) -> Floats:
        """Fuse.

        Parameters
        ----------
        probs : ndarray of shape (M, N, K)
            Calibrated distributions; rows of nan where an agent failed.

        Returns
        -------
        ndarray of shape (N, K)
            Beliefs; the prior where everybody with weight failed but somebody answered, nan where nobody answered.
        """
        belief = fuse(probs, np.array(self.weights), np.array(self.prior))
        if not self.pooled:
            # The best agent failed: whoever did answer stands in, equally.
            lost = np.isnan(probs[self.agents.index(self.best_agent)]).any(axis=1)
            if lost.any():
                equal = np.full(len(self.agents), 1 / len(self.agents))
                belief[lost] = fuse(probs[:, lost], equal, np.array(self.prior))
        return belief


def fuse(probs: Floats, weights: Floats, prior: Floats) -> Floats:
    """Pool log-linearly with given weights; see `Pool`. A missing agent drops out with its weight."""
    evidence = np.log(np.maximum(probs, TINY)) - np.log(np.maximum(prior, TINY))
    missing = np.isnan(probs).any(axis=2)
    evidence[missing] = 0.0
    log_p = np.log(np.maximum(prior, TINY)) + np.einsum("m,mnk->nk", weights, evidence)
    log_p -= log_p.max(axis=1, keepdims=True)
    belief = np.exp(log_p)
    belief /= belief.sum(axis=1, keepdims=True)
    belief[missing.all(axis=0)] = np.nan
    return cast("Floats", belief)


class Fitted(NamedTuple):
    """A pool, and what it says of the cases it was fitted on when each is left out."""

    pool: Pool
    beliefs: Floats
    """Cross-fitted beliefs of shape (N, K)."""


def fit_pool(
    agents: tuple[str, ...], probs: Floats, truth: NDArray[np.intp], folds: NDArray[np.intp] | None
) -> Fitted:
    """Fit the weights by cross-validation and decide between pool and best member.

    Parameters
    ----------
    agents : tuple of str
        The M columns.
    probs : ndarray of shape (M, N, K)
        Cross-fitted calibrated distributions on held-out cases; rows of nan for failures.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        None where no fold can be made: the best member is then used.

    Returns
    -------
    Fitted
    """
    n_labels = probs.shape[2]
    # One case of every label is added, so that no label is impossible.
    prior = (np.bincount(truth, minlength=n_labels) + 1.0) / (len(truth) + n_labels)
    nll = {name: nll_of(row, truth, prior) for name, row in zip(agents, probs, strict=True)}
    best = min(nll, key=lambda name: nll[name])
    beliefs = np.empty(probs.shape[1:])
    if folds is not None:
        for fold in np.unique(folds):
            inside, outside = folds != fold, folds == fold
            weights = fit_weights(probs[:, inside], truth[inside], prior)
            beliefs[outside] = fuse(probs[:, outside], weights, prior)
        nll["pool"] = nll_of(beliefs, truth, prior)
    pooled = "pool" in nll and nll["pool"] < nll[best]
    weights = fit_weights(probs, truth, prior) if pooled else np.array([float(a == best) for a in agents])
    pool = Pool(
        agents=agents,
        prior=tuple(prior.tolist()),
        weights=tuple(weights.tolist()),
        best_agent=best,
        pooled=pooled,
        nll=nll,
        n=len(truth),
    )
    return Fitted(pool, beliefs if pooled else pool.fuse(probs))


def fit_weights(probs: Floats, truth: NDArray[np.intp], prior: Floats) -> Floats:
    """Weights w >= 0 of shape (M,) that minimise the NLL plus `SHRINKAGE` times the squared distance to 1 / M."""
    from scipy.optimize import minimize

    m, n, _ = probs.shape
    log_prior = np.log(prior)
    evidence = np.where(np.isnan(probs), 0.0, np.log(np.maximum(probs, TINY)) - log_prior)
    equal = np.full(m, 1 / m)

    def loss(w: Floats) -> tuple[float, Floats]:
        log_p = log_prior + np.einsum("m,mnk->nk", w, evidence)
        log_p -= log_p.max(axis=1, keepdims=True)
        p = np.exp(log_p)
        p /= p.sum(axis=1, keepdims=True)
        value = -np.log(np.maximum(p[np.arange(n), truth], TINY)).sum() + SHRINKAGE * ((w - equal) ** 2).sum()
        said = evidence[:, np.arange(n), truth].sum(axis=1)
        expected = np.einsum("nk,mnk->m", p, evidence)
        return float(value), expected - said + 2 * SHRINKAGE * (w - equal)

    found = minimize(loss, equal, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * m)
    return cast("Floats", found.x)


def nll_of(probs: Floats, truth: NDArray[np.intp], prior: Floats) -> float:
    """Mean NLL in nats; a failed row is charged the prior's, so failing never looks better than answering."""
    said = np.where(np.isnan(probs).any(axis=1, keepdims=True), prior, probs)
    return float(-np.log(np.maximum(said[np.arange(len(truth)), truth], TINY)).mean())
