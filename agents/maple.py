"""MaPLe: prompts learned in the layers of the text tower, and projected into those of the image tower."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from secondlook.agents.adapter import Adapter, AdapterSpec
from secondlook.agents.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from secondlook.agents.encoder import Towers


class MapleSpec(AdapterSpec):
    """Multi-modal prompt learning, for vision transformers with CLIP's own text tower.

    The first words of every prompt become learned vectors, which begin as those words; layers after the first get
    vectors of their own in the same places, drawn small. A linear map of each layer makes of them vectors that the
    image tower sees as further patches, after its own. The towers themselves stay.

    The defaults are those of the paper for a ViT-B/16, on a GPU: 5 epochs of batches of 4 at rate 0.0035.

    References
    ----------
    Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.
    """

    kind: Literal["maple"] = "maple"
    name: str = "maple"
    n_prompts: Annotated[int, Field(ge=1, le=64)] = 2
    """Vectors of a layer; so many words of the template before {} become the first layer's."""
    depth: Annotated[int, Field(ge=1)] = 9
    """Layers with prompts, the first included; at most those of the shallower tower."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 0.0035
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    warm_up: Annotated[int, Field(ge=0)] = 1

    def install(self, towers: Towers, template: str, seed: int) -> Adapter:
        """Put prompts into both towers; see `AdapterSpec.install`."""
        import torch

        model = towers.model
        _check_towers(model)
        tokens = towers.tokenizer([template.split("{}")[0]])
        if _length(tokens) < self.n_prompts + 2:
            raise ConfigError(
                f"{self.name} replaces the first {self.n_prompts} words of the prompt {template!r}, and before {{}} "
                "there are fewer.",
                "Give a template that begins with more words, such as 'a photo of {}', or fewer n_prompts.",
            )
        with torch.no_grad():
            words = model.token_embedding(tokens)[0, 1 : 1 + self.n_prompts]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            prompts = _prompts(words, len(model.visual.class_embedding), self._depth(model))
        model.add_module("maple", prompts)  # so that it moves to where the model goes
        _hook_text(model, prompts, self.name)
        _hook_image(model.visual, prompts)
        return Adapter(dict(prompts.named_parameters()), lambda: None)

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return gradient descent with momentum; see `AdapterSpec.optimizer`."""
        import torch

        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)

    def _depth(self, model: Any) -> int:
        return min(self.depth, len(model.transformer.resblocks), len(model.visual.transformer.resblocks))


def _check_towers(model: Any) -> None:
    from open_clip.model import CLIP
    from open_clip.transformer import VisionTransformer

    text, image = type(model), type(getattr(model, "visual", None))
    if not (issubclass(text, CLIP) and issubclass(image, VisionTransformer)):
        raise ConfigError(
            f"MaPLe needs OpenCLIP's VisionTransformer and the text tower of its CLIP; this encoder is a "
            f"{text.__name__} with a {image.__name__}.",
            "Choose a ViT such as ViT-B-16, or adapt this encoder with clip-svd.",
        )


def _length(tokens: torch.Tensor) -> int:
    """Fewest tokens of a text, its start and its end among them."""
    return int((tokens != 0).sum(dim=-1).min())


def _prompts(words: torch.Tensor, image_width: int, depth: int) -> Any:
    """Make the numbers: `text`, a tensor of shape (n, width) a layer, and `project`, a linear map a layer."""
    import torch
    from torch import nn

    drawn = [torch.empty_like(words).normal_(0, 0.02) for _ in range(depth - 1)]
    prompts = nn.Module()
    prompts.text = nn.ParameterList([nn.Parameter(each.clone()) for each in (words, *drawn)])
    prompts.project = nn.ModuleList([nn.Linear(words.shape[1], image_width) for _ in range(depth)])
    return prompts.to(words.device)


def _hook_text(model: Any, prompts: Any, who: str) -> None:
    """Put the prompts after the first token: into the embedded text, and into what enters the next layers."""
    import torch

    def instead(x: torch.Tensor, layer: int) -> torch.Tensor:
        own = prompts.text[layer].to(x.dtype)
        return torch.cat([x[:, :1], own.expand(len(x), -1, -1), x[:, 1 + len(own) :]], dim=1)

    def embedded(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if _length(inputs[0]) < len(prompts.text[0]) + 2:
            raise ConfigError(f"A text is shorter than the prompts of {who}.", "Put it into the template.")
        return instead(output, 0)

    model.token_embedding.register_forward_hook(embedded)
    for layer in range(1, len(prompts.text)):
        model.transformer.resblocks[layer].register_forward_pre_hook(
            lambda _, inputs, layer=layer: (instead(inputs[0], layer), *inputs[1:])
        )


def _hook_image(visual: Any, prompts: Any) -> None:
    """Put the projected prompts after the patches, anew in each layer, and take them away before pooling."""
    import torch

    n = len(prompts.text[0])

    def after(x: torch.Tensor, layer: int) -> torch.Tensor:
        own = prompts.project[layer](prompts.text[layer]).to(x.dtype)
        return torch.cat([x, own.expand(len(x), -1, -1)], dim=1)

    visual.ln_pre.register_forward_pre_hook(lambda _, inputs: (after(inputs[0], 0), *inputs[1:]))
    for layer in range(1, len(prompts.text)):
        visual.transformer.resblocks[layer].register_forward_pre_hook(
            lambda _, inputs, layer=layer: (after(inputs[0][:, :-n], layer), *inputs[1:])
        )
    visual.transformer.register_forward_hook(lambda _, inputs, output: output[:, :-n])
