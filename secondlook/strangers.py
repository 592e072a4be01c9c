"""Images that are not apple leaves, for testing and training the refusal of strangers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from secondlook.foreign_leaves import draw_foreign_leaf
from secondlook.scenes import draw_scene

StrangerKind = Literal["non-leaf", "other-plant"]
"""non-leaf: far from the task; other-plant: a leaf, but not of an apple tree, near to it."""


def draw_stranger(kind: StrangerKind, seed: int, size: int = 256) -> Image.Image:
    """Draw one stranger.

    Parameters
    ----------
    kind : StrangerKind
        Far from apple leaves or near to them.
    seed : int
        Not negative; the same kind and seed give the same image.
    size : int
        Height and width in pixels.

    Returns
    -------
    PIL.Image.Image
        RGB, size x size.

    Examples
    --------
    >>> draw_stranger("non-leaf", 3, size=32).tobytes() == draw_stranger("non-leaf", 3, size=32).tobytes()
    True
    """
    if kind == "non-leaf":
        return draw_scene(np.random.default_rng([seed, 0]), size)
    return draw_foreign_leaf(np.random.default_rng([seed, 1]), size)


def write_strangers(folder: str | Path, n: int, seed: int = 0, size: int = 256) -> Path:
    """Write strangers: every second one a leaf of another plant, the others no leaf at all.

    Parameters
    ----------
    folder : str or Path
        Made if need be. Gets `<kind>/<number>.jpg` and `index.csv` with path and kind.
    n : int
        How many.
    seed : int
        Seed of the first; others follow.
    size : int
        Height and width in pixels.

    Returns
    -------
    Path
        The folder.

    Examples
    --------
    >>> import tempfile
    >>> folder = write_strangers(tempfile.mkdtemp(), 3, size=32)
    >>> sorted(path.parent.name for path in folder.glob("*/*.jpg"))
    ['non-leaf', 'non-leaf', 'other-plant']
    """
    folder = Path(folder)
    rows: list[tuple[str, str]] = []
    for number in range(n):
        kind: StrangerKind = "other-plant" if number % 2 else "non-leaf"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        path = f"{kind}/{seed + number}.jpg"
        draw_stranger(kind, seed + number, size).save(folder / path, quality=92)
        rows.append((path, kind))
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "kind"))
        writer.writerows(rows)
    return folder
