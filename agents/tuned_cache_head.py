"""A cache whose keys are trained: Tip-Adapter-F, on frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.cache_head import CacheHead, build_cache, load_cache
from secondlook.agents.cache_memory import FARTHEST, remember
from secondlook.agents.cache_search import held_out_nll, held_out_sides, search_weights
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons
from secondlook.agents.temperature import fit_temperature

Singles = NDArray[np.float32]
Ints = NDArray[np.intp]
BATCH = 256
RATE = 5e-3
"""Step of a key's coordinate, divided by beta: a sharper affinity changes more with the same step."""
DECAY = 0.01
MOMENTA = (0.9, 0.999)
TINY = 1e-4


@dataclass
class AdamW:
    """Adam with decoupled weight decay, for one array.

    References
    ----------
    Loshchilov and Hutter (2019), https://arxiv.org/abs/1711.05101.
    """

    rate: float
    decay: float = DECAY
    step: int = 0
    first: Singles | float = 0.0
    second: Singles | float = 0.0

    def move(self, values: Singles, slope: Singles) -> None:
        """Descend one step; `values` is changed in place."""
        a, b = MOMENTA
        self.step += 1
        self.first = a * self.first + (1 - a) * slope
        self.second = b * self.second + (1 - b) * slope**2
        root = np.sqrt(self.second / (1 - b**self.step)) + TINY
        values *= np.float32(1 - self.rate * self.decay)
        values -= np.asarray(self.rate / (1 - a**self.step) * self.first / root, dtype=np.float32)


class TunedCacheSpec(HeadSpec):
    """Tip-Adapter-F: a cache whose keys descend the cross-entropy of the training images.

    While an image is learned from, the keys of its own group are hidden from it: near itself every image is right. The
    number of passes is the one of the lowest NLL on held-out groups; where none can be held out, nothing is trained.

    References
    ----------
    Zhang et al. (2022), https://arxiv.org/abs/2207.09519.
    """

    kind: Literal["cache-tuned"] = "cache-tuned"
    name: str = "cache-tuned"
    trains: ClassVar[bool] = True

    most_keys: int = Field(2048, ge=1)
    """With more training images, those of a label that are alike share a key."""
    passes: int = Field(40, ge=0, le=1000)
    """Most passes over the training images."""

    def fit(self, lessons: Lessons) -> CacheHead:
        """Learn; see `HeadSpec.fit`."""
        lessons.need(self.name)
        weights = search_weights(lessons, self.most_keys)
        head = build_cache(lessons, weights, self.most_keys)
        sides = held_out_sides(lessons)
        if not sides or not weights.weight:
            return head
        losses = np.zeros(self.passes + 1)
        for inside, outside in sides:
            part = lessons.part(inside)
            start = build_cache(part, weights, self.most_keys)
            heads = _passes(start, part, self.most_keys, self.passes)
            rows, truth = lessons.vectors[outside], lessons.truth[outside]
            losses += [len(outside) * held_out_nll(h.logits(rows), truth) for h in heads]
        *_, tuned = _passes(head, lessons, self.most_keys, int(losses.argmin()))
        return tuned

    def load(self, tensors: Tensors) -> CacheHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return load_cache(tensors)


def _passes(head: CacheHead, lessons: Lessons, most_keys: int, number: int) -> Iterator[CacheHead]:
    """Yield the head as it is, and after each of some passes; every one shares its keys with the next."""
    keys = head.keys.copy()
    head = replace(head, keys=keys)
    yield head
    sources = remember(lessons, most_keys).sources
    _, group = np.unique(lessons.groups, return_inverse=True)
    # An averaged key is of many groups, and of none.
    owner = np.full(len(keys), -1)
    if len(keys) == len(lessons):
        owner[sources] = group
    rng = np.random.default_rng(lessons.seed)
    hotness = _temperature(head, lessons, owner, group)
    adam = AdamW(RATE / head.weights.beta)
    for _ in range(number):
        order = rng.permutation(len(lessons))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            hidden = owner == group[rows][:, None]
            adam.move(keys, key_slope(head, lessons.vectors[rows], lessons.truth[rows], hidden, hotness))
        yield head


def _temperature(head: CacheHead, lessons: Lessons, owner: Ints, group: Ints) -> float:
    rows = np.random.default_rng(lessons.seed).permutation(len(lessons))[: 4 * BATCH]
    logits = _forward(head, lessons.vectors[rows], owner == group[rows][:, None])[0]
    return fit_temperature(logits.astype(np.float64), lessons.truth[rows])


def _forward(head: CacheHead, rows: Singles, hidden: NDArray[np.bool_]) -> tuple[Singles, Singles]:
    """Logits of shape (B, K), without the hidden keys, and affinities times weight of shape (B, M)."""
    w = head.weights
    exponent = np.float32(w.beta) * (rows @ head.keys.T - np.float32(w.anchor))
    counted = np.float32(w.weight) * np.exp(np.minimum(exponent, np.float32(FARTHEST)))
    counted[hidden] = 0
    fixed = head.words.logits(rows).astype(np.float32) - head.far(rows)
    return np.asarray(fixed + counted @ head.votes, dtype=np.float32), counted


def key_slope(head: CacheHead, rows: Singles, truth: Ints, hidden: NDArray[np.bool_], temperature: float) -> Singles:
    """Slope of the mean cross-entropy in the keys, of shape (M, D).

    Parameters
    ----------
    head : CacheHead
    rows : ndarray of shape (B, D)
    truth : ndarray of shape (B,)
    hidden : ndarray of bool of shape (B, M)
        Keys that an image must not see.
    temperature : float
        Divides the logits.
    """
    from scipy.special import softmax

    logits, counted = _forward(head, rows, hidden)
    wrong = softmax(logits / np.float32(temperature), axis=1)
    wrong[np.arange(len(truth)), truth] -= 1
    wrong /= np.float32(temperature * len(truth))
    slope: Singles = (counted * (wrong @ head.votes.T) * np.float32(head.weights.beta)).T @ rows
    return slope
