"""First stage of leaf-tiny-vl: its vision part learns from leaf-tiny, layer by layer, on photographs and drawings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from secondlook.check_leaf_tiny import LeafTiny
from secondlook.leaf_augment import augment
from secondlook.leaf_pool import Drawn, Pool
from secondlook.leaf_texts import CLASSES
from secondlook.vl_recipe import VlRecipe

EARLY_BLOCK = 2
"""Block of the vision part, from 0, that is compared with the second stage of the teacher."""


class Seen(NamedTuple):
    """What a network makes of a batch of N images, coarse things last."""

    patches: Tensor
    """(N, T, D), one for each 8 x 8 pixels, row by row in 2 x 2 blocks."""
    tokens: Tensor
    """(N, T / 4, D), one for each 16 x 16 pixels, row by row."""
    logits: Tensor
    """(N, 6), over `secondlook.leaf_texts.CLASSES`."""
    vector: Tensor
    """(N, D), of unit length."""


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """Cut images (N, 3, H, H) into patches in the order of the Qwen2-VL processor: (N, T, 3 * 2 * patch * patch)."""
    n, channels, height, _ = pixels.shape
    half = height // patch // 2
    cut = pixels.view(n, channels, half, 2, patch, half, 2, patch).permute(0, 2, 5, 3, 6, 1, 4, 7)
    # A still image is two equal frames
    return cut.unsqueeze(6).expand(*cut.shape[:6], 2, *cut.shape[6:]).reshape(n, 4 * half * half, -1)


def encode_images(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Run the vision part on equal images in one batch; transformers would loop over them.

    Returns
    -------
    tuple of tensors
        Patches after `EARLY_BLOCK` (N, T, D), and image tokens (N, T / 4, D).
    """
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision, get_vision_position_ids  # type: ignore[attr-defined]

    n, side = len(pixels), pixels.shape[-1] // visual.patch_size
    grid = torch.tensor([[1, side, side]])
    x = visual.patch_embed(patchify(pixels, visual.patch_size)).view(n, side * side, -1)
    cosine, sine = visual.rotary_pos_emb(x, get_vision_position_ids(grid, visual.spatial_merge_size))
    early = x
    for number, block in enumerate(visual.blocks):
        attention = block.attn
        parts = attention.qkv(block.norm1(x)).view(n, side * side, 3, attention.num_heads, -1)
        query, key, value = parts.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cosine, sine)
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        x = x + attention.proj(seen.transpose(1, 2).reshape(n, side * side, -1))
        x = x + block.mlp(block.norm2(x))
        if number == EARLY_BLOCK:
            early = x
    return early, visual.merger(x).view(n, side * side // 4, -1)


class Teacher:
    """leaf-tiny, with what its layers see."""

    def __init__(self, tiny: LeafTiny) -> None:
        self._trunk = tiny.model.visual.trunk
        self._head = tiny.model.visual.head
        self._prompts = torch.from_numpy(tiny.prompts).float()
        self._scale = tiny.scale
        self._spread: list[tuple[Tensor, Tensor]] | None = None

    @torch.no_grad()
    def look(self, pixels: Tensor) -> Seen:
        """Look at images (N, 3, H, H) from -1 to 1; features are standardised by the first batch."""
        trunk = self._trunk
        fine = trunk.s2(trunk.s1(trunk.stem(pixels)))
        coarse = trunk.s3(fine)
        vector = functional.normalize(self._head(trunk.forward_head(trunk.final_conv(trunk.s4(coarse)))), dim=-1)
        maps = [in_blocks(fine), coarse.flatten(2).transpose(1, 2)]
        if self._spread is None:
            self._spread = [(m.mean(dim=(0, 1)), m.std(dim=(0, 1)) + 1e-3) for m in maps]
        maps = [(m - mean) / spread for m, (mean, spread) in zip(maps, self._spread, strict=True)]
        return Seen(maps[0], maps[1], self._scale * vector @ self._prompts.T, vector)


def in_blocks(features: Tensor) -> Tensor:
    """Order a map (N, D, H, H) as `patchify` orders patches: (N, H * H, D)."""
    n, depth, height, _ = features.shape
    return (
        features.view(n, depth, height // 2, 2, height // 2, 2)
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(n, height * height, depth)
    )


class Student(nn.Module):
    """The vision part with heads that are thrown away after the first stage."""

    def __init__(self, visual: Any, teacher: Seen) -> None:
        super().__init__()
        self.visual = visual
        inner, outer = visual.config.hidden_size, visual.config.out_hidden_size
        self.fine = nn.Linear(inner, teacher.patches.shape[-1])
        self.coarse = nn.Linear(outer, teacher.tokens.shape[-1])
        self.vector = nn.Linear(outer, teacher.vector.shape[-1])
        self.classify = nn.Linear(outer, len(CLASSES))

    def forward(self, pixels: Tensor) -> Seen:
        """Look at images (N, 3, H, H)."""
        early, tokens = encode_images(self.visual, pixels)
        pooled = tokens.mean(dim=1)
        vector = functional.normalize(self.vector(pooled), dim=-1)
        return Seen(self.fine(early), self.coarse(tokens), self.classify(pooled), vector)


def distance(student: Seen, teacher: Seen, truth: Tensor) -> Tensor:
    """Return the loss: features, vector and distribution of the teacher, and the truth as a distribution (N, 6)."""
    soft = functional.softmax(teacher.logits / 2, dim=-1)
    said = functional.cross_entropy(student.logits / 2, soft) * 2 + functional.cross_entropy(student.logits, truth)
    features = functional.mse_loss(student.patches, teacher.patches) + functional.mse_loss(
        student.tokens, teacher.tokens
    )
    return said + 2 * features + 3 * (1 - (student.vector * teacher.vector).sum(dim=-1)).mean()


class Batches:
    """Draws augmented batches of photographs, rendered leaves and strangers, some mixed with each other."""

    def __init__(self, photos: Pool, drawn: Drawn, seed: int) -> None:
        self._photos, self._drawn = photos, drawn
        self._rng = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, number: int, size: int, shares: tuple[float, float], mixed: float) -> tuple[Tensor, Tensor]:
        """Draw pixels (N, 3, H, H) and the truth (N, 6).

        Parameters
        ----------
        number, size : int
            Images, and their height in pixels.
        shares : tuple of float
            Of rendered leaves and of strangers; the rest are photographs, balanced over the labels.
        mixed : float
            Share of images that another one is laid over, half transparent.
        """
        rng, photos = self._rng, self._photos
        rendered, strange = (round(number * share) for share in shares)
        weights = 1 / np.bincount(photos.classes, minlength=4)[photos.classes]
        parts = (
            (photos, rng.choice(len(photos.classes), number - rendered - strange, p=weights / weights.sum())),
            (self._drawn.leaves, rng.integers(len(self._drawn.leaves.classes), size=rendered)),
            (self._drawn.strangers, rng.integers(len(self._drawn.strangers.classes), size=strange)),
        )
        images = torch.from_numpy(np.concatenate([pool.images[index] for pool, index in parts]))
        classes = torch.from_numpy(np.concatenate([pool.classes[index] for pool, index in parts]))
        pixels = augment(images, size, self._generator)
        truth = functional.one_hot(classes, len(CLASSES)).float()
        keep = torch.from_numpy(np.where(rng.uniform(size=number) < mixed, rng.uniform(0.5, 1, number), 1.0)).float()
        other = torch.from_numpy(rng.permutation(number))
        pixels = torch.lerp(pixels[other], pixels, keep[:, None, None, None])
        return pixels, torch.lerp(truth[other], truth, keep[:, None])


def vision_losses(
    student: Student, teacher: Teacher, batches: Batches, recipe: VlRecipe, size: int
) -> Iterator[Tensor]:
    """Yield the losses of the first stage: small pictures first, which are quicker."""
    for step in count():
        now = recipe.early_size if step < recipe.early_steps else size
        pixels, truth = batches.draw(recipe.batch, now, (0.25, 0.2), 0.5)
        yield distance(student(pixels), teacher.look(pixels), truth)
