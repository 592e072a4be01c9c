"""The temperature of a softmax: fitted by Newton's method, in few passes over the cases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
PRIOR_SD = 1.0
"""Standard deviation of the log-normal prior on a temperature, in natural-log units."""
LIMIT = 5.0
"""The natural logarithm of a temperature lies between minus this and this."""
STARTS = 41
SAMPLE = 2_000
"""Cases on which the start is looked for."""
BLOCK = 16_384
"""Cases taken at once, so that the scratch memory of a pass stays within a processor's cache."""
SCRATCH = 1_000_000
"""Numbers of scratch memory while the start is looked for."""
LEAST = -1e30
"""Log-probabilities below this, -inf among them, count as this."""


class Curve(NamedTuple):
    """The loss at a log-temperature, with its first and second derivative."""

    loss: float
    slope: float
    bend: float


def fit_temperature(log_q: Floats, truth: Ints) -> float:
    """Find T of the lowest NLL of softmax(log q / T), plus (log T)^2 / 2: T runs away where the cases hold no error.

    Parameters
    ----------
    log_q : ndarray of shape (N, K)
        Log-probabilities or logits.
    truth : ndarray of shape (N,)

    Returns
    -------
    float
        1 where there are no cases.

    Examples
    --------
    Always sure at odds of e^4 to 1, and right in three of four cases: as sure as odds of 3 to 1, or T = 4 / log 3.

    >>> log_q = np.tile([[0.0, -4.0]], (4000, 1))
    >>> truth = np.arange(4000) % 4 // 3
    >>> round(fit_temperature(log_q, truth), 2), round(4 / float(np.log(3)), 2)
    (3.64, 3.64)
    """
    every = max(len(truth) // SAMPLE, 1)
    few, weight = (log_q[::every], truth[::every]), len(truth) / max(len(truth[::every]), 1)
    # The loss can have several minima, so the start is the best of a grid and not a guess.
    grid = np.linspace(-LIMIT, LIMIT, STARTS)
    log_t = float(grid[np.argmin(_losses(*few, grid, weight))])
    if every > 1:
        log_t = _descend(*few, log_t, weight)
    return float(np.exp(_descend(log_q, truth, log_t)))


def _descend(log_q: Floats, truth: Ints, log_t: float, weight: float = 1.0) -> float:
    """Newton's method on log T, with steps halved until the loss falls."""
    here = _curve(log_q, truth, log_t, weight)
    for _ in range(50):
        step = -here.slope / here.bend if here.bend > 0 else -np.sign(here.slope)
        step = float(np.clip(step, -0.5, 0.5))
        # A Newton step ends about its own square from the minimum: after 3e-5 another one would change nothing.
        if abs(step) < 3e-5:
            return log_t + step
        there = min(max(log_t + step, -LIMIT), LIMIT)
        after = _curve(log_q, truth, there, weight)
        while after.loss > here.loss * (1 + 1e-12) and abs(there - log_t) > 1e-6:
            there = (there + log_t) / 2
            after = _curve(log_q, truth, there, weight)
        if there == log_t:
            break
        log_t, here = there, after
    return log_t


def _losses(log_q: Floats, truth: Ints, grid: Floats, weight: float) -> Floats:
    """Compute the loss of `_curve` at each of G log-temperatures, shape (G,), in one go."""
    block = np.maximum(log_q, LEAST)
    top = block.max(axis=1, keepdims=True)
    gap = (top[:, 0] - block[np.arange(len(truth)), truth]).sum()
    block -= top
    b = np.exp(-grid)
    step = max(1, SCRATCH // max(block.size, 1))
    parts = (np.exp(block * b[i : i + step, None, None]) for i in range(0, len(b), step))
    totals = np.concatenate([np.log(part.sum(axis=2)).sum(axis=1) for part in parts])
    return np.asarray(weight * (totals + b * gap) + grid**2 / (2 * PRIOR_SD**2))


def _curve(log_q: Floats, truth: Ints, log_t: float, weight: float = 1.0) -> Curve:
    """Compute the loss and its derivatives in u = log T; `weight` is what each case counts.

    With b = exp(-u), E and Var under softmax(b log q)::

        loss   = sum_i [log sum_k exp(b log q_ik) - b log q_iy] + u^2 / 2
        dloss/db   = sum_i (E[log q_i] - log q_iy),    d2loss/db2 = sum_i Var[log q_i]
        dloss/du   = -b dloss/db + u,    d2loss/du2 = b^2 d2loss/db2 + b dloss/db + 1
    """
    b = np.exp(-log_t)
    loss = first = second = 0.0
    for start in range(0, len(truth), BLOCK):
        # The labels come first, so that each sum over them runs along contiguous memory.
        block = np.maximum(log_q[start : start + BLOCK].T, LEAST)
        own = block[truth[start : start + BLOCK], np.arange(block.shape[1])]
        top = block.max(axis=0)
        block -= top
        p = np.exp(block * b)
        total = p.sum(axis=0)
        p *= block
        mean = p.sum(axis=0) / total
        p *= block
        loss += float(np.log(total).sum() + b * (top - own).sum())
        first += float((mean + top - own).sum())
        second += float((p.sum(axis=0) / total - mean**2).sum())
    return Curve(
        weight * loss + log_t**2 / (2 * PRIOR_SD**2),
        -b * weight * first + log_t / PRIOR_SD**2,
        weight * (b * b * second + b * first) + 1 / PRIOR_SD**2,
    )
