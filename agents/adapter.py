"""The interface of every adapter: a few numbers put into a frozen encoder's towers, learned from labelled images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from secondlook.agents.case import Frozen

if TYPE_CHECKING:
    import torch

    from secondlook.agents.encoder import Towers


@dataclass(frozen=True)
class Adapter:
    """Numbers that sit in a model.

    Attributes
    ----------
    trained : dict of str to torch.nn.Parameter
        All that is learned, by name; everything else of the model is frozen.
    merge : callable
        Called once when they change no more: makes the model as fast as it can be.
    """

    trained: dict[str, torch.nn.Parameter]
    merge: Callable[[], None]


class AdapterSpec(Frozen, ABC):
    """How an encoder is adapted. Subclasses add `kind: Literal[...]`, their settings and their defaults."""

    name: str
    """Of the agent."""
    template: Annotated[str, Field(max_length=500, pattern=r"^[^{}]*\{\}[^{}]*$")] | None = None
    """A prompt with {} once; by default the first of the panel's."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """At the start; half a cosine takes it down."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warm_up: Annotated[int, Field(ge=0)] = 0
    """Epochs at a rate of 1e-5, before the cosine."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Least share of an image that a random crop shows; half of the crops are mirrored. 1: the image as it is."""
    folds: Annotated[int, Field(ge=2)] = 5
    """One of so many parts of the groups is held out, for the curve and the choice of the epoch."""

    @abstractmethod
    def install(self, towers: Towers, template: str, seed: int) -> Adapter:
        """Put new numbers into a model, which is changed; those that are drawn follow from the seed.

        Parameters
        ----------
        towers : Towers
            In single precision on a CPU, all weights frozen; used by nobody else.
        template : str
            The prompt that it will be trained with.
        seed : int

        Raises
        ------
        ConfigError
            When the towers are not of a kind that it can adapt.
        """

    @abstractmethod
    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Make what moves the numbers."""
