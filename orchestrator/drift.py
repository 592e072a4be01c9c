"""Drift alarms: whether a stream of losses, or of other numbers, still is what it was when it was measured.

An e-detector of the Shiryaev-Roberts kind: M_t = (M_{t-1} + 1) e_t with M_0 = 0, where each e_t >= 0 has a conditional
mean of at most 1 while nothing has changed. Then M_t - t is a supermartingale, so that the mean number of units until
M reaches a threshold c is at least c, wherever one starts to look and however one mixes such detectors. Nothing is
assumed of what comes after a change.

References
----------
- Shin, Ramdas and Rinaldo (2023), E-detectors, https://arxiv.org/abs/2203.03532
- Vovk et al. (2021), Retrain or not retrain: conformal test martingales, https://arxiv.org/abs/2102.10439
- Ville (1939), Etude critique de la notion de collectif
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen, MaybeNan

Floats = NDArray[np.float64]
ALPHA = 1e-4
"""One over the mean number of units between false alarms, all detectors of a model together: 1 in 10,000."""
ODDS = (1.5, 2.0, 3.0, 6.0)
"""Error rates that are bet on: the odds of the highest rate that is no drift, multiplied."""
POWERS = (0.2, 0.6)
"""Exponents a of the bets a p^(a-1) on ranks p, and on 1 - p: a strong shift and a weak one, down and up."""
SURE = 0.95
"""One-sided level of the upper limit of a recorded rate."""
DIGITS = 6
"""Values are compared by rank after rounding: reference values are kept with so many digits."""


class Alarm(Frozen):
    """Something moved by more than chance explains."""

    what: str
    """What moved, in words: `the error rate of linear-head`."""
    before: MaybeNan
    """As recorded."""
    after: MaybeNan
    """Over the units since the change probably began."""
    n: int
    """Those units: cases, or groups of cases."""
    why: str
    """The sentence, with its numbers."""


class Watched(NamedTuple):
    """What a detector found in a stream."""

    at: int | None
    """Index of the unit at which it raised an alarm; it looks no further."""
    since: int
    """Index of the unit at which the change probably began, were there one."""
    evidence: float
    """Largest value of M so far; the alarm is raised at the threshold."""


def shiryaev_roberts(e: Floats) -> Floats:
    """Run detectors side by side.

    Parameters
    ----------
    e : ndarray of shape (T, ...)
        E-values, one row a unit; anything beyond the first axis runs by itself.

    Returns
    -------
    ndarray of shape (T, ...)
        M_t = (M_{t-1} + 1) e_t.

    Examples
    --------
    >>> shiryaev_roberts(np.array([2.0, 0.5, 3.0])).tolist()
    [2.0, 1.5, 7.5]
    """
    found, m = np.empty_like(e), np.zeros(e.shape[1:])
    with np.errstate(over="ignore"):
        for t, row in enumerate(e):
            m = (m + 1) * row
            found[t] = m
    return found


def error_e_values(losses: Floats, limit: float) -> Floats:
    """Bet on a mean loss above a limit.

    Each bet is the likelihood ratio of an error rate q against the limit, 1 + (q - p)(x - p) / (p (1 - p)), which is
    linear in the loss x: its mean is at most 1 for any losses x >= 0 whose mean, given the past, is at most p.

    Parameters
    ----------
    losses : ndarray of shape (T, ...)
        0 for right, 1 for wrong, anything between for groups; above 1 for cases that stand for several.
    limit : float
        p, in (0, 1).

    Returns
    -------
    ndarray of shape (T, len(ODDS), ...)
    """
    odds = np.array(ODDS) * limit / (1 - limit)
    bet = (odds / (1 + odds) - limit) / (limit * (1 - limit))
    bets = bet.reshape(-1, *([1] * (losses.ndim - 1)))
    return np.asarray(np.maximum(1 + bets * (losses[:, None] - limit), 0.0))


def rank_e_values(p: Floats) -> Floats:
    """Bet on ranks that are not uniform: a p^(a-1) for each a of `POWERS`, downwards and upwards.

    Parameters
    ----------
    p : ndarray of shape (T, ...)
        Uniform in (0, 1) while nothing changes.

    Returns
    -------
    ndarray of shape (T, 2 * len(POWERS), ...)
    """
    inside = np.clip(p, 1e-12, 1 - 1e-12)
    bets = [a * q ** (a - 1) for q in (inside, 1 - inside) for a in POWERS]
    return np.stack(bets, axis=1)


def conformal_ranks(values: Floats, reference: Sequence[float], rng: np.random.Generator) -> Floats:
    """Rank each value among the reference values and all values before it, ties broken at random.

    While the reference and the stream are exchangeable, the ranks are independent and uniform (Vovk et al. 2021).

    Parameters
    ----------
    values : ndarray of shape (T,)
    reference : sequence of float
        Held-out values.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (T,)
        In (0, 1]: near 0 for values that are low.
    """
    bag = sorted(np.round(reference, DIGITS).tolist())
    ranks = np.empty(len(values))
    for t, (value, tie) in enumerate(zip(np.round(values, DIGITS).tolist(), rng.random(len(values)), strict=True)):
        below, same = bisect_left(bag, value), bisect_right(bag, value) - bisect_left(bag, value)
        ranks[t] = (below + tie * (same + 1)) / (len(bag) + 1)
        insort(bag, value)
    return ranks


def watch(e: Floats, threshold: float) -> Watched:
    """Run a mixture of detectors over one stream until it raises an alarm.

    Parameters
    ----------
    e : ndarray of shape (T, B)
        E-values of B bets.
    threshold : float
        Mean number of units until a false alarm, at the least.
    """
    if not len(e):
        return Watched(None, 0, 0.0)
    m = shiryaev_roberts(e)
    mixed = m.mean(axis=1)
    crossed = np.flatnonzero(mixed >= threshold)
    at = int(crossed[0]) if crossed.size else None
    end = len(e) if at is None else at + 1
    return Watched(at, _began(e[:end, int(m[end - 1].argmax())]), float(mixed[:end].max()))


def _began(e: Floats) -> int:
    """Index after the last one at which the cumulative sum of log e was lowest: the change's likeliest begin."""
    sums = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(e, 1e-300)))])
    return min(len(sums) - 1 - int(sums[::-1].argmin()), len(e) - 1)


def watch_errors(losses: Floats, limit: float, threshold: float) -> Watched:
    """Watch for a mean loss above a limit; see `error_e_values` and `watch`."""
    return watch(error_e_values(losses, limit), threshold)


def watch_ranks(values: Floats, reference: Sequence[float], threshold: float, rng: np.random.Generator) -> Watched:
    """Watch for values that are no longer like the reference; see `conformal_ranks` and `watch`."""
    return watch(rank_e_values(conformal_ranks(values, reference, rng)), threshold)


def upper_limit(errors: float, n: float, level: float = SURE) -> float:
    """Highest error rate that n units with so many errors are compatible with (Clopper and Pearson, one-sided).

    Parameters
    ----------
    errors : float
        A sum of shares where units are groups.
    n : float
    level : float

    Returns
    -------
    float
        nan without a unit.

    Examples
    --------
    >>> round(upper_limit(0, 59), 3), round(upper_limit(5, 100), 3)
    (0.05, 0.102)
    """
    from scipy.special import betaincinv

    if n <= 0:
        return float("nan")
    return 1.0 if errors >= n else float(betaincinv(errors + 1, n - errors, level))


def unit_means(values: Floats, weights: Floats, groups: Sequence[str | None]) -> Floats:
    """Mean of each unit: cases of one group that follow each other are one, since they are not independent.

    Parameters
    ----------
    values, weights : ndarray of shape (N,)
        A unit's mean is weighted, and stands for its mean weight.
    groups : sequence of str or None
        N names; a case without one is a unit by itself.

    Returns
    -------
    ndarray of shape (T,)
        Mean of weight times value; with weights of 1 the plain mean.

    Examples
    --------
    >>> unit_means(np.array([1.0, 0.0, 1.0, 1.0]), np.ones(4), ["a", "a", None, None]).tolist()
    [0.5, 1.0, 1.0]
    """
    starts = [i for i, g in enumerate(groups) if i == 0 or g is None or g != groups[i - 1]]
    if not starts:
        return np.empty(0)
    sizes = np.diff([*starts, len(groups)])
    return np.asarray(np.add.reduceat(values * weights, starts) / sizes)
