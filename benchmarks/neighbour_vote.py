"""How right the neighbours' vote is, and how true its confidences are after calibration, on features with labels.

    python benchmarks/neighbour_vote.py FEATURES.npz [--k 10] [--folds 5] [--repeats 20]

FEATURES.npz holds `embedding` [N, D] (unit rows), `label` [N] and `name` [N]. Each image is left out in turn: its k
nearest others are found by the real store and searcher and vote. Nothing but the image itself is held back, neither
near-duplicates nor groups, as where the published vote was measured. The calibrator is fitted on all folds but one and
applied to that one, `repeats` times; the shares as voted are measured beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import Calibrator, fit_calibrator, log_distributions
from secondlook.agents.case import Case, Evidence, Task
from secondlook.agents.folds import grouped_folds
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Prediction
from secondlook.agents.temperature import fit_temperature
from secondlook.eval.proper_scores import nll
from secondlook.eval.reliability import ece
from secondlook.retrieval.index import build_index
from secondlook.retrieval.neighbour_vote import NeighbourVote
from secondlook.retrieval.search import Searcher
from secondlook.retrieval.store import Item


def votes(path: Path, k: int) -> tuple[list[Prediction], NDArray[np.intp]]:
    """Let the k nearest others of each image vote; predictions and truth of N images."""
    with np.load(path, allow_pickle=False) as file:
        rows, labels, names = file["embedding"].astype(np.float64), file["label"], file["name"]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    task = Task(labels=tuple(sorted({str(label) for label in labels})))
    # The name stands for the file: the searcher holds an image back by its digest.
    cases = [Case(id=str(name), photo=Photo.of(str(name).encode())) for name in names]
    items = [
        Item(id=case.id, label=str(label), digest=case.photo.digest) for case, label in zip(cases, labels, strict=True)
    ]
    with TemporaryDirectory() as folder, build_index(folder, items, rows, "features") as index:
        open_to_all = replace(index, manifest=index.manifest.model_copy(update={"near_duplicate": 1.0}))
        found = Searcher(open_to_all, k=k).search(rows, cases)
    asked = [
        case.model_copy(update={"evidence": Evidence(neighbours=each)}) for case, each in zip(cases, found, strict=True)
    ]
    said = asyncio.run(NeighbourVote(task).predict(asked))
    truth = np.array([task.labels.index(str(label)) for label in labels], dtype=np.intp)
    return [vote for vote in said if isinstance(vote, Prediction)], truth


def measure(path: Path, k: int = 10, folds: int = 5, repeats: int = 20, seed: int = 0) -> dict[str, float]:
    """Measure the vote as voted, and calibrated out of fold: by a temperature, and by the kind that is chosen by NLL.

    `expected_ece` is the mean ECE that the chosen calibrator's confidences would have on as many cases if every one of
    them were exactly true: what is below it cannot be told from perfect.
    """
    said, truth = votes(path, k)
    raw, names = np.array([vote.scores for vote in said]), [str(i) for i in range(len(truth))]
    log_q, scale = log_distributions(said)
    found: dict[str, list[float]] = {}

    def note(name: str, probs: NDArray[np.float64]) -> None:
        right = probs.argmax(axis=1) == truth
        found.setdefault(f"{name}/accuracy", []).append(float(right.mean()))
        found.setdefault(f"{name}/ece", []).append(ece(probs.max(axis=1), right))
        found.setdefault(f"{name}/nll", []).append(nll(probs, truth))

    for r in range(repeats):
        rng = np.random.default_rng([seed, r])
        outer = grouped_folds(truth, names, rng, folds)
        by_temperature, chosen = np.empty_like(raw), np.empty_like(raw)
        for fold in range(folds):
            inside = outer != fold
            inner = grouped_folds(truth[inside], [names[i] for i in np.flatnonzero(inside)], rng)
            temperature = fit_temperature(log_q[inside], truth[inside])
            by_temperature[~inside] = Calibrator(kind="temperature", temperature=temperature).apply(log_q[~inside])
            chosen[~inside] = fit_calibrator(log_q[inside], truth[inside], inner, scale)[0].apply(log_q[~inside])
        note("temperature", by_temperature)
        note("chosen", chosen)
        confidence = chosen.max(axis=1)
        found.setdefault("chosen/expected_ece", []).append(ece(confidence, rng.random(len(truth)) < confidence))
    note("as_voted", raw)
    return {"n": len(truth), "k": k, **{name: float(np.mean(values)) for name, values in found.items()}}


def main() -> None:
    """Print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    print(json.dumps(measure(args.features, args.k, args.folds, args.repeats)))


if __name__ == "__main__":
    main()
