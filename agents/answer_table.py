"""Answer tables: how often an agent says what, given the truth."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from secondlook.agents.case import Frozen

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
LABEL_SMOOTHING = 0.5
"""Cases added per cell of P(said label | truth), as many as Jeffreys' prior of a multinomial adds."""
BIN_SHRINKAGE = 5.0
"""Cases' worth by which P(bin | label, truth) is pulled towards what holds for the label and for right or wrong."""
MOST_BINS = 6
DECIMALS = 6
"""Confidences that agree to this many decimals are one confidence."""


class Codes(NamedTuple):
    """Answers as a table reads them: -1 in both where an agent said nothing."""

    label: Ints
    """Index of the label said, of shape (N,); the first of several that tie."""
    bin: Ints
    """Bin of the confidence said, of shape (N,)."""


class AnswerTable(Frozen):
    """Smoothed likelihoods P(said label j, confidence bin b | truth k) = P(j | k) P(b | j, k).

    With n(k, j, b) cases counted, smoothing a, shrinkage m and the agent's accuracy r = (right + 1) / (N + K)::

        P(j | k)    = (n(k, j) + a K P0(j | k)) / (n(k) + a K)
        P0(j | k)   = 1 / (2 K) + (r if j = k else (1 - r) / (K - 1)) / 2
        P(b | j, k) = (n(k, j, b) + m P0(b | j, k)) / (n(k, j) + m)
        P0(b | j, k) = P(b | j) P(b | right if j = k else wrong) / P(b), normalised
        P(b | j)    = (n(j, b) + m P(b)) / (n(j) + m), the same for right and wrong
        P(b)        = (n(b) + 1) / (N + B)

    Nothing is read of an answer but its top label and the confidence in it, and nothing is assumed about the
    confidence: it counts by how it went with the truth. A constant confidence has one bin, which says nothing. P0 is
    halfway between knowing nothing and the agent's accuracy at all labels, so that a label which it has hardly said
    yet still counts for something, the more the better the agent; and confidences that tell right from wrong are first
    taken to do so at all labels.

    References
    ----------
    Dawid and Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm", Journal of the
    Royal Statistical Society C, 1979, https://doi.org/10.2307/2346806; here the truth is known.

    Examples
    --------
    An agent that says the first label to three quarters of the cases, and .9 to everything.

    >>> said = np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]])
    >>> table = AnswerTable.fit(said, np.array([0, 0, 1, 1]))
    >>> table.posterior(said[:1]).round(3).tolist()  # r = 4/6; (2 + .583) / (2 + 1) and (1 + .417) / (2 + 1)
    [[0.646, 0.354]]
    """

    n_labels: int = Field(ge=2)
    """K."""
    edges: tuple[float, ...] = ()
    """The B - 1 confidences between the bins, ascending."""
    cells: tuple[tuple[int, int, int, int], ...] = ()
    """Truth, said label, bin, and the cases counted there; cells without any are left out."""
    smoothing: float = Field(default=LABEL_SMOOTHING, gt=0)
    shrinkage: float = Field(default=BIN_SHRINKAGE, gt=0)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if not (np.isfinite(self.edges).all() and (np.diff(self.edges) > 0).all()):
            raise ValueError(f"edges: expected ascending numbers, got {self.edges}")
        limits = (self.n_labels, self.n_labels, self.n_bins)
        for *where, n in self.cells:
            if n < 1 or not all(0 <= i < limit for i, limit in zip(where, limits, strict=True)):
                raise ValueError(f"cells: expected truth, label and bin below {limits} and a count, got {(*where, n)}")
        return self

    @classmethod
    def fit(
        cls, said: Floats, truth: Ints, *, smoothing: float = LABEL_SMOOTHING, shrinkage: float = BIN_SHRINKAGE
    ) -> AnswerTable:
        """Count.

        Parameters
        ----------
        said : ndarray of shape (N, K)
            Distributions or scores: the argmax is the label said, the max the confidence. Rows of nan (an agent that
            failed) are left out.
        truth : ndarray of shape (N,)
        smoothing, shrinkage : float
            a and m.

        Raises
        ------
        ValueError
            When the shapes do not fit together.
        """
        if said.ndim != 2 or truth.shape != said.shape[:1]:
            raise ValueError(f"said, truth: expected [N, K] and [N], got {said.shape} and {truth.shape}")
        k = said.shape[1]
        edges = confidence_edges(_confidence(said[~np.isnan(said).any(axis=1)]))
        empty = cls(n_labels=k, edges=tuple(edges.tolist()), smoothing=smoothing, shrinkage=shrinkage)
        codes = empty.codes(said)
        counts = np.zeros((k, k, len(edges) + 1), dtype=np.intp)
        heard = codes.label >= 0
        np.add.at(counts, (truth[heard], codes.label[heard], codes.bin[heard]), 1)
        cells = np.column_stack([*np.nonzero(counts), counts[counts > 0]]).tolist()
        return empty.model_copy(update={"cells": tuple(map(tuple, cells))})

    @property
    def n(self) -> int:
        """Cases counted."""
        return sum(cell[-1] for cell in self.cells)

    @property
    def n_bins(self) -> int:
        """B."""
        return len(self.edges) + 1

    @property
    def prior(self) -> Floats:
        """Label frequencies of shape (K,), one case of every label added."""
        counts = self._counts().sum(axis=(1, 2)) + 1.0
        return np.asarray(counts / counts.sum())

    def codes(self, said: Floats) -> Codes:
        """Read answers of shape (N, K) as labels and bins."""
        heard = ~np.isnan(said).any(axis=1)
        label, found = np.full(len(said), -1, dtype=np.intp), np.full(len(said), -1, dtype=np.intp)
        label[heard] = said[heard].argmax(axis=1)
        found[heard] = np.searchsorted(self.edges, _confidence(said[heard]))
        return Codes(label, found)

    def log_likelihood(self, said: Floats) -> Floats:
        """Compute log P(answer | truth k).

        Parameters
        ----------
        said : ndarray of shape (N, K)
            As for `fit`.

        Returns
        -------
        ndarray of shape (N, K)
            In nats; zeros where the answer is nan: who says nothing speaks for no label.
        """
        codes = self.codes(said)
        log_p = self._log_table()[:, codes.label, codes.bin].T
        log_p[codes.label < 0] = 0.0
        return log_p

    def posterior(self, said: Floats) -> Floats:
        """Compute P(truth k | answer), of shape (N, K), with the label frequencies as prior."""
        log_p = np.log(self.prior) + self.log_likelihood(said)
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def _counts(self) -> Floats:
        """n(k, j, b), of shape (K, K, B)."""
        counts = np.zeros((self.n_labels, self.n_labels, self.n_bins))
        if self.cells:
            truth, label, found, n = np.array(self.cells).T
            counts[truth, label, found] = n
        return counts

    def _log_table(self) -> Floats:
        """Log-likelihoods of shape (K, K, B): truth, said label, bin."""
        n, m, k = self._counts(), self.shrinkage, self.n_labels
        of_label = n.sum(axis=2)
        accuracy = (np.trace(of_label) + 1) / (n.sum() + k)
        start = 1 / k + np.where(np.eye(k) > 0, accuracy, (1 - accuracy) / (k - 1))
        label = shrunk(of_label, self.smoothing * k, start / 2)
        hits = np.eye(k)[..., None] * n
        anywhere = (n.sum(axis=(0, 1)) + 1) / (n.sum() + self.n_bins)
        of_said = shrunk(n.sum(axis=0), m, anywhere)
        right, wrong = (shrunk(part.sum(axis=(0, 1)), m, anywhere) for part in (hits, n - hits))
        start = of_said * np.where(np.eye(k)[..., None] > 0, right, wrong) / anywhere
        within = shrunk(n, m, start / start.sum(axis=2, keepdims=True))
        return np.asarray(np.log(label)[..., None] + np.log(within))


def shrunk(counts: Floats, strength: float, towards: Floats) -> Floats:
    """Shares along the last axis, with `strength` cases spread as `towards` says added to the counts."""
    return np.asarray((counts + strength * towards) / (counts.sum(axis=-1, keepdims=True) + strength))


def confidence_edges(confidences: Floats, most: int = MOST_BINS) -> Floats:
    """Choose the edges of bins: between all confidences where these are few, else so that the bins hold about as many.

    Parameters
    ----------
    confidences : ndarray of shape (N,)
        Equal ones are never parted.
    most : int
        The largest number of bins.

    Returns
    -------
    ndarray of shape (B - 1,)
        Midpoints between neighbouring confidences, ascending.

    Examples
    --------
    >>> confidence_edges(np.array([0.9, 0.85, 0.9, 0.95])).round(3).tolist()
    [0.875, 0.925]
    >>> confidence_edges(np.array([0.9, 0.9])).tolist()
    []
    """
    values, counts = np.unique(np.round(confidences, DECIMALS), return_counts=True)
    middles = (values[1:] + values[:-1]) / 2
    if len(values) <= most:
        return np.asarray(middles)
    below = counts.cumsum()[:-1] / counts.sum()
    wanted = np.arange(1, most) / most
    return np.asarray(middles[np.unique(np.abs(below[:, None] - wanted).argmin(axis=0))])


def _confidence(said: Floats) -> Floats:
    return np.asarray(np.round(said.max(axis=1, initial=0.0), DECIMALS))
