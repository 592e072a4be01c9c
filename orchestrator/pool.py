"""The log-linear pool: calibrated distributions multiplied, each to the power of a fitted weight."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from secondlook.orchestrator.fusion import (
    TINY,
    Fitted,
    Folds,
    Fusion,
    Truth,
    cross_fit,
    nll_of,
    normalised,
    prior_of,
)
from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]
SHRINKAGES = (4.0, 64.0, 1024.0)
"""Candidate strengths of the pull towards the starting weights, in cases' worth of NLL per squared unit of weight."""


class Pool(Fusion):
    """The log-linear pool, log p(k) = log prior(k) + sum_m w_m (log p_m(k) - log prior(k)) + const.

    Weights are fitted, so agents with correlated errors share theirs.
    """

    kind: Literal["pool"] = "pool"
    prior: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def fused_by(self) -> str:
        """In words, for trails."""
        return "log-linear pool"

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
        probs = self.checked(opinions).probs
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
    belief = normalised(log_p)
    belief[missing.all(axis=0)] = np.nan
    return belief


def fit_pool(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Fit the weights, the strength of their shrinkage by cross-validation.

    Parameters
    ----------
    opinions : Opinions
        Cross-fitted, on N held-out cases.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        None where no fold can be made: the strongest shrinkage is then used.

    Returns
    -------
    Fitted
    """
    prior = prior_of(truth, opinions.n_labels)

    def at(strength: float) -> Floats:
        def others(known: Opinions, y: Truth, asked: Opinions) -> Floats:
            base = prior_of(y, known.n_labels)
            return fuse(asked.probs, fit_weights(known.probs, y, base, strength), base)

        return cross_fit(others, opinions, truth, folds)

    tried = {strength: at(strength) for strength in (SHRINKAGES if folds is not None else SHRINKAGES[-1:])}
    strength = min(tried, key=lambda s: nll_of(tried[s], truth, prior))
    weights = fit_weights(opinions.probs, truth, prior, strength)
    pool = Pool(agents=opinions.columns, prior=tuple(prior.tolist()), weights=tuple(weights.tolist()))
    return Fitted(pool, tried[strength])


def starting_weights(probs: Floats, truth: Truth, prior: Floats) -> Floats:
    """Weights of shape (M,) that sum to 1, in proportion to exp(-sqrt(n) NLL): equal for equals, small for the weak.

    A likelihood tempered from n to sqrt(n) cases, since images of one group are not independent and neither are agents.
    """
    losses = np.array([nll_of(row, truth, prior) for row in probs]) if len(truth) else np.zeros(len(probs))
    weights = np.exp(-np.sqrt(len(truth)) * (losses - losses.min()))
    return cast("Floats", weights / weights.sum())


def fit_weights(probs: Floats, truth: Truth, prior: Floats, strength: float = SHRINKAGES[0]) -> Floats:
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
    w: Floats, evidence: Floats, truth: Truth, log_prior: Floats, start: Floats, strength: float
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
