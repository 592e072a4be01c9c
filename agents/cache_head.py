"""A cache of labelled images beside the words: each key votes for its label, the more the nearer it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.cache_memory import Weights, affinity, class_scores, divergence, remember
from secondlook.agents.cache_search import search_weights
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, check_embeddings

Singles = NDArray[np.float32]
Floats = NDArray[np.float64]
BLOCK = 512
"""Cases at a time: of so many, similarities to some thousand keys stay near the processor."""


@dataclass(frozen=True)
class CacheHead:
    """Keys, their votes, and the words.

    Attributes
    ----------
    keys : ndarray of float32 of shape (M, D)
        Images, or mixtures of images and captions.
    votes : ndarray of float32 of shape (M, K)
    words : TextClassifier
        Of shape (K, D).
    weights : Weights
        Alpha, beta and, where there are captions, gamma and delta.
    scores : ndarray of float32 of shape (M, K)
        Log class scores of the images, for the divergence; M is 0 where gamma is.
    """

    keys: Singles
    votes: Singles
    words: TextClassifier
    weights: Weights
    scores: Singles

    def logits(self, embeddings: Singles) -> Floats:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.keys.shape[1])
        rows = embeddings.astype(np.float32, copy=False)
        logits = self.words.logits(rows)
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            counted = affinity(block @ self.keys.T, self.weights)
            counted *= np.float32(self.weights.weight)
            logits[start : start + BLOCK] += counted @ self.votes - self.far(block)
        return logits

    def far(self, rows: Singles) -> Singles:
        """Gamma times the divergence from each label's keys, of shape (N, K); 0 where gamma is."""
        if not len(self.scores):
            return np.zeros((len(rows), self.votes.shape[1]), dtype=np.float32)
        return np.float32(self.weights.gamma) * (divergence(self.words, rows, self.scores) @ self.votes)

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        return {
            "keys": self.keys,
            "votes": self.votes,
            "words": self.words.vectors,
            "logit_scale": np.array(self.words.logit_scale),
            "weights": np.array(self.weights),
            "scores": self.scores,
        }


class CacheSpec(HeadSpec):
    """Tip-Adapter, without training; with captions, CapS-Adapter.

    ::

        logits = scale f T' + alpha exp(-beta (1 - f K')) L

    for words T, keys K and their labels L. With captions a key is (1 - delta) image + delta caption, and
    -gamma D L is added, where D is the divergence between the class scores softmax(f T' / 0.5) of image and key.
    Alpha to delta are searched one after the other, by the grouped cross-validated NLL at its best temperature.

    References
    ----------
    Zhang et al. (2022), https://arxiv.org/abs/2207.09519; Wang et al. (2024), https://arxiv.org/abs/2405.16591.
    """

    kind: Literal["cache"] = "cache"
    name: str = "cache"

    most_keys: int = Field(2048, ge=1)
    """With more training images, those of a label that are alike share a key."""

    def fit(self, lessons: Lessons) -> CacheHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)
        return build_cache(lessons, search_weights(lessons, self.most_keys), self.most_keys)

    def load(self, tensors: Tensors) -> CacheHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return load_cache(tensors)


def build_cache(lessons: Lessons, weights: Weights, most_keys: int) -> CacheHead:
    """Make the head of all lessons, with weights that were found or chosen."""
    memory = remember(lessons, most_keys)
    scores = class_scores(lessons.classifier, memory.images)
    return CacheHead(
        keys=memory.keys(weights.delta),
        votes=memory.votes,
        words=lessons.classifier,
        weights=weights,
        scores=scores if weights.gamma else scores[:0],
    )


def load_cache(tensors: Tensors) -> CacheHead:
    """Make the head of what it learned; see `HeadSpec.load`."""
    keys, votes, words, scores = (tensors[name] for name in ("keys", "votes", "words", "scores"))
    shapes = [array.shape for array in (keys, votes, words, scores)]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"keys, votes, words, scores: expected matrices, got {shapes}")
    (m, dim), k = keys.shape, votes.shape[1]
    if votes.shape[0] != m or words.shape != (k, dim) or scores.shape not in ((m, k), (0, k)):
        raise ValueError(f"keys, votes, words, scores: expected [M, D], [M, K], [K, D], [M or 0, K], got {shapes}")
    if tensors["weights"].shape != (len(Weights._fields),):
        raise ValueError(f"weights: expected {len(Weights._fields)} numbers, got {tensors['weights'].shape}")
    classifier = TextClassifier(words, np.zeros((0, dim), dtype=np.float32), float(tensors["logit_scale"]))
    return CacheHead(keys, votes, classifier, Weights(*map(float, tensors["weights"])), scores)
