"""Real Qwen vision-language models of random weights in their ordinary folder form, small enough to make in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from secondlook.prompts import load

Family = Literal["qwen2_5_vl", "qwen3_vl", "qwen3_5"]
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TEXTS = [load(name).text for name in ("classify.md", "second_look.md", "answer_json.md", "answer_letter.md")]
"""What the tokenizer learns its words from, so that a question is few tokens."""


def write_tiny_qwen_vl(folder: Path, family: Family = "qwen2_5_vl", seed: int = 0) -> Path:
    """Write configuration, weights, tokenizer and processor; a picture of 32 pixels a side is four tokens."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = _config(family, len(tokenizer), ids)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(config)
        with torch.no_grad():  # ordinary random weights say much the same of every picture
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    _processor(family, tokenizer).save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX, Qwen2Tokenizer

    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"), bytes_of]
    )
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    learnt = json.loads(trained.to_str())["model"]
    found = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    found.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return found


def _config(family: Family, vocabulary: int, ids: dict[str, int]) -> Any:
    import transformers

    text: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "out_hidden_size": 32,
    }
    if family == "qwen2_5_vl":
        vision |= {"window_size": 32, "fullatt_block_indexes": [1]}
    else:
        text |= {"head_dim": 8}
        vision |= {"num_position_embeddings": 64}
    if family == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0]}
    if family == "qwen3_5":
        text |= {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        }
        text["rope_parameters"] |= {"partial_rotary_factor": 1.0}
    return transformers.AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def _processor(family: Family, tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    shape = {"patch_size": 8, "merge_size": 2, "size": size}
    kind = Qwen2_5_VLProcessor if family == "qwen2_5_vl" else Qwen3VLProcessor
    return kind(
        image_processor=Qwen2VLImageProcessor(**shape),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**shape),
        chat_template=TEMPLATE,
    )
