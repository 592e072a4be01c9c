"""The demonstration: rendered leaves, fitted, judged and reported, offline."""

from __future__ import annotations

import csv
import fcntl
import shutil
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from secondlook.agents.embedding_cache import EmbeddingCache, default_cache_folder
from secondlook.agents.errors import ConfigError
from secondlook.agents.model_folder import EMBEDDED
from secondlook.agents.qwen_vl import QwenSpec
from secondlook.eval.evaluate import evaluate
from secondlook.eval.fit import fit
from secondlook.eval.progress import Progress, silent
from secondlook.leaves import LABELS, Leaf, render_leaf
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.fitted import MODEL_FILE
from secondlook.orchestrator.language import Language
from secondlook.strangers import write_strangers

SPLITS = {"train": 12, "calibration": 16, "test": 9}
"""Leaves per label of each split; 64 calibration leaves can promise an error under 5 %."""
VIEWS = 2
STRANGERS = 40
SEED = 20_000
"""First seed of the demonstration's leaves: far from those that leaf-tiny was trained on."""
MARK = "secondlook-demo"
MADE = ("images", "strangers", "cache", "model", "run")
"""What a demonstration's folder holds."""


def demo_image(label: str, seed: int = 30_000, view: int = 0) -> Image.Image:
    """Draw a leaf that the demonstration model has not seen.

    Parameters
    ----------
    label : str
        One of `secondlook.leaves.LABELS`.
    seed : int
        Which leaf.
    view : int
        Which photograph of it.

    Examples
    --------
    >>> demo_image("scab").size
    (256, 256)
    """
    return render_leaf(Leaf.grow(label, seed), view).image


def write_demo_images(
    folder: Path, progress: Progress, *, splits: Collection[str] = tuple(SPLITS), processes: bool = True
) -> Path:
    """Draw the demonstration's leaves, with an index that names group and split.

    Parameters
    ----------
    folder : Path
    progress : Progress
    splits : collection of str
        Those that are drawn, of `SPLITS`.
    processes : bool
        Draw on all cores. Not within a program of the user's: its threads, or a script without a main guard, would not
        bear new processes.

    Returns
    -------
    Path
        The folder, which holds index.csv.
    """
    jobs: list[tuple[str, int, str]] = []
    for label in LABELS:
        seed = SEED
        for split, leaves in SPLITS.items():
            if split in splits:
                jobs += [(label, seed + number, split) for number in range(leaves)]
            seed += leaves
    rows: list[tuple[str, str, str, str]] = []

    def collect(drawn: Iterable[list[tuple[str, str, str, str]]]) -> None:
        for done, written in enumerate(drawn, 1):
            rows.extend(written)
            progress("drawing leaves", done, len(jobs))

    folders = [str(folder)] * len(jobs)
    if processes:
        with ProcessPoolExecutor() as pool:
            collect(pool.map(_draw, folders, jobs, chunksize=4))
    else:
        collect(map(_draw, folders, jobs))
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "group", "split"))
        writer.writerows(rows)
    return folder


def _draw(folder: str, job: tuple[str, int, str]) -> list[tuple[str, str, str, str]]:
    label, seed, split = job
    group = f"{label}-{seed}"
    rows = []
    (Path(folder) / split / label).mkdir(parents=True, exist_ok=True)
    for view in range(VIEWS):
        path = f"{split}/{label}/{group}_{view}.jpg"
        demo_image(label, seed, view).save(Path(folder) / path, quality=92)
        rows.append((path, label, group, split))
    return rows


def demo_config() -> Config:
    """Return the demonstration's configuration: `leaf-tiny-vl` joins the second panel."""
    return Config(language=Language(agents=(QwenSpec(name=EMBEDDED, model=EMBEDDED, looks=(2,)),)))


def run_demo(out: Path, progress: Progress) -> tuple[dict[str, float | int | str | None], Path | None]:
    """Draw, fit, evaluate and report, in a folder of its own; a demonstration that is there is done anew.

    Returns
    -------
    metrics : dict
        See `secondlook.eval.summary.summarise`.
    report : Path
    """
    _own(out)
    _clear(out)
    images = write_demo_images(out / "images", progress)
    strangers = write_strangers(out / "strangers", STRANGERS, seed=SEED)
    with EmbeddingCache(out / "cache") as cache:
        fit(images, out / "model", config=demo_config(), cache=cache, progress=progress)
        found = evaluate(images, out / "model", out / "run", cache=cache, ood=[strangers], progress=progress)
    return found.metrics, found.report


def demo_model() -> Path:
    """Return the demonstration model of this version, fitted and kept in the cache folder on first use."""
    home = default_cache_folder() / f"demo-{version('secondlook')}"
    model = home / "model"
    if not (model / MODEL_FILE).is_file():
        _own(home)
        with (home / f".{MARK}").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two programs may ask for it first at the same time
            if not (model / MODEL_FILE).is_file():
                _clear(home)
                needed = ("train", "calibration")
                images = write_demo_images(home / "images", silent, splits=needed, processes=False)
                fit(images, model, config=demo_config())
    return model


def _clear(folder: Path) -> None:
    """Delete what an earlier demonstration made, and nothing else."""
    for name in MADE:
        shutil.rmtree(folder / name, ignore_errors=True)


def _own(folder: Path) -> None:
    """Make and mark a folder; refuse one that is not empty and not a demonstration's."""
    mark = folder / f".{MARK}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not mark.exists():
            raise ConfigError(f"{folder} exists and is not a demonstration's folder.", "Choose another --out.")
        mark.touch()
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.", "Choose a writable --out.") from error
