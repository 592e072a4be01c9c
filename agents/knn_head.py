"""The nearest neighbours' vote on frozen features, weighted by cosine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.choice import cross_validated
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, Vectors, check_embeddings

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
NEIGHBOURS = (10, 5, 20, 3, 1)
"""Candidates for k; the first ones win ties."""
UNKNOWN = 10
"""k where no fold can be made, or the images of the rarest label where these are fewer."""
SMOOTHING = 0.01
"""Added to each label's share before the logarithm: k neighbours prove no impossibility."""
ROWS = 1024
"""Embeddings compared at a time, for the sake of memory."""
STRIDE = 16
"""Neighbours of which only the nearest is looked at first."""


@dataclass(frozen=True)
class KnnHead:
    """Logits log(share + .01) / T of the label among the k nearest images, each counted by its cosine.

    Attributes
    ----------
    memory : ndarray of float32 of shape (M, D)
        Unit embeddings.
    truth : ndarray of intp of shape (M,)
        Their label indices.
    n_labels : int
        K.
    k : int
        Neighbours that vote; all of them where M is smaller.
    temperature : float
        T.
    """

    memory: Vectors
    truth: Ints
    n_labels: int
    k: int
    temperature: float = 1.0

    def logits(self, embeddings: NDArray[np.float32]) -> Floats:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.memory.shape[1])
        return log_shares(self, embeddings, [self.k])[self.k] / self.temperature

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        numbers = {"n_labels": self.n_labels, "k": self.k, "temperature": self.temperature}
        return {"memory": self.memory, "truth": self.truth, **{name: np.array(n) for name, n in numbers.items()}}


class KnnSpec(HeadSpec):
    """A vote of the k nearest images, k chosen by grouped cross-validated NLL after one temperature.

    References
    ----------
    Cover and Hart (1967), Nearest neighbor pattern classification.
    """

    kind: Literal["knn"] = "knn"
    name: str = "knn"
    most: Annotated[int, Field(ge=1)] = 4096
    """Images kept; of more, as many of every label as may be are drawn."""

    def fit(self, lessons: Lessons) -> KnnHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)

        def judge(inside: Lessons, vectors: Vectors) -> dict[int, Floats]:
            return log_shares(_head(inside.thinned(self.most), 1), vectors, NEIGHBOURS)

        choice = cross_validated(lessons, judge)
        kept = lessons.thinned(self.most)
        if choice is None:
            return _head(kept, min(UNKNOWN, int(lessons.counts.min())))
        return _head(kept, choice.setting, choice.temperature)

    def load(self, tensors: Tensors) -> KnnHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        n_labels, k = int(tensors["n_labels"]), int(tensors["k"])
        return KnnHead(tensors["memory"], tensors["truth"], n_labels, k, float(tensors["temperature"]))


def _head(lessons: Lessons, k: int, temperature: float = 1.0) -> KnnHead:
    return KnnHead(lessons.vectors, lessons.truth, lessons.n_labels, k, temperature)


def log_shares(head: KnnHead, embeddings: NDArray[np.float32], ks: Iterable[int]) -> dict[int, Floats]:
    """Let the head's images vote.

    Parameters
    ----------
    head : KnnHead
        Whose memory it is.
    embeddings : ndarray of shape (N, D)
    ks : iterable of int
        Numbers of voters.

    Returns
    -------
    dict of ndarray of shape (N, K)
        For each k, log of (share + `SMOOTHING`); a share is the summed cosines of a label's neighbours among the k
        nearest over those of all k, negative cosines counting as none.
    """
    votes = {k: np.empty((len(embeddings), head.n_labels)) for k in ks}
    for start in range(0, len(embeddings), ROWS):
        near, cosines = nearest(embeddings[start : start + ROWS], head.memory, max(votes))
        weights, rows = np.maximum(cosines, 0).astype(np.float64), np.arange(len(near))[:, None] * head.n_labels
        for k, shares in votes.items():
            places = (rows + head.truth[near[:, :k]]).ravel()
            sums = np.bincount(places, weights[:, :k].ravel(), len(near) * head.n_labels).reshape(len(near), -1)
            shares[start : start + ROWS] = sums / np.maximum(sums.sum(axis=1, keepdims=True), 1e-12)
    return {k: np.log(shares + SMOOTHING) for k, shares in votes.items()}


def nearest(embeddings: NDArray[np.float32], memory: Vectors, k: int) -> tuple[Ints, NDArray[np.float32]]:
    """Find the k vectors of highest cosine, exactly.

    The memory is dealt into columns of `STRIDE`; the k nearest can lie only in the k columns of highest maximum, which
    are found many times faster than the k nearest among all.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
    memory : ndarray of shape (M, D)
    k : int
        All M where these are fewer.

    Returns
    -------
    indices, cosines : ndarray of shape (N, k)
        The nearest first.
    """
    cosines, k = embeddings @ memory.T, min(k, len(memory))
    columns = len(memory) // STRIDE
    if columns > k:
        whole = STRIDE * columns
        maxima = cosines[:, :whole].reshape(len(cosines), STRIDE, columns).max(axis=1)
        chosen = np.argpartition(maxima, columns - k, axis=1)[:, columns - k :]
        inside = (chosen[:, None, :] + columns * np.arange(STRIDE)[:, None]).reshape(len(cosines), -1)
        rest = np.broadcast_to(np.arange(whole, len(memory)), (len(cosines), len(memory) - whole))
        candidates = np.concatenate([inside, rest], axis=1)
    else:
        candidates = np.broadcast_to(np.arange(len(memory)), cosines.shape)
    found = np.take_along_axis(cosines, candidates, axis=1)
    part = np.argpartition(found, found.shape[1] - k, axis=1)[:, found.shape[1] - k :]
    near, found = np.take_along_axis(candidates, part, axis=1), np.take_along_axis(found, part, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1), np.take_along_axis(found, order, axis=1)
