"""Train leaf-tiny-vl, the small vision-language model that the package ships, and measure it.

python -m secondlook.train_leaf_tiny_vl --data plantvillage-apple --out leaf-tiny-vl
python -m secondlook.train_leaf_tiny_vl --data plantvillage-apple --out leaf-tiny-vl --evaluate

Its architecture is that of Qwen2.5-VL, far smaller. It learns in three stages: the vision part alone, from leaf-tiny;
the language part alone, on questions and replies; all together, shortly. A folder of the same format with random
weights is written in some seconds by `secondlook.leaf_vl_folder.write_model`.
"""

from __future__ import annotations

import argparse
import copy
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
from secondlook.leaf_vl_language import Lessons, draw_views, joint_losses, language_losses
from secondlook.leaf_vl_stage import Stage, run_stage
from secondlook.leaf_vl_vision import Batches, Student, Teacher, vision_losses
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
        model.load_state_dict(_weights(start, len(tokenizer)), strict=False)
    teacher = Teacher(LeafTiny.load(TEACHER))
    drawn = draw_pools(photos, leaves=recipe.leaves, strangers=recipe.strangers, seed=100_000 * (1 + recipe.seed))
    tell(f"{len(photos.classes)} photographs; drawing took {time.monotonic() - begin:.0f} s")
    batches = Batches(photos, drawn, recipe.seed)

    def save(trained: Any) -> None:
        save_model(folder, trained, processor)

    if "vision" in stages:
        first, _ = batches.draw(256, shape.size, (0.25, 0.2), 0.0)
        student = Student(copy.deepcopy(model.model.visual), teacher.look(first))

        def keep(seeing: Student) -> None:
            model.model.visual.load_state_dict(seeing.visual.state_dict())
            save(model)
            if held is not None:
                tell(f"accuracy of the vision part {accuracy(seeing, held):.3f}, n {len(held.classes)}")

        stage = Stage("vision", recipe.early_steps + recipe.steps, recipe.rate, recipe.decay, 0.995)
        keep(run_stage(stage, student, vision_losses(student, teacher, batches, recipe, shape.size), tell, keep))
    rng = np.random.default_rng(recipe.seed)
    lessons = Lessons(processor, Dialogues(texts, rng), rng)
    if "language" in stages:
        views = draw_views(model.model.visual, teacher, batches, recipe.views, shape.size)
        tell(f"questions made, {recipe.views} views seen: {time.monotonic() - begin:.0f} s")
        model.model.visual.requires_grad_(False)
        stage = Stage("language", recipe.language_steps, recipe.language_rate, recipe.decay, 0.99)
        model = run_stage(stage, model, language_losses(model, views, lessons, recipe.batch, rng), tell, save)
    if "joint" in stages:
        model.train().requires_grad_(True)
        losses = joint_losses(model, teacher, batches, lessons, recipe, shape.size)
        save(
            run_stage(
                Stage("joint", recipe.joint_steps, recipe.joint_rate, recipe.decay, 0.97), model, losses, tell, save
            )
        )
    tell(f"trained in {time.monotonic() - begin:.0f} s")


def accuracy(student: Student, held: Pool) -> float:
    """Return how often the throw-away head names the right label of photographs of the model's own size."""
    pixels = torch.from_numpy(held.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        logits = torch.cat([student(part).logits[:, : len(LABELS)] for part in pixels.split(32)])
    return float(np.mean(logits.argmax(dim=1).numpy() == held.classes))


def _weights(folder: Path, tokens: int) -> dict[str, torch.Tensor]:
    """Load the weights of another training; those of tokens only where they are of as many."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    state = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
    other = len(AutoTokenizer.from_pretrained(folder)) != tokens
    return {k: v for k, v in state.items() if not (other and ("embed_tokens" in k or "lm_head" in k))}


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
