"""The border of every metric: what comes in is checked once, here, and is numpy from then on."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Groups = Sequence[Hashable] | NDArray[Any] | None
"""N names of groups, such as leaves; None instead of all: every case is a group of its own."""

SLACK = 1e-6
"""How far a share may leave [0, 1] before it is refused: the rounding of a float32 softmax."""


def vector(name: str, values: ArrayLike, n: int | None = None) -> Floats:
    """Check N finite numbers.

    Parameters
    ----------
    name : str
        What the caller calls them, for the message.
    values : array_like of shape (N,)
        The numbers.
    n : int, optional
        How many there must be.

    Returns
    -------
    ndarray of shape (N,)
        The numbers as float64.

    Raises
    ------
    ValueError
        If the shape is another one or a number is not finite.

    Examples
    --------
    >>> vector("trust", [[1.0]])
    Traceback (most recent call last):
    ValueError: trust: expected [N], got (1, 1)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (n is not None and len(array) != n):
        raise ValueError(f"{name}: expected [N{'' if n is None else f'={n}'}], got {array.shape}")
    strange = int(np.count_nonzero(~np.isfinite(array)))
    if strange:
        raise ValueError(f"{name}: {strange} of {len(array)} are not finite numbers")
    return array


def shares(name: str, values: ArrayLike, n: int | None = None) -> Floats:
    """Check N numbers between 0 and 1, as `vector` does, and clip their rounding."""
    array = vector(name, values, n)
    outside = int(np.count_nonzero((array < -SLACK) | (array > 1 + SLACK)))
    if outside:
        raise ValueError(f"{name}: {outside} of {len(array)} are not in [0, 1]")
    return np.clip(array, 0.0, 1.0)


def flags(name: str, values: ArrayLike, n: int | None = None) -> Bools:
    """Check N truth values, given as booleans or as zeros and ones."""
    array = vector(name, values, n)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError(f"{name}: expected booleans or zeros and ones, got other numbers")
    return array.astype(np.bool_)


def simplexes(name: str, values: ArrayLike) -> Floats:
    """Check N distributions over K >= 2 labels, shape (N, K): each sums to 1 within a thousandth."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"{name}: expected [N, K >= 2], got {array.shape}")
    checked = shares(name, array.ravel()).reshape(array.shape)
    strange = int(np.count_nonzero(np.abs(checked.sum(axis=1) - 1) > 1e-3))
    if strange:
        raise ValueError(f"{name}: {strange} of {len(array)} rows do not sum to 1")
    return checked


def indices(name: str, values: ArrayLike, n: int | None, k: int, *, low: int = 0) -> Ints:
    """Check N label indices from `low` (0, or -1 where no label is an answer) to K - 1."""
    array = vector(name, values, n)
    if not ((array == np.floor(array)) & (array >= low) & (array < k)).all():
        raise ValueError(f"{name}: expected whole numbers from {low} to {k - 1}")
    return array.astype(np.int64)


def group_codes(groups: Groups, n: int) -> Ints:
    """Return each case's group as a number from 0; a case whose group is None is a group of its own.

    Examples
    --------
    >>> group_codes(["leaf-1", None, "leaf-1", None], 4).tolist()
    [0, 1, 0, 2]
    """
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"groups: expected [N={n}], got ({len(groups)},)")
    if isinstance(groups, np.ndarray) and groups.ndim == 1 and groups.dtype.kind in "biuSU":
        _, first, place = np.unique(groups, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[place]
    named = list(dict.fromkeys(g for g in groups if g is not None))
    code = {g: i for i, g in enumerate(named)}
    fresh = itertools.count(len(named))
    return np.array([next(fresh) if g is None else code[g] for g in groups], dtype=np.int64)


def mean(values: Floats | Ints | Bools) -> float:
    """Mean, and nan of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")
