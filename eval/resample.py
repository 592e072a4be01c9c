"""Many figures from the same resamples: the clustered bootstrap as counts, not as copies of the cases.

A resample is how often each case is drawn. Metrics that can be computed from those counts, such as
`secondlook.eval.answers.answer_figures`, sort and bin once instead of once a draw, and all figures share the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondlook.eval.arrays import Floats, Groups, Ints, group_codes
from secondlook.eval.bootstrap import Interval, percentile_interval

Counts = NDArray[np.integer[Any]]
BLOCK = 32
"""Resamples at once, as far as `CELLS` allows; few enough that 100,000 cases stay near the processor."""
CELLS = 4_000_000
"""Cases times resamples at once: 32 MB of float64."""


@dataclass(frozen=True)
class Resamples:
    """B resamples of N cases.

    Attributes
    ----------
    counts : ndarray of shape (B, N)
        How often each case is drawn, in a small integer type.
    """

    counts: Counts

    @cached_property
    def columns(self) -> Floats:
        """The counts as floats, one column a resample, shape (N, B): the right side of a matrix product."""
        return np.ascontiguousarray(self.counts.T).astype(np.float64)

    @cached_property
    def total(self) -> Floats:
        """Cases drawn, shape (B,); nan where there is none, so that a mean of nothing is undefined."""
        n = self.counts.sum(axis=1, dtype=np.float64)
        return np.where(n > 0, n, np.nan)


Figures = Callable[[Resamples], dict[str, Floats]]
"""Metrics of N fixed cases, by name: their values on each of B resamples, shape (B,); nan where undefined."""


def resamples(codes: Ints, draws: int, rng: np.random.Generator) -> Iterator[Resamples]:
    """Draw as many groups as there are, with replacement, `draws` times; yield blocks of them.

    Parameters
    ----------
    codes : ndarray of shape (N,)
        Each case's group, as `secondlook.eval.arrays.group_codes` numbers them.
    draws : int
        Resamples in all.
    rng : numpy.random.Generator
        Source of the draws. How they are blocked does not change them.

    Examples
    --------
    >>> block = next(resamples(np.array([0, 0, 1]), draws=2, rng=np.random.default_rng(0)))
    >>> block.counts.tolist()
    [[0, 0, 2], [1, 1, 1]]
    """
    n, count = len(codes), int(codes.max(initial=-1)) + 1
    alone = np.array_equal(codes, np.arange(n))
    step = max(1, min(BLOCK, CELLS // max(1, n)))
    for start in range(0, draws if count else 0, step):
        block = np.stack([_draw(count, rng) for _ in range(min(step, draws - start))])
        yield Resamples(block if alone else np.take(block, codes, axis=1))


def _draw(count: int, rng: np.random.Generator) -> Counts:
    """Count how often each of G groups comes up in G draws, in as small an integer type as holds the counts."""
    times = np.bincount(rng.integers(count, size=count), minlength=count)
    return times.astype(np.min_scalar_type(times.max()))


def intervals(
    figures: Mapping[str, Figures],
    n: int,
    groups: Groups = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> dict[str, Interval]:
    """Intervals of many figures of the same N cases, groups resampled.

    Parameters
    ----------
    figures : mapping of str to Figures
        Each one's names are prefixed with its key and a slash; an empty key prefixes nothing.
    n : int
        N, the cases that all of them are about.
    groups, draws, level, rng
        As for `secondlook.eval.bootstrap.ratio_interval`.

    Returns
    -------
    dict of str to Interval
        The value is that of the cases as they are; see `secondlook.eval.bootstrap.Interval` for the rest.

    Examples
    --------
    >>> right = np.array([1.0, 0.0, 1.0, 1.0])
    >>> share = lambda drawn: {"acc": drawn.counts @ right / drawn.total}
    >>> intervals({"": share}, 4, ["a", "a", "b", "b"], rng=np.random.default_rng(0))
    {'acc': Interval(value=0.75, lo=0.5, hi=1.0, n=4, groups=2)}
    """
    codes = group_codes(groups, n)
    count = int(codes.max(initial=-1)) + 1
    whole = _all(figures, Resamples(np.ones((1, n), dtype=np.uint8)))
    blocks = [_all(figures, block) for block in resamples(codes, draws if count > 1 else 0, rng)]
    found = {}
    for name, value in whole.items():
        values = np.concatenate([block[name] for block in blocks]) if blocks else np.empty(0)
        found[name] = percentile_interval(float(value[0]), values, n, count, level)
    return found


def _all(figures: Mapping[str, Figures], drawn: Resamples) -> dict[str, Floats]:
    return {
        f"{key}/{name}" if key else name: values
        for key, compute in figures.items()
        for name, values in compute(drawn).items()
    }
