"""Figures of an order of trust, under resampling: the order is found once, a resample is two cumulative counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from secondlook.eval.arrays import Bools, Floats, Ints
from secondlook.eval.resample import Counts, Resamples

NAN = float("nan")


class RankFigures(NamedTuple):
    """What the functions of these names say of a resample; each an array of shape (B,)."""

    auroc: Floats
    """`secondlook.eval.reliability.auroc_of_confidence`."""
    aurc: Floats
    """`secondlook.eval.selective.aurc`, and so on."""
    excess_aurc: Floats
    risk_at_coverage: Floats
    coverage_at_risk: Floats
    ece_mass: Floats
    """`secondlook.eval.reliability.ece` over equal-mass bins."""


class Room(NamedTuple):
    """Arrays to compute in: of N cases and of the T distinct scores."""

    counts: Counts
    """Shape (2, N)."""
    sums: Ints
    """Shape (T,)."""
    floats: Floats
    """Shape (4, T)."""


class Ranked:
    """N cases in the order of a score, most trusted first, equal scores together.

    Parameters
    ----------
    score : ndarray of shape (N,)
        0 to 1.
    right : ndarray of bool, shape (N,)
    coverage, risk : float
        What `risk_at_coverage` and `coverage_at_risk` are asked for.
    bins : int
        Of equal mass.
    """

    def __init__(self, score: Floats, right: Bools, *, coverage: float, risk: float, bins: int = 15) -> None:
        self._order = np.argsort(-score, kind="stable")
        ordered = score[self._order]
        self._wrong = ~right[self._order]
        starts = np.flatnonzero(np.diff(ordered, prepend=np.nan) != 0)
        self._starts: Ints | None = starts if len(starts) < len(score) else None
        """First place of each distinct score; None where all are distinct."""
        self._score = ordered[starts]
        self._coverage, self._risk, self._bins = coverage, risk, bins

    def __call__(self, drawn: Resamples) -> RankFigures:
        """Compute all figures of each of B resamples."""
        counts = drawn.counts
        whole = np.int32 if len(self._order) * int(counts.max(initial=0)) < 2**31 else np.int64
        # One set of arrays for all resamples: fresh ones would cost more than what is computed in them.
        room = Room(
            np.empty((2, len(self._order)), counts.dtype),
            np.empty(len(self._score), whole),
            np.empty((4, len(self._score))),
        )
        found = np.array([self._of(row, room) for row in counts], dtype=np.float64).reshape(-1, 6)
        auroc, aurc, wrong, risk_at, coverage_at, mass = found.T
        best = best_aurc_of(drawn.total, wrong)
        return RankFigures(auroc, aurc, np.maximum(aurc - best, 0.0), risk_at, coverage_at, mass)

    def _of(self, counts: Counts, room: Room) -> tuple[float, ...]:
        drawn = np.take(counts, self._order, mode="clip", out=room.counts[0])
        missed = np.multiply(drawn, self._wrong, out=room.counts[1])
        if self._starts is not None:
            drawn, missed = (np.add.reduceat(part, self._starts, dtype=room.sums.dtype) for part in (drawn, missed))
        # c_t cases are drawn down to the t-th score, e_t of them wrong: whole numbers, so exact
        c, e = room.floats[0], np.cumsum(drawn, out=room.sums)
        # of the sums' own type: an integer of another one would have all of them converted
        first = int(np.searchsorted(e, e.dtype.type(1)))
        if first == len(e):
            return (NAN,) * 6
        c[:] = e
        np.cumsum(missed, out=e)
        here, lost, risk = room.floats[1:]
        here[:], lost[:] = drawn, missed
        c, e, here, lost, risk = c[first:], e[first:], here[first:], lost[first:], risk[first:]
        np.divide(e, c, out=risk)
        n, wrong = float(c[-1]), float(e[-1])
        # sum_t lost_t (right ones above + half of those level with it), put so that no array is made for it
        pairs = lost @ c - (wrong * wrong + lost @ here) / 2
        return (
            pairs / (wrong * (n - wrong)) if 0 < wrong < n else NAN,
            float(here @ risk) / n,
            wrong,
            float(risk[np.searchsorted(c, (self._coverage - 1e-9) * n)]),
            self._most(risk, c) / n,
            self._mass(here, self._score[first:], c, e),
        )

    def _most(self, risk: Floats, c: Floats) -> float:
        """Return the most cases that a threshold accepts within the risk."""
        # copied, since numpy finds the first one many times as fast along contiguous memory
        within = np.ascontiguousarray((risk <= self._risk + 1e-12)[::-1])
        back = int(np.argmax(within))
        return float(c[len(c) - 1 - back]) if within[back] else 0.0

    def _mass(self, here: Floats, score: Floats, c: Floats, e: Ints) -> float:
        """ECE over equal-mass bins: the k-th edge is the ceil(n k / B)-th smallest score."""
        n = int(c[-1])
        ranks = -(-n * np.arange(1, self._bins + 1) // self._bins)
        # The r-th smallest is the (n + 1 - r)-th from above; each edge closes its bin, from there down to the next.
        starts = np.unique(np.searchsorted(c, n + 1 - ranks))
        ends = np.append(starts[1:], len(c))
        right = np.diff(c[ends - 1] - e[ends - 1], prepend=0.0)
        said = [here[a:b] @ score[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        return float(np.abs(right - said).sum()) / n


def best_aurc_of(n: Floats, wrong: Floats) -> Floats:
    """Least AURC of n answers, nan for none, with so many wrong, as `secondlook.eval.selective.best_aurc`."""
    from scipy.special import digamma

    right = n - wrong
    # (1/n) sum_{i=right+1..n} (i - right) / i = (wrong - right (H_n - H_right)) / n, H the harmonic numbers
    excess = wrong - right * (digamma(n + 1) - digamma(right + 1))
    return np.asarray(np.maximum(excess, 0.0) / n)
