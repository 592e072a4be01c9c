"""The keys of a cache, images and their captions, and how much each counts for an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.lessons import Lessons

Singles = NDArray[np.float32]
Ints = NDArray[np.intp]
ROUNDS = 5
"""Of k-means; after a few, keys hardly move."""
FARTHEST = 60.0
"""Largest exponent of an affinity: single precision ends at 88."""
SOFTNESS = 0.5
"""Temperature of the class scores that the divergence compares."""


class Weights(NamedTuple):
    """What multiplies what.

    The affinity of a similarity s is exp(beta (s - anchor)): any anchor gives the same logits with another weight, and
    one near the largest s keeps the numbers within range.
    """

    weight: float
    beta: float
    anchor: float = 1.0
    gamma: float = 0.0
    delta: float = 0.0

    @property
    def alpha(self) -> float:
        """The weight of exp(-beta (1 - s))."""
        return self.weight * float(np.exp(self.beta * (1 - self.anchor)))


@dataclass(frozen=True)
class Memory:
    """M keys about K labels.

    Attributes
    ----------
    images : ndarray of float32 of shape (M, D)
        Unit vectors: an image each, or the mean direction of several.
    captions : ndarray of float32 of shape (M, D), optional
        What stands beside each image; None where no image has a caption.
    votes : ndarray of float32 of shape (M, K)
        What each key counts for its label, 0 elsewhere. The votes of each label sum to 1: no label wins for being
        common among the training images, and the weights found on some folds hold for all.
    sources : ndarray of intp of shape (N,)
        The key that each image went into.
    """

    images: Singles
    captions: Singles | None
    votes: Singles
    sources: Ints

    def keys(self, share: float) -> Singles:
        """Keys of shape (M, D): the share of the captions, and the images for the rest.

        A cosine is linear in the key, so that mixing keys mixes similarities.
        """
        if self.captions is None or not share:
            return self.images
        return np.asarray((1 - share) * self.images + share * self.captions, dtype=np.float32)


def remember(lessons: Lessons, most: int) -> Memory:
    """Make the keys of a cache.

    Parameters
    ----------
    lessons : Lessons
        N images; each label needs one.
    most : int
        With more images than this, each label's are averaged to its share of so many keys, by k-means.

    Returns
    -------
    Memory
    """
    sources = np.arange(len(lessons))
    if len(lessons) > most:
        sources = _clusters(lessons, most)
    size = np.bincount(sources).astype(np.float32)
    label = np.empty(len(size), dtype=np.intp)
    label[sources] = lessons.truth
    votes = np.zeros((len(size), lessons.n_labels), dtype=np.float32)
    votes[np.arange(len(size)), label] = size / lessons.counts[label]
    captions = _filled(lessons.captions, lessons.vectors)
    return Memory(
        images=_unit(_means(lessons.vectors, sources)),
        captions=None if captions is None else _means(captions, sources),
        votes=votes,
        sources=sources,
    )


def affinity(similarity: Singles, weights: Weights) -> Singles:
    """Affinities, of the shape of the similarities, which are overwritten; 1 at the anchor."""
    similarity -= np.float32(weights.anchor)
    similarity *= np.float32(weights.beta)
    np.minimum(similarity, np.float32(FARTHEST), out=similarity)
    return np.exp(similarity, out=similarity)


def class_scores(words: TextClassifier, rows: Singles) -> Singles:
    """Log class scores of shape (N, K): log softmax of the cosines to the words over `SOFTNESS`."""
    cosines = rows @ words.vectors.T / np.float32(SOFTNESS)
    return np.asarray(cosines - np.logaddexp.reduce(cosines, axis=1, keepdims=True), dtype=np.float32)


def divergence(words: TextClassifier, rows: Singles, scores: Singles) -> Singles:
    """How far the class scores of N images are from those of M keys, of shape (N, M).

    The Kullback-Leibler divergence, each row moved and scaled to 0 for its nearest key and 1 for its farthest: by its
    own keys only, never by what else is in the batch. Its entropy is the same for all keys, and so left out.
    """
    cross = -np.exp(class_scores(words, rows)) @ scores.T
    low, high = cross.min(axis=1, keepdims=True), cross.max(axis=1, keepdims=True)
    return np.asarray((cross - low) / np.maximum(high - low, np.float32(1e-12)), dtype=np.float32)


def _filled(captions: Singles | None, images: Singles) -> Singles | None:
    """Captions, and for an image without one the image itself, moved to where captions lie.

    Captions lie apart from images, so that a cosine to one is lower throughout; unmoved, the images without a caption
    would be nearest to everything.
    """
    if captions is None or not (there := np.asarray(np.isfinite(captions).all(axis=1))).any():
        return None
    gap = captions[there].mean(axis=0) - images[there].mean(axis=0)
    return np.where(there[:, None], captions, images + gap).astype(np.float32)


def _clusters(lessons: Lessons, most: int) -> Ints:
    """Cluster of each image, of shape (N,): those of a label by k-means on the sphere, numbered without gaps."""
    rng = np.random.default_rng(lessons.seed)
    sources = np.empty(len(lessons), dtype=np.intp)
    first = 0
    for label, count in enumerate(lessons.counts):
        own = np.flatnonzero(lessons.truth == label)
        rows = lessons.vectors[own]
        centres = rows[rng.permutation(count)[: max(1, most * count // len(lessons))]]
        for _ in range(ROUNDS):
            nearest = (rows @ centres.T).argmax(axis=1)
            _, nearest = np.unique(nearest, return_inverse=True)  # a centre that nothing is near to is gone
            centres = _unit(_means(rows, nearest))
        sources[own] = first + nearest
        first += len(centres)
    return sources


def _means(rows: Singles, cluster: Ints) -> Singles:
    """Mean of the rows of each cluster, of shape (M, D)."""
    order = np.argsort(cluster, kind="stable")
    sizes = np.bincount(cluster)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.asarray(np.add.reduceat(rows[order], starts, axis=0) / sizes[:, None], dtype=np.float32)


def _unit(rows: Singles) -> Singles:
    unit: Singles = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
