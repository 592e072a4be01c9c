"""The log-linear pool: calibrated distributions multiplied, each to the power of a fitted weight."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen
from secondlook.orchestrator.fusion import Fitted
from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]
SHRINKAGES = (4.0, 64.0, 1024.0)
"""Candidate strengths of the pull towards the starting weights, in cases' worth of NLL per squared unit of weight."""
TINY = 1e-9


class Pool(Frozen):
    """The log-linear pool, log p(k) = log prior(k) + sum_m w_m (log p_m(k) - log prior(k)) + const.

    Weights are fitted, so agents with correlated errors share theirs. Where the pool was no better than its best
    member on held-out cases, all the weight is on that member and `best_agent` names it.
    """

    kind: Literal["pool"] = "pool"
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

    def fused_from(self, answered: Collection[str]) -> str:
        """In words, how one case was fused of those who answered, by column."""
        lost = not any(weight > 0 and name in answered for name, weight in zip(self.agents, self.weights, strict=True))
        return "equal weights, as all with weight failed" if answered and lost else self.fused_by

    def fuse(self, opinions: Opinions) -> Floats:
        """Fuse.

        Parameters
        ----------
        opinions : Opinions
            Of `agents`, in their order.

        Returns
        -------
        ndarray of shape (N, K)
            Beliefs; where everybody with weight failed, whoever did answer stands in with weight 1 / M; nan where
            nobody answered.
        """
        probs = opinions.probs
        weights, prior = np.array(self.weights), np.array(self.prior)
        belief = fuse(probs, weights, prior)
        lost = np.isnan(probs[weights > 0]).any(axis=2).all(axis=0)
        if lost.any():
            belief[lost] = fuse(probs[:, lost], np.full(len(weights), 1 / len(weights)), prior)
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


def fit_pool(opinions: Opinions, truth: NDArray[np.intp], folds: NDArray[np.intp] | None) -> Fitted:
    """Fit the weights by cross-validation and decide between pool and best member.

    Parameters
    ----------
    opinions : Opinions
        Cross-fitted, on N held-out cases.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        None where no fold can be made: the best member is then used.

    Returns
    -------
    Fitted
    """
    agents, probs = opinions.columns, opinions.probs
    prior = prior_of(truth, probs.shape[2])
    nll = {name: nll_of(row, truth, prior) for name, row in zip(agents, probs, strict=True)}
    best = min(nll, key=lambda name: nll[name])
    weights, beliefs = np.array([float(name == best) for name in agents]), None
    if folds is not None:
        tried = {strength: _held_out(probs, truth, folds, strength) for strength in SHRINKAGES}
        strength = min(tried, key=lambda s: nll_of(tried[s], truth, prior))
        nll["pool"] = nll_of(tried[strength], truth, prior)
        if nll["pool"] < nll[best]:
            weights, beliefs = fit_weights(probs, truth, prior, strength), tried[strength]
    pool = Pool(
        agents=agents,
        prior=tuple(prior.tolist()),
        weights=tuple(weights.tolist()),
        best_agent=best,
        pooled=beliefs is not None,
        nll=nll,
        n=len(truth),
    )
    return Fitted(pool, pool.fuse(opinions) if beliefs is None else beliefs)


def _held_out(probs: Floats, truth: NDArray[np.intp], folds: NDArray[np.intp], strength: float) -> Floats:
    """Cross-fitted beliefs of shape (N, K) for one strength of shrinkage."""
    beliefs = np.empty(probs.shape[1:])
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        known = prior_of(truth[inside], probs.shape[2])
        beliefs[outside] = fuse(probs[:, outside], fit_weights(probs[:, inside], truth[inside], known, strength), known)
    return beliefs


def prior_of(truth: NDArray[np.intp], n_labels: int) -> Floats:
    """Label frequencies of shape (K,), one case of every label added, so that none is impossible."""
    return (np.bincount(truth, minlength=n_labels) + 1.0) / (len(truth) + n_labels)


def starting_weights(probs: Floats, truth: NDArray[np.intp], prior: Floats) -> Floats:
    """Weights of shape (M,) that sum to 1, in proportion to exp(-sqrt(n) NLL): equal for equals, small for the weak.

    A likelihood tempered from n to sqrt(n) cases, since images of one group are not independent and neither are agents.
    """
    losses = np.array([nll_of(row, truth, prior) for row in probs]) if len(truth) else np.zeros(len(probs))
    weights = np.exp(-np.sqrt(len(truth)) * (losses - losses.min()))
    return cast("Floats", weights / weights.sum())


def fit_weights(probs: Floats, truth: NDArray[np.intp], prior: Floats, strength: float = SHRINKAGES[0]) -> Floats:
    """Weights w >= 0 of shape (M,) of lowest NLL plus `strength` times the squared distance to the starting weights."""
    from scipy.optimize import minimize

    log_prior = np.log(prior)
    evidence = np.where(np.isnan(probs), 0.0, np.log(np.maximum(probs, TINY)) - log_prior)
    start = starting_weights(probs, truth, prior)

    def loss(w: Floats) -> tuple[float, Floats]:
        return penalised_nll(w, evidence, truth, log_prior, start, strength)

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(start))
    return cast("Floats", found.x)


def penalised_nll(
    w: Floats, evidence: Floats, truth: NDArray[np.intp], log_prior: Floats, start: Floats, strength: float
) -> tuple[float, Floats]:
    """Compute what `fit_weights` minimises, and its gradient of shape (M,).

    Parameters
    ----------
    w : ndarray of shape (M,)
    evidence : ndarray of shape (M, N, K)
        log p_m(k) - log prior(k); 0 where an agent failed.
    truth : ndarray of shape (N,)
    log_prior : ndarray of shape (K,)
    start : ndarray of shape (M,)
    strength : float
    """
    rows = np.arange(len(truth))
    log_p = log_prior + np.einsum("m,mnk->nk", w, evidence)
    log_p -= np.logaddexp.reduce(log_p, axis=1, keepdims=True)
    away = w - start
    value = strength * (away**2).sum() - log_p[rows, truth].sum()
    said = evidence[:, rows, truth].sum(axis=1)
    expected = np.einsum("nk,mnk->m", np.exp(log_p), evidence)
    return float(value), expected - said + 2 * strength * away


def nll_of(probs: Floats, truth: NDArray[np.intp], prior: Floats) -> float:
    """Mean NLL in nats; a failed row is charged the prior's, so failing never looks better than answering."""
    said = np.where(np.isnan(probs).any(axis=1, keepdims=True), prior, probs)
    return float(-np.log(np.maximum(said[np.arange(len(truth)), truth], TINY)).mean())
