"""How many pictures a second by likelihoods of labels, and how many where 50 tokens are written: same model, one run.

    python benchmarks/label_likelihoods.py [--model FOLDER] [--shapes 7b] [--batches 4] [--json]

Both are given the same questions and pictures, batch after batch in turn, after one batch that is not counted; the
time to prepare pictures is part of both, and printed. So is a pass over question and picture alone, with which both
begin: no scoring of labels could reach more than the highest ratio that is printed. `--shapes 7b` takes random weights
of the shapes of Qwen2.5-VL-7B, on a GPU, with the tokenizer of `--model`. Exits 1 where the ratio is below its target.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.agents.case import Case, Task
from secondlook.agents.label_likelihoods import label_scores, replies_of
from secondlook.agents.photo import Photo
from secondlook.agents.qwen_model import Asked, QwenModel, load_model
from secondlook.agents.vlm_question import VlmQuestion

BATCH, TOKENS, TARGET = 8, 50, 5.0
TASK = Task(labels=("healthy", "scab", "black-rot", "cedar-rust"))


def shapes_7b(folder: Path) -> QwenModel:
    """Random weights of the shapes of Qwen2.5-VL-7B-Instruct, with the tokens of another model of the family."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLConfig, Qwen2VLImageProcessor

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.image_processor = Qwen2VLImageProcessor()
    number = processor.tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": rope,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    with torch.device("cuda"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return QwenModel(model.eval(), processor, "random")


def pictures(batch: int, side: int) -> list[Asked]:
    """One batch of questions, each with a picture of its own."""
    rng = np.random.default_rng(batch)
    text = VlmQuestion(TASK, "").text(Case(id="", photo=Photo.of(b"")))
    noise = rng.integers(0, 255, (BATCH, side, side, 3), dtype=np.uint8)
    return [Asked(text, (Photo.of(each).pixels(),)) for each in noise]


def seconds(qwen: QwenModel, call: Callable[[], object]) -> float:
    """How long a call takes, to the end of what it started on a GPU."""
    import torch

    start = time.perf_counter()
    with torch.inference_mode():
        call()
        if qwen.device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(qwen: QwenModel, batches: int, side: int) -> dict[str, Any]:
    """Time both ways, in turn."""
    replies = replies_of(TASK.labels, qwen.processor.tokenizer)
    times: dict[str, list[float]] = {"prepare": [], "first_pass": [], "likelihoods": [], "generate": []}

    def first_pass(asked: Sequence[Asked]) -> None:
        qwen.model(**qwen.inputs(asked), use_cache=True, logits_to_keep=1)

    def likelihoods(asked: Sequence[Asked]) -> None:
        label_scores(qwen, qwen.inputs(asked), replies)

    def generate(asked: Sequence[Asked]) -> None:
        qwen.model.generate(**qwen.inputs(asked), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)

    for batch in range(batches + 1):
        asked = pictures(batch, side)
        times["prepare"].append(seconds(qwen, lambda asked=asked: qwen.inputs(asked)))
        times["first_pass"].append(seconds(qwen, lambda asked=asked: first_pass(asked)))
        times["likelihoods"].append(seconds(qwen, lambda asked=asked: likelihoods(asked)))
        times["generate"].append(seconds(qwen, lambda asked=asked: generate(asked)))
    total = {name: sum(each[1:]) for name, each in times.items()}
    n = batches * BATCH
    return {
        "n": n,
        "prompt_tokens": int(qwen.inputs(pictures(0, side)[:1])["input_ids"].shape[1]),
        "labels": len(TASK.labels),
        "device": str(qwen.device),
        **{f"{name}_images_per_s": n / each for name, each in total.items()},
        "ratio": total["generate"] / total["likelihoods"],
        "highest_ratio": total["generate"] / total["first_pass"],
        "target": TARGET,
    }


def main() -> int:
    asset = Path(__file__).resolve().parent.parent / "secondlook" / "assets" / "leaf-tiny-vl"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=asset)
    parser.add_argument("--shapes", choices=["7b"])
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--side", type=int, default=448, help="pixels a side of the pictures")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    qwen = shapes_7b(given.model) if given.shapes else load_model(given.model)
    found = {"model": given.shapes or given.model.name, **measure(qwen, given.batches, given.side)}
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:28} {value:.2f}" if isinstance(value, float) else f"{name:28} {value}")
    return int(found["ratio"] < TARGET)


if __name__ == "__main__":
    raise SystemExit(main())
