"""CoOp: the words before a label are learned through the frozen text tower, on cached image embeddings."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.description_head import WordsHead, words_needed
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons
from secondlook.agents.text_tower import Prompts, TextTower

if TYPE_CHECKING:
    import torch

Penalty = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Unit vectors of the labels, of shape (K, D), and logits of shape (N, K), to what is added to the loss."""
STEPS = {1: 50, 4: 100}
"""Steps up to so many images of a label; `MOST_STEPS` above: the paper's epochs."""
MOST_STEPS = 200
WARM_UP_RATE = 1e-5
DEVIATION = 0.02
"""Of a context that is drawn."""


class ContextSpec(HeadSpec):
    """What heads that learn a context have in common."""

    words: str | None = "a photo of"
    """What the context starts from; None draws `length` vectors."""
    length: Annotated[int, Field(ge=1, le=64)] = 16
    """M, of a context that is drawn."""
    per_label: bool = False
    """Whether each label learns a context of its own."""
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Gradient steps; by default 50 for one image of each label, 100 up to four, 200 above."""
    rate: Annotated[float, Field(gt=0, le=10)] = 0.01
    """Of learning, at its highest: about five times the paper's, whose steps see 32 images where these see all."""

    learns_words: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    @abstractmethod
    def penalty(self, lessons: Lessons, device: torch.device) -> Penalty | None:
        """Make what the loss has beside the cross-entropy; None where that is nothing."""

    def fit(self, lessons: Lessons) -> WordsHead:
        """Learn; see `HeadSpec.fit`."""
        if lessons.encoder is None:
            raise words_needed(self.name)
        lessons.need(self.name)
        towers = lessons.encoder.towers
        tower = TextTower(towers)
        context = self._start(tower, lessons)
        phrases = [f"{lessons.task.phrases_of(label)[0].rstrip('.')}." for label in lessons.task.labels]
        prompts = tower.prompts(phrases, context.shape[-2])
        penalty, steps = self.penalty(lessons, towers.device), self.steps_for(lessons)
        vectors = _learn(tower, prompts, context, lessons, penalty, steps, self.rate)
        if not np.isfinite(vectors).all():
            raise ConfigError(f"{self.name} did not converge at rate {self.rate:g}.", "Choose a lower rate.")
        return WordsHead(vectors, lessons.classifier.logit_scale)

    def steps_for(self, lessons: Lessons) -> int:
        """Return how many steps are made, by the images of the label in the middle."""
        shots = int(np.median(lessons.counts))
        return self.steps or next((steps for most, steps in STEPS.items() if shots <= most), MOST_STEPS)

    def load(self, tensors: Tensors) -> WordsHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return WordsHead.of(tensors)

    def _start(self, tower: TextTower, lessons: Lessons) -> torch.Tensor:
        """Context of shape (M, W), or (K, M, W) where each label has its own."""
        import torch

        shape = (lessons.n_labels,) if self.per_label else ()
        if self.words is not None:
            found = tower.words(self.words)
            if not len(found):
                raise ConfigError(f"{self.name}: words has none.", "Name words, or null to draw the context.")
            return found.expand(*shape, *found.shape).clone()
        generator = torch.Generator().manual_seed(lessons.seed)
        return DEVIATION * torch.randn(*shape, self.length, tower.width, generator=generator)


class CoopSpec(ContextSpec):
    """Context optimisation: cross-entropy alone.

    References
    ----------
    Zhou et al. (2022), https://arxiv.org/abs/2109.01134.
    """

    kind: Literal["coop"] = "coop"
    name: str = "coop"

    def penalty(self, lessons: Lessons, device: torch.device) -> Penalty | None:
        """Nothing."""
        return None


def _learn(
    tower: TextTower,
    prompts: Prompts,
    context: torch.Tensor,
    lessons: Lessons,
    penalty: Penalty | None,
    steps: int,
    rate: float,
) -> NDArray[np.float64]:
    """Descend, all images and all prompts a step; return the last iterate's vectors, of shape (K, D)."""
    import torch

    device = prompts.before.device
    images = torch.from_numpy(lessons.vectors).to(device)
    truth = torch.from_numpy(lessons.truth.astype(np.int64)).to(device)
    learned = context.to(device).requires_grad_()
    descent = torch.optim.SGD([learned], lr=rate, momentum=0.9, weight_decay=5e-4)
    with torch.enable_grad():
        for step in range(steps):
            # A first step at a low rate, then half a cosine.
            now = rate * (1 + math.cos(math.pi * step / steps)) / 2 if step else WARM_UP_RATE
            descent.param_groups[0]["lr"] = now
            vectors = tower.encode(prompts, learned)
            logits = lessons.classifier.logit_scale * images @ vectors.T
            loss = torch.nn.functional.cross_entropy(logits, truth)
            if penalty is not None:
                loss = loss + penalty(vectors, logits)
            descent.zero_grad()
            loss.backward()
            descent.step()
    with torch.no_grad():
        found: NDArray[np.float64] = tower.encode(prompts, learned).double().cpu().numpy()
    return found
