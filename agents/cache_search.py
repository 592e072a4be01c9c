"""How sharp a cache is and what it weighs: found on held-out groups, one number after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.cache_memory import Weights, affinity, class_scores, divergence, remember
from secondlook.agents.lessons import Lessons
from secondlook.agents.temperature import fit_temperature

Singles = NDArray[np.float32]
Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
GRIDS: dict[str, tuple[float, ...]] = {
    "weight": (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    "beta": (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0),
    "gamma": (0.0, 0.3, 1.0, 3.0, 10.0, 30.0),
    "delta": tuple(i / 10 for i in range(11)),
}
"""Candidates. `weight` is in logits: what the cache gives a typical image's nearest label."""
START = {"weight": 3.0, "beta": 20.0, "gamma": 0.0, "delta": 0.0}
UNKNOWN = Weights(weight=1.17, beta=5.5)
"""Where no group can be held out, and so nothing be measured: the values from which its authors start."""
SWEEPS = 4
SEARCHED = 2000
"""With more images, one fold is held out, and of it at most half as many as this."""


class _HeldOut(NamedTuple):
    """Q images of one fold, and a memory of the others."""

    words: Floats
    votes: Singles
    images: Singles
    """Similarities of shape (Q, M)."""
    captions: Singles | None
    far: Floats
    """Divergences summed by label, of shape (Q, K)."""
    truth: Ints


def search_weights(lessons: Lessons, most_keys: int) -> Weights:
    """Find the weights of the lowest held-out NLL, each set at its own best temperature.

    Parameters
    ----------
    lessons : Lessons
        Each label needs two groups, else `UNKNOWN` times the images of a label is returned.
    most_keys : int
        See `remember`.
    """
    sides = held_out_sides(lessons)
    if not sides:
        return UNKNOWN._replace(weight=UNKNOWN.weight * len(lessons) / lessons.n_labels)
    parts = [_hold_out(lessons, inside, outside, most_keys) for inside, outside in sides]
    words, far, truth = (np.concatenate([getattr(part, name) for part in parts]) for name in ("words", "far", "truth"))

    @cache
    def typical(delta: float) -> float:
        """Similarity of a typical image to its nearest key."""
        return float(np.median(np.concatenate([_similarity(part, delta).max(axis=1) for part in parts])))

    @cache
    def sums(beta: float, delta: float) -> tuple[Floats, float]:
        """Affinities summed by label, of shape (Q, K), and the largest of a typical image."""
        weights = Weights(1.0, beta, typical(delta))
        found = np.concatenate([affinity(_similarity(part, delta), weights) @ part.votes for part in parts])
        return found.astype(np.float64), max(float(np.median(found.max(axis=1))), 1e-30)

    def loss(point: Mapping[str, float]) -> float:
        votes, top = sums(point["beta"], point["delta"])
        logits = words + point["weight"] / top * votes - point["gamma"] * far
        return held_out_nll(logits, truth)

    captioned = any(part.captions is not None for part in parts)
    names = tuple(GRIDS) if captioned else ("weight", "beta")
    found = coordinate_search(loss, {name: GRIDS[name] for name in names}, START)
    beta, delta = found["beta"], found["delta"]
    weight = found["weight"] / sums(beta, delta)[1]
    return Weights(weight, beta, typical(delta), found["gamma"], delta)


def held_out_sides(lessons: Lessons) -> list[tuple[Ints, Ints]]:
    """Return indices inside and outside by fold: none where a label would be missing, one where images are many."""
    folds = lessons.folds()
    if folds is None:
        return []
    sides = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    if any(len(np.unique(lessons.truth[inside])) < lessons.n_labels for inside, _ in sides):
        return []
    if len(lessons) > SEARCHED:
        inside, outside = sides[0]
        return [(inside, np.random.default_rng(lessons.seed).permutation(outside)[: SEARCHED // 2])]
    return sides


def held_out_nll(logits: Floats, truth: Ints) -> float:
    """NLL of a case, in nats, at the temperature that suits logits of shape (N, K) best."""
    from scipy.special import log_softmax

    log_probs = log_softmax(logits / fit_temperature(logits, truth), axis=1)
    return -float(log_probs[np.arange(len(truth)), truth].mean())


def coordinate_search(
    loss: Callable[[Mapping[str, float]], float], grids: Mapping[str, Sequence[float]], start: Mapping[str, float]
) -> dict[str, float]:
    """Take the best value of one coordinate after the other, until a sweep over all of them changes none.

    Examples
    --------
    >>> grid = (0.0, 1.0, 2.0, 3.0)
    >>> hill = lambda p: (p["x"] - 2) ** 2 + (p["y"] - p["x"]) ** 2
    >>> coordinate_search(hill, {"x": grid, "y": grid}, {"x": 0.0, "y": 3.0})
    {'x': 2.0, 'y': 2.0}
    """
    point = dict(start)
    seen: dict[tuple[float, ...], float] = {}

    def at(name: str, value: float) -> float:
        there = {**point, name: value}
        key = tuple(there.values())
        if key not in seen:
            seen[key] = loss(there)
        return seen[key]

    for _ in range(SWEEPS):
        before = dict(point)
        for name, grid in grids.items():
            best = min(grid, key=lambda value, name=name: at(name, value))  # type: ignore[misc]
            if at(name, best) < at(name, point[name]):
                point[name] = best
        if point == before:
            break
    return point


def _hold_out(lessons: Lessons, inside: Ints, outside: Ints, most_keys: int) -> _HeldOut:
    memory = remember(lessons.part(inside), most_keys)
    rows, words = lessons.vectors[outside], lessons.classifier
    captioned = memory.captions is not None
    far = (
        divergence(words, rows, class_scores(words, memory.images)) @ memory.votes
        if captioned
        else np.zeros((len(rows), 1))
    )
    return _HeldOut(
        words=words.logits(rows),
        votes=memory.votes,
        images=rows @ memory.images.T,
        captions=rows @ memory.captions.T if memory.captions is not None else None,
        far=np.asarray(far, dtype=np.float64),
        truth=lessons.truth[outside],
    )


def _similarity(part: _HeldOut, delta: float) -> Singles:
    if part.captions is None:
        return part.images.copy()
    return np.asarray((1 - delta) * part.images + delta * part.captions, dtype=np.float32)
