"""Figures that are made of sums over cases, under resampling: one product of counts and columns for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from secondlook.eval.accuracy import f1_in, mean_of_known, recalls_in
from secondlook.eval.arrays import Bools, Floats, Ints
from secondlook.eval.bins import place_in_bins
from secondlook.eval.reliability import ccc
from secondlook.eval.resample import Resamples

NAN = float("nan")
DOUBTFUL = 1e-8
"""Below this variance, of confidences stretched over [0, 1], sums have lost the digits that a correlation needs."""


class Sums(Protocol):
    """Figures that follow from S sums over the cases drawn."""

    rows: Any
    """What each case adds to the sums, shape (S, N), as an array or as a sparse matrix of columns."""

    def of(self, sums: Floats, drawn: Resamples) -> dict[str, Floats]:
        """Compute the figures, shape (B,) each, from sums of shape (S, B); nan where undefined."""
        ...


class Summed:
    """Figures of several kinds, by name, with a prefix to each kind.

    Parameters
    ----------
    kinds : sequence of (str, Sums)
        Prefixes, such as `cal/`, and kinds.
    """

    def __init__(self, kinds: Sequence[tuple[str, Sums]]) -> None:
        from scipy.sparse import issparse, vstack

        self._dense = [(prefix, kind) for prefix, kind in kinds if not issparse(kind.rows)]
        self._sparse = [(prefix, kind) for prefix, kind in kinds if issparse(kind.rows)]
        self._dense_rows = np.concatenate([kind.rows for _, kind in self._dense])
        self._sparse_rows = vstack([kind.rows for _, kind in self._sparse], format="csc")

    def __call__(self, drawn: Resamples) -> dict[str, Floats]:
        """Compute all figures of each of B resamples."""
        found: dict[str, Floats] = {}
        for kinds, rows in ((self._dense, self._dense_rows), (self._sparse, self._sparse_rows)):
            ends = np.cumsum([kind.rows.shape[0] for _, kind in kinds])
            for (prefix, kind), sums in zip(kinds, np.split(rows @ drawn.columns, ends[:-1]), strict=True):
                found |= {prefix + name: values for name, values in kind.of(sums, drawn).items()}
        return found


class Means:
    """Means over the cases drawn.

    Parameters
    ----------
    columns : mapping of str to array of shape (N,)
        What to take the mean of, by name.
    """

    def __init__(self, columns: dict[str, Any]) -> None:
        self._names = tuple(columns)
        self.rows = np.array([np.asarray(column, dtype=np.float64) for column in columns.values()])

    def of(self, sums: Floats, drawn: Resamples) -> dict[str, Floats]:
        """Return the mean of each column."""
        return dict(zip(self._names, sums / drawn.total, strict=True))


class Confusions:
    """Balanced accuracy and macro F1, from how often each label is given for each.

    Parameters
    ----------
    labels : ndarray of shape (N,)
        Indices of the labels given, -1 where there was no answer.
    truth : ndarray of shape (N,)
    k : int
    """

    def __init__(self, labels: Ints, truth: Ints, k: int) -> None:
        self._k = k
        self.rows = _indicators(truth * (k + 1) + np.where(labels < 0, k, labels), k * (k + 1))

    def of(self, sums: Floats, drawn: Resamples) -> dict[str, Floats]:
        """Return both."""
        tables = sums.T.reshape(-1, self._k, self._k + 1)
        return {"balanced": mean_of_known(recalls_in(tables)), "macro_f1": mean_of_known(f1_in(tables))}


class BinGaps:
    """ECE and MCE over bins of equal width.

    Parameters
    ----------
    confidence : ndarray of shape (N,)
    right : ndarray of bool, shape (N,)
    bins : int
    """

    def __init__(self, confidence: Floats, right: Bools, bins: int = 15) -> None:
        place = place_in_bins(confidence, bins, "width")
        values = np.stack([np.ones(len(place)), right - confidence], axis=1)
        self.rows = _indicators(np.stack([place, place + bins], axis=1), 2 * bins, values)

    def of(self, sums: Floats, drawn: Resamples) -> dict[str, Floats]:
        """Return both."""
        held, gaps = np.split(np.abs(sums), 2)
        widest = np.max(gaps / np.where(held > 0, held, 1.0), axis=0)
        return {"ece": gaps.sum(axis=0) / drawn.total, "mce": np.where(drawn.total > 0, widest, NAN)}


class ClassWise:
    """Class-wise ECE over bins of equal width.

    Parameters
    ----------
    probs : ndarray of shape (N, K)
    truth : ndarray of shape (N,)
    bins : int
    """

    def __init__(self, probs: Floats, truth: Ints, bins: int = 15) -> None:
        self._k = probs.shape[1]
        place = place_in_bins(probs.ravel(), bins, "width").reshape(probs.shape) + bins * np.arange(self._k)
        self.rows = _indicators(place, bins * self._k, (truth[:, None] == np.arange(self._k)) - probs)

    def of(self, sums: Floats, drawn: Resamples) -> dict[str, Floats]:
        """Return it."""
        return {"ece_classwise": np.abs(sums).sum(axis=0) / (drawn.total * self._k)}


class Correlation:
    """Correlation of confidence and correctness, as `secondlook.eval.reliability.ccc`.

    Parameters
    ----------
    confidence : ndarray of shape (N,)
    right : ndarray of bool, shape (N,)
    """

    def __init__(self, confidence: Floats, right: Bools) -> None:
        self._confidence, self._right = confidence, right
        spread = float(np.ptp(confidence)) if len(confidence) else 0.0
        x = (confidence - confidence.min(initial=1.0)) / spread if spread else np.zeros(len(confidence))
        x -= x.mean() if spread else 0.0
        self._constant = spread == 0
        self.rows = np.array([x, x * x, right, x * right])

    def of(self, sums: Floats, drawn: Resamples) -> dict[str, Floats]:
        """Return it; nan where either is constant among the cases drawn."""
        x, xx, y, xy = sums / drawn.total
        spread_x, spread_y = xx - x * x, y - y * y
        defined = (y > 0) & (y < 1) & (not self._constant)
        sure = defined & (spread_x > DOUBTFUL)
        value = np.full(len(x), NAN)
        value[sure] = (xy - x * y)[sure] / np.sqrt(spread_x[sure] * spread_y[sure])
        for i in np.flatnonzero(defined & ~sure):
            value[i] = ccc(*(np.repeat(a, drawn.counts[i]) for a in (self._confidence, self._right)))
        return {"ccc": np.clip(value, -1.0, 1.0)}


def _indicators(place: Ints, size: int, values: Floats | None = None) -> Any:
    """Sparse columns of shape (size, N): case i has `values[i]`, or 1, in the rows `place[i]`, one or several."""
    from scipy.sparse import csc_array

    n = len(place)
    each = place.size // n if n else 0
    data = np.ones(place.size) if values is None else np.ascontiguousarray(values, dtype=np.float64).ravel()
    # One column a case, so that a product runs through the counts once, in their order.
    return csc_array((data, place.ravel().astype(np.int32), np.arange(n + 1, dtype=np.int32) * each), shape=(size, n))
