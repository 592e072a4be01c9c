"""Calibrators: from what an agent said to a distribution that was measured on held-out cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.base import Agent
from secondlook.agents.case import Case, Frozen, MaybeNan
from secondlook.agents.errors import NotFittedError
from secondlook.agents.prediction import Outcome, Prediction, Scale

Floats = NDArray[np.float64]
SMOOTHING = 0.01
"""Added to each share of a vote or sample before the logarithm: no share of k neighbours proves an impossibility."""
PRIOR_SD = 1.0
"""Standard deviation of the log-normal prior on a temperature, in natural-log units."""
FLOOR = -30.0
"""Log-probabilities below this count as this in a vector calibrator: near -inf no scale could be fitted."""


class Calibrator(Frozen):
    """p = softmax(scale * log q / T + bias), where q is what the agent said.

    `none` leaves q as it is; `temperature` fits T; `vector` fits a scale and a bias per label.
    """

    kind: Literal["none", "temperature", "vector"] = "none"
    temperature: float = 1.0
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    n: int = 0
    """Calibration cases it was fitted on."""
    nll: MaybeNan = float("nan")
    """Cross-fitted NLL on them, in nats; nan where they were too few for folds."""

    def apply(self, log_q: Floats) -> Floats:
        """Calibrate log-probabilities of shape (N, K) to distributions of the same shape."""
        z = log_q / self.temperature
        if self.kind == "vector":
            z = np.maximum(log_q, FLOOR) * np.array(self.scale) + np.array(self.bias)
        return _softmax(z)


def log_distribution(scores: Floats, scale: Scale) -> Floats:
    """Bring scores of any kind to log-probabilities.

    Parameters
    ----------
    scores : ndarray of shape (N, K)
    scale : Scale
        What the numbers are; shares are smoothed, logits normalised.

    Returns
    -------
    ndarray of shape (N, K)
    """
    if scale == "logit":
        return scores - _logsumexp(scores)
    smoothed = scores + (SMOOTHING if scale in ("vote", "sampled") else 1e-12)
    log_q: Floats = np.log(smoothed / smoothed.sum(axis=1, keepdims=True))
    return log_q


def fit_calibrator(log_q: Floats, truth: NDArray[np.intp], folds: NDArray[np.intp] | None) -> tuple[Calibrator, Floats]:
    """Choose the calibrator of lowest cross-fitted NLL and refit it on all cases.

    Parameters
    ----------
    log_q : ndarray of shape (N, K)
        Log-probabilities on held-out cases.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        Fold of each case; None (too few groups) fits a temperature without choosing.

    Returns
    -------
    calibrator : Calibrator
    probs : ndarray of shape (N, K)
        Cross-fitted: no row was calibrated by something fitted on it. Without folds, the fitted rows themselves.

    Raises
    ------
    ValueError
        When the shapes do not fit together.
    """
    if log_q.ndim != 2 or truth.shape != log_q.shape[:1] or (folds is not None and folds.shape != truth.shape):
        shapes = (log_q.shape, truth.shape, None if folds is None else folds.shape)
        raise ValueError(f"log_q, truth, folds: expected [N, K], [N] and [N] or None, got {shapes}")
    if folds is None:
        only = _fit_temperature(log_q, truth).model_copy(update={"n": len(truth)})
        return only, only.apply(log_q)
    candidates = {
        "none": lambda x, y: Calibrator(),
        "temperature": _fit_temperature,
        "vector": _fit_vector,
    }
    held_out: dict[str, Floats] = {}
    for name, fit in candidates.items():
        probs = np.empty_like(log_q)
        for fold in np.unique(folds):
            inside, outside = folds != fold, folds == fold
            probs[outside] = fit(log_q[inside], truth[inside]).apply(log_q[outside])
        held_out[name] = probs
    losses = {name: _nll(probs, truth) for name, probs in held_out.items()}
    # The simpler one wins ties and near-ties: a vector must earn its 2K numbers.
    best = min(losses, key=lambda name: losses[name] * (1.02 if name == "vector" else 1.0))
    fitted = candidates[best](log_q, truth)
    return fitted.model_copy(update={"n": len(truth), "nll": losses[best]}), held_out[best]


def _fit_temperature(log_q: Floats, truth: NDArray[np.intp]) -> Calibrator:
    """Maximise the likelihood with a log-normal prior: T runs away where the cases hold no error."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        z = log_q / np.exp(log_t)
        return float(-(z - _logsumexp(z))[np.arange(len(truth)), truth].sum() + log_t**2 / (2 * PRIOR_SD**2))

    found = minimize_scalar(loss, bounds=(-5, 5), method="bounded")
    return Calibrator(kind="temperature", temperature=float(np.exp(found.x)))


def _fit_vector(log_q: Floats, truth: NDArray[np.intp]) -> Calibrator:
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


class Calibrated:
    """Wrapper: the agent's outcomes, calibrated by what was fitted for the look they belong to."""

    def __init__(self, agent: Agent, calibrators: Mapping[int, Calibrator]) -> None:
        self._agent = agent
        self._calibrators = calibrators

    @property
    def name(self) -> str:
        """The wrapped agent's name."""
        return self._agent.name

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`.

        Raises
        ------
        NotFittedError
            When a look was never calibrated.
        """
        outcomes = list(await self._agent.predict(cases))
        alike: dict[tuple[int, Scale], dict[int, Prediction]] = {}
        for i, outcome in enumerate(outcomes):
            if isinstance(outcome, Prediction):
                alike.setdefault((outcome.look, outcome.scale), {})[i] = outcome
        for (look, scale), said in alike.items():
            scores = np.array([prediction.scores for prediction in said.values()])
            log_q = log_distribution(scores, scale)
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


def _nll(probs: Floats, truth: NDArray[np.intp]) -> float:
    return float(-np.log(np.maximum(probs[np.arange(len(truth)), truth], 1e-12)).mean())
