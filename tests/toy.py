"""Coloured pictures as a task: three labels that a random image tower tells apart, some of them hard to tell."""

from __future__ import annotations

import atexit
import csv
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tiny_clip import write_tiny_clip

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import EncoderSpec
from secondlook.eval.evaluate import Evaluated, evaluate
from secondlook.eval.fit import fit
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.fitted import Model

LABELS = ("blue", "green", "red")
COLOURS = {"blue": (50, 70, 190), "green": (60, 170, 60), "red": (190, 60, 50)}
GROUPS = {"train": 8, "calibration": 14, "test": 6}
"""Groups of each label; each is photographed twice."""
HARD = 4
"""Every fourth group is half the colour of another label."""


def toy_image(label: str, number: int, view: int = 0, size: int = 40) -> Image.Image:
    rng = np.random.default_rng([number, LABELS.index(label)])
    colour = np.array(COLOURS[label], float)
    if number % HARD == 3:
        colour = (colour + np.array(COLOURS[LABELS[rng.integers(3)]])) / 2
    colour += rng.normal(0, 12, 3)
    pixels = colour + np.random.default_rng([number, LABELS.index(label), view]).normal(0, 25, (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_toy(folder: Path, splits: bool = True) -> Path:
    """Write pictures and index.csv; without splits the data set leaves them to `fit`."""
    rows = []
    first = 0
    for split, n in GROUPS.items():
        for label in LABELS:
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for number in range(first, first + n):
                for view in range(2):
                    path = f"{split}/{label}/{number}_{view}.png"
                    toy_image(label, number, view).save(folder / path)
                    rows.append((path, label, f"{label}-{number}", split))
        first += n
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "group", "split")[: 4 if splits else 3])
        writer.writerows(row[: 4 if splits else 3] for row in rows)
    return folder


class Toy(NamedTuple):
    home: Path
    data: Path
    clip: Path
    model: Path
    """A model folder; shared by all tests, so never written to."""
    fitted: Model

    @property
    def config(self) -> Config:
        return toy_config(self.clip)


def toy_config(clip: Path, **more: object) -> Config:
    return Config(encoder=EncoderSpec(model=str(clip)), **{"target_risk": 0.15, "neighbours": 5, **more})


@cache
def toy() -> Toy:
    """Make data, encoder and model once for all tests."""
    home = Path(tempfile.mkdtemp(prefix="secondlook-toy-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    data, clip = write_toy(home / "data"), write_tiny_clip(home / "clip")
    model = fit(data, home / "model", config=toy_config(clip))
    return Toy(home, data, clip, home / "model", model)


@cache
def evaluated() -> tuple[Path, Evaluated]:
    """Evaluate once for all tests that only read a run; the strangers are gray."""
    t = toy()
    (t.home / "gray").mkdir()
    for i in range(12):
        gray = np.random.default_rng(i).integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(gray).save(t.home / "gray" / f"{i}.png")
    run = t.home / "run"
    with EmbeddingCache(t.home / "cache") as store:
        return run, evaluate(t.data, t.model, run, cache=store, ood=[t.home / "gray"])
