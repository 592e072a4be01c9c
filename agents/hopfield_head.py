"""An embedding replaced by what a Hopfield network recalls for it from the training images, then the nearest mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.choice import cross_validated
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, Vectors, check_embeddings
from secondlook.agents.ncm_head import unit_means

Floats = NDArray[np.float64]
BETAS = (8.0, 14.3, 30.0, 60.0, 120.0, 250.0)
"""Candidates for the sharpness of the recall; the published training had 8 and 14.3."""
UNKNOWN = 120.0
"""Sharpness where no fold can be made."""
ROWS = 1024
"""Embeddings recalled at a time, for the sake of memory."""


@dataclass(frozen=True)
class HopfieldHead:
    """Logits scale * cosine of the recalled embedding to each label's mean.

    Attributes
    ----------
    memory : ndarray of float32 of shape (M, D)
        Unit embeddings that are recalled from.
    means : ndarray of shape (K, D)
        Unit vectors.
    beta : float
        Sharpness: 0 recalls the mean of the memory, infinity the nearest neighbour.
    scale : float
        The checkpoint's logit scale over the temperature of held-out images.
    """

    memory: Vectors
    means: Floats
    beta: float
    scale: float

    def logits(self, embeddings: NDArray[np.float32]) -> Floats:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.memory.shape[1])
        logits: Floats = self.scale * (recalled(embeddings, self.memory, self.beta).astype(np.float64) @ self.means.T)
        return logits

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        numbers = {"beta": np.array(self.beta), "scale": np.array(self.scale)}
        return {"memory": self.memory, "means": self.means, **numbers}


class HopfieldSpec(HeadSpec):
    """Recall by one step of a modern Hopfield network; its sharpness by grouped cross-validated NLL.

    References
    ----------
    Fürst et al. (2022), CLOOB, https://arxiv.org/abs/2110.11316, which trains with this recall; here it is taken over
    the training images of a finished encoder. Ramsauer et al. (2021), https://arxiv.org/abs/2008.02217.
    """

    kind: Literal["hopfield"] = "hopfield"
    name: str = "hopfield"
    most: Annotated[int, Field(ge=1)] = 1024
    """Images recalled from; of more, as many of every label as may be are drawn."""

    def fit(self, lessons: Lessons) -> HopfieldHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)
        scale = lessons.classifier.logit_scale

        def judge(inside: Lessons, vectors: Vectors) -> dict[float, Floats]:
            memory, means = inside.thinned(self.most).vectors, unit_means(inside)
            return {beta: HopfieldHead(memory, means, beta, scale).logits(vectors) for beta in BETAS}

        choice = cross_validated(lessons, judge)
        beta, temperature = (choice.setting, choice.temperature) if choice else (UNKNOWN, 1.0)
        memory = lessons.thinned(self.most).vectors
        return HopfieldHead(memory, unit_means(lessons), beta, scale / temperature)

    def load(self, tensors: Tensors) -> HopfieldHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return HopfieldHead(tensors["memory"], tensors["means"], float(tensors["beta"]), float(tensors["scale"]))


def recalled(embeddings: NDArray[np.float32], memory: Vectors, beta: float) -> Vectors:
    r"""Recall :math:`\mathrm{unit}(\sum_j \mathrm{softmax}_j(\beta f \cdot m_j) m_j)`.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
    memory : ndarray of shape (M, D)
    beta : float

    Returns
    -------
    ndarray of shape (N, D)
        Unit vectors.

    Examples
    --------
    >>> recalled(np.float32([[0.8, 0.6]]), np.eye(2, dtype=np.float32), 1000).round(3).tolist()
    [[1.0, 0.0]]
    """
    found = np.empty_like(embeddings, dtype=np.float32)
    for start in range(0, len(embeddings), ROWS):
        energy = np.float32(beta) * (embeddings[start : start + ROWS].astype(np.float32, copy=False) @ memory.T)
        energy -= energy.max(axis=1, keepdims=True)
        # The shares' sum is left out: what is recalled is scaled to length 1.
        sums = np.exp(energy, out=energy) @ memory
        found[start : start + ROWS] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return found
