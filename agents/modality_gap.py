"""How far images and texts lie apart in the space they share: gap, alignment and uniformity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 2000
"""Vectors whose distances uniformity is taken over; of more, so many evenly spread ones."""


def modality_gap(images: NDArray[Any], texts: NDArray[Any]) -> float:
    """Squared distance of the mean image and the mean text.

    Parameters
    ----------
    images : ndarray of shape (N, D)
        Unit vectors.
    texts : ndarray of shape (M, D)
        Unit vectors.

    Returns
    -------
    float
        0 to 4.

    References
    ----------
    Liang et al., "Mind the Gap", 2022, arXiv:2203.02053. Yamaguchi et al., "Post-pre-training for Modality Alignment",
    2025, arXiv:2504.12717, report the same divided by D.

    Examples
    --------
    >>> modality_gap(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0]]))
    0.5
    """
    return float(np.sum((images.mean(axis=0, dtype=np.float64) - texts.mean(axis=0, dtype=np.float64)) ** 2))


def alignment(images: NDArray[Any], texts: NDArray[Any]) -> float:
    """Mean squared distance of an image and its text: 0 is best.

    Parameters
    ----------
    images, texts : ndarray of shape (N, D)
        Unit vectors; row i of both is a pair.

    References
    ----------
    Wang and Isola, 2020, arXiv:2005.10242.
    """
    return float(np.mean(np.sum((images.astype(np.float64) - texts) ** 2, axis=1)))


def uniformity(vectors: NDArray[Any]) -> float:
    """Logarithm of the mean of exp(-2 d^2) over all pairs: the lower, the more evenly they fill the sphere.

    Parameters
    ----------
    vectors : ndarray of shape (N, D)
        Unit vectors.

    Returns
    -------
    float
        At most 0; nan for fewer than two vectors.

    References
    ----------
    Wang and Isola, 2020, arXiv:2005.10242.

    Examples
    --------
    >>> round(uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])), 12)  # 2 apart
    -8.0
    """
    n = min(len(vectors), MOST)
    if n < 2:
        return float("nan")
    rows = vectors[np.linspace(0, len(vectors) - 1, n).round().astype(np.intp)].astype(np.float64)
    squares = np.sum(rows**2, axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
    return float(np.log((np.exp(-2 * distances).sum() - n) / (n * (n - 1))))
