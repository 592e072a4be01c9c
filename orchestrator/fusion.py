"""Fusion: the opinions of several agents to one belief, by a named policy."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]


class Fusion(Protocol):
    """A fitted policy: a frozen value that is written into the model folder as JSON."""

    @property
    def agents(self) -> tuple[str, ...]:
        """The M columns it was fitted on."""
        ...

    @property
    def fused_by(self) -> str:
        """In words, for trails."""
        ...

    def fused_from(self, answered: Collection[str]) -> str:
        """In words, how one case was fused of those who answered, by column."""
        ...

    def fuse(self, opinions: Opinions) -> Floats:
        """Beliefs of shape (N, K); nan where nobody answered."""
        ...


class Fitted(NamedTuple):
    """A fusion, and what it says of the cases it was fitted on when each is left out."""

    fusion: Fusion
    beliefs: Floats
    """Cross-fitted beliefs of shape (N, K)."""
