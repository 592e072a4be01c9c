"""What is learned from the train split: the heads of the panel, chosen first where that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.description_head import encode_all
from secondlook.agents.encoder import Encoder, OpenClipEncoder
from secondlook.agents.head import Head
from secondlook.agents.lessons import Lessons
from secondlook.eval.auto_panel import Chosen, choose_panel
from secondlook.eval.embedded import Embedded
from secondlook.orchestrator.candidate import Candidate
from secondlook.orchestrator.config import Config


@dataclass(frozen=True)
class Learned:
    """The heads, and the configuration with the panel that they form."""

    config: Config
    heads: dict[str, Head]
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    box_prompts: tuple[str, ...] = ()
    """What the words of boxes are put into, where they are looked at."""


def lessons_of(
    train: Embedded,
    task: Task,
    classifier: TextClassifier,
    encoder: Encoder,
    templates: tuple[str, ...] = ("a photo of {}",),
    seed: int = 0,
) -> Lessons:
    """Make lessons of the train split."""
    words = encoder if isinstance(encoder, OpenClipEncoder) else None
    captions = _captions(train, encoder)
    return Lessons(train.vectors, train.truth, train.groups, task, classifier, templates, words, captions, seed=seed)


def _captions(train: Embedded, encoder: Encoder) -> NDArray[np.float32] | None:
    """Embed the captions there are: (N, D), rows of nan for images without one; None where there is none at all."""
    there = [i for i, caption in enumerate(train.captions) if caption.strip()]
    if not there:
        return None
    found = np.full(train.vectors.shape, np.nan, dtype=np.float32)
    found[there] = encode_all(encoder, [train.captions[i] for i in there])
    return found


def learn(config: Config, lessons: Lessons, tell: Callable[[str], None]) -> Learned:
    """Fit the heads of the panel.

    Parameters
    ----------
    config : Config
        With candidates, the panel is chosen among them.
    lessons : Lessons
    tell : callable
        Told what begins.

    Raises
    ------
    ConfigError
        When a head cannot be fitted, or no panel can be chosen.
    """
    found = Chosen(config.panel, (), ())
    if config.candidates:
        found = choose_panel(config.candidates, lessons, config.candidate_seconds, tell)
        config = config.model_copy(update={"panel": found.panel})
    heads: dict[str, Head] = {}
    for spec in config.panel:
        tell(f"fitting {spec.name}")
        heads[spec.name] = spec.fit(lessons)
    return Learned(config, heads, found.table, found.notes, lessons.templates if config.boxes else ())
