"""Maps that close the modality gap: gradients against torch, figures by hand, and what they do to a real gap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.lessons import Lessons
from secondlook.agents.modality_gap import MOST, alignment, modality_gap, uniformity
from secondlook.agents.refine_head import BATCH, Pairs, RefineHead, RefineSpec, hybrid_target, slopes

LABELS = ("oak", "elm", "fir")
DIM = 16


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def apart(n: int = 90, seed: int = 0, captions: bool = False) -> Lessons:
    """Images and words of three labels; all images are shifted one way, all words another, as CLIP's are."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    truth = np.arange(n) % 3
    images = unit(centres[truth] + 2 * centres[3] + rng.normal(0, 0.15, (n, DIM)))
    words = unit(centres[:3] + 2 * centres[4] + rng.normal(0, 0.05, (3, DIM)))
    told = unit(words[truth] + rng.normal(0, 0.1, (n, DIM))) if captions else None
    classifier = TextClassifier(words, np.zeros((0, DIM), np.float32), 20.0)
    groups = tuple(map(str, range(n)))
    return Lessons(images, truth.astype(np.intp), groups, Task(labels=LABELS), classifier, captions=told)


def test_the_gap_alignment_and_uniformity_of_a_few_vectors_by_hand() -> None:
    east, north, west = np.eye(2)[0], np.eye(2)[1], -np.eye(2)[0]
    # Means (0, 0) and (0, 1): squared distance 1.
    assert modality_gap(np.stack([east, west]), north[None]) == pytest.approx(1)
    # Pairs at squared distances 2 and 4.
    assert alignment(np.stack([east, east]), np.stack([north, west])) == pytest.approx(3)
    # Squared distances 2, 2, 4: log((2 exp(-4) + exp(-8)) / 3).
    expected = np.log((2 * np.exp(-4) + np.exp(-8)) / 3)
    assert uniformity(np.stack([east, north, west])) == pytest.approx(expected)
    assert uniformity(np.stack([east, east])) == pytest.approx(0, abs=1e-12)
    assert np.isnan(uniformity(east[None]))


def test_uniformity_of_many_vectors_is_that_of_some() -> None:
    some = unit(np.random.default_rng(0).standard_normal((MOST, 3)))
    assert uniformity(np.repeat(some, 3, axis=0)) == pytest.approx(uniformity(some), abs=0.05)


def test_the_target_is_half_the_pair_and_half_the_teacher() -> None:
    # Softmax of (log 3, 0) is (3/4, 1/4), half of it plus half of (1, 0): (7/8, 1/8).
    logits = np.array([[np.log(3), 0.0], [0.0, np.log(3)]])
    np.testing.assert_allclose(hybrid_target(logits, np.array([0, 1]), 0.5), [[7 / 8, 1 / 8], [1 / 8, 7 / 8]])
    # Of one text, the images cannot be told apart by it: the pair's share is spread over them.
    np.testing.assert_allclose(hybrid_target(logits, np.array([0, 0]), 1.0), np.full((2, 2), 0.5))


def test_the_gradients_are_those_of_the_two_losses() -> None:
    import torch

    rng = np.random.default_rng(0)
    n, dim, weight = 5, 4, 0.7
    a, b, noise = rng.standard_normal((3, n, dim))
    same = np.array([0, 0, 1, 2, 2])
    target, back = (hybrid_target(rng.standard_normal((n, n)), same, 0.5) for _ in range(2))
    left, right = (torch.tensor(array, requires_grad=True) for array in (a, b))
    logits, z = left @ right.T, torch.tensor(noise)
    divergence = torch.nn.functional.kl_div
    distilled = (
        divergence(logits.log_softmax(1), torch.tensor(target), reduction="batchmean")
        + divergence(logits.T.log_softmax(1), torch.tensor(back), reduction="batchmean")
    ) / 2
    square = torch.nn.functional.mse_loss
    (distilled + weight * (square(left, z) + square(right, z))).backward()
    found = slopes(a, b, noise, target, back, weight)
    assert left.grad is not None
    assert right.grad is not None
    np.testing.assert_allclose(found[0], left.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(found[1], right.grad.numpy(), atol=1e-12)


def test_refining_closes_the_gap_and_keeps_the_labels() -> None:
    lessons, fresh = apart(), apart(seed=0, n=300).part(slice_from(90))
    head = RefineSpec().fit(lessons)
    assert head.before.gap > 1
    assert head.after.gap < head.before.gap / 5
    assert head.after.alignment < head.before.alignment / 2
    right = (head.logits(fresh.vectors).argmax(axis=1) == fresh.truth).mean()
    assert right >= (lessons.classifier.logits(fresh.vectors).argmax(axis=1) == fresh.truth).mean() - 0.02


def slice_from(first: int) -> NDArray[np.intp]:
    return np.arange(first, 300)


def test_the_control_subtracts_the_means() -> None:
    lessons = apart()
    head = RefineSpec(method="mean-shift").fit(lessons)
    image = lessons.vectors[:1].astype(np.float64)
    shifted = image - lessons.vectors.mean(axis=0, dtype=np.float64)
    words = lessons.classifier.vectors - lessons.classifier.vectors.astype(np.float64).mean(axis=0)
    shifted, words = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (shifted, words))
    np.testing.assert_allclose(head.logits(lessons.vectors[:1]), 20 * shifted @ words.T, rtol=1e-5)
    assert head.after.gap < 0.05


def test_without_a_step_it_would_be_zero_shot() -> None:
    lessons = apart()
    head = RefineSpec(steps=1, learning_rate=1e-12).fit(lessons)
    np.testing.assert_allclose(head.logits(lessons.vectors), lessons.classifier.logits(lessons.vectors), atol=1e-4)
    np.testing.assert_allclose(head.after, head.before, atol=1e-6)


def test_the_order_of_the_images_changes_nothing() -> None:
    lessons = apart(captions=True)
    shuffled = lessons.part(np.random.default_rng(1).permutation(len(lessons)))
    one, other = (RefineSpec(steps=20).fit(some) for some in (lessons, shuffled))
    np.testing.assert_allclose(one.image_map, other.image_map, atol=1e-9)
    np.testing.assert_allclose(one.words, other.words, atol=1e-9)


def test_captions_take_the_place_of_words_where_there_are_any() -> None:
    lessons = apart(captions=True)
    assert lessons.captions is not None
    some = lessons.captions.copy()
    some[1::2] = np.nan
    pairs = Pairs.of(replace(lessons, captions=some))
    # 45 captions, each its own text, and the words of three labels.
    assert len(np.unique(pairs.same)) == 45 + 3
    assert np.isfinite(pairs.texts).all()


def test_more_images_than_a_batch_are_seen_in_turn() -> None:
    head = RefineSpec(steps=4).fit(apart(n=BATCH + 88))
    assert np.isfinite(head.image_map).all()
    assert head.after.gap < head.before.gap


def test_the_spread_is_kept_with_the_head() -> None:
    head = RefineSpec(steps=2).fit(apart())
    again = RefineSpec().load(head.tensors)
    assert isinstance(again, RefineHead)
    assert again.before == head.before
    assert again.after == head.after
