"""The one frozen configuration of a fit; its digest is in every verdict's model."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from secondlook.agents.adaptation import AnyAdapter
from secondlook.agents.case import Frozen
from secondlook.agents.cost import Budget
from secondlook.agents.crop import expanded
from secondlook.agents.encoder import EncoderSpec
from secondlook.agents.errors import ConfigError
from secondlook.agents.heads import AnyHead
from secondlook.agents.linear_head import LinearSpec
from secondlook.orchestrator.language import TAKEN, Language
from secondlook.orchestrator.policies import PolicyName
from secondlook.orchestrator.prediction_set import Method

Share = Annotated[float, Field(gt=0, lt=1)]


class Config(Frozen):
    """What a person chooses; everything else is measured."""

    encoder: EncoderSpec = EncoderSpec()
    templates: str = "clip_templates.txt"
    """A packaged prompt file, or a path: one template a line, with {} for the description."""
    panel: Annotated[tuple[AnyHead, ...], Field(max_length=32)] = (LinearSpec(),)
    """Heads on the encoder's frozen features that look beside the words and, on a second look, the neighbours."""
    candidates: Annotated[tuple[AnyHead, ...], Field(max_length=32)] = ()
    """Heads that `fit` compares on the train split to choose the panel itself, the cheap ones first; none: `panel`."""
    adapters: Annotated[tuple[AnyAdapter, ...], Field(max_length=8)] = ()
    """Ways to adapt both towers of the encoder to the train split, each an agent of its own; takes a gradient."""
    boxes: bool = False
    """Whether ComCLIP looks too: at the whole image and the boxes that the data marks in it."""
    candidate_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """What that comparing may take."""
    neighbours: Annotated[int, Field(ge=1, le=1000)] = 10
    """k, labelled images retrieved for a second look."""
    views: tuple[str, ...] = ("zoom",)
    """What the agents look at on a second look, beside the whole image: views or groups of them, by their names in
    `secondlook.agents.crop`."""
    fusion: PolicyName = "pool"
    """How opinions become one belief; the best agent alone decides where that is not better on held-out cases."""
    target_risk: Share = 0.05
    """Error rate among accepted cases that the gate promises not to exceed; with costs, their mean cost as a share of
    the largest cost."""
    delta: Share = 0.1
    """Chance, over draws of the calibration cases, that the promise fails."""
    stranger_limit: Annotated[float, Field(ge=0, lt=1)] = 0.08
    """Share of one's own images that may be sent to review for being unusual; 0 switches the check off."""
    set_level: Share = 0.9
    """Coverage of the prediction sets."""
    set_method: Method = "lac"
    """How prediction sets are made; see `secondlook.orchestrator.prediction_set`."""
    set_per_label: bool = False
    """Whether their coverage holds for each label; larger sets, and more calibration images per label."""
    early_trust: Share | None = None
    """Least trust to accept before the last look; by default 1 - target_risk."""
    language: Language = Language()
    """Language models that look beside the encoder's agents, and one that judges what is said."""
    budget: Budget = Budget()
    """What looking may cost a case and a run. What it does not allow goes to review."""
    second_look: bool = True
    """False never looks again. True looks again where `fit` measured that it helps."""
    seed: int = 0

    @field_validator("views")
    @classmethod
    def _each_view(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        return expanded(views)

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        judge = [self.language.judge.name] if self.language.judge else []
        looking = (*self.language.agents, *self.adapters)
        others = [*TAKEN, *(["com-clip"] if self.boxes else []), *(spec.name for spec in looking), *judge]
        for heads in (self.panel, self.candidates):
            names = [*others, *(spec.name for spec in heads)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"Two agents are called {twice[0]!r}.", "Give each a name of its own.")
        return self
