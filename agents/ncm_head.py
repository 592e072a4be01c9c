"""The nearest class mean: each label's mean embedding instead of its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.choice import cross_validated
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, Vectors, check_embeddings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NcmHead:
    """Logits scale * cosine to each label's mean.

    Attributes
    ----------
    means : ndarray of shape (K, D)
        Unit vectors.
    scale : float
        The checkpoint's logit scale over the temperature of held-out images.
    """

    means: Floats
    scale: float

    def logits(self, embeddings: NDArray[np.float32]) -> Floats:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.means.shape[1])
        logits: Floats = self.scale * (embeddings.astype(np.float64) @ self.means.T)
        return logits

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        return {"means": self.means, "scale": np.array(self.scale)}


class NcmSpec(HeadSpec):
    """Cosines to the mean embedding of each label's images; one image each will do.

    References
    ----------
    Mensink et al. (2013), Distance-Based Image Classification: Generalizing to New Classes at Near-Zero Cost; Snell et
    al. (2017), https://arxiv.org/abs/1703.05175, for means of few shots.
    """

    kind: Literal["ncm"] = "ncm"
    name: str = "ncm"

    def fit(self, lessons: Lessons) -> NcmHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)
        scale = lessons.classifier.logit_scale

        def judge(inside: Lessons, vectors: Vectors) -> dict[None, Floats]:
            return {None: NcmHead(unit_means(inside), scale).logits(vectors)}

        choice = cross_validated(lessons, judge)
        return NcmHead(unit_means(lessons), scale / choice.temperature if choice else scale)

    def load(self, tensors: Tensors) -> NcmHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return NcmHead(tensors["means"], float(tensors["scale"]))


def unit_means(lessons: Lessons) -> Floats:
    """Mean embedding of each label, scaled to length 1, of shape (K, D); zeros for a label without images."""
    x = lessons.vectors.astype(np.float64)
    sums = np.stack([x[lessons.truth == label].sum(axis=0) for label in range(lessons.n_labels)])
    unit: Floats = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return unit
