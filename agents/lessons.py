"""What a head learns from: embeddings of labelled images, and the words for the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.encoder import OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.folds import grouped_folds

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Lessons:
    """The train split of N images about K labels, as a head sees it.

    Attributes
    ----------
    vectors : ndarray of float32 of shape (N, D)
        Unit embeddings.
    truth : ndarray of intp of shape (N,)
        Label indices.
    groups : tuple of N str
        No group is ever on both sides of a fold.
    task : Task
        Its labels, and the words for them.
    classifier : TextClassifier
        Unit vector of each label's words, of shape (K, D), and the checkpoint's logit scale.
    templates : tuple of str
        Prompts with {} once, which the words are put into.
    encoder : OpenClipEncoder, optional
        For heads that learn words; the others do without.
    captions : ndarray of float32 of shape (N, D), optional
        Unit embedding of each image's caption; rows of nan where there is none.
    unlabelled : ndarray of float32 of shape (U, D), optional
        Unit embeddings of images whose label nobody knows.
    seed : int
        Of everything that a head draws.

    Raises
    ------
    ValueError
        When shapes do not fit together, a vector is not finite, or a truth is no label.
    """

    vectors: Vectors
    truth: NDArray[np.intp]
    groups: tuple[str, ...]
    task: Task
    classifier: TextClassifier
    templates: tuple[str, ...] = ("a photo of {}",)
    encoder: OpenClipEncoder | None = None
    captions: Vectors | None = None
    unlabelled: Vectors | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        n, k = len(self.vectors), len(self.task.labels)
        if self.vectors.ndim != 2 or self.truth.shape != (n,) or len(self.groups) != n:
            found = self.vectors.shape, self.truth.shape, len(self.groups)
            raise ValueError(f"vectors, truth, groups: expected [N, D], [N] and N, got {found}")
        dim = self.vectors.shape[1]
        if self.classifier.vectors.shape != (k, dim):
            raise ValueError(f"classifier: expected vectors [{k}, {dim}], got {self.classifier.vectors.shape}")
        check_embeddings("vectors", self.vectors, dim)
        if self.unlabelled is not None:
            check_embeddings("unlabelled", self.unlabelled, dim)
        if self.captions is not None and self.captions.shape != (n, dim):
            raise ValueError(f"captions: expected [{n}, {dim}], got {self.captions.shape}")
        if n and not (self.truth.dtype.kind in "iu" and 0 <= self.truth.min() <= self.truth.max() < k):
            raise ValueError(f"truth: expected whole numbers 0 to {k - 1}")

    def __len__(self) -> int:
        """N."""
        return len(self.vectors)

    @property
    def n_labels(self) -> int:
        """K."""
        return len(self.task.labels)

    @property
    def counts(self) -> NDArray[np.intp]:
        """Images of each label, of shape (K,)."""
        return np.bincount(self.truth, minlength=self.n_labels)

    def need(self, who: str, each: int = 1) -> None:
        """Refuse too few images.

        Parameters
        ----------
        who : str
            Whose need it is.
        each : int
            Least number of images of each label.

        Raises
        ------
        ConfigError
            Names the first label that has fewer.
        """
        if (short := np.flatnonzero(self.counts < each)).size:
            label, found = self.task.labels[short[0]], self.counts[short[0]]
            raise ConfigError(
                f"{who} needs {each} or more training images of each label, and {label!r} has {found}.",
                "Add images of it, or leave the label out.",
            )

    def part(self, rows: NDArray[np.bool_] | NDArray[np.intp] | Sequence[int]) -> Lessons:
        """Return the lessons of some images, by mask or indices; what is not labelled stays whole."""
        chosen = np.arange(len(self))[np.asarray(rows)]
        return replace(
            self,
            vectors=self.vectors[chosen],
            truth=self.truth[chosen],
            groups=tuple(self.groups[i] for i in chosen),
            captions=None if self.captions is None else self.captions[chosen],
        )

    def thinned(self, most: int) -> Lessons:
        """Return the lessons of so many images at most, drawn by the seed, from every label as evenly as may be."""
        if len(self) <= most:
            return self
        drawn = self.order[np.random.default_rng(self.seed).permutation(len(self))]
        drawn = drawn[np.argsort(self.truth[drawn], kind="stable")]
        counts = self.counts
        # The first of every label, then the second of each that has one, and so on.
        turn = np.arange(len(self)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.part(np.sort(drawn[np.argsort(turn, kind="stable")[:most]]))

    def folds(self, most: int = 5) -> NDArray[np.intp] | None:
        """Fold of each image by group, of shape (N,); None where a label has one group only.

        An image's fold does not depend on the order of the images. Dealt once, for all heads that ask.
        """
        if most not in self._dealt:
            self._dealt[most] = self._deal(most)
        return self._dealt[most]

    @cached_property
    def _dealt(self) -> dict[int, NDArray[np.intp] | None]:
        return {}

    def _deal(self, most: int) -> NDArray[np.intp] | None:
        if not len(self):
            return None
        order, folds = self.order, np.empty(len(self), dtype=np.intp)
        names, rng = [self.groups[i] for i in order], np.random.default_rng(self.seed)
        dealt = grouped_folds(self.truth[order], names, rng, most)
        if dealt is None:
            return None
        folds[order] = dealt
        return folds

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Indices that sort the images by their embeddings: what is drawn in this order is drawn from any order."""
        rows = np.ascontiguousarray(self.vectors, dtype=np.float32)
        return np.argsort(rows.view(f"V{4 * rows.shape[1]}").ravel(), kind="stable")


def check_embeddings(name: str, vectors: NDArray, dim: int) -> None:  # type: ignore[type-arg]
    """Refuse what are no embeddings.

    Raises
    ------
    ValueError
        When they are not finite, or not of shape (N, dim).

    Examples
    --------
    >>> check_embeddings("embeddings", np.ones((2, 3)), 4)
    Traceback (most recent call last):
    ValueError: embeddings: expected [N, 4], got (2, 3)
    """
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"{name}: expected [N, {dim}], got {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name}: row {int(np.argwhere(~np.isfinite(vectors))[0, 0])} is not finite")
