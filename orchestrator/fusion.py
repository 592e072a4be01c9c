"""Fusion: the opinions of several agents to one belief, by a fitted policy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.calibration import Calibrator, fit_calibrator
from secondlook.agents.case import Frozen, MaybeNan
from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]
Truth = NDArray[np.intp]
Folds = NDArray[np.intp] | None
TINY = 1e-9


class Fusion(Frozen):
    """A fitted policy: a frozen value that is written into the model folder as JSON."""

    kind: str
    agents: tuple[str, ...]
    """The M columns it was fitted on, in order: `name` for the first look's answers, `name@2` for the second's."""
    agent_nll: dict[str, float] = Field(default_factory=dict)
    """Cross-fitted NLL of each of them alone, in nats."""
    nll: MaybeNan = float("nan")
    """Cross-fitted NLL of the beliefs, in nats; nan where the cases were too few for folds."""
    n: int = 0
    """Held-out cases it was fitted on."""

    @property
    @abstractmethod
    def fused_by(self) -> str:
        """In words, for trails."""

    def fused_from(self, answered: Collection[str]) -> str:
        """In words, how one case was fused of those who answered, by column."""
        del answered
        return self.fused_by

    @abstractmethod
    def fuse(self, opinions: Opinions) -> Floats:
        """Beliefs of shape (N, K) from the opinions of `agents`, in their order; nan where nobody answered."""

    @property
    def best_agent(self) -> str:
        """The column with the lowest held-out NLL; the first where none was measured."""
        return min(self.agents, key=lambda name: self.agent_nll.get(name, float("inf")))

    def checked(self, opinions: Opinions) -> Opinions:
        """Return the opinions, if they are of `agents` in their order.

        Raises
        ------
        ValueError
            When they are of others.
        """
        if opinions.columns != self.agents:
            raise ValueError(f"opinions: expected the columns {self.agents}, got {opinions.columns}")
        return opinions


class Fitted(NamedTuple):
    """A fusion, and what it says of the cases it was fitted on when each is left out."""

    fusion: Fusion
    beliefs: Floats
    """Cross-fitted beliefs of shape (N, K)."""


def cross_fit(
    fuse_others: Callable[[Opinions, Truth, Opinions], Floats], opinions: Opinions, truth: Truth, folds: Folds
) -> Floats:
    """Beliefs of shape (N, K, ...), each fold's by what was fitted on the others; without folds, of the fitted cases.

    Parameters
    ----------
    fuse_others : callable
        Of the opinions and the truth to fit on, and the opinions to fuse: their beliefs.
    opinions : Opinions
        N cases.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
    """
    if folds is None:
        return fuse_others(opinions, truth, opinions)
    beliefs: Floats | None = None
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        found = fuse_others(opinions.cases(inside), truth[inside], opinions.cases(outside))
        if beliefs is None:
            beliefs = np.full((len(truth), *found.shape[1:]), np.nan)
        beliefs[outside] = found
    assert beliefs is not None
    return beliefs


def fit_temperature(log_q: Floats, truth: Truth, folds: Folds) -> tuple[Calibrator, Floats]:
    """Fit a temperature on beliefs that one or more rows may lack; see `secondlook.agents.calibration`.

    Parameters
    ----------
    log_q : ndarray of shape (N, K)
        Log-probabilities; rows of nan where nobody answered.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None

    Returns
    -------
    calibrator : Calibrator
        Fitted on all cases.
    probs : ndarray of shape (N, K)
        Cross-fitted; without folds, of the fitted cases.
    """
    known: NDArray[np.bool_] = np.logical_not(np.isnan(log_q).any(axis=1))

    def fit(rows: NDArray[np.bool_]) -> Calibrator:
        # Without folds a temperature is fitted and nothing is chosen: no label changes place with another.
        return fit_calibrator(log_q[rows], truth[rows], None)[0] if rows.any() else Calibrator()

    whole, probs = fit(known), np.full_like(log_q, np.nan)
    for fold in [None] if folds is None else np.unique(folds):
        outside = known if folds is None else known & (folds == fold)
        calibrator = whole if folds is None else fit(np.logical_and(known, folds != fold))
        probs[outside] = calibrator.apply(log_q[outside])
    return whole, probs


def normalised(log_p: Floats) -> Floats:
    """Distributions of shape (N, K) from logarithms known up to a constant a row; nan stays nan."""
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    return cast("Floats", p / p.sum(axis=1, keepdims=True))


def prior_of(truth: Truth, n_labels: int) -> Floats:
    """Label frequencies of shape (K,), one case of every label added, so that none is impossible."""
    return (np.bincount(truth, minlength=n_labels) + 1.0) / (len(truth) + n_labels)


def nll_of(probs: Floats, truth: Truth, prior: Floats) -> float:
    """Mean NLL in nats; a failed row is charged the prior's, so failing never looks better than answering.

    Without a case it is nan.
    """
    if not len(truth):
        return float("nan")
    said = np.where(np.isnan(probs).any(axis=1, keepdims=True), prior, probs)
    return float(-np.log(np.maximum(said[np.arange(len(truth)), truth], TINY)).mean())


def measured(fitted: Fitted, opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Write into a fusion what it and its agents were worth on the cases it was fitted on."""
    prior = prior_of(truth, opinions.n_labels)
    found: dict[str, Any] = {
        "agent_nll": {a: nll_of(row, truth, prior) for a, row in zip(opinions.columns, opinions.probs, strict=True)},
        "nll": float("nan") if folds is None else nll_of(fitted.beliefs, truth, prior),
        "n": len(truth),
    }
    return Fitted(fitted.fusion.model_copy(update=found), fitted.beliefs)
