"""Gain: what further steps were worth on held-out cases, by how far one trusted what one had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen
from secondlook.agents.cost import Prices
from secondlook.orchestrator.fusion import Fitted, Folds, Fusion, Truth, cross_fit, measured, nll_of, prior_of
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.pool import Pool, fuse
from secondlook.orchestrator.step import Step

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Fuse = Callable[[Opinions, Truth, Folds], Fitted]
SHRINKAGE = 32.0
"""Cases' worth of the belief's own expectation in every measured gain. Chosen by hand on simulated panels, where 16 to
64 did alike."""
LEAST_CASES = 10
"""In a band of trust, unless there are fewer altogether."""
WEIGHTS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Candidate weights that all agents of an `equal_pool` share."""


class Option(Frozen):
    """One or more steps that may come next, in the order of taking; the first is taken, then it is chosen anew."""

    steps: tuple[str, ...]
    gain: float
    """Expected fall of the loss for all of them, shrunk; without costs of errors, the gain in accuracy."""
    cost: float
    """Of all of them for a case, in the unit of the prices."""

    def pays(self, worth: float, risk: float) -> bool:
        """Whether its gain is worth its cost, for a case whose expected loss is `risk`: more cannot be gained."""
        return self.gain > 0 and min(self.gain, risk) * worth >= self.cost

    @property
    def rate(self) -> float:
        """Gain per cost; infinite where it costs nothing."""
        return self.gain / self.cost if self.cost else float("inf")


class Band(Frozen):
    """Cases whose trust is at least `least` and below that of the next band."""

    least: float
    n: int
    """Held-out cases."""
    loss: float
    """Their mean loss when nothing more is asked."""
    options: tuple[Option, ...]
    """The best gain per cost first."""


@dataclass(frozen=True)
class Known:
    """What is known of N held-out cases once some steps were taken.

    Attributes
    ----------
    fusion : Fusion or None
        None before the first step.
    beliefs : ndarray of shape (N, K)
        Cross-fitted; nan where nobody answered.
    labels : ndarray of shape (N,)
        Of least expected loss.
    loss : ndarray of shape (N,)
        Of these labels, from 0 to 1.
    trust : ndarray of shape (N,)
        1 minus their expected loss.
    """

    fusion: Fusion | None
    beliefs: Floats
    labels: NDArray[np.intp]
    loss: Floats
    trust: Floats


def know(fitted: Fitted | None, beliefs: Floats, loss: Loss, truth: Truth) -> Known:
    """Judge beliefs by the truth."""
    labels = loss.labels(beliefs)
    lost = loss.of(labels, truth).astype(np.float64)
    return Known(fitted.fusion if fitted else None, beliefs, labels, lost, 1 - expected_loss(beliefs, labels, loss))


def expected_loss(beliefs: Floats, labels: NDArray[np.intp], loss: Loss) -> Floats:
    """Loss of shape (N,) that labels are expected to have under beliefs; 1 where nothing is believed."""
    n, k = beliefs.shape
    each = np.stack([loss.of(labels, np.full(n, y, dtype=np.intp)).astype(np.float64) for y in range(k)], axis=1)
    return cast("Floats", np.clip(np.nan_to_num((beliefs * each).sum(axis=1), nan=1.0), 0.0, 1.0))


def measure(before: Known, after: Known | Step, where: Bools, loss: Loss) -> float:
    """Gain of going from one state of knowledge to another, for the cases of a band.

    The mean fall of the loss on the held-out cases, shrunk towards what the beliefs themselves expect of it: the
    expected fall under the belief afterwards. That is never negative and hardly noisy, but only as true as the
    beliefs; the measured fall is true, but among few cases noisy.

    Parameters
    ----------
    before : Known
    after : Known or Step
        A step for a person, whose label is not known beforehand.
    where : ndarray of shape (N,)
        The n cases of the band.
    loss : Loss

    References
    ----------
    Howard (1966), Information value theory, https://doi.org/10.1109/TSSC.1966.300074.
    """
    if isinstance(after, Step):
        left = 1.0 - cast("float", after.accuracy)
        fall, hoped = before.loss[where] - left, 1 - before.trust[where] - left
    else:
        fall = before.loss[where] - after.loss[where]
        believed = after.beliefs[where]
        hoped = expected_loss(believed, before.labels[where], loss) - expected_loss(believed, after.labels[where], loss)
    return float((fall.sum() + SHRINKAGE * hoped.mean()) / (len(fall) + SHRINKAGE))


def best_first(options: Sequence[Option]) -> tuple[Option, ...]:
    """Sort by gain per cost; of equals the greater gain first."""
    return tuple(sorted(options, key=lambda option: (-option.rate, -option.gain)))


def price(steps: Sequence[Step], prices: Prices) -> float:
    """Cost of several steps in the unit of the prices."""
    return sum(step.cost.weigh(prices) for step in steps)


def band_limits(trust: Floats) -> list[float]:
    """Least trust of each band, the first 0.

    Half of the cases are in the last band, half of the others in the one before, and so on while a band holds
    `LEAST_CASES`: what could be gained lies where trust is low.

    Examples
    --------
    >>> band_limits(np.arange(40) / 40)
    [0.0, 0.2375, 0.4875]
    """
    limits, below = [0.0], np.sort(trust)
    while len(below) >= 2 * LEAST_CASES:
        middle = below[len(below) // 2]
        lower = below[below < middle]
        if len(lower) < LEAST_CASES:
            break
        limits.insert(1, float(lower[-1] + middle) / 2)
        below = lower
    return limits


def equal_pool(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Fit the log-linear pool in which all agents have one weight, out of `WEIGHTS`.

    With weight 1 it is Bayes' rule for agents that are independent given the truth; less is for agents that repeat one
    another. One number can be fitted for every state that a walk may reach, and on few cases.
    """
    prior = prior_of(truth, opinions.n_labels)
    weight = _shared_weight(opinions, truth)

    def others(known: Opinions, y: Truth, asked: Opinions) -> Floats:
        base = prior_of(y, known.n_labels)
        return fuse(asked.probs, np.full(len(asked.columns), _shared_weight(known, y)), base)

    pool = Pool(agents=opinions.columns, prior=tuple(prior.tolist()), weights=(weight,) * len(opinions.columns))
    return measured(Fitted(pool, cross_fit(others, opinions, truth, folds)), opinions, truth, folds)


def _shared_weight(opinions: Opinions, truth: Truth) -> float:
    prior, m = prior_of(truth, opinions.n_labels), len(opinions.columns)
    return min(WEIGHTS, key=lambda weight: nll_of(fuse(opinions.probs, np.full(m, weight), prior), truth, prior))
