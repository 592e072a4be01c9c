"""The interface of every head: logits from frozen embeddings, learned once, kept as arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen
from secondlook.agents.lessons import Lessons

Floats = NDArray[np.float64]
Tensors = Mapping[str, NDArray[Any]]
"""Everything a head has learned, by name; numbers are arrays without dimensions."""


class Head(Protocol):
    """What was learned."""

    def logits(self, embeddings: NDArray[np.float32]) -> Floats:
        """Logits of shape (N, K) for unit embeddings of shape (N, D).

        Each row depends on its own embedding only, never on the others of its batch.

        Raises
        ------
        ValueError
            When the embeddings are not finite or have another dimension.
        """
        ...

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays, from which `HeadSpec.load` makes the same head."""
        ...


class HeadSpec(Frozen, ABC):
    """What a person chooses of a head: its kind, its name, its settings. Subclasses add `kind: Literal[...]`."""

    name: str
    """Of the agent."""

    learns_words: ClassVar[bool] = False
    """Whether `fit` needs `Lessons.encoder`."""
    trains: ClassVar[bool] = False
    """Whether `fit` descends a gradient, and takes its time."""

    @abstractmethod
    def fit(self, lessons: Lessons) -> Head:
        """Learn.

        Raises
        ------
        ConfigError
            When the lessons do not suffice: says what is missing.
        """

    @abstractmethod
    def load(self, tensors: Tensors) -> Head:
        """Make a head of what it learned before.

        Raises
        ------
        KeyError, ValueError
            When an array is missing or of a wrong shape.
        """
