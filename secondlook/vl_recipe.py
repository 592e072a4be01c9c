"""What a training of leaf-tiny-vl depends on besides the data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VlRecipe:
    """All settings of a training; the defaults made the model that ships with the package."""

    seed: int = 0
    """Of the weights, the order, the augmentation, the drawn images and the dialogues."""
    leaves: int = 1600
    """Rendered apple leaves."""
    strangers: int = 400
    """Rendered strangers and decoys, in the first stage only."""
    batch: int = 32
    """Images in a step of the first stage; dialogues in a step of the others."""
    early_steps: int = 1000
    """First stage, the vision part alone, at `early_size`."""
    early_size: int = 80
    steps: int = 300
    """First stage at the full size."""
    rate: float = 1.2e-3
    """Highest learning rate of the first stage."""
    decay: float = 0.05
    """Weight decay."""
    views: int = 5000
    """Augmented images whose tokens the second stage, the language part alone, is trained on."""
    language_steps: int = 1000
    language_rate: float = 2e-3
    joint_steps: int = 60
    """Third stage: all weights together."""
    joint_rate: float = 2e-4
