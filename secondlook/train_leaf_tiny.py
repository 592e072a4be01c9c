"""Train leaf-tiny, the small OpenCLIP model that the package ships, and measure it.

python -m secondlook.train_leaf_tiny --data plantvillage-apple --out leaf-tiny
python -m secondlook.train_leaf_tiny --data plantvillage-apple --out leaf-tiny --evaluate --review ood/background
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from secondlook.check_leaf_tiny import check
from secondlook.leaf_augment import augment
from secondlook.leaf_pool import Drawn, Pool, draw_pools, hold_out, read_folder, read_split
from secondlook.leaf_recipe import CONTEXT_LENGTH, Recipe, model_config
from secondlook.leaf_texts import CLASSES, LeafTexts, save_tokenizer
from secondlook.leaves import LABELS

WEIGHTS = "open_clip_model.safetensors"
SENTENCES = 4
"""Sentences of every class in a step."""


def contrastive_loss(vectors: Tensor, classes: Tensor, anchors: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the supervised contrastive loss: an anchor is pulled to its class and pushed from everything else.

    Parameters
    ----------
    vectors : tensor of shape (N, D)
        Unit vectors.
    classes : tensor of shape (N,)
        Positions in `CLASSES`.
    anchors : bool tensor of shape (N,)
        What is pulled; the others only push. Strangers are of many kinds and are not pulled together.
    temperature : float
        Of the softmax over the batch.

    References
    ----------
    Khosla et al. 2020, https://arxiv.org/abs/2004.11362
    """
    logits = vectors[anchors] @ vectors.T / temperature
    itself = torch.eye(len(vectors), dtype=torch.bool)[anchors]
    positive = (classes[anchors][:, None] == classes[None]) & ~itself
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
    rendered = round(recipe.batch * (0.25 - 0.15 * min(1, 2 * done)))
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


def train(
    photos: Pool,
    drawn: Drawn,
    folder: Path,
    recipe: Recipe,
    start: Path | None = None,
    tell: Callable[[str], None] = print,
) -> None:
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
    start : Path, optional
        Model folder whose weights the training starts from; random weights where it is not given.
    tell : callable
        Gets a line of progress now and then.
    """
    import open_clip
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    texts = LeafTexts.load()
    config = model_config(recipe, save_tokenizer(texts, folder, CONTEXT_LENGTH))
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    torch.manual_seed(recipe.seed)
    model = open_clip.CLIP(**config["model_cfg"]).to(memory_format=torch.channels_last)
    if start is not None:
        open_clip.load_checkpoint(model, str(start / WEIGHTS))
    with torch.no_grad():
        model.logit_scale.clamp_(min=math.log(recipe.scale))
    owners = torch.arange(len(CLASSES)).repeat_interleave(SENTENCES)
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
        # A short ramp up, then a cosine down to a hundredth
        ramp = min(1, (step + 1) / min(100, 1 + steps // 10))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * ramp * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        images, classes = _draw_batch(photos, drawn, recipe, done, rng)
        pixels = augment(images, recipe.early_size if done < 0.5 else recipe.size, generator)
        vectors = model.encode_image(pixels.contiguous(memory_format=torch.channels_last), normalize=True)
        # Some sentences of every class make the class's vector of this step.
        sentences = model.encode_text(tokenizer(texts.draw(SENTENCES, rng)), normalize=True)
        prompts = functional.normalize(sentences.view(len(CLASSES), SENTENCES, -1).mean(dim=1), dim=-1)
        logits = model.logit_scale.exp() * vectors @ prompts.T
        loss = functional.cross_entropy(logits, classes, label_smoothing=recipe.smoothing)
        loss = loss + recipe.contrast * contrastive_loss(vectors, classes, classes < len(LABELS))
        # Sentences of different classes share most of their words: without this they stay close for long.
        loss = loss + recipe.contrast * contrastive_loss(sentences, owners, torch.ones_like(owners, dtype=torch.bool))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        average.update(model, step)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 49 or step == steps - 1:
            spent = time.monotonic() - begin
            left = spent / (step + 1) * (steps - step - 1)
            scale = float(model.logit_scale.detach().exp())
            tell(f"step {step + 1}/{steps}  loss {running:.3f}  scale {scale:.1f}  {spent:.0f} s, {left:.0f} s left")
            # Written again and again, so that a training that is cut short leaves a model behind.
            state = {name: value.detach().half().contiguous() for name, value in average.model.state_dict().items()}
            (folder / WEIGHTS).write_bytes(save(state))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m secondlook.train_leaf_tiny", description="Train leaf-tiny, or measure it (--evaluate)."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv (path, label, group, split)")
    parser.add_argument("--out", type=Path, required=True, help="model folder")
    parser.add_argument("--evaluate", action="store_true", help="train nothing, measure the folder on the test split")
    parser.add_argument("--review", type=Path, nargs="*", default=[], help="with --evaluate: folders of strangers")
    parser.add_argument("--holdout", type=float, default=0.0, help="share of training groups kept out and measured")
    parser.add_argument("--start", type=Path, help="model folder to start from instead of random weights")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as PyTorch likes")
    for field in fields(Recipe):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, dest=f"recipe_{field.name}", type=type(field.default), default=field.default)
    return parser.parse_args(arguments)


def evaluate(data: Path, folder: Path, review: Sequence[Path]) -> None:
    """Print what the model does on the test split, and with folders of strangers.

    The limits of the OOD scores come from the calibration split, the scores themselves from the training split.
    """
    # At the full size of the files: the model's own preprocessing does the rest.
    seen, tuning, own = (read_split(data, split, 256) for split in ("train", "calibration", "test"))
    strangers = {path.name: read_folder(path, 256, "non-leaf") for path in review}
    print(json.dumps(check(folder, seen, own, strangers, tuning), indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parse(arguments)
    recipe = Recipe(**{k.removeprefix("recipe_"): v for k, v in vars(options).items() if k.startswith("recipe_")})
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.evaluate:
        evaluate(options.data, options.out, options.review)
        return
    photos = read_split(options.data, "train", recipe.size * 5 // 4)
    held: Pool | None = None
    if options.holdout:
        photos, held = hold_out(photos, options.holdout, np.random.default_rng(recipe.seed))
    begin = time.monotonic()
    drawn = draw_pools(photos, leaves=recipe.leaves, strangers=recipe.strangers, seed=100_000 * (1 + recipe.seed))
    print(f"{len(photos.classes)} photographs; drawing took {time.monotonic() - begin:.0f} s", flush=True)
    train(photos, drawn, options.out, recipe, options.start, lambda line: print(line, flush=True))
    if held is not None:
        fresh = draw_pools(held, leaves=4, strangers=400, seed=7).strangers
        kinds = {
            name: fresh.take(np.array([group.startswith(name) for group in fresh.groups]))
            for name in ("scene", "plant", "decoy")
        }
        print(json.dumps(check(options.out, photos, held, kinds), indent=2))


if __name__ == "__main__":
    main()
