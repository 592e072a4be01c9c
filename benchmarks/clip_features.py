"""How right the heads are on real CLIP features with labels, and how true their confidences after calibration.

    python benchmarks/clip_features.py FEATURES.npz [--heads gda ncm] [--seeds 20] [--shots 1 2 4 8 16]

FEATURES.npz holds `embedding` [N, D] and `label` [N]. The features come without words, so the heads get none: every
head is measured that neither learns words nor answers by them alone. Each one is fitted with its defaults

- in five folds (StratifiedKFold, shuffled by seed 0): accuracy of the images held out; NLL and ECE (15 bins) of their
  confidences as `fit` would calibrate them, by a calibrator that never saw the fold it is applied to;
- on a few images of each label, drawn anew by each seed: accuracy on all the others, mean and standard deviation.

Then each stranger score: a label is left out, the score is fitted on four of five folds of the others, and the images
of the fifth are told from those of the label.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from secondlook.agents.calibration import fit_calibrator, log_distribution
from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import HeadSpec
from secondlook.agents.heads import KINDS
from secondlook.agents.lessons import Lessons
from secondlook.agents.strangeness import SCORES, ScoreName
from secondlook.agents.stranger_scores import fit_stranger_scores
from secondlook.eval.ood import auroc
from secondlook.eval.proper_scores import nll
from secondlook.eval.reliability import ece

Floats = NDArray[np.float64]
SCALE = 100.0
"""CLIP's factor on cosines."""


class Scores(NamedTuple):
    """Of one head in five folds."""

    accuracy: float
    nll: float
    ece: float
    perfect: float
    """Mean ECE of as many cases whose confidences are these and exactly true: less cannot be told from perfect."""


def read(path: Path) -> Lessons:
    """Read the features, scaled to length 1; every image is a group of its own, and no label has words."""
    with np.load(path, allow_pickle=False) as file:
        rows, names = file["embedding"].astype(np.float64), [str(label) for label in file["label"]]
    labels = tuple(sorted(set(names)))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    none = np.zeros((len(labels), vectors.shape[1]), dtype=np.float32)
    truth = np.array([labels.index(name) for name in names], dtype=np.intp)
    groups = tuple(str(i) for i in range(len(truth)))
    return Lessons(vectors, truth, groups, Task(labels=labels), TextClassifier(none, none[:0], SCALE))


def wordless(lessons: Lessons) -> dict[str, HeadSpec]:
    """Heads that are twice as right as chance after eight images a label and no words, by kind, with their defaults."""
    found, few = {}, lessons.thinned(8 * lessons.n_labels)
    for kind, spec in KINDS.items():
        if spec.learns_words:
            continue
        try:
            logits = spec().fit(few).logits(lessons.vectors)
        except ConfigError:
            continue
        if (logits.argmax(axis=1) == lessons.truth).mean() > 2 / lessons.n_labels:
            found[kind] = spec()
    return found


def out_of_fold(spec: HeadSpec, lessons: Lessons) -> tuple[Floats, NDArray[np.intp]]:
    """Logits of shape (N, K) by heads that have not seen the image's fold, and the fold of each image."""
    folds = np.empty(len(lessons), dtype=np.intp)
    logits = np.empty((len(lessons), lessons.n_labels))
    splitter = StratifiedKFold(5, shuffle=True, random_state=0)
    for fold, (inside, outside) in enumerate(splitter.split(lessons.vectors, lessons.truth)):
        folds[outside] = fold
        logits[outside] = spec.fit(lessons.part(inside)).logits(lessons.vectors[outside])
    return logits, folds


def five_folds(spec: HeadSpec, lessons: Lessons) -> Scores:
    """Measure a head on the images of each fold."""
    logits, folds = out_of_fold(spec, lessons)
    _, probs = fit_calibrator(log_distribution(logits, "logit"), lessons.truth, folds, "logit")
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == lessons.truth
    accuracy = float((logits.argmax(axis=1) == lessons.truth).mean())
    rng = np.random.default_rng(0)
    perfect = np.mean([ece(confidence, rng.random(len(confidence)) < confidence) for _ in range(100)])
    return Scores(accuracy, nll(probs, lessons.truth), ece(confidence, right), float(perfect))


def few_shots(spec: HeadSpec, lessons: Lessons, shots: int, seeds: int = 20) -> Floats:
    """Accuracy on all other images after so many of each label, of shape (seeds,)."""
    found = np.empty(seeds)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        every = [np.flatnonzero(lessons.truth == label) for label in range(lessons.n_labels)]
        chosen = np.concatenate([rng.choice(mine, shots, replace=False) for mine in every])
        others = np.setdiff1d(np.arange(len(lessons)), chosen)
        logits = spec.fit(lessons.part(chosen)).logits(lessons.vectors[others])
        found[seed] = (logits.argmax(axis=1) == lessons.truth[others]).mean()
    return found


def measure(lessons: Lessons, heads: dict[str, HeadSpec], shots: Sequence[int], seeds: int) -> None:
    """Print a row for each head as soon as it is measured."""
    print(f"n={len(lessons)} K={lessons.n_labels} D={lessons.vectors.shape[1]}; few shots: {seeds} seeds, mean±sd")
    print("| head | 5 folds | NLL | ECE | ECE if true | " + " | ".join(f"{n} a label" for n in shots) + " | seconds |")
    print("|" + "---|" * (6 + len(shots)))
    for kind, spec in heads.items():
        start = time.perf_counter()
        whole = five_folds(spec, lessons)
        few = [few_shots(spec, lessons, n, seeds) for n in shots]
        cells = [f"{each.mean():.3f}±{each.std():.3f}" for each in few]
        row = [kind, f"{whole.accuracy:.4f}", f"{whole.nll:.3f}", f"{whole.ece:.4f}", f"{whole.perfect:.4f}", *cells]
        print("| " + " | ".join([*row, f"{time.perf_counter() - start:.0f}"]) + " |", flush=True)


def strangers(lessons: Lessons) -> None:
    """Print how well each stranger score tells the images of a label held out from the others' held-out images."""
    labels = lessons.task.labels
    print("\nAUROC of strangers | " + " | ".join(f"without {label}" for label in labels) + " | mean")
    found = {name: [_held_out_auroc(lessons, label, name) for label in range(len(labels))] for name in SCORES}
    for name, row in sorted(found.items(), key=lambda item: -np.mean(item[1])):
        print(f"{name} | " + " | ".join(f"{value:.3f}" for value in row) + f" | {np.mean(row):.4f}", flush=True)


def _held_out_auroc(lessons: Lessons, label: int, name: ScoreName) -> float:
    """Mean over five folds of the other labels: fitted on four, own images of the fifth."""
    own, strange = lessons.vectors[lessons.truth != label], lessons.vectors[lessons.truth == label]
    truth = lessons.truth[lessons.truth != label]
    truth = truth - (truth > label)
    words = TextClassifier(np.delete(lessons.classifier.vectors, label, axis=0), lessons.classifier.negatives, 1.0)
    areas = []
    for inside, outside in StratifiedKFold(5, shuffle=True, random_state=0).split(own, truth):
        fitted = fit_stranger_scores(own[inside], truth[inside], words, None, (name,))
        areas.append(auroc(fitted.of(own[outside])[:, 0], fitted.of(strange)[:, 0]))
    return float(np.mean(areas))


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--heads", nargs="*", choices=[*KINDS], help="kinds; by default all that need no words")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--shots", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    args = parser.parse_args()
    lessons = read(args.features)
    heads = {kind: KINDS[kind]() for kind in args.heads} if args.heads else wordless(lessons)
    measure(lessons, heads, args.shots, args.seeds)
    strangers(lessons)


if __name__ == "__main__":
    main()
