"""Calibrators: from what an agent said to a distribution that was measured on held-out cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from secondlook.agents.answer_table import AnswerTable
from secondlook.agents.base import Agent, Wrapper
from secondlook.agents.case import Case, Frozen, MaybeNan
from secondlook.agents.errors import NotFittedError
from secondlook.agents.prediction import Outcome, Prediction, Scale
from secondlook.agents.temperature import fit_temperature

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
SMOOTHING = 0.01
"""Added to each share of a vote or sample before the logarithm: no share of k neighbours proves an impossibility."""
LIFT = 0.01
"""How far a stated confidence below chance is lifted above it, in parts of chance: just enough to keep its order."""
DOUBT = 1e-6
"""What a stated confidence of 1 leaves to the other labels together."""
FLOOR = -30.0
"""Log-probabilities below this count as this in a vector calibrator: near -inf no scale could be fitted."""
SHRINKAGES = (5.0, 1.0, 30.0, 1e6)
"""Candidate strengths of the pull in an answer table (`AnswerTable.shrinkage`); the last leaves the label alone."""
MOST_TABLE_LABELS = 1000
"""With more labels than this there is no answer table: it would hold six million numbers."""
EARNED = 1.02
"""A vector or a table must have an NLL lower by this factor, for its many numbers."""


class Calibrator(Frozen):
    """p = softmax(scale * log q / T + bias), where q is what the agent said; or what a table of its answers says.

    `none` leaves q as it is; `temperature` fits T; `vector` fits a scale and a bias per label; `table` is the posterior
    given the top label and its confidence (`AnswerTable`).
    """

    kind: Literal["none", "temperature", "vector", "table"] = "none"
    temperature: float = 1.0
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    table: AnswerTable | None = None
    n: int = 0
    """Calibration cases it was fitted on."""
    nll: MaybeNan = float("nan")
    """Cross-fitted NLL on them, in nats; nan where they were too few for folds."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "table") != (self.table is not None):
            raise ValueError(f"table: expected one where the kind is table, and only there; the kind is {self.kind}")
        return self

    def apply(self, log_q: Floats) -> Floats:
        """Calibrate log-probabilities of shape (N, K) to distributions of the same shape."""
        if self.table is not None:
            return self.table.posterior(np.exp(log_q))
        if self.kind == "vector":
            return _softmax(np.maximum(log_q, FLOOR) * np.array(self.scale) + np.array(self.bias))
        return _softmax(log_q / self.temperature)


def log_distribution(scores: Floats, scale: Scale) -> Floats:
    """Bring scores of any kind to log-probabilities.

    Parameters
    ----------
    scores : ndarray of shape (N, K)
    scale : Scale
        What the numbers are. Shares are smoothed, logits normalised. Of what was stated, the top label keeps its
        confidence c and the others share the rest evenly; c below (1 + .01 c) / K counts as that, so that the label
        stays the top one and a lower confidence the lower one, and c above 1 - 1e-6 counts as that.

    Returns
    -------
    ndarray of shape (N, K)

    Examples
    --------
    >>> np.exp(log_distribution(np.array([[0.0, 0.7, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0]]), "stated")).round(4).tolist()
    [[0.1, 0.7, 0.1, 0.1], [0.2505, 0.2498, 0.2498, 0.2498]]
    """
    if scale == "logit":
        return scores - _logsumexp(scores)
    if scale == "stated":
        return _log_stated(scores)
    smoothed = scores + (SMOOTHING if scale in ("vote", "sampled") else 1e-12)
    log_q: Floats = np.log(smoothed / smoothed.sum(axis=1, keepdims=True))
    return log_q


def _log_stated(scores: Floats) -> Floats:
    n, k = scores.shape
    c = scores.max(axis=1, initial=0.0)
    c = np.clip(c, (1 + LIFT * np.minimum(c, 1)) / k, 1 - DOUBT)
    log_q = np.tile(np.log1p(-c)[:, None] - np.log(k - 1), (1, k))
    log_q[np.arange(n), scores.argmax(axis=1)] = np.log(c)
    return log_q


def log_distributions(said: Sequence[Prediction]) -> tuple[Floats, Scale]:
    """Bring one agent's N predictions to log-probabilities of shape (N, K), each by its own scale.

    Returns
    -------
    log_q : ndarray of shape (N, K)
    scale : Scale
        The commonest among them.
    """
    scores = np.array([prediction.scores for prediction in said])
    scales = np.array([prediction.scale for prediction in said])
    counts: Counter[Scale] = Counter(prediction.scale for prediction in said)
    log_q = np.empty_like(scores)
    for scale in counts:
        log_q[scales == scale] = log_distribution(scores[scales == scale], scale)
    return log_q, counts.most_common(1)[0][0]


def fit_calibrator(
    log_q: Floats, truth: Ints, folds: Ints | None, scale: Scale = "probability"
) -> tuple[Calibrator, Floats]:
    """Choose the calibrator of lowest cross-fitted NLL and refit it on all cases.

    Parameters
    ----------
    log_q : ndarray of shape (N, K)
        Log-probabilities on held-out cases.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        Fold of each case. Where there are no two folds, nothing can be chosen: what was stated gets a table, everything
        else a temperature; both hold to their priors where cases are few.
    scale : Scale
        What the agent's numbers were. A table is tried for what was stated, for votes and for samples; a vector for
        everything that has a number for each label, which what was stated has not.

    Returns
    -------
    calibrator : Calibrator
    probs : ndarray of shape (N, K)
        Cross-fitted: no row was calibrated by something fitted on it. Without folds, the fitted rows themselves.

    Raises
    ------
    ValueError
        When the shapes do not fit together, a truth is no label, or a log-probability is nan.
    """
    if log_q.ndim != 2 or truth.shape != log_q.shape[:1] or (folds is not None and folds.shape != truth.shape):
        shapes = (log_q.shape, truth.shape, None if folds is None else folds.shape)
        raise ValueError(f"log_q, truth, folds: expected [N, K], [N] and [N] or None, got {shapes}")
    if len(truth) and not 0 <= truth.min() <= truth.max() < log_q.shape[1]:
        raise ValueError(f"truth: expected 0 to {log_q.shape[1] - 1}, got {truth.min()} to {truth.max()}")
    if np.isnan(log_q).any():
        raise ValueError(
            f"log_q: expected numbers, got nan in {np.isnan(log_q).any(axis=1).sum()} of {len(log_q)} rows"
        )
    if folds is None or len(np.unique(folds)) < 2:
        tabled = scale == "stated" and log_q.shape[1] <= MOST_TABLE_LABELS
        fit = _fit_table if tabled else _fit_temperature
        only = fit(log_q, truth).model_copy(update={"n": len(truth)})
        return only, only.apply(log_q)
    candidates = _candidates(scale, log_q.shape[1])
    held_out = {name: _held_out(fit, log_q, truth, folds) for name, fit in candidates.items()}
    losses = {name: _nll(probs, truth) for name, probs in held_out.items()}
    # The simpler one wins ties and near-ties, and the simpler ones come first.
    best = min(losses, key=lambda name: losses[name] * (1.0 if name in ("none", "temperature") else EARNED))
    fitted = candidates[best](log_q, truth)
    return fitted.model_copy(update={"n": len(truth), "nll": losses[best]}), held_out[best]


Fit = Callable[[Floats, Ints], Calibrator]


def _candidates(scale: Scale, n_labels: int) -> dict[str, Fit]:
    """Ways to fit a calibrator, the simpler ones first."""
    found: dict[str, Fit] = {"none": lambda log_q, truth: Calibrator(), "temperature": _fit_temperature}
    if scale != "stated":
        found["vector"] = _fit_vector
    if scale in ("stated", "vote", "sampled") and n_labels <= MOST_TABLE_LABELS:
        found |= {f"table {m:g}": partial(_fit_table, shrinkage=m) for m in SHRINKAGES}
    return found


def _held_out(fit: Fit, log_q: Floats, truth: Ints, folds: Ints) -> Floats:
    """Distributions of shape (N, K), each fold's calibrated by a fit to the others."""
    probs = np.empty_like(log_q)
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        probs[outside] = fit(log_q[inside], truth[inside]).apply(log_q[outside])
    return probs


def _fit_temperature(log_q: Floats, truth: Ints) -> Calibrator:
    return Calibrator(kind="temperature", temperature=fit_temperature(log_q, truth))


def _fit_table(log_q: Floats, truth: Ints, shrinkage: float = SHRINKAGES[0]) -> Calibrator:
    return Calibrator(kind="table", table=AnswerTable.fit(np.exp(log_q), truth, shrinkage=shrinkage))


def _fit_vector(log_q: Floats, truth: Ints) -> Calibrator:
    """Fit a scale and a bias per label by L-BFGS, with a Gaussian prior around the identity."""
    from scipy.optimize import minimize

    k = log_q.shape[1]
    floor = np.maximum(log_q, FLOOR)
    onehot = np.eye(k)[truth]

    def loss(x: Floats) -> tuple[float, Floats]:
        scale, bias = x[:k], x[k:]
        z = floor * scale + bias
        log_p = z - _logsumexp(z)
        error = np.exp(log_p) - onehot
        value = -(log_p * onehot).sum() + ((scale - 1) ** 2).sum() / 2 + (bias**2).sum() / 2
        return float(value), np.concatenate([(error * floor).sum(0) + scale - 1, error.sum(0) + bias])

    found = minimize(loss, np.concatenate([np.ones(k), np.zeros(k)]), jac=True, method="L-BFGS-B")
    return Calibrator(kind="vector", scale=tuple(found.x[:k].tolist()), bias=tuple(found.x[k:].tolist()))


class Calibrated(Wrapper):
    """Wrapper: the agent's outcomes, calibrated by what was fitted for the look they belong to."""

    def __init__(self, agent: Agent, calibrators: Mapping[int, Calibrator]) -> None:
        super().__init__(agent)
        self._calibrators = calibrators

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`.

        Raises
        ------
        NotFittedError
            When a look was never calibrated.
        """
        outcomes = list(await self._agent.predict(cases))
        alike: dict[int, dict[int, Prediction]] = {}
        for i, outcome in enumerate(outcomes):
            if isinstance(outcome, Prediction):
                alike.setdefault(outcome.look, {})[i] = outcome
        for look, said in alike.items():
            log_q, _ = log_distributions(list(said.values()))
            probs = self._calibrator(look).apply(log_q)
            for (i, prediction), row, q in zip(said.items(), probs.tolist(), np.exp(log_q).tolist(), strict=True):
                calibrated = {"scale": "probability", "scores": tuple(row), "said": tuple(q)}
                outcomes[i] = prediction.model_copy(update=calibrated)
        return outcomes

    def _calibrator(self, look: int) -> Calibrator:
        if look not in self._calibrators:
            raise NotFittedError(f"The agent {self.name!r} has no calibrator for look {look}.", "Run fit.")
        return self._calibrators[look]


def _logsumexp(z: Floats) -> Floats:
    top = z.max(axis=1, keepdims=True)
    total: Floats = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    return total


def _softmax(z: Floats) -> Floats:
    p: Floats = np.exp(z - _logsumexp(z))
    return p


def _nll(probs: Floats, truth: Ints) -> float:
    return float(-np.log(np.maximum(probs[np.arange(len(truth)), truth], 1e-12)).mean())
