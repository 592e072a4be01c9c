"""Figures that are made of sums over cases, under resampling: one product of counts and columns for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from secondlook.eval.accuracy import f1_in, mean_of_known, recalls_in
from secondlook.eval.arrays import Bools, Floats, Ints
from secondlook.eval.bins import place_in_bins
from secondlook.eval.reliability import ccc
from secondlook.eval.resample import Resamples

NAN = float("nan")
DOUBTFUL = 1e-8
"""Below this variance, of confidences stretched over [0, 1], sums have lost the digits that a correlation needs."""


class Means:
    """Means over the cases drawn.

    Parameters
    ----------
    columns : mapping of str to array of shape (N,)
        What to take the mean of, by name.
    """

    def __init__(self, columns: dict[str, Any]) -> None:
        self._names = tuple(columns)
        self._rows = np.array([np.asarray(column, dtype=np.float64) for column in columns.values()])

    def __call__(self, drawn: Resamples) -> dict[str, Floats]:
        """Compute the mean of each column, shape (B,)."""
        return dict(zip(self._names, self._rows @ drawn.columns / drawn.total, strict=True))


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
        self._cells = _indicators(truth * (k + 1) + np.where(labels < 0, k, labels), k * (k + 1))

    def __call__(self, drawn: Resamples) -> dict[str, Floats]:
        """Compute both, shape (B,)."""
        tables = (self._cells @ drawn.columns).T.reshape(-1, self._k, self._k + 1)
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
        self._held, self._gaps = _indicators(place, bins), _indicators(place, bins, right - confidence)

    def __call__(self, drawn: Resamples) -> dict[str, Floats]:
        """Compute both, shape (B,)."""
        held, gaps = self._held @ drawn.columns, np.abs(self._gaps @ drawn.columns)
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
        n, k = probs.shape
        place = place_in_bins(probs.ravel(), bins, "width").reshape(n, k) + bins * np.arange(k)
        gaps = (truth[:, None] == np.arange(k)) - probs
        self._k, self._gaps = k, _indicators(place, bins * k, gaps)

    def __call__(self, drawn: Resamples) -> dict[str, Floats]:
        """Compute it, shape (B,)."""
        return {"ece_classwise": np.abs(self._gaps @ drawn.columns).sum(axis=0) / (drawn.total * self._k)}


class Correlation:
    """Correlation of confidence and correctness, as `secondlook.eval.reliability.ccc`.

    Parameters
    ----------
    confidence : ndarray of shape (N,)
    right : ndarray of bool, shape (N,)
    """

    def __init__(self, confidence: Floats, right: Bools) -> None:
        self._confidence, self._right = confidence, right
        self._constant = not len(confidence) or float(np.ptp(confidence)) == 0
        if not self._constant:
            x = (confidence - confidence.min()) / np.ptp(confidence)
            x -= x.mean()
            self._rows = np.array([x, x * x, right, x * right])

    def __call__(self, drawn: Resamples) -> dict[str, Floats]:
        """Compute it, shape (B,); nan where either is constant among the cases drawn."""
        if self._constant:
            return {"ccc": np.full(len(drawn.total), NAN)}
        x, xx, y, xy = self._rows @ drawn.columns / drawn.total
        spread_x, spread_y = xx - x * x, y - y * y
        defined = (y > 0) & (y < 1)
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
