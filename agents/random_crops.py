"""Random crops of a batch, mirrored or not: what keeps a training from learning its images by heart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDEST = 4 / 3
"""Largest ratio of a crop's sides before it is stretched to the whole."""


def random_crops(images: torch.Tensor, smallest: float, generator: torch.Generator) -> torch.Tensor:
    """Show each image by a random part of it, at its own size.

    Parameters
    ----------
    images : Tensor of shape (N, 3, H, W)
        Of floating point numbers.
    smallest : float
        Least share of the area; evenly drawn from there to 1, as are the place and the mirroring. The ratio of the
        sides is drawn log-evenly from 3/4 to 4/3; a side that would not fit is cut.
    generator : torch.Generator
        Of the CPU, whatever device the images are on.

    Returns
    -------
    Tensor of shape (N, 3, H, W)

    Examples
    --------
    >>> import torch
    >>> crops = random_crops(torch.ones(2, 3, 8, 8), 0.08, torch.Generator().manual_seed(0))
    >>> crops.shape, bool((crops == 1).all())
    (torch.Size([2, 3, 8, 8]), True)
    """
    import torch
    from torch.nn import functional

    share, ratio, x, y, side = torch.rand(5, len(images), generator=generator)
    area, ratio = smallest + (1 - smallest) * share, torch.tensor(WIDEST) ** (2 * ratio - 1)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    maps = torch.zeros(len(images), 2, 3)
    maps[:, 0, 0], maps[:, 1, 1] = torch.where(side < 0.5, width, -width), height
    maps[:, 0, 2], maps[:, 1, 2] = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1)
    grid = functional.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
