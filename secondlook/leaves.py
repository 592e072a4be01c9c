"""Rendered apple leaves of four labels, with lesion masks and several views of each leaf."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secondlook.backdrops import develop, draw_backdrop, draw_light
from secondlook.blades import Blade, Pose, paint_blade
from secondlook.lesions import Lesion, paint_lesions, settle

LABELS: tuple[str, ...] = ("black-rot", "healthy", "rust", "scab")


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One apple leaf: what stays the same from photograph to photograph."""

    label: str
    """One of `LABELS`."""
    seed: int
    """What the leaf was grown from."""
    blade: Blade
    """Outline, veins and colour."""
    lesions: tuple[Lesion, ...]
    """Empty for a healthy leaf."""

    @classmethod
    def grow(cls, label: str, seed: int) -> Leaf:
        """Grow the leaf of a label and a seed.

        Parameters
        ----------
        label : str
            One of `LABELS`.
        seed : int
            Not negative; the same label and seed give the same leaf.

        Returns
        -------
        Leaf

        Raises
        ------
        ValueError
            If the label is not one of `LABELS`.

        Examples
        --------
        >>> Leaf.grow("scab", 7) == Leaf.grow("scab", 7)
        True
        >>> Leaf.grow("healthy", 7).lesions
        ()
        """
        if label not in LABELS:
            raise ValueError(f"label: expected one of {', '.join(LABELS)}, got {label!r}")
        # The label is part of the seed: leaf 7 of scab and leaf 7 of rust are two leaves.
        rng = np.random.default_rng([seed, LABELS.index(label)])
        blade = grow_blade(rng)
        return cls(label=label, seed=seed, blade=blade, lesions=settle(label, blade, rng))


class RenderedLeaf(NamedTuple):
    """A photograph of a leaf with its ground truth."""

    image: Image.Image
    """RGB, size x size."""
    lesion_mask: NDArray[np.bool_]
    """True where a lesion is seen, (size, size); never outside `leaf_mask`."""
    leaf_mask: NDArray[np.bool_]
    """True where the blade is seen, (size, size)."""


def grow_blade(rng: np.random.Generator) -> Blade:
    """Draw the blade of an apple leaf: ovate, finely serrate, seven or so veins a side.

    Examples
    --------
    >>> blade = grow_blade(np.random.default_rng(0))
    >>> blade.teeth > 20 and blade.tooth_depth < 0.1
    True
    """
    width = rng.uniform(0.56, 0.92)
    bites = tuple(
        (float(rng.choice((-1, 1)) * rng.uniform(0.1, 0.95)), rng.uniform(0.02, 0.09), rng.uniform(0.05, 0.3))
        for _ in range(rng.poisson(0.7))
    )
    # Dark blue-green to light yellow-green, whatever the label: colour must not give the disease away.
    bright, yellow = rng.uniform(0.22, 0.56), rng.uniform(0.5, 0.86)
    return Blade(
        widths=(width * rng.uniform(0.85, 1.1), width * rng.uniform(0.85, 1.1)),
        base=rng.uniform(0.42, 0.72),
        tip=rng.uniform(0.55, 0.98),
        teeth=int(rng.integers(24, 46)),
        tooth_depth=rng.uniform(0.02, 0.07),
        bend=rng.normal(0, 0.09),
        warp=rng.uniform(0.015, 0.06),
        bites=bites,
        veins=rng.uniform(6, 10),
        vein_slope=rng.uniform(0.5, 0.95),
        vein_contrast=rng.uniform(0.15, 0.5),
        quilt=rng.uniform(0.2, 0.9),
        fold=rng.uniform(0, 0.28),
        colour=(bright * yellow, bright, bright * rng.uniform(0.3, 0.82)),
        petiole=rng.uniform(0.15, 0.7),
        seed=int(rng.integers(2**31)),
    )


def render_leaf(leaf: Leaf, view: int = 0, size: int = 256) -> RenderedLeaf:
    """Photograph a leaf.

    Views of one leaf differ in rotation, scale, place, foreshortening, light and backdrop, and in nothing else.

    Parameters
    ----------
    leaf : Leaf
        What is photographed.
    view : int
        Number of the photograph, not negative; the same leaf and view give the same image.
    size : int
        Height and width in pixels.

    Returns
    -------
    RenderedLeaf

    Examples
    --------
    >>> rendered = render_leaf(Leaf.grow("rust", 0), view=1, size=96)
    >>> rendered.image.size, bool(rendered.lesion_mask.any())
    ((96, 96), True)
    """
    rng = np.random.default_rng([leaf.seed, LABELS.index(leaf.label), view])
    light = draw_light(rng)
    # Half length and stalk must fit the frame for most views; a few are cut, as in real photographs.
    pose = Pose(
        x=float(0.5 + rng.normal(0, 0.03)),
        y=float(0.5 + rng.normal(0, 0.03)),
        angle=float(rng.uniform(0, 2 * np.pi)),
        length=float(rng.uniform(0.38, 0.52)),
        squeeze=float(rng.uniform(0.82, 1.0)),
    )
    backdrop = draw_backdrop(rng, size)
    painted = paint_blade(backdrop, leaf.blade, pose, light, shadow=float(rng.uniform(0.1, 0.85)))
    diseased = paint_lesions(painted, leaf.lesions, pose)
    return RenderedLeaf(develop(diseased.canvas, light, rng), diseased.mask, painted.cover >= 0.5)


def write_leaves(
    folder: str | Path, *, leaves_per_label: int = 10, views: int = 3, seed: int = 0, size: int = 256
) -> Path:
    """Write a labelled folder of rendered leaves.

    Parameters
    ----------
    folder : str or Path
        Made if need be. Gets `<label>/<group>_<view>.jpg` and `index.csv` with path, label and group.
    leaves_per_label : int
        Leaves (groups) of each label.
    views : int
        Photographs of each leaf.
    seed : int
        Seed of the first leaf; others follow. Folders with far apart seeds share no leaf.
    size : int
        Height and width in pixels.

    Returns
    -------
    Path
        The folder.

    Examples
    --------
    >>> import tempfile
    >>> folder = write_leaves(tempfile.mkdtemp(), leaves_per_label=1, views=2, size=32)
    >>> len(list(folder.glob("*/*.jpg"))), (folder / "index.csv").read_text().splitlines()[1]
    (8, 'black-rot/black-rot-0_0.jpg,black-rot,black-rot-0')
    """
    folder = Path(folder)
    rows: list[tuple[str, str, str]] = []
    for label in LABELS:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(seed, seed + leaves_per_label):
            leaf, group = Leaf.grow(label, number), f"{label}-{number}"
            for view in range(views):
                path = f"{label}/{group}_{view}.jpg"
                render_leaf(leaf, view, size).image.save(folder / path, quality=92)
                rows.append((path, label, group))
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "group"))
        writer.writerows(rows)
    return folder
