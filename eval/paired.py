"""Is one system better than another on the same cases, and how many images would tell.

References
----------
- McNemar, Note on the sampling error of the difference between correlated proportions, 1947
- Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979
- Connor, Sample Size for Testing Differences in Proportions for the Paired-Sample Design, 1987
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, norm

from secondlook.eval.arrays import Floats, Groups, group_codes, vector

CHUNK = 2_000_000
"""Coins tossed at once."""


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p that two systems err equally often, from the cases that only one of them gets right.

    Cases must be independent; where several show one leaf, use `sign_flip`.

    Parameters
    ----------
    b, c : int
        Cases that only the first, and only the second, gets right.

    Returns
    -------
    float
        ``min(1, 2 P(X <= min(b, c)))``, X binomial of b + c fair coins; 1 where both are 0.

    Examples
    --------
    >>> mcnemar_exact(0, 5)
    0.0625
    """
    if b < 0 or c < 0:
        raise ValueError(f"b, c: expected counts, got {b} and {c}")
    return min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5)))


def sign_flip(
    difference: ArrayLike,
    groups: Groups = None,
    *,
    draws: int = 9999,
    rng: np.random.Generator,
) -> float:
    """Two-sided p that paired differences have mean 0, whole groups' signs flipped at random.

    Parameters
    ----------
    difference : array_like of shape (N,)
        ``correct_a - correct_b``, for instance.
    groups : sequence of N hashables, optional
        See `group_codes`.
    draws : int
        Random flips; the least p is 1 / (draws + 1).
    rng : numpy.random.Generator
        Source of the flips.

    Returns
    -------
    float
        ``(1 + number of flips at least as far from 0) / (1 + draws)``; 1 where there is no difference.

    Examples
    --------
    >>> sign_flip([1, 1, 1, 1], groups=["a", "a", "a", "a"], rng=np.random.default_rng(0))
    1.0
    """
    array = vector("difference", difference)
    sums = np.bincount(group_codes(groups, len(array)), array)
    moved = sums[sums != 0]
    # A group of difference d moves the total by -d or d: by (2 s - 1) d, s a fair coin.
    seen, far = abs(moved.sum()), 0
    step = max(1, CHUNK // max(1, len(moved)))
    for start in range(0, draws, step):
        coins = rng.integers(2, size=(min(step, draws - start), len(moved)), dtype=np.int8)
        far += int(np.count_nonzero(np.abs((2.0 * coins - 1) @ moved) >= seen - 1e-9 * (1 + seen)))
    return (1 + far) / (1 + draws)


def holm(pvalues: ArrayLike) -> Floats:
    """Adjust p-values so that the chance of any false claim among them stays below the level asked for.

    Parameters
    ----------
    pvalues : array_like of shape (C,)
        One per comparison; nan, a comparison that was not made, stays nan and does not count.

    Returns
    -------
    ndarray of shape (C,)
        In the order given: with p ascending, the running maximum of ``(C - i) p_i``, at most 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(pvalues, dtype=np.float64)
    made = np.flatnonzero(~np.isnan(p))
    if p.ndim != 1 or ((p[made] < 0) | (p[made] > 1)).any():
        raise ValueError(f"pvalues: expected [C] in [0, 1] or nan, got shape {p.shape}")
    order = made[np.argsort(p[made], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


class Needed(NamedTuple):
    """How many images would show a difference."""

    total: int
    more: int
    """Beyond those at hand."""
    sentence: str


def images_needed(
    p_discordant: float, points: float = 3.0, *, have: int = 0, power: float = 0.8, level: float = 0.95
) -> Needed:
    """Count the images on which a paired test would see a difference in accuracy.

    A normal approximation to McNemar's test (Connor, 1987). It counts independent images: where several show one
    leaf, count leaves. A difference of d cannot come from fewer than a share d of discordant images, so
    `p_discordant` is raised to that where it is less.

    Parameters
    ----------
    p_discordant : float
        Share of images that exactly one of the two systems gets right, 0 to 1.
    points : float
        Difference in accuracy to see, in percentage points.
    have : int
        Images at hand.
    power : float
        Chance to see it if it is there.
    level : float
        1 minus the chance to see it if it is not.

    Returns
    -------
    Needed
        Numbers and a sentence for the report.

    Examples
    --------
    >>> print(images_needed(0.10, points=3, have=160).sentence)
    710 more independent images (870 in all) would show a difference of 3 points with 80 % power, at 10.0 % discordant.
    """
    delta = points / 100
    if not (0 <= p_discordant <= 1 and 0 < delta <= 1):
        raise ValueError(f"expected a share and points above 0 to 100, got {p_discordant} and {points}")
    psi = max(p_discordant, delta)
    # n = ((z_{a/2} sqrt(psi) + z_b sqrt(psi - d^2)) / d)^2
    reach = norm.isf((1 - level) / 2) * math.sqrt(psi) + norm.isf(1 - power) * math.sqrt(psi - delta**2)
    total = math.ceil((reach / delta) ** 2)
    more = max(0, total - have)
    wanted = f"show a difference of {points:g} points with {100 * power:g} % power, at {100 * psi:.1f} % discordant."
    if not more:
        return Needed(total, 0, f"The {have:,} independent images at hand are enough to {wanted}")
    return Needed(total, more, f"{more:,} more independent images ({total:,} in all) would {wanted}")
