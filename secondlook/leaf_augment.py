"""Augmentation of a batch of leaf images: every turn, flip, zoom and light a leaf may be photographed in."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def augment(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Augment a batch.

    Parameters
    ----------
    images : uint8 tensor of shape (N, H, H, 3)
        Red, green and blue.
    size : int
        Height and width of the result.
    generator : torch.Generator
        Source of all randomness.

    Returns
    -------
    tensor of shape (N, 3, size, size)
        Values from -1 to 1.

    Examples
    --------
    >>> batch = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    >>> augment(batch, 8, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    pixels = images.permute(0, 3, 1, 2).float() / 255
    # Any angle; zoom 1 shows the whole frame, below 1 a part of it.
    angle, zoom = uniform(0, 2 * math.pi), uniform(0.7, 1.12)
    aspect, flip = torch.exp(uniform(-0.12, 0.12)), torch.where(uniform(0, 1) < 0.5, 1.0, -1.0)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    slack = (1 - zoom).clamp(min=0.04)
    rows = [
        torch.stack([flip * zoom * aspect * cosine, -zoom * sine, uniform(-0.6, 0.6) * slack], dim=1),
        torch.stack([flip * zoom * sine, zoom / aspect * cosine, uniform(-0.6, 0.6) * slack], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), [n, 3, size, size], align_corners=False)
    pixels = functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)

    # Light: brightness, contrast, saturation, colour of the lamp, gamma
    gray = pixels.mean(dim=1, keepdim=True)
    pixels = gray + (pixels - gray) * uniform(0.65, 1.35, 1, 1, 1)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * uniform(0.75, 1.3, 1, 1, 1) + mean * uniform(0.75, 1.25, 1, 1, 1)
    pixels = pixels * (1 + 0.07 * torch.randn(n, 3, 1, 1, generator=generator))
    pixels = pixels.clamp(1e-3, 1) ** torch.exp(uniform(-0.2, 0.2, 1, 1, 1))

    # A lamp from one side, on half of the images
    ramp = torch.linspace(-1, 1, size)
    side = uniform(-0.3, 0.3, 1, 1, 1) * ramp.view(1, 1, 1, size) + uniform(-0.3, 0.3, 1, 1, 1) * ramp.view(
        1, 1, size, 1
    )
    pixels = pixels * (1 + side * (uniform(0, 1, 1, 1, 1) < 0.5))

    # Focus on a third of them, and sensor noise
    soft = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = uniform(0, 1.0, 1, 1, 1) * (uniform(0, 1, 1, 1, 1) < 0.35)
    pixels = pixels + share * (soft - pixels)
    noise = torch.randn(n, 1, size, size, generator=generator) * uniform(0, 0.03, 1, 1, 1)
    return ((pixels + noise).clamp(0, 1) - 0.5) / 0.5
