"""Rendered leaves of plants that are not apple trees: the near strangers."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from secondlook.backdrops import Floats, Light, develop, draw_backdrop, draw_light
from secondlook.blades import Blade, Painted, Pose, paint_blade
from secondlook.lesions import paint_lesions, settle

ForeignKind = Literal[
    "coarse", "trifoliate", "lobed", "grass", "compound", "needles", "palmate", "round", "lance", "autumn"
]
"""coarse: one leaflet with few large teeth, as of a strawberry; trifoliate: three of them; lobed: oak or tomato;
grass: narrow blades; compound: leaflets along a stalk; needles: a twig of them; palmate: leaflets from one point;
round: smooth edge, hardly longer than wide; lance: long and smooth; autumn: any outline in red, yellow or brown."""

_DISEASES = ("healthy", "healthy", "scorch", "scorch", "rust", "scab", "black-rot")


def draw_foreign_leaf(rng: np.random.Generator, size: int = 256, kind: ForeignKind | None = None) -> Image.Image:
    """Draw a leaf, or leaves, of another plant, healthy or with any disease.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    size : int
        Height and width in pixels.
    kind : ForeignKind, optional
        Drawn where it is not given.

    Returns
    -------
    PIL.Image.Image
        RGB, size x size.

    Examples
    --------
    >>> draw_foreign_leaf(np.random.default_rng(0), 48, "trifoliate").size
    (48, 48)
    """
    kinds: tuple[ForeignKind, ...] = get_args(ForeignKind)
    if kind is None:
        # Single toothed leaflets are nearest to an apple leaf, so they are drawn most often.
        shares = np.array([4, 2, 2, 1, 1, 0.7, 1, 1.5, 1.5, 1])
        kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
    light = draw_light(rng)
    canvas = draw_backdrop(rng, size)
    return develop(paint_foreign_leaf(canvas, kind, light, rng).canvas, light, rng)


class ForeignLeaf(NamedTuple):
    """A canvas with a plant on it."""

    canvas: Floats
    """Red, green and blue in [0, 1], (H, W, 3)."""
    cover: Floats
    """Share of each pixel covered by the plant, (H, W)."""
    colour: tuple[float, float, float]
    """Of the sound blade in even light."""


def paint_foreign_leaf(canvas: Floats, kind: ForeignKind, light: Light, rng: np.random.Generator) -> ForeignLeaf:
    """Paint the leaf or leaves of another plant onto a canvas, healthy or with any disease.

    Parameters
    ----------
    canvas : ndarray of shape (H, H, 3)
        What lies below; not changed.
    kind : ForeignKind
        The plant.
    light : Light
        Where the light comes from.
    rng : numpy.random.Generator
        Draws the blade, the layout, the disease and the shadow.

    Returns
    -------
    ForeignLeaf
    """
    disease, shadow = str(rng.choice(_DISEASES)), float(rng.uniform(0.1, 0.85))
    blade = foreign_blade(rng, kind)
    cover = np.zeros(canvas.shape[:2], dtype=np.float32)
    for pose in _poses(rng, kind):
        canvas, cover = _paint(canvas, cover, blade, pose, light, shadow, disease, rng)
    return ForeignLeaf(canvas, cover, blade.colour)


def foreign_blade(rng: np.random.Generator, kind: ForeignKind) -> Blade:
    """Draw the blade that a kind of plant is made of."""
    bright, yellow = rng.uniform(0.2, 0.6), rng.uniform(0.4, 0.95)
    colour = (bright * yellow, bright, bright * rng.uniform(0.15, 0.85))
    if kind == "autumn":
        bright = rng.uniform(0.4, 0.85)
        colour = (bright, bright * rng.uniform(0.15, 0.85), bright * rng.uniform(0.05, 0.35))
        kind = ("coarse", "lobed", "round", "lance")[rng.integers(4)]
    width, teeth, depth, lobes, bays, base, tip, veins = {
        "coarse": ((0.72, 1.02), (6, 13), (0.1, 0.26), (0, 1), 0.0, (0.35, 0.95), (0.35, 0.6), (5, 9)),
        "trifoliate": ((0.6, 0.9), (5, 11), (0.1, 0.25), (0, 1), 0.0, (0.5, 1.0), (0.35, 0.6), (5, 8)),
        "lobed": ((0.5, 0.95), (0, 16), (0.0, 0.1), (3, 6), 0.55, (0.4, 0.9), (0.4, 0.9), (4, 8)),
        "grass": ((0.05, 0.14), (0, 1), (0.0, 0.01), (0, 1), 0.0, (0.2, 0.4), (0.4, 0.9), (0, 1)),
        "compound": ((0.3, 0.6), (0, 14), (0.0, 0.2), (0, 1), 0.0, (0.5, 0.8), (0.5, 1.0), (5, 9)),
        "needles": ((0.03, 0.06), (0, 1), (0.0, 0.01), (0, 1), 0.0, (0.2, 0.3), (0.3, 0.5), (0, 1)),
        "palmate": ((0.22, 0.5), (0, 14), (0.0, 0.15), (0, 1), 0.0, (0.7, 1.1), (0.5, 0.9), (6, 12)),
        "round": ((0.8, 1.15), (0, 1), (0.0, 0.01), (0, 1), 0.0, (0.35, 0.55), (0.35, 0.7), (3, 6)),
        "lance": ((0.16, 0.36), (0, 60), (0.0, 0.05), (0, 1), 0.0, (0.6, 1.1), (0.8, 1.6), (8, 16)),
    }[kind]
    half = rng.uniform(*width)
    return Blade(
        widths=(half * rng.uniform(0.9, 1.1), half * rng.uniform(0.9, 1.1)),
        base=rng.uniform(*base),
        tip=rng.uniform(*tip),
        teeth=int(rng.integers(*teeth)),
        tooth_depth=rng.uniform(*depth),
        lobes=int(rng.integers(*lobes)),
        lobe_depth=bays * rng.uniform(0.5, 1.2),
        bend=rng.normal(0, 0.3 if kind in ("grass", "lance") else 0.08),
        warp=rng.uniform(0.0, 0.06) if half > 0.15 else 0.0,
        veins=rng.uniform(*veins) if veins[0] else 0.0,
        vein_slope=rng.uniform(0.4, 1.1),
        vein_contrast=rng.uniform(0.1, 0.6),
        quilt=rng.uniform(0.2, 1.1),
        fold=rng.uniform(0, 0.35),
        colour=colour,
        petiole=rng.uniform(0.1, 0.8),
        seed=int(rng.integers(2**31)),
    )


def _poses(rng: np.random.Generator, kind: ForeignKind) -> list[Pose]:
    """Lay the blades of one plant out in the frame."""
    turn = float(rng.uniform(0, 2 * np.pi))
    x, y = (float(value) for value in 0.5 + rng.normal(0, 0.04, 2))
    squeeze = float(rng.uniform(0.8, 1))
    match kind:
        case "trifoliate" | "palmate":
            count = 3 if kind == "trifoliate" else int(rng.integers(5, 8))
            spread = rng.uniform(1.0, 1.5) if kind == "trifoliate" else rng.uniform(0.6, 0.95)
            length = float(rng.uniform(0.19, 0.26))
            angles = turn + (np.arange(count) - (count - 1) / 2) * spread
            return [Pose(x + length * np.cos(a), y + length * np.sin(a), float(a), length, squeeze) for a in angles]
        case "compound":
            pairs, length = int(rng.integers(2, 6)), float(rng.uniform(0.1, 0.18))
            poses = []
            for step in np.linspace(-0.35, 0.3, pairs):
                for lean in (-1.1, 1.1):
                    a = turn + lean
                    reach_x = step * np.cos(turn) + length * np.cos(a)
                    reach_y = step * np.sin(turn) + length * np.sin(a)
                    poses.append(Pose(x + reach_x, y + reach_y, float(a), length, squeeze))
            return [*poses, Pose(x + 0.4 * np.cos(turn), y + 0.4 * np.sin(turn), turn, length, squeeze)]
        case "grass" | "needles":
            count = int(rng.integers(3, 8) if kind == "grass" else rng.integers(8, 15))
            spread = 0.5 if kind == "grass" else 1.4
            places = 0.5 + rng.uniform(-0.28, 0.28, (count, 2))
            angles = turn + rng.uniform(-spread, spread, count)
            lengths = rng.uniform(0.25, 0.7 if kind == "grass" else 0.4, count)
            return [
                Pose(float(px), float(py), float(a), float(n), 1.0)
                for (px, py), a, n in zip(places, angles, lengths, strict=True)
            ]
        case _:
            return [Pose(x, y, turn, float(rng.uniform(0.34, 0.5)), squeeze)]


class _Layers(NamedTuple):
    """What `_paint` changes."""

    canvas: Floats
    cover: Floats


def _paint(
    canvas: Floats,
    cover: Floats,
    blade: Blade,
    pose: Pose,
    light: Light,
    shadow: float,
    disease: str,
    rng: np.random.Generator,
) -> _Layers:
    """Paint one blade with its lesions; small blades are painted in a window, which is faster."""
    size = canvas.shape[0]
    reach = round(min(0.7, pose.length * 1.8) * size)
    left, top = (int(np.clip(round(p * size) - reach, 0, size)) for p in (pose.x, pose.y))
    side = min(2 * reach, size - left, size - top)
    if side < 8:
        return _Layers(canvas, cover)
    window = np.s_[top : top + side, left : left + side]
    share = size / side
    local = Pose(
        (pose.x * size - left) / side, (pose.y * size - top) / side, pose.angle, pose.length * share, pose.squeeze
    )
    painted: Painted = paint_blade(canvas[window], blade, local, light, shadow)
    canvas, cover = canvas.copy(), cover.copy()
    canvas[window] = paint_lesions(painted, settle(disease, blade, rng), local).canvas
    cover[window] = np.maximum(cover[window], painted.cover)
    return _Layers(canvas, cover)
