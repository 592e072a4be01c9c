"""How every head learns from few images: accuracy on held-out images against images per label, in one picture.

    python benchmarks/learning_curves.py DATA [--shots 1 2 4 8 16] [--seeds 5] [--split test] [--figure curves.svg]

DATA is what `secondlook fit` takes. For each seed so many images of each label are drawn from train, of different
groups where there are enough, and every head is fitted on the same draw. Intervals are 95 %, of the mean over seeds,
with the groups of the split resampled.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import text_classifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import EncoderSpec, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.heads import KINDS
from secondlook.agents.lessons import Lessons
from secondlook.eval.bootstrap import mean_interval
from secondlook.eval.cases import read_dataset
from secondlook.eval.embedded import embed_split
from secondlook.eval.figures import STYLE
from secondlook.eval.learn import lessons_of
from secondlook.eval.progress import silent
from secondlook.eval.task_file import read_task, read_templates

ZERO_SHOT = "zero-shot"
MARKERS = "osD^v<>pPX*hd8"
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#595959")
"""Okabe and Ito's, which colour-blind readers tell apart; shapes tell apart what they repeat for."""


def draw(lessons: Lessons, shots: int, rng: np.random.Generator) -> Lessons:
    """Draw so many images of each label: of different groups first."""
    chosen: list[int] = []
    for label in range(lessons.n_labels):
        rows = rng.permutation(np.flatnonzero(lessons.truth == label))
        seen: dict[str, int] = {}
        rank = {}
        for row in rows:
            group = lessons.groups[row]
            rank[row] = seen[group] = seen.get(group, -1) + 1
        chosen += sorted(rows, key=lambda row: rank[row])[:shots]
    return lessons.part(np.array(chosen))


def measure(data: Path, shots: Sequence[int], seeds: int, split: str, encoder: str, skip: Sequence[str]) -> Any:
    """Return, by head and number of shots, mean accuracy, its interval, the seeds' standard deviation and seconds."""
    dataset = read_dataset(data)
    task, templates = read_task(dataset.labels, None), tuple(read_templates("clip_templates.txt").lines)
    with TemporaryDirectory() as folder, EmbeddingCache(Path(folder)) as cache:
        embedder = Embedder(OpenClipEncoder(EncoderSpec(model=encoder)), cache, batch_size=64)
        train, test = (embed_split(s, dataset.split(s), task, embedder, silent)[0] for s in ("train", split))
    words = text_classifier(embedder.encoder, task, templates)
    whole = lessons_of(train, task, words, embedder.encoder, templates)
    right = words.logits(test.vectors).argmax(1) == test.truth
    figures = {ZERO_SHOT: {str(k): _figure([right], test.groups, 0.0) for k in shots}}
    for kind, make in KINDS.items():
        if kind in skip:
            continue
        for k in shots:
            found: list[NDArray[np.bool_]] = []
            start = time.perf_counter()
            for seed in range(seeds):
                few = draw(whole, k, np.random.default_rng(seed))
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # convergence of heads on one image is no news here
                        found.append(make().fit(few).logits(test.vectors).argmax(1) == test.truth)
                except ConfigError as error:
                    figures.setdefault(kind, {})[str(k)] = {"note": error.what}
                    break
            else:
                took = (time.perf_counter() - start) / seeds
                figures.setdefault(kind, {})[str(k)] = _figure(found, test.groups, took)
    return {"data": str(data), "split": split, "n": len(test.cases), "groups": len(set(test.groups)), "seeds": seeds,
            "encoder": encoder, "heads": figures}  # fmt: skip


def _figure(right: Sequence[NDArray[np.bool_]], groups: Sequence[str], seconds: float) -> dict[str, float]:
    each = np.mean(right, axis=0)
    interval = mean_interval(each, groups, rng=np.random.default_rng(0))
    sd = float(np.std([row.mean() for row in right]))
    return {"accuracy": interval.value, "low": interval.lo, "high": interval.hi, "sd": sd, "seconds": seconds}


def picture(found: Any, path: Path) -> None:
    """Draw all heads into one plot, beside one another at each number of shots."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    heads, shots = list(found["heads"]), list(next(iter(found["heads"].values())))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for i, head in enumerate(heads):
            rows = [(j, found["heads"][head][k]) for j, k in enumerate(shots)]
            rows = [(j, row) for j, row in rows if "accuracy" in row]
            at = [j + 0.8 * ((i + 0.5) / len(heads) - 0.5) for j, _ in rows]
            value = np.array([row["accuracy"] for _, row in rows])
            low, high = (np.array([row[end] for _, row in rows]) for end in ("low", "high"))
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.errorbar(at, value, [value - low, high - value], color=colour, marker=marker, linestyle="none",
                          markersize=4, elinewidth=1, alpha=0.9, label=head)  # fmt: skip
        axes.set_xticks(range(len(shots)), shots)
        axes.set_xlabel("training images of each label")
        axes.set_ylabel(f"accuracy, {found['split']} split (n = {found['n']}, {found['groups']} groups)")
        axes.grid(axis="y", linewidth=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", default="test")
    parser.add_argument("--encoder", default="leaf-tiny")
    parser.add_argument("--skip", nargs="*", default=[], help="kinds of heads to leave out")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    result = measure(given.data, given.shots, given.seeds, given.split, given.encoder, given.skip)
    if given.figure:
        picture(result, given.figure)
    print(json.dumps(result))
