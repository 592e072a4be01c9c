"""Which stranger scores a model looks at, and how well each found strangers that it was not fitted on."""

from __future__ import annotations

from secondlook.agents.case import Frozen, MaybeNan
from secondlook.agents.strangeness import ScoreName
from secondlook.agents.stranger_scores import DEFAULT


class Separation(Frozen):
    """How well strangers are told from held-out own images."""

    n: int
    """Strangers."""
    auroc: MaybeNan
    """Chance that a stranger is less typical than an own image, ties counting half."""
    aupr: MaybeNan
    """Average precision of finding the strangers."""
    fpr95: MaybeNan
    """Share of strangers let in where 95 % of the own images are."""


class StrangerRow(Frozen):
    """A combination of scores, as typicality has them together."""

    scores: tuple[ScoreName, ...]
    sets: dict[str, Separation]
    """By set of strangers."""
    mean: MaybeNan
    """Mean AUROC: over the labels held out, then over that and the strangers that were given."""


class StrangerChoice(Frozen):
    """The scores chosen, and what they were chosen among."""

    scores: tuple[ScoreName, ...] = DEFAULT
    table: tuple[StrangerRow, ...] = ()
    """Every score alone, then the combinations that were tried."""
