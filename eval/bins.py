"""Bins of confidence: what reliability is measured over."""

from __future__ import annotations

from typing import Literal, assert_never

import numpy as np

from secondlook.eval.arrays import Floats, Ints

Scheme = Literal["width", "mass"]
"""How confidences are put into bins.

- ``width``: bins of equal width over [0, 1]
- ``mass``: bins of as equal a number of cases as ties allow; equal confidences are never parted
"""


def bin_edges(confidence: Floats, bins: int, scheme: Scheme) -> Floats:
    """Return the B + 1 ascending edges of the bins (lo, hi]; equal-mass bins may be fewer, where confidences tie.

    Raises
    ------
    ValueError
        When there is no bin.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    match scheme:
        case "width":
            return np.arange(bins + 1) / bins
        case "mass":
            if not len(confidence):
                return np.array([0.0, 1.0])
            # The k-th edge is the ceil(N k / B)-th smallest confidence, in whole numbers.
            ranks = -(-len(confidence) * np.arange(1, bins + 1) // bins)
            ordered = np.sort(confidence)
            return np.concatenate([ordered[:1], np.unique(ordered[ranks - 1])])
        case _:
            assert_never(scheme)


def place_between(edges: Floats, confidence: Floats) -> Ints:
    """Return each confidence's bin, from 0: bins are (lo, hi], and the first one holds its lower edge too."""
    # side="left" closes each bin on the right; the clip gives the lowest edge to the first bin
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)


def place_in_bins(confidence: Floats, bins: int, scheme: Scheme) -> Ints:
    """Return each confidence's bin, from 0, shape (N,)."""
    return place_between(bin_edges(confidence, bins, scheme), confidence)
