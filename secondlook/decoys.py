"""Strangers made from photographs: the grain and light of the real thing, and yet not an apple leaf.

A model that has seen only drawn strangers learns to tell drawings from photographs. Decoys take that way out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from secondlook.backdrops import Floats, draw_light, smooth_noise
from secondlook.foreign_leaves import ForeignKind, paint_foreign_leaf
from secondlook.scenes import draw_scene
from secondlook.strangers import StrangerKind

Photo = NDArray[np.uint8]


class Decoy(NamedTuple):
    """A stranger made from photographs."""

    image: Photo
    """Red, green and blue, (H, H, 3)."""
    kind: StrangerKind
    """What it is to be taken for."""


def find_leaf(photo: Photo) -> NDArray[np.bool_]:
    """Return where a laboratory photograph is green, or enclosed by green: the leaf on its gray paper, (H, W)."""
    red, green, blue = (photo[..., channel].astype(np.float32) for channel in range(3))
    mask = Image.fromarray(((green - 0.5 * (red + blue)) > 5).astype(np.uint8) * 255)
    return np.asarray(mask.filter(ImageFilter.MedianFilter(7))) > 127


def _resize(photo: Photo, size: int) -> Photo:
    return np.asarray(Image.fromarray(photo).resize((size, size), Image.Resampling.BICUBIC))


def _crop(photo: Photo, x: float, y: float, share: float) -> Photo:
    """Enlarge the square window of the given share of the frame whose corner is at shares x, y."""
    size = photo.shape[0]
    side = max(8, round(share * size))
    left, top = round(x * (size - side)), round(y * (size - side))
    return _resize(photo[top : top + side, left : left + side], size)


def empty_bench(photo: Photo, rng: np.random.Generator) -> Photo:
    """Enlarge the corner of a photograph that shows the least of the leaf."""
    leaf = Image.fromarray(find_leaf(photo).astype(np.float32))
    share = rng.uniform(0.16, 0.3)
    corners = [(x, y) for x in (0.0, 1.0) for y in (0.0, 1.0)]
    greens = [_crop_mean(np.asarray(leaf), x, y, share) + rng.uniform(0, 0.02) for x, y in corners]
    x, y = corners[int(np.argmin(greens))]
    return np.rot90(_crop(photo, x, y, share), int(rng.integers(4))).copy()


def _crop_mean(field: Floats, x: float, y: float, share: float) -> float:
    side = max(8, round(share * field.shape[0]))
    left, top = round(x * (field.shape[0] - side)), round(y * (field.shape[0] - side))
    return float(field[top : top + side, left : left + side].mean())


def shuffle_patches(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Cut a photograph into tiles and shuffle them."""
    photo, tiles = photos[0], int(rng.integers(2, 9))
    side = photo.shape[0] // tiles
    square = photo[: side * tiles, : side * tiles].reshape(tiles, side, tiles, side, 3).swapaxes(1, 2)
    flat = square.reshape(tiles * tiles, side, side, 3)[rng.permutation(tiles * tiles)]
    mixed = flat.reshape(tiles, tiles, side, side, 3).swapaxes(1, 2).reshape(side * tiles, side * tiles, 3)
    return Decoy(_resize(mixed, photo.shape[0]), "non-leaf")


def recolour(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Turn the hue far, permute the channels or invert a photograph, as a whole or the leaf alone."""
    photo = photos[0]
    match int(rng.integers(3)):
        case 0:
            hsv = np.asarray(Image.fromarray(photo).convert("HSV")).copy()
            hsv[..., 0] += np.uint8(rng.integers(45, 211))
            changed = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
        case 1:
            order = ((2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1))[rng.integers(1, 5)]
            changed = photo[..., list(order)]
        case _:
            changed = 255 - photo
    if rng.uniform() < 0.5:
        changed = np.where(find_leaf(photo)[..., None], changed, photo)
    return Decoy(changed, "other-plant")


def bare_bench(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Show the paper without the leaf."""
    return Decoy(empty_bench(photos[0], rng), "non-leaf")


def double_exposure(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Lay two photographs, or a photograph and a scene, over each other."""
    scene = np.asarray(draw_scene(rng, photos[0].shape[0]))
    other = scene if rng.uniform() < 0.7 else np.rot90(photos[1], 1)
    share = rng.uniform(0.35, 0.6)
    mixed = photos[0] * share + other * (1 - share)
    return Decoy(mixed.astype(np.uint8), "non-leaf")


def collage(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Put several small photographs side by side."""
    size, tiles = photos[0].shape[0], int(rng.integers(2, 4))
    side = -(-size // tiles)
    rows = [
        np.concatenate([_resize(photos[int(rng.integers(len(photos)))], side) for _ in range(tiles)], axis=1)
        for _ in range(tiles)
    ]
    return Decoy(np.concatenate(rows)[:size, :size].copy(), "non-leaf")


def silhouette(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Put a scene where the leaf was, or a leaf's texture where the paper was."""
    photo = photos[0]
    scene = np.asarray(draw_scene(rng, photo.shape[0]))
    leaf = find_leaf(photo)[..., None]
    if rng.uniform() < 0.7:
        return Decoy(np.where(leaf, scene, photo), "non-leaf")
    return Decoy(np.where(leaf, empty_bench(photo, rng), leaf_texture(photos[1], rng)), "non-leaf")


def leaf_texture(photo: Photo, rng: np.random.Generator) -> Photo:
    """Enlarge the inside of a leaf until it fills the frame."""
    rows, columns = np.nonzero(find_leaf(photo))
    size, share = photo.shape[0], rng.uniform(0.3, 0.5)
    if not rows.size:
        return photo
    x, y = (float(np.clip((c.mean() / size - share / 2) / (1 - share), 0, 1)) for c in (columns, rows))
    return np.rot90(_crop(photo, x, y, share), int(rng.integers(4))).copy()


def sick_otherwise(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Cover a leaf with the spots of a disease that apples do not have: purple-red, white, black or blue."""
    photo = photos[0].astype(np.float32)
    size = photo.shape[0]
    leaf = Image.fromarray((find_leaf(photos[0]) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    colour = np.array(
        ((105, 35, 50), (125, 30, 60), (85, 40, 60), (150, 45, 55), (235, 235, 230), (15, 12, 15), (60, 60, 160))[
            rng.choice(7, p=(0.24, 0.24, 0.16, 0.1, 0.12, 0.07, 0.07))
        ],
        dtype=np.float32,
    )
    fields = [smooth_noise(rng, size, rng.uniform(lo, hi)) for lo, hi in ((8, 30), (3, 8), (40, 90))]
    field = fields[0] + rng.uniform(0, 1) * fields[1] + 0.3 * fields[2]
    spots = np.clip((field - np.quantile(field, 1 - rng.uniform(0.12, 0.5))) * rng.uniform(2, 6), 0, 1)
    hide = (spots * (np.asarray(leaf, dtype=np.float32) / 255) * rng.uniform(0.65, 1))[..., None]
    light = photo.mean(axis=-1, keepdims=True) / max(float(photo.mean()), 1)
    return Decoy(
        np.clip(photo * (1 - hide) + colour * np.clip(0.3 + 0.7 * light, 0.4, 1.6) * hide, 0, 255).astype(np.uint8),
        "other-plant",
    )


def foreign_outline(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Cut the outline and veins of another plant from the texture of a photographed leaf, and lay it on its paper."""
    bench = empty_bench(photos[0], rng).astype(np.float32) / 255
    kinds: tuple[ForeignKind, ...] = get_args(ForeignKind)
    shares = np.array([6, 2, 2, 0.5, 1, 0.3, 1, 1.5, 1, 0.5])
    light = draw_light(rng)
    plant = paint_foreign_leaf(bench, kinds[rng.choice(len(kinds), p=shares / shares.sum())], light, rng)
    canvas: Floats = plant.canvas
    if rng.uniform() < 0.75:
        texture = leaf_texture(photos[1], rng).astype(np.float32) / 255
        # What the rendering does to its own blade (shade, veins, lesions) is done to the photographed tissue.
        effect: Floats = np.power(np.clip(canvas / np.array(plant.colour), 0.2, 4), rng.uniform(0.5, 1))
        canvas = canvas + plant.cover[..., None] * (texture * effect - canvas)
    grain = rng.uniform(0, 0.02) * rng.standard_normal(canvas.shape[:2])[..., None]
    gain = rng.uniform(0.8, 1.25)
    return Decoy((np.clip(canvas * gain + grain, 0, 1) * 255).astype(np.uint8), "other-plant")


_MAKERS: tuple[tuple[Callable[[Sequence[Photo], np.random.Generator], Decoy], float], ...] = (
    (foreign_outline, 0.36),
    (sick_otherwise, 0.16),
    (recolour, 0.14),
    (shuffle_patches, 0.09),
    (bare_bench, 0.07),
    (silhouette, 0.07),
    (double_exposure, 0.06),
    (collage, 0.05),
)


def draw_decoy(photos: Sequence[Photo], rng: np.random.Generator) -> Decoy:
    """Make one stranger from photographs.

    Parameters
    ----------
    photos : sequence of uint8 ndarray of shape (H, H, 3)
        At least four, all of one size; which are used is drawn.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    Decoy

    Examples
    --------
    >>> from secondlook.leaves import Leaf, render_leaf
    >>> photos = [np.asarray(render_leaf(Leaf.grow("healthy", seed), size=64).image) for seed in range(4)]
    >>> draw_decoy(photos, np.random.default_rng(0)).image.shape
    (64, 64, 3)
    """
    chosen = [photos[i] for i in rng.choice(len(photos), 4, replace=False)]
    shares = np.array([share for _, share in _MAKERS])
    make = _MAKERS[rng.choice(len(_MAKERS), p=shares / shares.sum())][0]
    return make(chosen, rng)
