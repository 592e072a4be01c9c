"""What comes out: a verdict with the whole trail that led to it."""

from __future__ import annotations

from typing import Literal

from secondlook.agents.case import Frozen, Neighbour
from secondlook.agents.cost import Cost

Action = Literal["accept", "review"]
"""``accept``: use the label. ``review``: ask a human."""

Reason = Literal[
    "trusted", "low_trust", "stranger", "no_threshold", "no_outcome", "budget", "incomplete", "unproven", "drift"
]
"""Why the gate decided as it did.

- ``trusted``: trust reached the threshold that holds the target risk
- ``low_trust``: it did not, and no look is left
- ``stranger``: the image resembles nothing the model was fitted on
- ``no_threshold``: no threshold can promise the target risk, so nothing is accepted
- ``no_outcome``: no agent could answer, an unreadable image for instance
- ``budget``: trust did not reach the threshold, and the budget does not allow the look that was left
- ``incomplete``: trusted by its number, but an agent could not be reached, and the promise was measured with it
- ``unproven``: trusted by its number, but an agent, prompt, index or calibrator has changed since it was measured
- ``drift``: trusted by its number, but what is measured has moved away from what the model was fitted on
"""


class Opinion(Frozen):
    """One agent's outcome in a verdict's trail."""

    agent: str
    look: int
    label: str | None = None
    confidence: float | None = None
    """Calibrated probability of `label`."""
    probs: tuple[float, ...] | None = None
    """Calibrated distribution over the task's K labels."""
    reason: str = ""
    """Why, in the agent's own words; text of a model, to be escaped wherever it is shown."""
    error: str | None = None
    """Set where the agent failed; label, confidence and probs are then None."""


class LookTrail(Frozen):
    """One round of asking and what the gate made of it."""

    look: int
    opinions: tuple[Opinion, ...]
    """All that were fused at this look, those of earlier looks included."""
    fused_by: str
    """`log-linear pool`, or `best agent: NAME` where the pool was not better on held-out cases."""
    probs: tuple[float, ...] | None
    """The belief over the K labels."""
    label: str | None = None
    """The label of least expected cost; without costs the most probable. None where no agent could answer."""
    trust: float | None
    threshold: float | None
    """The trust needed to accept at this look; None where none can promise the target risk."""
    decision: Literal["accept", "look_again", "review"]
    why: str


class Verdict(Frozen):
    """The answer for one case; everything needed to replay it."""

    id: str
    path: str | None = None
    digest: str | None = None
    group: str | None = None
    labels: tuple[str, ...]
    """The task's K labels, the order of every `probs`."""
    label: str | None
    """The last look's; None where no agent could answer."""
    confidence: float | None
    """Calibrated probability that `label` is right, 0 to 1."""
    probs: tuple[float, ...] | None
    prediction_set: tuple[str, ...]
    """Labels that together hold the truth at the stated coverage; all of them where nothing is known."""
    action: Action
    reason: Reason
    why: str
    """The reason as a sentence with its numbers."""
    trust: float | None
    typicality: float | None
    """Share of held-out own images that are at least as unusual as this one, 0 to 1; low for strangers."""
    looks: tuple[LookTrail, ...]
    evidence: tuple[Neighbour, ...] = ()
    cost: Cost = Cost()
    """What the agents' answers took, as measured; nothing for what came from a cache."""
    model: str
    """Digest of the model folder that judged."""

    @property
    def first_label(self) -> str | None:
        """The label after the first look; the most probable where the trail names none."""
        first = self.looks[0]
        if first.probs is None:
            return None
        return self.labels[first.probs.index(max(first.probs))] if first.label is None else first.label
