"""How long heads take to fit and to predict, beside the plain loop over cases.

    python benchmarks/heads.py [--n 10000] [--dim 512] [--labels 50] [--kinds gda ncm ...]

Unit features around a random centre of each label, in groups of four. Every head is fitted on all of them and predicts
as many new ones, in one call; the plain loop predicts 200 of these one by one. By default the heads without training.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.head import HeadSpec
from secondlook.agents.heads import KINDS
from secondlook.agents.lessons import Lessons

TRAINING_FREE = ("gda", "ncm", "knn", "hopfield", "cache")
LOOP = 200


def features(n: int, dim: int, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors, truth and the unit centres of the labels."""
    centres = np.random.default_rng(0).normal(size=(labels, dim))
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % labels
    rows = centres[truth] + 2.5 * rng.normal(size=(n, dim))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit, truth.astype(np.intp), (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(np.float32)


def measure(spec: HeadSpec, lessons: Lessons, new: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Seconds to fit and to predict; how many times as long a case takes alone; accuracy."""
    start = time.perf_counter()
    head = spec.fit(lessons)
    fitted = time.perf_counter()
    logits = head.logits(new)
    done = time.perf_counter()
    for i in range(LOOP):
        head.logits(new[i : i + 1])
    alone = (time.perf_counter() - done) / LOOP
    return {
        "fit_s": round(fitted - start, 3),
        "predict_s": round(done - fitted, 3),
        "one_by_one_times": round(alone * len(new) / (done - fitted), 1),
        "accuracy": round(float((logits.argmax(axis=1) == truth).mean()), 4),
    }


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(TRAINING_FREE))
    given = parser.parse_args()
    vectors, truth, centres = features(given.n, given.dim, given.labels, 1)
    new, new_truth, _ = features(given.n, given.dim, given.labels, 2)
    task = Task(labels=tuple(f"label {k}" for k in range(given.labels)))
    words = TextClassifier(centres, np.zeros((0, given.dim), np.float32), 20.0)
    groups = tuple(f"{i // (4 * given.labels)}-{i % given.labels}" for i in range(given.n))
    lessons = Lessons(vectors, truth, groups, task, words)
    warnings.simplefilter("ignore")
    found = {kind: measure(KINDS[kind](), lessons, new, new_truth) for kind in given.kinds}
    total = {key: round(sum(row[key] for row in found.values()), 3) for key in ("fit_s", "predict_s")}
    print(json.dumps({"n": given.n, "dim": given.dim, "labels": given.labels, "heads": found, "together": total}))


if __name__ == "__main__":
    main()
