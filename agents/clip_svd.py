"""CLIP-SVD: both towers adapted by the singular values of their weights, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from secondlook.agents.adapter import Adapter, AdapterSpec
from secondlook.agents.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from secondlook.agents.encoder import Towers

ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Weights of attention that are no layer of their own; the first is those of query, key and value, stacked."""
LEAST = 1e-5
"""Singular values below this share of the largest are rounding: their directions mean nothing, and are not trained."""


class Weight(NamedTuple):
    """A weight that multiplies vectors."""

    module: Any
    name: str
    """Of the parameter in the module."""
    path: str
    """Of the parameter in the model."""
    blocks: int
    """Matrices stacked in it, each decomposed by itself."""

    @property
    def matrices(self) -> torch.Tensor:
        """The weight as matrices, of shape (blocks, out, in)."""
        weight: torch.Tensor = getattr(self.module, self.name).detach()
        return weight.reshape(self.blocks, weight.shape[0] // self.blocks, -1)

    @property
    def rank(self) -> int:
        """How many singular values it has."""
        return self.blocks * min(self.matrices.shape[1:])


class ClipSvdSpec(AdapterSpec):
    """Singular value adaptation of every linear layer.

    Each weight is W = U diag(s) V^T; s is learned, by cross-entropy over the scaled cosines of images and the texts of
    all labels, and U, V, biases, norms and the final projections stay. Query, key and value are decomposed apart,
    though attention keeps them stacked; a convolution of one pixel is a linear layer of each pixel, and counts as one.
    What is kept is s alone: the weights are decomposed again when the encoder is loaded.

    The defaults suit a small encoder on two cores. For a ViT-B/16 on a GPU the paper takes rate 5e-4, decay 0.01, batch
    32, crops of 0.08 and more, and 200 steps times the images of a label; for BiomedCLIP rates of 5e-4 to 2e-2, no
    decay, 50 to 200 epochs.

    References
    ----------
    Koleilat et al., "Singular Value Few-shot Adaptation of Vision-Language Models", 2025, arXiv:2509.03740.
    """

    kind: Literal["clip-svd"] = "clip-svd"
    name: str = "clip-svd"
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.5
    towers: Annotated[tuple[Literal["image", "text"], ...], Field(min_length=1, max_length=2)] = ("image", "text")

    def install(self, towers: Towers, template: str, seed: int) -> Adapter:
        """Decompose the weights; see `AdapterSpec.install`."""
        weights = [w for w in weights_of(towers.model) if self._adapts(w.path)]
        if not weights:
            raise ConfigError(
                f"The {' and '.join(self.towers)} tower of this encoder has no linear layer.", "Adapt the other one."
            )
        return decompose(weights)

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return AdamW; see `AdapterSpec.optimizer`."""
        import torch

        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

    def _adapts(self, path: str) -> bool:
        return ("image" if path.startswith("visual.") else "text") in self.towers


def weights_of(model: torch.nn.Module) -> Iterator[Weight]:
    """Find every weight that is a matrix of a linear layer, of attention, or of a convolution of one pixel."""
    from torch import nn

    for path, module in model.named_modules():
        pixelwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        found = ["weight"] if isinstance(module, nn.Linear) or pixelwise else []
        found += [name for name in ATTENTION if isinstance(getattr(module, name, None), nn.Parameter)]
        for name in found:
            yield Weight(module, name, f"{path}.{name}", 3 if name == "in_proj_weight" else 1)


def decompose(weights: Iterable[Weight]) -> Adapter:
    """Replace weights by their singular value decompositions, the singular values to be trained.

    They are decomposed in double precision on the CPU, so that every machine finds the same vectors.
    """
    from torch.nn.utils import parametrize

    trained, places = {}, []
    for weight in weights:
        values = _factors(weight)
        trained[weight.path] = values.values
        parametrize.register_parametrization(weight.module, weight.name, values, unsafe=True)
        places.append((weight.module, weight.name))

    def merge() -> None:
        for module, name in places:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            getattr(module, name).requires_grad_(False)

    return Adapter(trained, merge)


def _factors(weight: Weight) -> Any:
    """Return a module that makes the weight of its singular values."""
    import torch

    class SingularValues(torch.nn.Module):
        """A weight as U diag(s) V^T; its parameter is s, of shape (blocks, rank)."""

        left: torch.Tensor
        right: torch.Tensor
        real: torch.Tensor

        def __init__(self, matrices: torch.Tensor) -> None:
            super().__init__()
            left, values, right = torch.linalg.svd(matrices.double().cpu(), full_matrices=False)
            self.values = torch.nn.Parameter(values.to(matrices.dtype))
            self.register_buffer("left", left.to(matrices.dtype))
            self.register_buffer("right", right.to(matrices.dtype))
            self.register_buffer("real", values > LEAST * values[:, :1])

        def forward(self, original: torch.Tensor) -> torch.Tensor:
            """Return the weight of the singular values as they are now; the original gives only its shape."""
            made: torch.Tensor = (self.left * (self.values * self.real)[:, None]) @ self.right
            return made.reshape(original.shape)

    return SingularValues(weight.matrices)
