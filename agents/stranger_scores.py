"""The stranger scores of a model: some of those there are, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.grounds import ARRAYS, Grounds, Part, fit_grounds
from secondlook.agents.lessons import check_embeddings
from secondlook.agents.strangeness import KINDS, ScoreName

DEFAULT: tuple[ScoreName, ...] = ("mahalanobis", "negatives")


@dataclass(frozen=True)
class StrangerScores:
    """S scores of an embedding, each higher for strangers.

    Attributes
    ----------
    names : tuple of S str
        In the order of the columns.
    grounds : Grounds
    """

    names: tuple[ScoreName, ...]
    grounds: Grounds

    def of(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores of shape (N, S) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.grounds.classifier.vectors.shape[1])
        return np.stack([KINDS[name].of(self.grounds, embeddings) for name in self.names], axis=1)

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """What they have learned, by name, from which the same scores can be made."""
        return self.grounds.arrays


def load_stranger_scores(
    names: Sequence[ScoreName], arrays: dict[str, NDArray[Any]], classifier: TextClassifier
) -> StrangerScores:
    """Make scores of what they learned.

    Raises
    ------
    KeyError
        Names an array that is missing.
    """
    for part in parts_of(names):
        for array in ARRAYS[part]:
            if array not in arrays:
                raise KeyError(array)
    return StrangerScores(tuple(names), Grounds(arrays, classifier))


def parts_of(names: Sequence[ScoreName]) -> tuple[Part, ...]:
    """Return what the scores need, each part once."""
    return tuple(dict.fromkeys(part for name in names for part in KINDS[name].needs))


def fit_stranger_scores(
    embeddings: NDArray[np.float32],
    truth: NDArray[np.intp],
    classifier: TextClassifier,
    groups: Sequence[str] | None = None,
    names: Sequence[ScoreName] = DEFAULT,
    seed: int = 0,
) -> StrangerScores:
    """Fit scores on training images.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
        Unit vectors.
    truth : ndarray of shape (N,)
        Label indices 0 to K - 1, each at least once.
    classifier : TextClassifier
        Of the same K labels.
    groups : sequence of str, optional
        N group names; by default each image is its own.
    names : sequence of str
        Which scores, in the order of the columns.
    seed : int
        Of the folds, where there are any.

    Raises
    ------
    ValueError
        When the shapes do not fit together, or a label has no image.
    """
    own = [str(i) for i in range(len(embeddings))] if groups is None else groups
    return StrangerScores(tuple(names), fit_grounds(parts_of(names), embeddings, truth, own, classifier, seed))
