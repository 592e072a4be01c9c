"""What stranger scores are computed from, fitted on training images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.cooked import Cooked, Probe, fit_probe, fit_temperatures
from secondlook.agents.tied_gaussian import TiedGaussian, fit_tied_gaussian

Vectors = NDArray[np.float32]
Part = Literal["gaussian", "background", "images", "probe", "temperatures"]
"""What a score may need.

- ``gaussian``: of the labels
- ``background``: of all images, as of one label
- ``images``: the training images' embeddings themselves
- ``probe``: a linear classifier
- ``temperatures``: of the three classifiers of COOkeD
"""
ARRAYS: dict[Part, tuple[str, ...]] = {
    "gaussian": ("gaussian.means", "gaussian.whitener"),
    "background": ("background.means", "background.whitener"),
    "images": ("images.vectors",),
    "probe": ("probe.weights", "probe.bias"),
    "temperatures": ("temperatures.each",),
}
"""The arrays of each part, by the names they are kept under."""


@dataclass(frozen=True)
class Grounds:
    """The parts that were asked for; to ask for another one is a KeyError.

    Attributes
    ----------
    arrays : dict of str to ndarray
        See `ARRAYS`.
    classifier : TextClassifier
        The words.
    """

    arrays: dict[str, NDArray[Any]]
    classifier: TextClassifier

    @property
    def gaussian(self) -> TiedGaussian:
        """Of the labels."""
        return TiedGaussian(self.arrays["gaussian.means"], self.arrays["gaussian.whitener"])

    @property
    def background(self) -> TiedGaussian:
        """Of all images, as of one label."""
        return TiedGaussian(self.arrays["background.means"], self.arrays["background.whitener"])

    @property
    def images(self) -> Vectors:
        """Unit embeddings of the training images, of shape (N, D)."""
        return self.arrays["images.vectors"]

    @property
    def probe(self) -> Probe:
        """A linear classifier."""
        return Probe(self.arrays["probe.weights"], self.arrays["probe.bias"])

    def cooked(self, *, tempered: bool) -> Cooked:
        """Return the three classifiers of COOkeD, each with its temperature or with 1."""
        temperatures = self.arrays["temperatures.each"] if tempered else np.ones(3)
        return Cooked(self.gaussian, self.probe, self.classifier, temperatures)


def fit_grounds(
    parts: Collection[Part],
    embeddings: Vectors,
    truth: NDArray[np.intp],
    groups: Sequence[str],
    classifier: TextClassifier,
    seed: int = 0,
) -> Grounds:
    """Fit parts.

    Parameters
    ----------
    parts : collection of str
        Which.
    embeddings : ndarray of shape (N, D)
        Unit vectors of training images.
    truth : ndarray of shape (N,)
        Label indices 0 to K - 1, each at least once.
    groups : sequence of str
        N group names; no group is on both sides of a fold.
    classifier : TextClassifier
        Of the same K labels.
    seed : int
        Of the folds.

    Raises
    ------
    ValueError
        When the shapes do not fit together, or a label has no image.
    """
    if embeddings.ndim != 2 or not len(embeddings) == len(truth) == len(groups):
        shapes = embeddings.shape, truth.shape, len(groups)
        raise ValueError(f"embeddings, truth, groups: expected [N, D], [N] and N, got {shapes}")
    if (found := np.unique(truth).tolist()) != list(range(len(classifier.vectors))):
        raise ValueError(f"truth: expected each of 0..{len(classifier.vectors) - 1}, found {found}")
    arrays: dict[str, NDArray[Any]] = {}
    for part in dict.fromkeys(parts):
        match part:
            case "gaussian" | "background":
                labels = truth if part == "gaussian" else np.zeros_like(truth)
                gaussian = fit_tied_gaussian(embeddings, labels)
                arrays |= {f"{part}.means": gaussian.means, f"{part}.whitener": gaussian.whitener}
            case "images":
                arrays["images.vectors"] = embeddings
            case "probe":
                probe = fit_probe(embeddings, truth)
                arrays |= {"probe.weights": probe.weights, "probe.bias": probe.bias}
            case "temperatures":
                arrays["temperatures.each"] = fit_temperatures(embeddings, truth, groups, classifier, seed)
    return Grounds(arrays, classifier)
