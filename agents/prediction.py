"""What an agent says: a prediction or a failure."""

from __future__ import annotations

from typing import Literal

from secondlook.agents.case import Frozen

Scale = Literal["logit", "probability", "vote", "stated", "sampled"]
"""What the numbers of a prediction are.

- ``logit``: unnormalised log-probabilities, softmax makes a distribution of them
- ``probability``: a distribution; after calibration, one that was measured
- ``vote``: shares of (weighted) neighbours
- ``stated``: a label and a verbal confidence
- ``sampled``: shares of n draws
"""


class Prediction(Frozen):
    """An agent's answer for one case."""

    agent: str
    look: int = 1
    scale: Scale
    scores: tuple[float, ...]
    """One number per label, in the task's order, of the kind that `scale` says."""
    said: tuple[float, ...] | None = None
    """Of a calibrated prediction: the distribution that the agent itself gave; None before calibration."""

    @property
    def top(self) -> int:
        """Index of the highest score; the first where several tie."""
        return self.scores.index(max(self.scores))


class Failure(Frozen):
    """An agent that could not answer for one case: data, never an exception that ends a batch."""

    agent: str
    look: int = 1
    error: str
    """What went wrong, in a sentence."""


Outcome = Prediction | Failure
