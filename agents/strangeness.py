"""How strange an embedding is, by one measure each: higher for what the model was not fitted on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.grounds import Grounds, Part

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
ScoreName = Literal[
    "mahalanobis",
    "negatives",
    "whitened_cosine",
    "relative_mahalanobis",
    "knn_cosine",
    "gaussian_entropy",
    "entropy",
    "max_softmax",
    "energy",
    "cooked",
    "cooked_untempered",
]
"""What each is, the function of that name says; `entropy`, `max_softmax` and `energy` are of the linear probe."""
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
NEAREST = 5
"""Which nearest training image a cosine is taken to; the farthest of them where there are fewer."""
SCRATCH = 20_000_000
"""Cosines held in memory at once."""


def mahalanobis(grounds: Grounds, embeddings: Vectors) -> Floats:
    """Squared distance to the nearest label's mean: min_k (x - mu_k)^T S^-1 (x - mu_k), S shared and shrunken.

    References
    ----------
    Lee et al. (2018), https://arxiv.org/abs/1807.03888
    """
    nearest: Floats = grounds.gaussian.squared_distances(embeddings).min(axis=1)
    return nearest


def relative_mahalanobis(grounds: Grounds, embeddings: Vectors) -> Floats:
    """`mahalanobis`, less the squared distance to the mean of all images under their own covariance.

    References
    ----------
    Ren et al. (2021), https://arxiv.org/abs/2106.09022
    """
    return mahalanobis(grounds, embeddings) - grounds.background.squared_distances(embeddings)[:, 0]


def whitened_cosine(grounds: Grounds, embeddings: Vectors) -> Floats:
    """1 - the largest cosine to a label's mean, after whitening and seen from the mean of the means.

    The angle asks in which direction an image differs from the middle of the labels, the distance by how much. An image
    in no label's direction is strange even where it is near to all of them. Of one label, always 1.

    References
    ----------
    Chen et al. (2023), https://arxiv.org/abs/2303.07543, who look for strangers in the same whitened space by distance.
    """
    return np.asarray(1.0 - grounds.gaussian.cosines(embeddings).max(axis=1))


def knn_cosine(grounds: Grounds, embeddings: Vectors) -> Floats:
    """1 - the cosine to the training image that is `NEAREST`-th in resemblance.

    References
    ----------
    Sun et al. (2022), https://arxiv.org/abs/2204.06507
    """
    images = grounds.images
    place = max(len(images) - NEAREST, 0)
    found = np.empty(len(embeddings))
    step = max(SCRATCH // len(images), 1)
    for start in range(0, len(embeddings), step):
        cosines = embeddings[start : start + step] @ images.T
        found[start : start + step] = np.partition(cosines, place, axis=1)[:, place]
    return 1.0 - found


def gaussian_entropy(grounds: Grounds, embeddings: Vectors) -> Floats:
    """Entropy, in nats, of the labels' posterior under `TiedGaussian`."""
    return entropy(_softmax(grounds.gaussian.logits(embeddings)))


def cooked(grounds: Grounds, embeddings: Vectors) -> Floats:
    """Entropy, in nats, of the mean of three distributions, each tempered first; see `Cooked`.

    References
    ----------
    Humblot-Renaux et al. (2025), https://arxiv.org/abs/2507.22576; there the closed-set classifier is a network of its
    own, and nothing is tempered.
    """
    return entropy(grounds.cooked(tempered=True).probs(embeddings))


def negatives(grounds: Grounds, embeddings: Vectors) -> Floats:
    """Log-odds of the negative prompts against the labels' prompts, at the checkpoint's scale; 0 without negatives.

    References
    ----------
    Jiang et al. (2024), https://arxiv.org/abs/2403.20078
    """
    words = grounds.classifier
    if not len(words.negatives):
        return np.zeros(len(embeddings))
    against = words.logit_scale * (embeddings @ words.negatives.T).astype(np.float64)
    return energy(words.logits(embeddings)) - energy(against)


def energy(logits: Floats) -> Floats:
    """-log sum_k exp(logit_k), of shape (N,), of logits of shape (N, K).

    References
    ----------
    Liu et al. (2020), https://arxiv.org/abs/2010.03759

    Examples
    --------
    >>> energy(np.log([[0.5, 2.5], [1.0, 0.0001]])).round(2).tolist()
    [-1.1, -0.0]
    """
    from scipy.special import logsumexp

    return -np.asarray(logsumexp(logits, axis=1))


def max_softmax(probs: Floats) -> Floats:
    """1 - the largest probability, of shape (N,), of distributions of shape (N, K).

    References
    ----------
    Hendrycks and Gimpel (2017), https://arxiv.org/abs/1610.02136
    """
    return np.asarray(1.0 - probs.max(axis=1))


def entropy(probs: Floats) -> Floats:
    """-sum_k p_k log p_k in nats, of shape (N,), of distributions of shape (N, K); 0 log 0 is 0.

    Examples
    --------
    >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(4).tolist()
    [0.6931, 0.0]
    """
    from scipy.special import entr

    return np.asarray(entr(probs).sum(axis=1))


def _softmax(logits: Floats) -> Floats:
    from scipy.special import softmax

    return np.asarray(softmax(logits, axis=1))


class Score(NamedTuple):
    """A score of N embeddings, and what it is computed from."""

    of: Callable[[Grounds, Vectors], Floats]
    needs: tuple[Part, ...]


KINDS: dict[ScoreName, Score] = {
    "mahalanobis": Score(mahalanobis, ("gaussian",)),
    "negatives": Score(negatives, ()),
    "whitened_cosine": Score(whitened_cosine, ("gaussian",)),
    "relative_mahalanobis": Score(relative_mahalanobis, ("gaussian", "background")),
    "knn_cosine": Score(knn_cosine, ("images",)),
    "gaussian_entropy": Score(gaussian_entropy, ("gaussian",)),
    "entropy": Score(lambda grounds, x: entropy(_softmax(grounds.probe.logits(x))), ("probe",)),
    "max_softmax": Score(lambda grounds, x: max_softmax(_softmax(grounds.probe.logits(x))), ("probe",)),
    "energy": Score(lambda grounds, x: energy(grounds.probe.logits(x)), ("probe",)),
    "cooked": Score(cooked, ("gaussian", "probe", "temperatures")),
    "cooked_untempered": Score(
        lambda grounds, x: entropy(grounds.cooked(tempered=False).probs(x)), ("gaussian", "probe")
    ),
}
