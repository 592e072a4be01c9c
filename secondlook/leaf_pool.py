"""What leaf-tiny is trained on: photographs of a split, rendered leaves, and strangers, all in memory."""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secondlook.decoys import Photo, draw_decoy
from secondlook.leaf_texts import CLASSES
from secondlook.leaves import LABELS, Leaf, render_leaf
from secondlook.strangers import StrangerKind, draw_stranger


class Pool(NamedTuple):
    """Images with their classes and groups."""

    images: NDArray[np.uint8]
    """Red, green and blue, (N, H, H, 3)."""
    classes: NDArray[np.intp]
    """Positions in `secondlook.leaf_texts.CLASSES`, (N,)."""
    groups: tuple[str, ...]
    """The leaf that each image shows, N names."""

    def take(self, keep: NDArray[np.bool_]) -> Pool:
        """Return the images where `keep` is true."""
        return Pool(
            self.images[keep], self.classes[keep], tuple(g for g, k in zip(self.groups, keep, strict=True) if k)
        )


def join(*pools: Pool) -> Pool:
    """Put pools after each other."""
    return Pool(
        np.concatenate([pool.images for pool in pools]),
        np.concatenate([pool.classes for pool in pools]),
        tuple(group for pool in pools for group in pool.groups),
    )


def read_photo(path: Path, size: int) -> Photo:
    """Read a photograph as RGB, resized to a square, (size, size, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def read_split(root: Path, split: str, size: int) -> Pool:
    """Read the photographs of one split of a folder with an `index.csv` (path, label, group, split).

    Parameters
    ----------
    root : Path
        Holds `index.csv`.
    split : str
        Which rows of it.
    size : int
        Height and width in pixels.

    Returns
    -------
    Pool
    """
    with (root / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    if not rows:
        raise ValueError(f"{root / 'index.csv'}: no row of split {split!r}")
    return Pool(
        np.stack([read_photo(root / row["path"], size) for row in rows]),
        np.array([CLASSES.index(row["label"]) for row in rows]),
        tuple(row["group"] for row in rows),
    )


def read_folder(folder: Path, size: int, kind: StrangerKind) -> Pool:
    """Read every image below a folder as strangers of one kind."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = np.stack([read_photo(path, size) for path in paths])
    return Pool(images, np.full(len(paths), CLASSES.index(kind)), tuple(path.name for path in paths))


def hold_out(pool: Pool, share: float, rng: np.random.Generator) -> tuple[Pool, Pool]:
    """Split a pool by group, about `share` of the groups of every class into the second part."""
    held: set[str] = set()
    groups = np.array(pool.groups)
    for name in np.unique(pool.classes):
        mine = np.unique(groups[pool.classes == name])
        held.update(rng.choice(mine, max(1, round(share * len(mine))), replace=False).tolist())
    out = np.isin(groups, list(held))
    return pool.take(~out), pool.take(out)


def _leaf(seed: int, size: int) -> tuple[Photo, int]:
    label = LABELS[seed % len(LABELS)]
    # Three views of every leaf.
    leaf, view = Leaf.grow(label, seed // (3 * len(LABELS))), seed // len(LABELS) % 3
    return np.asarray(render_leaf(leaf, view, size).image), CLASSES.index(label)


def _stranger(seed: int, size: int, kind: StrangerKind) -> tuple[Photo, int]:
    return np.asarray(draw_stranger(kind, seed, size)), CLASSES.index(kind)


def _decoy(seed: int, photos: NDArray[np.uint8]) -> tuple[Photo, int]:
    decoy = draw_decoy(list(photos), np.random.default_rng([seed, 2]))
    return decoy.image, CLASSES.index(decoy.kind)


def _draw(maker: Callable[[int], tuple[Photo, int]], seeds: range, workers: int, name: str) -> Pool:
    with ProcessPoolExecutor(workers) as pool:
        made = list(pool.map(maker, seeds, chunksize=16))
    images, classes = zip(*made, strict=True)
    return Pool(np.stack(images), np.array(classes), tuple(f"{name}-{seed}" for seed in seeds))


class Drawn(NamedTuple):
    """What is drawn for a training."""

    leaves: Pool
    """Rendered apple leaves of the four labels."""
    strangers: Pool
    """Rendered strangers and decoys of both kinds."""


def draw_pools(photos: Pool, *, leaves: int, strangers: int, seed: int, workers: int = 2) -> Drawn:
    """Draw rendered leaves, rendered strangers and decoys.

    Parameters
    ----------
    photos : Pool
        Photographs of the training split, of which decoys are made.
    leaves : int
        Rendered leaves; the labels take turns.
    strangers : int
        Strangers: a quarter scenes, a quarter rendered other plants, half decoys.
    seed : int
        Of the first image; others follow.
    workers : int
        Processes.

    Returns
    -------
    Drawn
    """
    size = photos.images.shape[1]
    quarter = strangers // 4
    rendered = _draw(partial(_leaf, size=size), range(seed, seed + leaves), workers, "rendered")
    far = _draw(partial(_stranger, size=size, kind="non-leaf"), range(seed, seed + quarter), workers, "scene")
    near = _draw(partial(_stranger, size=size, kind="other-plant"), range(seed, seed + quarter), workers, "plant")
    decoys = _draw(partial(_decoy, photos=photos.images), range(seed, seed + 2 * quarter), workers, "decoy")
    return Drawn(rendered, join(far, near, decoys))
