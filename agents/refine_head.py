"""Images and texts brought closer by a linear map of each, learned from cached pairs with CLIP-Refine's losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, check_embeddings
from secondlook.agents.modality_gap import alignment, modality_gap, uniformity

Floats = NDArray[np.float64]
BATCH = 512


class Spread(NamedTuple):
    """How images and texts lie to each other; see `secondlook.agents.modality_gap`."""

    gap: float
    alignment: float
    uniformity: float


class Pairs(NamedTuple):
    """N images, each with a text."""

    images: Floats
    """Unit vectors of shape (N, D)."""
    texts: Floats
    """Unit vectors of shape (N, D)."""
    same: NDArray[np.intp]
    """Of shape (N,): equal numbers for equal texts."""

    @classmethod
    def of(cls, lessons: Lessons) -> Pairs:
        """Pair each image with its caption, or with its label's words where it has none.

        The rows are put in an order of their own: what is learned does not depend on that of the lessons.
        """
        texts = lessons.classifier.vectors.astype(np.float64)[lessons.truth]
        same = lessons.truth.astype(np.intp)
        if lessons.captions is not None:
            rows = np.flatnonzero(np.isfinite(lessons.captions).all(axis=1))
            texts[rows] = _unit(lessons.captions[rows].astype(np.float64))
            numbers = np.unique(texts[rows], axis=0, return_inverse=True)[1].reshape(-1)
            same = same.copy()
            same[rows] = lessons.n_labels + numbers
        order = np.lexsort((*lessons.vectors.T[:4], same))
        return cls(lessons.vectors[order].astype(np.float64), texts[order], same[order])

    def spread(self) -> Spread:
        """Measure them; a text that several images share counts once for uniformity."""
        distinct = self.texts[np.unique(self.same, return_index=True)[1]]
        all_of_them = np.concatenate([self.images, distinct])
        return Spread(modality_gap(self.images, self.texts), alignment(*self[:2]), uniformity(all_of_them))


@dataclass(frozen=True)
class RefineHead:
    """Cosines of mapped images and mapped words.

    Attributes
    ----------
    image_map : ndarray of shape (D, D)
    image_shift : ndarray of shape (D,)
        An image is mapped to the direction of ``image_map @ f - image_shift``.
    words : ndarray of shape (K, D)
        Unit vectors of the labels' words, mapped.
    logit_scale : float
        The checkpoint's factor on cosines.
    before, after : Spread
        The pairs it was learned from, as they were and mapped.
    """

    image_map: Floats
    image_shift: Floats
    words: Floats
    logit_scale: float
    before: Spread
    after: Spread

    def logits(self, embeddings: NDArray[np.float32]) -> Floats:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.words.shape[1])
        mapped = _unit(embeddings.astype(np.float64) @ self.image_map.T - self.image_shift)
        cosines: Floats = mapped @ self.words.T
        return self.logit_scale * cosines

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        return {
            "image_map": self.image_map,
            "image_shift": self.image_shift,
            "words": self.words,
            "logit_scale": np.array(self.logit_scale),
            "before": np.array(self.before),
            "after": np.array(self.after),
        }


class RefineSpec(HeadSpec):
    """Linear maps of images and words, both near the identity, that close the modality gap.

    CLIP-Refine trains both towers; here only a matrix behind each is learned, on cached pairs. Two losses on vectors
    a = A_image f and b = A_text t, where f and t are unit vectors times the root of the logit scale, so that their
    products are the checkpoint's logits:

    - random feature alignment, |a - z|^2 / D + |b - z|^2 / D, with z drawn from a standard normal for each pair and
      step; in the mean it makes what all vectors have in common small, which is what keeps the two kinds apart;
    - hybrid contrastive distillation, the mean of KL(q || softmax(a b^T)) over both directions, where q is half the
      pair itself and half the softmax of the checkpoint's own logits over the batch.

    Labels are few and their words are shared by many images: the half that is the pair itself is spread evenly over
    all images of the same text.

    References
    ----------
    Yamaguchi et al., "Post-pre-training for Modality Alignment in Vision-Language Foundation Models", 2025,
    arXiv:2504.12717.
    """

    kind: Literal["refine"] = "refine"
    name: str = "refine"
    trains: ClassVar[bool] = True
    method: Literal["refine", "mean-shift"] = "refine"
    """``mean-shift``, the control: no map, each kind's mean over the pairs is subtracted."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 30
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Divided by D, since a step moves each of a map's D * D numbers about as far."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Pulls the maps to the identity."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the pair itself in q."""
    random_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the first loss beside the second."""

    def fit(self, lessons: Lessons) -> RefineHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)
        pairs, words = Pairs.of(lessons), lessons.classifier.vectors.astype(np.float64)
        scale = float(lessons.classifier.logit_scale)
        dim = words.shape[1]
        image_map, text_map = np.eye(dim), np.eye(dim)
        image_shift, text_shift = np.zeros(dim), np.zeros(dim)
        if self.method == "mean-shift":
            image_shift, text_shift = pairs.images.mean(axis=0), pairs.texts.mean(axis=0)
        else:
            image_map, text_map = self._maps(pairs, scale, np.random.default_rng(lessons.seed))
        mapped = pairs._replace(
            images=_unit(pairs.images @ image_map.T - image_shift), texts=_unit(pairs.texts @ text_map.T - text_shift)
        )
        return RefineHead(
            image_map, image_shift, _unit(words @ text_map.T - text_shift), scale, pairs.spread(), mapped.spread()
        )

    def load(self, tensors: Tensors) -> RefineHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return RefineHead(
            tensors["image_map"],
            tensors["image_shift"],
            tensors["words"],
            float(tensors["logit_scale"]),
            Spread(*tensors["before"].tolist()),
            Spread(*tensors["after"].tolist()),
        )

    def _maps(self, pairs: Pairs, scale: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Descend both losses by AdamW from the identity, a batch a step."""
        dim = pairs.images.shape[1]
        height, rate = np.sqrt(scale), self.learning_rate / dim
        offsets, moments = np.zeros((2, dim, dim)), np.zeros((2, 2, dim, dim))
        batches = _batches(len(pairs.images), rng)
        images = texts = target = back = np.zeros(0)
        for step in range(1, self.steps + 1):
            if step == 1 or len(pairs.images) > BATCH:  # what fits into one batch has the same targets in every step
                rows = next(batches)
                images, texts, same = height * pairs.images[rows], height * pairs.texts[rows], pairs.same[rows]
                target = hybrid_target(images @ texts.T, same, self.alpha)
                back = hybrid_target(texts @ images.T, same, self.alpha)
            a, b = images @ (offsets[0].T + np.eye(dim)), texts @ (offsets[1].T + np.eye(dim))
            noise = rng.standard_normal(images.shape)
            a_slope, b_slope = slopes(a, b, noise, target, back, self.random_weight)
            gradient = np.stack([a_slope.T @ images, b_slope.T @ texts])
            moments[0] += 0.1 * (gradient - moments[0])
            moments[1] += 0.001 * (gradient**2 - moments[1])
            move = (moments[0] / (1 - 0.9**step)) / (np.sqrt(moments[1] / (1 - 0.999**step)) + 1e-8)
            offsets = (1 - rate * self.weight_decay) * offsets - rate * move
        return offsets[0] + np.eye(dim), offsets[1] + np.eye(dim)


def hybrid_target(logits: Floats, same: NDArray[np.intp], alpha: float) -> Floats:
    """Mix the pairs themselves and the teacher's softmax.

    Parameters
    ----------
    logits : ndarray of shape (N, N)
        Of the frozen checkpoint, a row for each query.
    same : ndarray of shape (N,)
        Equal numbers for equal texts.
    alpha : float
        Share of the pairs themselves.

    Returns
    -------
    ndarray of shape (N, N)
        A distribution in each row.

    Examples
    --------
    >>> hybrid_target(np.zeros((2, 2)), np.array([0, 1]), 0.5).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    own = (same[:, None] == same).astype(np.float64)
    target: Floats = alpha * own / own.sum(axis=1, keepdims=True) + (1 - alpha) * _softmax(logits)
    return target


def slopes(
    a: Floats, b: Floats, noise: Floats, target: Floats, back: Floats, random_weight: float
) -> tuple[Floats, Floats]:
    """Gradients of both losses by the vectors of a batch.

    Parameters
    ----------
    a, b : ndarray of shape (N, D)
        Images and texts, mapped.
    noise : ndarray of shape (N, D)
        The random vector of each pair.
    target, back : ndarray of shape (N, N)
        What the softmax from image to text, and from text to image, should be.
    random_weight : float

    Returns
    -------
    a_slope, b_slope : ndarray of shape (N, D)
    """
    n, dim = a.shape
    logits = a @ b.T
    # d KL(q || softmax(s)) / ds = softmax(s) - q
    by_logits = (_softmax(logits) - target + (_softmax(logits.T) - back).T) / (2 * n)
    share = 2 * random_weight / (n * dim)
    return by_logits @ b + share * (a - noise), by_logits.T @ a + share * (b - noise)


def _batches(n: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """All rows where they fit into a batch, else random ones, each once an epoch."""
    while True:
        order = rng.permutation(n) if n > BATCH else np.arange(n)
        for start in range(0, n - min(n, BATCH) + 1, BATCH):
            yield order[start : start + BATCH]


def _softmax(logits: Floats) -> Floats:
    risen = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = risen / risen.sum(axis=1, keepdims=True)
    return shares


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit
