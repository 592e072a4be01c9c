"""NoLA: a head learned from what the words say of images that nobody labelled."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.description_head import WordsHead
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


class NolaSpec(HeadSpec):
    """Two linear heads on frozen features, one teaching the other, both starting from the words.

    The first learns from the images that the descriptions are surest of, label by label; the second from what the
    first makes of all of them. The images are those without labels where there are any, else those of the train
    split; labels are never looked at, neither to learn nor to choose. In the published method the first stands on
    the features of another encoder, and the second tunes the image tower.

    References
    ----------
    Imam et al. (2024), https://arxiv.org/abs/2411.19346.
    """

    kind: Literal["nola"] = "nola"
    name: str = "nola"
    least: Annotated[int, Field(ge=1)] = 16
    """Least number of images taken for each label, where it has so many."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Of the images that would fall to each label if all had as many."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of the pseudo-labels: this much is spread over all labels."""
    strength: Annotated[float, Field(gt=0)] = 10.0
    """Inverse of the penalty on going away from the words."""

    def fit(self, lessons: Lessons) -> WordsHead:
        """Learn; see `HeadSpec.fit`."""
        pool = lessons.vectors if lessons.unlabelled is None else lessons.unlabelled
        if not len(pool):
            raise ConfigError(f"{self.name} needs images, with or without labels, and has none.", "Add some.")
        images, scale = pool.astype(np.float64), lessons.classifier.logit_scale
        words = scale * lessons.classifier.vectors.astype(np.float64)
        rows, labels = pseudo_labels(images @ words.T, max(self.least, int(self.share * len(pool) / len(words))))
        teacher = _head(images[rows], labels, words, self.smoothing, self.strength)
        taught = (images @ teacher.T).argmax(axis=1)
        student = _head(images, taught, words, self.smoothing, self.strength)
        return WordsHead(student / scale, scale)

    def load(self, tensors: Tensors) -> WordsHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return WordsHead.of(tensors)


def pseudo_labels(logits: Floats, most: int, choices: int = 3) -> tuple[Ints, Ints]:
    """Choose images for each label by what the words say.

    Parameters
    ----------
    logits : ndarray of shape (N, K)
    most : int
        Images of each label; the most probable first.
    choices : int
        A label that is nobody's first choice takes those of whom it is the second, else the third, and that are not
        taken already.

    Returns
    -------
    rows, labels : ndarray of intp
        The chosen images, each once, and their pseudo-labels.

    Examples
    --------
    >>> pseudo_labels(np.array([[3.0, 0, 1], [2, 0, 1], [0, 1, 5]]), most=1)
    (array([0, 1, 2]), array([0, 1, 2]))
    """
    from scipy.special import softmax

    probs, order = softmax(logits, axis=1), np.argsort(-logits, axis=1, kind="stable")
    taken = np.full(len(logits), -1, dtype=np.intp)
    for choice in range(min(choices, logits.shape[1])):
        for label in range(logits.shape[1]):
            if not (taken == label).any():
                mine = np.flatnonzero((order[:, choice] == label) & (taken < 0))
                taken[mine[np.argsort(-probs[mine, label], kind="stable")][:most]] = label
    rows = np.flatnonzero(taken >= 0)
    return rows, taken[rows]


def _head(images: Floats, labels: Ints, words: Floats, smoothing: float, strength: float) -> Floats:
    """Weights of shape (K, D) of least smoothed cross-entropy, summed, plus |weights - words|^2 / (2 strength)."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    k = len(words)
    target = smoothing / k + (1 - smoothing) * np.eye(k)[labels]

    def loss(flat: Floats) -> tuple[float, Floats]:
        moved = flat.reshape(words.shape)
        log_p = log_softmax(images @ (words + moved).T, axis=1)
        gradient = (np.exp(log_p) - target).T @ images + moved / strength
        return float((moved**2).sum() / (2 * strength) - (target * log_p).sum()), gradient.ravel()

    moved = minimize(loss, np.zeros(words.size), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weights: Floats = words + moved.reshape(words.shape)
    return weights
