"""Train leaf-tiny-vl, the small vision-language model that the package ships, and measure it.

python -m secondlook.train_leaf_tiny_vl --data plantvillage-apple --out leaf-tiny-vl
python -m secondlook.train_leaf_tiny_vl --data plantvillage-apple --out leaf-tiny-vl --evaluate

Its architecture is that of Qwen2.5-VL, far smaller. It learns in three stages: the vision part alone, from leaf-tiny;
the language part alone, on questions and replies; all together, shortly. A folder of the same format with random
weights is written in some seconds by `secondlook.leaf_vl_folder.write_model`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secondlook.check_leaf_tiny import LeafTiny
from secondlook.check_leaf_tiny_vl import check
from secondlook.leaf_dialogues import Dialogues, VlTexts
from secondlook.leaf_pool import Pool, draw_pools, read_split
from secondlook.leaf_vl_folder import VlShape, build_model, corpus, make_processor, save_model, train_tokenizer
from secondlook.leaf_vl_language import Lessons, draw_views, fit, joint_losses, language_losses
from secondlook.leaf_vl_vision import Batches, Student, Teacher, train_vision
from secondlook.leaves import LABELS
from secondlook.vl_recipe import VlRecipe

TEACHER = Path(__file__).parent / "assets" / "leaf-tiny"
STAGES = ("vision", "language", "joint")


def train(
    photos: Pool,
    folder: Path,
    recipe: VlRecipe,
    held: Pool | None = None,
    start: Path | None = None,
    stages: Sequence[str] = STAGES,
    tell: Callable[[str], None] = print,
) -> None:
    """Train and write the model folder, at the end of every stage and now and then within.

    Parameters
    ----------
    photos : Pool
        Photographs of the training split.
    folder : Path
        Gets the model.
    recipe : VlRecipe
        All settings.
    held : Pool, optional
        Photographs on which the vision part is measured now and then.
    start : Path, optional
        Model folder whose weights the training starts from; random weights where it is not given.
    stages : sequence of str
        Which of `STAGES`.
    tell : callable
        Gets a line of progress now and then.
    """
    shape, texts, begin = VlShape(), VlTexts.load(), time.monotonic()
    tokenizer = train_tokenizer(corpus(texts, recipe.seed), shape.vocabulary)
    processor, model = make_processor(shape, tokenizer), build_model(shape, tokenizer, recipe.seed)
    if start is not None:
        model.load_state_dict(_weights(start, len(model.get_input_embeddings().weight)), strict=False)
    teacher = Teacher(LeafTiny.load(TEACHER))
    drawn = draw_pools(photos, leaves=recipe.leaves, strangers=recipe.strangers, seed=100_000 * (1 + recipe.seed))
    tell(f"{len(photos.classes)} photographs; tokenizer and drawings took {time.monotonic() - begin:.0f} s")
    batches = Batches(photos, drawn, recipe.seed)

    def save(trained: Any) -> None:
        save_model(folder, trained, processor)

    if "vision" in stages:

        def save_vision(student: Student) -> None:
            model.model.visual.load_state_dict(student.visual.state_dict())
            save(model)

        visual = build_model(shape, tokenizer, recipe.seed).model.visual
        save_vision(train_vision(visual, teacher, batches, recipe, shape.size, tell, save_vision, _measure(held)))
    if "language" in stages or "joint" in stages:
        rng = np.random.default_rng(recipe.seed)
        lessons = Lessons(processor, Dialogues(texts, rng), rng)
        tell(f"questions made: {time.monotonic() - begin:.0f} s")
    if "language" in stages:
        views = draw_views(model.model.visual, teacher, batches, recipe.views, shape.size)
        tell(f"{recipe.views} views seen: {time.monotonic() - begin:.0f} s")
        model.requires_grad_(True).model.visual.requires_grad_(False)
        losses = language_losses(model, views, lessons, recipe.batch, rng)
        learnt = [p for p in model.parameters() if p.requires_grad]
        trained = fit(
            "language",
            model,
            learnt,
            losses,
            recipe.language_steps,
            recipe.language_rate,
            recipe.decay,
            0.99,
            tell,
            save,
        )
        model.load_state_dict(trained.state_dict())
        save(model)
    if "joint" in stages and recipe.joint_steps:
        model.requires_grad_(True)
        losses = joint_losses(model, teacher, batches, lessons, recipe, shape.size)
        trained = fit(
            "joint",
            model,
            list(model.parameters()),
            losses,
            recipe.joint_steps,
            recipe.joint_rate,
            recipe.decay,
            0.97,
            tell,
            save,
        )
        save(trained)
    tell(f"trained in {time.monotonic() - begin:.0f} s")


def _weights(folder: Path, rows: int) -> dict[str, torch.Tensor]:
    """Load the weights of another training; those of another vocabulary's tokens are left out."""
    from transformers import AutoModelForImageTextToText

    state = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
    other = len(state["model.language_model.embed_tokens.weight"]) != rows
    return {k: v for k, v in state.items() if not (other and ("embed_tokens" in k or "lm_head" in k))}


def _measure(held: Pool | None) -> Callable[[Student], str]:
    if held is None:
        return lambda student: ""
    pixels = torch.from_numpy(held.images).permute(0, 3, 1, 2).float() / 127.5 - 1

    def measure(student: Student) -> str:
        with torch.inference_mode():
            logits = torch.cat([student(part).logits[:, : len(LABELS)] for part in pixels.split(32)])
        return f"accuracy of the vision part {float(np.mean(logits.argmax(dim=1).numpy() == held.classes)):.3f}"

    return measure


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m secondlook.train_leaf_tiny_vl", description="Train leaf-tiny-vl, or measure it (--evaluate)."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv (path, label, group, split)")
    parser.add_argument("--out", type=Path, required=True, help="model folder")
    parser.add_argument("--evaluate", action="store_true", help="train nothing, measure the folder on --split")
    parser.add_argument("--split", default="test", help="what --evaluate measures on")
    parser.add_argument("--most", type=int, help="with --evaluate: so many photographs, first looks only")
    parser.add_argument("--start", type=Path, help="model folder to start from instead of random weights")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES), help="which stages to run")
    parser.add_argument("--watch", action="store_true", help="measure the vision part on the calibration split")
    parser.add_argument("--threads", type=int, default=2)
    for field in fields(VlRecipe):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, dest=f"recipe_{field.name}", type=type(field.default), default=field.default)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    if options.evaluate:
        print(json.dumps(check(options.data, options.out, options.split, TEACHER, options.most), indent=2))
        return
    recipe = VlRecipe(**{k.removeprefix("recipe_"): v for k, v in vars(options).items() if k.startswith("recipe_")})
    size = VlShape().size
    photos = read_split(options.data, "train", size * 5 // 4)
    held = read_split(options.data, "calibration", size) if options.watch else None
    train(photos, options.out, recipe, held, options.start, options.stages, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
