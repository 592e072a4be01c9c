"""A cache whose keys are trained: Tip-Adapter-F, on frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.cache_head import CacheHead, build_cache, load_cache
from secondlook.agents.cache_memory import FARTHEST, remember
from secondlook.agents.cache_search import held_out_nll, held_out_sides, search_weights
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons
from secondlook.agents.temperature import fit_temperature

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.intp]
BATCH = 256
"""Images of a step."""
RATE = 5e-3
"""Step of a key's coordinate, divided by beta: a sharper affinity changes more with the same step."""
DECAY = 0.01
TINY = 1e-4
"""AdamW's epsilon, as published."""


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
    """Yield the head as it is, and after each of some passes."""
    import torch

    yield head
    w = head.weights
    sources = remember(lessons, most_keys).sources
    group = np.unique(lessons.groups, return_inverse=True)[1]
    # An averaged key is of many groups, and of none.
    owner = np.full(len(head.keys), -1)
    if len(head.keys) == len(lessons):
        owner[sources] = group
    rows, truth, votes = (torch.from_numpy(a) for a in (lessons.vectors, lessons.truth, head.votes))
    fixed = torch.from_numpy((head.words.logits(lessons.vectors) - head.far(lessons.vectors)).astype(np.float32))
    keys = torch.nn.Parameter(torch.from_numpy(head.keys.copy()))
    adam = torch.optim.AdamW([keys], lr=RATE / w.beta, weight_decay=DECAY, eps=TINY)

    def logits(chosen: Ints) -> torch.Tensor:
        exponent = w.beta * (rows[chosen] @ keys.T - w.anchor)
        hidden = torch.from_numpy(owner == group[chosen][:, None])
        return fixed[chosen] + w.weight * exponent.clamp(max=FARTHEST).exp().masked_fill(hidden, 0) @ votes

    rng = np.random.default_rng(lessons.seed)
    some = rng.permutation(len(lessons))[: 4 * BATCH]
    with torch.no_grad():
        hotness = fit_temperature(logits(some).double().numpy(), lessons.truth[some])
    for _ in range(number):
        order = rng.permutation(len(lessons))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            adam.zero_grad()
            torch.nn.functional.cross_entropy(logits(chosen) / hotness, truth[chosen]).backward()
            adam.step()
        yield replace(head, keys=keys.detach().numpy().copy())
