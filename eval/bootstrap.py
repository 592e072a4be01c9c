"""How sure a figure is: intervals that respect groups.

The photographs of one leaf are not independent, so intervals resample groups, never cases.

References
----------
- Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals)
- Field and Welsh, Bootstrapping clustered data, 2007, https://doi.org/10.1111/j.1467-9868.2007.00593.x
- Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from secondlook.eval.arrays import Floats, Groups, group_codes, vector
from secondlook.eval.paired import holm, images_needed, mcnemar_exact, sign_flip

__all__ = [
    "Interval",
    "clustered_bootstrap",
    "holm",
    "images_needed",
    "mcnemar_exact",
    "mean_interval",
    "ratio_interval",
    "sign_flip",
    "wilson",
]

NAN = float("nan")
CHUNK = 1_000_000
"""Groups drawn at once: 16 MB of sums."""

Pairs = NDArray[np.complex128]
"""A numerator and a denominator as one number, so that they are added and drawn together."""


class Interval(NamedTuple):
    """A figure with what it rests on."""

    value: float
    lo: float
    """nan, as `hi`, below two groups or where over half of the draws have no value."""
    hi: float
    n: int
    """Cases."""
    groups: int
    """Independent units among them."""


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    groups: Groups = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """Interval of sum(numerator) / sum(denominator), groups resampled; 100,000 cases take about a second.

    Covers what is a mean over a part of the cases, such as the risk of the accepted: numerator ``wrong & accepted``,
    denominator ``accepted``.

    Parameters
    ----------
    numerator, denominator : array_like of shape (N,)
        Per case.
    groups : sequence of N hashables, optional
        See `group_codes`.
    draws : int
        Resamples.
    level : float
        Share of resampled ratios between the limits.
    rng : numpy.random.Generator
        Source of the resamples.

    Returns
    -------
    Interval
        Percentile limits. They are too narrow below some 30 groups, and have no width where all groups agree: give
        `wilson` beside them for a share of 0 or 1.

    Examples
    --------
    >>> wrong, accepted = np.array([1, 0, 0, 1]), np.array([0, 1, 1, 1])
    >>> ratio_interval(wrong * accepted, accepted, rng=np.random.default_rng(0)).value
    0.3333333333333333
    """
    top = vector("numerator", numerator)
    bottom = vector("denominator", denominator, len(top))
    codes = group_codes(groups, len(top))
    count = int(codes.max(initial=-1)) + 1
    sums = np.bincount(codes, top, count) + 1j * np.bincount(codes, bottom, count)
    values = np.concatenate([_ratio(drawn) for drawn in _resampled_sums(sums, draws, rng)]) if count else np.empty(0)
    return percentile_interval(float(_ratio(sums.sum())), values, len(top), count, level)


def _ratio(sums: Pairs) -> Floats:
    """Divide the numerators by the denominators; nan where these are 0."""
    return sums.real / np.where(sums.imag != 0, sums.imag, np.nan)


def _resampled_sums(sums: Pairs, draws: int, rng: np.random.Generator) -> Iterator[Pairs]:
    """Resample G groups with replacement; yield blocks of total sums, together of shape (draws,).

    Groups with the same sums are interchangeable: where there are few kinds of them (right or wrong, say), one
    multinomial count per kind replaces G draws.
    """
    total = len(sums)
    kinds, count = np.unique(sums, return_counts=True)
    few = 4 * len(kinds) <= total
    step = max(1, CHUNK // (len(kinds) if few else total))
    for start in range(0, draws, step):
        block = min(step, draws - start)
        if few:
            yield rng.multinomial(total, count / total, size=block) @ kinds
        else:
            yield sums[rng.integers(total, size=(block, total), dtype=np.int32)].sum(axis=1)


def mean_interval(
    values: ArrayLike,
    groups: Groups = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """Interval of a mean over cases, groups resampled; parameters as for `ratio_interval`.

    The mean of ``correct_a - correct_b`` compares two systems on the same cases, pair by pair.

    Examples
    --------
    >>> mean_interval([1, 0, 1, 1], groups=["a", "a", "b", "b"], rng=np.random.default_rng(0))
    Interval(value=0.75, lo=0.5, hi=1.0, n=4, groups=2)
    """
    array = vector("values", values)
    return ratio_interval(array, np.ones(len(array)), groups, draws=draws, level=level, rng=rng)


def clustered_bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    groups: Groups = None,
    draws: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """Interval of any statistic of the cases, groups resampled: `draws` calls; for means use `mean_interval`.

    Parameters
    ----------
    statistic : callable
        Takes the arrays, resampled alike, and returns a number, or nan where it is undefined.
    *arrays : array_like of shape (N, ...)
        What the statistic takes.
    groups, draws, level, rng
        As for `ratio_interval`.

    Returns
    -------
    Interval
        Percentile limits over the draws that have a value.

    Examples
    --------
    >>> from secondlook.eval.reliability import ece
    >>> confidence, correct = np.full(50, 0.9), np.arange(50) < 40
    >>> round(clustered_bootstrap(ece, confidence, correct, rng=np.random.default_rng(0)).value, 3)
    0.1
    """
    inputs = [np.asarray(a) for a in arrays]
    sizes = {a.shape[:1] for a in inputs}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"arrays: expected one length N for all, got {[a.shape for a in inputs]}")
    n = len(inputs[0])
    codes = group_codes(groups, n)
    order, size = np.argsort(codes, kind="stable"), np.bincount(codes)
    first = np.cumsum(size) - size
    values = np.empty(draws if n else 0)
    for i in range(len(values)):
        drawn = rng.integers(len(size), size=len(size))
        # A drawn group's members stand side by side in `order`: its start, repeated, plus 0, 1, ... within the group
        ends = np.cumsum(size[drawn])
        within = np.arange(ends[-1]) - np.repeat(ends - size[drawn], size[drawn])
        picked = order[np.repeat(first[drawn], size[drawn]) + within]
        values[i] = statistic(*(a[picked] for a in inputs))
    return percentile_interval(float(statistic(*inputs)), values, n, len(size), level)


def percentile_interval(value: float, values: Floats, n: int, groups: int, level: float) -> Interval:
    """Take the percentile limits of the draws that have a value."""
    defined = values[~np.isnan(values)]
    if groups < 2 or 2 * len(defined) < len(values) or not len(defined):
        return Interval(value, NAN, NAN, n, groups)
    lo, hi = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(lo), float(hi), n, groups)


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Interval of a share k / n of independent cases; right at the ends too, where the bootstrap has no width.

    Examples
    --------
    >>> round(wilson(10, 10).lo, 3), wilson(10, 10).hi
    (0.722, 1.0)
    """
    if not 0 <= k <= n:
        raise ValueError(f"k: expected 0 to n={n}, got {k}")
    if n == 0:
        return Interval(NAN, NAN, NAN, 0, 0)
    z, share = float(norm.isf((1 - level) / 2)), k / n
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    centre, reach = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    lo, hi = (max(0.0, (centre - reach) / (1 + z * z / n)), min(1.0, (centre + reach) / (1 + z * z / n)))
    return Interval(share, 0.0 if k == 0 else lo, 1.0 if k == n else hi, n, n)
