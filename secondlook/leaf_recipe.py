"""What a training of leaf-tiny depends on besides the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONTEXT_LENGTH = 32
"""Longest sentence in tokens."""

EMBEDDING = 128
"""Dimensions of the space that images and sentences share."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training; the defaults made the model that ships with the package."""

    epochs: int = 110
    """Passes over the training photographs."""
    seed: int = 0
    """Of the weights, the order, the augmentation and the drawn images."""
    tower: str = "regnetx_002"
    """Image tower, by its timm name."""
    size: int = 112
    """Input height and width in pixels."""
    early_size: int = 88
    """The same for the first half of the training, which is quicker."""
    batch: int = 64
    """Images in a step."""
    rate: float = 2.5e-3
    """Highest learning rate."""
    decay: float = 0.05
    """Weight decay."""
    contrast: float = 0.5
    """Weight of the supervised contrastive term."""
    smoothing: float = 0.05
    """Label smoothing."""
    scale: float = 25.0
    """Logit scale at the start; it is learnt."""
    leaves: int = 800
    """Rendered apple leaves."""
    strangers: int = 3200
    """Rendered strangers and decoys."""


def model_config(recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    """Return the content of `open_clip_config.json`.

    Examples
    --------
    >>> model_config(Recipe(size=96), 500)["model_cfg"]["vision_cfg"]["image_size"]
    96
    """
    half = [0.5, 0.5, 0.5]
    return {
        "model_cfg": {
            "embed_dim": EMBEDDING,
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
        "preprocess_cfg": {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
