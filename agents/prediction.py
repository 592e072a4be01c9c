"""What an agent says: a prediction or a failure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from secondlook.agents.case import Frozen
from secondlook.agents.cost import Cost

MOST_REASON = 600
"""Characters of a reason that are kept."""
FREE = Cost()
Scale = Literal["logit", "probability", "vote", "stated", "sampled"]
"""What the numbers of a prediction are.

- ``logit``: unnormalised log-probabilities, softmax makes a distribution of them
- ``probability``: a distribution; after calibration, one that was measured
- ``vote``: shares of (weighted) neighbours
- ``stated``: a label and a verbal confidence, 0 to 1: the confidence at the label, zeros elsewhere (see `stated`)
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
    reason: Annotated[str, Field(max_length=MOST_REASON)] = ""
    """Why, in the agent's own words. Text of a model: data, to be escaped wherever it is shown."""
    again: bool = False
    """Whether the agent asks that the case be looked at again, with evidence."""
    consistency: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of an answer from several views: the mean, over the views, of the probability that each alone gives the top label
    of all, before calibration. None where there was one view."""
    prompt: str = ""
    """SHA-256 of the prompt files that the agent was asked with; empty where it takes none."""
    cost: Cost = FREE
    """What this answer took, as measured; nothing where it came from a cache."""

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
    retry_after_s: float | None = None
    """Seconds after which asking again may help; None where it would not."""
    reached: bool = True
    """Whether the agent could be asked: False where it is not the case that is at fault, but the way to the agent (no
    connection, no money left, a key that is not accepted)."""
    cost: Cost = FREE
    """What the attempt took."""


Outcome = Prediction | Failure

LEAST = 1e-9
"""What a stated confidence of 0 counts as, so that its label stays the top one."""


def stated(agent: str, look: int, label: int, confidence: float | None, n_labels: int) -> Prediction:
    """Write down a label and how sure the agent says it is.

    Parameters
    ----------
    agent : str
    look : int
    label : int
        Its index.
    confidence : float or None
        0 to 1; None where the agent named a label only, which is then taken at its word: as 1, like every other answer
        of such an agent, so that calibration learns from the label alone.
    n_labels : int
        K.

    Raises
    ------
    ValueError
        When there is no such label, or the confidence is not in [0, 1].

    Examples
    --------
    >>> stated("words", 1, 2, 0.85, 3).scores
    (0.0, 0.0, 0.85)
    >>> stated("words", 1, 2, 0.0, 3).top
    2
    """
    sure = 1.0 if confidence is None else confidence
    if not 0 <= sure <= 1:
        raise ValueError(f"confidence: expected 0 to 1, got {confidence}")
    if not 0 <= label < n_labels:
        raise ValueError(f"label: expected 0 to {n_labels - 1}, got {label}")
    scores = tuple(max(sure, LEAST) if k == label else 0.0 for k in range(n_labels))
    return Prediction(agent=agent, look=look, scale="stated", scores=scores)
