"""The folder of leaf-tiny-vl: configuration, tokenizer, processor and weights in the ordinary transformers format.

`write_model(folder)` writes one with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secondlook.leaf_dialogues import KINDS, Dialogues, VlTexts

WEIGHTS = "model.safetensors"
END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
SPECIAL = (PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO)
SENTENCES = 3000
"""Dialogues that the tokenizer is trained on."""


@dataclass(frozen=True, kw_only=True)
class VlShape:
    """Sizes of the model; the defaults are those of the model that ships with the package."""

    size: int = 112
    """Height and width of a square image, in pixels; others are brought to about the same area."""
    patch: int = 8
    """Height and width of a patch; 2 x 2 patches make an image token."""
    vision_width: int = 128
    vision_depth: int = 6
    vision_heads: int = 4
    vision_inner: int = 384
    width: int = 128
    """Of the language part."""
    depth: int = 4
    heads: int = 4
    key_heads: int = 2
    inner: int = 384
    vocabulary: int = 1400
    """Most tokens, the special ones not counted."""


def train_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Train a byte-level BPE tokenizer.

    Every text has tokens, in whatever script. No merge reaches over a punctuation mark: the closing quote of a label
    is the same token whatever follows it.

    Parameters
    ----------
    texts : iterable of str
    size : int
        Most tokens; the special ones follow them.

    Returns
    -------
    transformers.Qwen2Tokenizer
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bare = Tokenizer(models.BPE())
    bare.normalizer = normalizers.NFC()
    # Words with the space or dash before them, digits one by one, marks one by one
    pieces = Regex(r"[ \-_]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s")
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=3
    )
    bare.train_from_iterator(texts, trainer)
    model = json.loads(bare.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,  # type: ignore[arg-type]
        pad_token=PAD,
        unk_token=PAD,
        eos_token=END,
        model_max_length=4096,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer


def model_config(shape: VlShape, tokenizer: Any) -> dict[str, Any]:
    """Return the content of `config.json`."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    third = shape.width // shape.heads // 2 // 3
    sections = [shape.width // shape.heads // 2 - 2 * third, third, third]
    return {
        "tie_word_embeddings": True,
        "image_token_id": ids[IMAGE],
        "video_token_id": ids[VIDEO],
        "vision_start_token_id": ids[VISION_START],
        "vision_end_token_id": ids[VISION_END],
        "text_config": {
            # Room for tokens that a server may add, in whole rows of 64
            "vocab_size": -(-(len(tokenizer) + 8) // 64) * 64,
            "hidden_size": shape.width,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.depth,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_heads,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections},
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "pad_token_id": ids[PAD],
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_inner,
            "num_heads": shape.vision_heads,
            "patch_size": shape.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": shape.size,
            "out_hidden_size": shape.width,
            # Attention over the whole image in every block: images are small
            "fullatt_block_indexes": list(range(shape.vision_depth)),
        },
    }


def make_processor(shape: VlShape, tokenizer: Any) -> Any:
    """Return a `Qwen2_5_VLProcessor`."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    template = (resources.files("secondlook") / "assets" / "leaf_tiny_vl_chat.jinja").read_text(encoding="utf-8")
    # A little above the square: the root of an area is seldom exact, and one pixel less would lose a row of patches.
    area = {"shortest_edge": shape.size**2, "longest_edge": shape.size**2 + 8}
    settings: dict[str, Any] = {"patch_size": shape.patch, "temporal_patch_size": 2, "merge_size": 2}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": area}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**settings),
        chat_template=template,
    )


def build_model(shape: VlShape, tokenizer: Any, seed: int) -> Any:
    """Return a `Qwen2_5_VLForConditionalGeneration` with random weights, in single precision."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**model_config(shape, tokenizer)))


def save_model(folder: Path, model: Any, processor: Any) -> None:
    """Write the folder, weights in half precision."""
    from transformers import GenerationConfig

    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=80,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Stored in half precision; config.json keeps float32, in which processors without half precision are quickest.
    state = {name: value.detach().half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)


def write_model(folder: Path, shape: VlShape | None = None, seed: int = 0) -> None:
    """Write a folder with random weights, in the format of leaf-tiny-vl, within some ten seconds."""
    shape = shape or VlShape()
    tokenizer = train_tokenizer(corpus(VlTexts.load(), seed), shape.vocabulary)
    save_model(folder, build_model(shape, tokenizer, seed), make_processor(shape, tokenizer))


def corpus(texts: VlTexts, seed: int) -> list[str]:
    """Return the questions and replies that the tokenizer is trained on."""
    rng = np.random.default_rng(seed)
    dialogues = Dialogues(texts, rng)
    # Words that every chat has, often enough to be tokens of their own
    found = ["Yes", "No", "user", "assistant", "system"] * 20
    for number in range(SENTENCES):
        asked = dialogues.ask(KINDS[number % len(KINDS)], number // len(KINDS) % 4)
        found += [asked.before, asked.after, dialogues.reply(asked, asked.truth, rng.uniform())]
    return found
