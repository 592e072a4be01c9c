"""Gaussian discriminant analysis on frozen features, with the words' verdict as its prior; no gradient anywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.choice import HELD_OUT, Choice, best
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, check_embeddings

Floats = NDArray[np.float64]
ALPHAS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Candidates for the weight of the images beside the words, as published."""
USUAL = {1: 0.001, 2: 0.03, 4: 0.3, 8: 1.0, 16: 10.0}
"""That weight by images per label, where no fold can be made to choose it; in between by interpolation."""


class Moments(NamedTuple):
    """All that the Gaussians need of N images: sums, so that those of two sets of images add."""

    counts: Floats
    """Images of each label, (K,)."""
    sums: Floats
    """Their embeddings summed, (K, D)."""
    products: Floats
    """Sum of x x^T over all images, (D, D)."""

    @classmethod
    def of(cls, vectors: NDArray[np.float32], truth: NDArray[np.intp], n_labels: int) -> Moments:
        """Sum over embeddings of shape (N, D) with label indices of shape (N,)."""
        x, belongs = vectors.astype(np.float64), np.eye(n_labels)[truth]
        return cls(belongs.sum(axis=0), belongs.T @ x, x.T @ x)

    def plus(self, more: Moments) -> Moments:
        """Return the moments of both sets of images."""
        return Moments(*(a + b for a, b in zip(self, more, strict=True)))


class Gaussians(NamedTuple):
    """Log densities under one covariance, up to a number that is the same for all labels."""

    centre: Floats
    """(D,), the mean of the labels' means."""
    weights: Floats
    """(D, K)"""
    bias: Floats
    """(K,)"""
    seen: NDArray[np.bool_]
    """Labels that had images, (K,)."""

    @classmethod
    def fit(cls, moments: Moments) -> Gaussians:
        r"""Fit means and the inverse covariance :math:`D (A + r I)^{-1}`, with A the scatter within labels.

        r is tr(A) / (N - 1). Where the images of each label are all alike, one image for example, the scatter of all
        images about their mean stands in for A in r: an upper bound.
        """
        counts, sums, products = moments
        n, dim, seen = counts.sum(), sums.shape[1], counts > 0
        means = sums / np.maximum(counts, 1)[:, None]
        centre = means[seen].mean(axis=0) if seen.any() else np.zeros(dim)
        scatter = products - (sums.T / np.maximum(counts, 1)) @ sums
        total = np.trace(products) - (sums.sum(axis=0) ** 2).sum() / max(n, 1)
        # Of copies nothing but rounding is left: no number to divide by.
        within = np.trace(scatter) if np.trace(scatter) > 1e-6 * total else total
        ridge = max(within / max(n - 1, 1), 1e-6)
        shift = np.where(seen[:, None], means - centre, 0)
        weights = dim * np.linalg.solve(scatter + ridge * np.eye(dim), shift.T)
        return cls(centre, weights, -(shift * weights.T).sum(axis=1) / 2, seen)

    def densities(self, embeddings: Floats) -> Floats:
        """Log densities of shape (N, K); nan for labels that had no images."""
        found: Floats = embeddings @ self.weights + (self.bias - self.centre @ self.weights)
        found[:, ~self.seen] = np.nan
        return found


def evidence(densities: Floats, alpha: float) -> Floats:
    """Weigh log densities of shape (N, K) by alpha.

    A label without a density gets the even mixture of the others': its images could be anything, so words decide. Where
    no label has one, all get 0.
    """
    found: Floats = alpha * densities
    if (unknown := np.isnan(found)).any():
        known, count = np.where(unknown, -np.inf, found), (~unknown).sum(axis=1, keepdims=True)
        top = np.where(count > 0, known.max(axis=1, keepdims=True), 0.0)
        total = np.where(count > 0, np.exp(known - top).sum(axis=1, keepdims=True) / np.maximum(count, 1), 1.0)
        found = np.where(unknown, top + np.log(total), found)
    return found


@dataclass(frozen=True)
class GdaHead:
    """Logits (words + alpha * log densities) / T; new images and new labels are added exactly, without the old images.

    Attributes
    ----------
    moments : Moments
        Of the images it was fitted on.
    words : ndarray of shape (K, D)
        Unit vector of each label's words times the checkpoint's logit scale; zeros where there is no prior.
    alpha : float
        Weight of the images.
    temperature : float
        T, the same for all embeddings.

    Examples
    --------
    >>> head = GdaHead(Moments.of(np.eye(2, 3, dtype=np.float32), np.arange(2), 2), np.zeros((2, 3)), 1.0, 1.0)
    >>> head.logits(np.float32([[0.8, 0.6, 0.0]])).argmax(axis=1)
    array([0])
    >>> grown = head.add_label(np.zeros(3)).update(np.float32([[0, 0, 1]]), np.array([2]))
    >>> grown.logits(np.float32([[0.0, 0.6, 0.8]])).argmax(axis=1)
    array([2])
    """

    moments: Moments
    words: Floats
    alpha: float
    temperature: float

    @cached_property
    def gaussians(self) -> Gaussians:
        """What the moments say."""
        return Gaussians.fit(self.moments)

    def logits(self, embeddings: NDArray[np.float32]) -> Floats:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.words.shape[1])
        x = embeddings.astype(np.float64)
        logits: Floats = (x @ self.words.T + evidence(self.gaussians.densities(x), self.alpha)) / self.temperature
        return logits

    def update(self, embeddings: NDArray[np.float32], truth: NDArray[np.intp]) -> GdaHead:
        """Return the head that would have been fitted on these images too, with the same alpha and temperature.

        Parameters
        ----------
        embeddings : ndarray of shape (N, D)
        truth : ndarray of shape (N,)
            Label indices.

        Raises
        ------
        ValueError
            When these are no embeddings of the same dimension, or a truth is no label.
        """
        n_labels, dim = self.words.shape
        check_embeddings("embeddings", embeddings, dim)
        if truth.shape != embeddings.shape[:1] or (len(truth) and not 0 <= truth.min() <= truth.max() < n_labels):
            raise ValueError(f"truth: expected {len(embeddings)} whole numbers 0 to {n_labels - 1}")
        return replace(self, moments=self.moments.plus(Moments.of(embeddings, truth, n_labels)))

    def add_label(self, words: NDArray[np.floating[Any]]) -> GdaHead:
        """Return the head with one label more, the last, which has words and no images yet.

        Parameters
        ----------
        words : ndarray of shape (D,)
            Unit vector of its words times the logit scale; zeros where the other labels have none.

        Raises
        ------
        ValueError
            When it is not finite or has another dimension.
        """
        check_embeddings("words", words[None], self.words.shape[1])
        counts, sums, products = self.moments
        more = Moments(np.append(counts, 0.0), np.vstack([sums, np.zeros_like(sums[:1])]), products)
        return replace(self, moments=more, words=np.vstack([self.words, words]))

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        numbers = {"alpha": np.array(self.alpha), "temperature": np.array(self.temperature)}
        return {**self.moments._asdict(), "words": self.words, **numbers}


class GdaSpec(HeadSpec):
    """Gaussians with one shrunken covariance, added to the zero-shot logits.

    Labels without images fall back on their words. The weight of the images is chosen by grouped cross-validated NLL
    after one temperature; ties keep the smaller one.

    References
    ----------
    Wang et al. (2024), A Hard-to-Beat Baseline for Training-Free CLIP-Based Adaptation,
    https://arxiv.org/abs/2402.04087; Kubokawa and Srivastava (2008), Estimation of the precision matrix of a singular
    Wishart distribution, for the shrinkage.
    """

    kind: Literal["gda"] = "gda"
    name: str = "gda"
    prior: Literal["words", "none"] = "words"
    """What the images' evidence is added to: the zero-shot logits, or nothing."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Weight of the images; by default chosen."""

    def fit(self, lessons: Lessons) -> GdaHead:
        """Learn; see `HeadSpec.fit`."""
        words = lessons.classifier.logit_scale * lessons.classifier.vectors.astype(np.float64)
        if self.prior == "none" or not words.any():
            words = np.zeros_like(words)
            lessons.need(self.name)
        folds, n_labels = lessons.folds(), lessons.n_labels
        usual = usual_alpha(lessons.counts)
        if folds is None:
            whole = Moments.of(lessons.vectors, lessons.truth, n_labels)
            return GdaHead(whole, words, self.alpha or usual, 1.0)
        parts = [Moments.of(lessons.vectors[folds == f], lessons.truth[folds == f], n_labels) for f in np.unique(folds)]
        # Without words every alpha is the same but for the temperature.
        tried = (self.alpha,) if self.alpha else ALPHAS if words.any() else (usual,)
        choice = _choose(lessons, folds, parts, words, tried)
        return GdaHead(_sum(parts), words, choice.setting, choice.temperature)

    def load(self, tensors: Tensors) -> GdaHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        moments = Moments(tensors["counts"], tensors["sums"], tensors["products"])
        return GdaHead(moments, tensors["words"], float(tensors["alpha"]), float(tensors["temperature"]))


def usual_alpha(counts: NDArray[np.intp]) -> float:
    """Weight of the images that was best in the median over the published data sets, by images per label.

    Examples
    --------
    >>> usual_alpha(np.array([4, 4])), usual_alpha(np.array([100, 50]))
    (0.3, 10.0)
    """
    shots = counts[counts > 0].mean() if counts.any() else 1.0
    known = np.log(np.array([*USUAL.items()]))
    return float(np.exp(np.interp(np.log(shots), known[:, 0], known[:, 1])).round(12))


def _sum(parts: list[Moments]) -> Moments:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.plus(part)
    return whole


def _choose(
    lessons: Lessons, folds: NDArray[np.intp], parts: list[Moments], words: Floats, alphas: tuple[float, ...]
) -> Choice[float]:
    """Choose alpha on held-out images; each fold is judged by the sum of the others' parts."""
    rest, densities, prior, truth = list(range(len(parts))), [], [], []
    for fold in rest:
        outside = lessons.part(folds == fold).thinned(HELD_OUT // len(parts))
        x = outside.vectors.astype(np.float64)
        densities.append(Gaussians.fit(_sum([parts[i] for i in rest if i != fold])).densities(x))
        prior.append(x @ words.T)
        truth.append(outside.truth)
    before, found = np.concatenate(prior), np.concatenate(densities)
    return best(((alpha, before + evidence(found, alpha)) for alpha in alphas), np.concatenate(truth))
