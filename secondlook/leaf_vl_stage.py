"""A stage of the training of leaf-tiny-vl: steps down a stream of losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from secondlook.train_leaf_tiny import Average

M = TypeVar("M", bound=nn.Module)

EVERY = 100
"""Steps between two lines of progress, and between two saves."""


class Stage(NamedTuple):
    """How a stage steps."""

    name: str
    steps: int
    rate: float
    """Highest learning rate: up to it in the first steps, then down along a cosine to a fiftieth."""
    decay: float
    """Weight decay of matrices; vectors have none."""
    keep: float
    """Of the moving average of the weights, which is what remains."""

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step.

        Examples
        --------
        >>> stage = Stage("language", 1000, 0.001, 0.05, 0.99)
        >>> [round(stage.rate_at(step), 5) for step in (0, 99, 500, 999)]
        [1e-05, 0.00098, 0.00051, 2e-05]
        """
        ramp = min(1, (step + 1) / min(100, 1 + self.steps // 5))
        return self.rate * ramp * (0.02 + 0.98 * (1 + math.cos(math.pi * step / self.steps)) / 2)


def run_stage(
    stage: Stage, model: M, losses: Iterator[Tensor], tell: Callable[[str], None], save: Callable[[M], None]
) -> M:
    """Step down the losses; what needs a gradient learns.

    Parameters
    ----------
    stage : Stage
    model : torch.nn.Module
    losses : iterator of tensors
        Each is drawn after the step before it.
    tell : callable
        Gets a line of progress now and then.
    save : callable
        Gets the averaged model now and then, so that a training that is cut short leaves one behind.

    Returns
    -------
    torch.nn.Module
        A copy of the model with averaged weights.
    """
    average = Average(model, stage.keep)
    averaged = cast(M, average.model)
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": stage.decay},
            {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    begin, running = time.monotonic(), 0.0
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate_at(step)
        loss = next(losses)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        average.update(model, step)
        running = loss.item() if step == 0 else 0.97 * running + 0.03 * loss.item()
        if (step + 1) % EVERY == 0 or step == stage.steps - 1:
            spent = time.monotonic() - begin
            left = spent / (step + 1) * (stage.steps - step - 1)
            tell(f"{stage.name} {step + 1}/{stage.steps}  loss {running:.3f}  {spent:.0f} s, {left:.0f} s left")
            save(averaged)
    return averaged
