"""Train leaf-tiny, the small OpenCLIP model that the package ships, and measure it.

python -m secondlook.train_leaf_tiny --data plantvillage-apple --out leaf-tiny
python -m secondlook.train_leaf_tiny --data plantvillage-apple --out leaf-tiny --evaluate --strangers ood/background
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from secondlook.check_leaf_tiny import check
from secondlook.leaf_augment import augment
from secondlook.leaf_pool import Drawn, Pool, draw_pools, hold_out, read_folder, read_split
from secondlook.leaf_texts import CLASSES, LeafTexts, save_tokenizer

CONTEXT_LENGTH = 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a training depends on besides the data."""

    epochs: int = 60
    """Passes over the training photographs."""
    seed: int = 0
    """Of the weights, the order, the augmentation and the drawn images."""
    tower: str = "resnet10t"
    """Image tower, by its timm name."""
    size: int = 112
    """Input height and width in pixels."""
    batch: int = 64
    """Images in a step."""
    rate: float = 2e-3
    """Highest learning rate."""
    decay: float = 0.05
    """Weight decay."""
    contrast: float = 0.5
    """Weight of the supervised contrastive term."""
    smoothing: float = 0.05
    """Label smoothing."""
    leaves: int = 1600
    """Rendered apple leaves."""
    strangers: int = 6000
    """Rendered strangers and decoys."""


def model_config(recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    """Return the content of `open_clip_config.json`."""
    half = [0.5, 0.5, 0.5]
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "timm_model_name": recipe.tower,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": recipe.size,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": vocabulary,
                "width": 64,
                "heads": 4,
                "layers": 2,
                "hf_tokenizer_name": "leaf-tiny",
            },
        },
        "preprocess_cfg": {
            "mean": half,
            "std": half,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def contrastive_loss(vectors: Tensor, classes: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the supervised contrastive loss with the four labels as anchors; strangers only push.

    Parameters
    ----------
    vectors : tensor of shape (N, D)
        Unit vectors.
    classes : tensor of shape (N,)
        Positions in `CLASSES`.
    temperature : float
        Of the softmax over the batch.

    References
    ----------
    Khosla et al. 2020, https://arxiv.org/abs/2004.11362
    """
    own = classes < 4
    logits = vectors[own] @ vectors.T / temperature
    itself = torch.eye(len(vectors), dtype=torch.bool)[own]
    positive = (classes[own][:, None] == classes[None]) & ~itself
    log_share = logits - torch.logsumexp(logits.masked_fill(itself, -math.inf), dim=1, keepdim=True)
    return -((log_share * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)).mean()


class Average:
    """An exponential moving average of a model's weights and buffers."""

    def __init__(self, model: torch.nn.Module, keep: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.keep = keep

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move towards the model; quickly in the first steps."""
        keep = min(self.keep, (1 + step) / (10 + step))
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - keep)
            else:
                mine.copy_(theirs)


def _draw_batch(
    photos: Pool, drawn: Drawn, recipe: Recipe, done: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a batch: photographs balanced over the labels, rendered leaves (fewer as training goes on), strangers."""
    strangers = recipe.batch * 5 // 16
    rendered = round(recipe.batch * (0.3 - 0.2 * min(1, 2 * done)))
    own = recipe.batch - strangers - rendered
    shares = 1 / np.bincount(photos.classes, minlength=4)[photos.classes]
    parts = (
        (photos, rng.choice(len(photos.classes), own, p=shares / shares.sum())),
        (drawn.leaves, rng.integers(len(drawn.leaves.classes), size=rendered)),
        (drawn.strangers, rng.integers(len(drawn.strangers.classes), size=strangers)),
    )
    images = np.concatenate([pool.images[index] for pool, index in parts])
    classes = np.concatenate([pool.classes[index] for pool, index in parts])
    return torch.from_numpy(images), torch.from_numpy(classes)


def train(photos: Pool, drawn: Drawn, folder: Path, recipe: Recipe, tell: Callable[[str], None] = print) -> None:
    """Train and write the model folder.

    Parameters
    ----------
    photos : Pool
        Photographs of the training split.
    drawn : Drawn
        Rendered leaves and strangers.
    folder : Path
        Gets `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer.
    recipe : Recipe
        All settings.
    tell : callable
        Gets a line of progress now and then.
    """
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    texts = LeafTexts.load()
    config = model_config(recipe, save_tokenizer(texts, folder, CONTEXT_LENGTH))
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    torch.manual_seed(recipe.seed)
    model = open_clip.CLIP(**config["model_cfg"]).to(memory_format=torch.channels_last)
    rng = np.random.default_rng(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    decays = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decays, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}], lr=recipe.rate
    )
    average = Average(model, 0.995)
    steps = round(recipe.epochs * len(photos.classes) / (recipe.batch * 0.5))
    begin, running = time.monotonic(), 0.0
    model.train()
    for step in range(steps):
        done = step / steps
        rate = recipe.rate * min(1, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, classes = _draw_batch(photos, drawn, recipe, done, rng)
        pixels = augment(images, recipe.size, generator).contiguous(memory_format=torch.channels_last)
        vectors = model.encode_image(pixels, normalize=True)
        # Two sentences of every class make the class's vector of this step.
        sentences = model.encode_text(tokenizer(texts.draw(2, rng)), normalize=True)
        prompts = functional.normalize(sentences.view(len(CLASSES), 2, -1).mean(dim=1), dim=-1)
        logits = model.logit_scale.exp() * vectors @ prompts.T
        loss = functional.cross_entropy(logits, classes, label_smoothing=recipe.smoothing)
        loss = loss + recipe.contrast * contrastive_loss(vectors, classes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        average.update(model, step)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 20 == 19 or step == steps - 1:
            spent = time.monotonic() - begin
            left = spent / (step + 1) * (steps - step - 1)
            scale = float(model.logit_scale.detach().exp())
            tell(f"step {step + 1}/{steps}  loss {running:.3f}  scale {scale:.1f}  {spent:.0f} s, {left:.0f} s left")
    state = {name: value.detach().half().contiguous() for name, value in average.model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m secondlook.train_leaf_tiny", description=(__doc__ or "").split("\n")[0]
    )
    recipe = Recipe()
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv (path, label, group, split)")
    parser.add_argument("--out", type=Path, required=True, help="model folder")
    parser.add_argument("--evaluate", action="store_true", help="measure the folder on the test split, train nothing")
    parser.add_argument("--strangers", type=Path, nargs="*", default=[], help="with --evaluate: folders of strangers")
    parser.add_argument("--holdout", type=float, default=0.0, help="share of training groups kept out and measured")
    for name, kind in (("epochs", int), ("seed", int), ("tower", str), ("size", int), ("batch", int), ("rate", float),
                       ("decay", float), ("contrast", float), ("smoothing", float), ("leaves", int),
                       ("strangers", int)):  # fmt: skip
        flag = "--drawn-strangers" if name == "strangers" else f"--{name}"
        parser.add_argument(flag, dest=f"recipe_{name}", type=kind, default=getattr(recipe, name))
    parser.add_argument("--threads", type=int, default=0, help="0: as many as PyTorch likes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parse(arguments)
    recipe = Recipe(**{k.removeprefix("recipe_"): v for k, v in vars(options).items() if k.startswith("recipe_")})
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.evaluate:
        # At the full size of the files: the model's own preprocessing does the rest.
        pools = {str(f): read_folder(f, 256, "non-leaf") for f in options.strangers}
        own, seen = read_split(options.data, "test", 256), read_split(options.data, "train", 256)
        print(json.dumps(check(options.out, seen, own, pools), indent=2))
        return
    photos = read_split(options.data, "train", recipe.size * 5 // 4)
    held: Pool | None = None
    if options.holdout:
        photos, held = hold_out(photos, options.holdout, np.random.default_rng(recipe.seed))
    begin = time.monotonic()
    drawn = draw_pools(photos, leaves=recipe.leaves, strangers=recipe.strangers, seed=100_000 * (1 + recipe.seed))
    print(f"{len(photos.classes)} photographs; drawing took {time.monotonic() - begin:.0f} s", flush=True)
    train(photos, drawn, options.out, recipe, lambda line: print(line, flush=True))
    if held is not None:
        fresh = draw_pools(held, leaves=4, strangers=400, seed=7)
        kinds = {name: fresh.strangers.take(np.array([g.startswith(name) for g in fresh.strangers.groups]))
                 for name in ("scene", "plant", "decoy")}  # fmt: skip
        print(json.dumps(check(options.out, photos, held, kinds), indent=2))


if __name__ == "__main__":
    main()
