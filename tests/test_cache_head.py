"""A cache votes as its formula says, alone and by captions; its weights are searched without a look at own groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from secondlook.agents.cache_head import CacheHead, CacheSpec
from secondlook.agents.cache_memory import Weights, divergence, remember
from secondlook.agents.cache_search import coordinate_search, held_out_nll, search_weights
from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.errors import ConfigError
from secondlook.agents.lessons import Lessons
from secondlook.agents.tuned_cache_head import TunedCacheSpec

Singles = NDArray[np.float32]
Ints = NDArray[np.intp]
LABELS = ("a", "b", "c")


def unit(rows: NDArray[np.floating]) -> Singles:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def leaves(n: int, spread: float, rng: np.random.Generator, dim: int = 12, cone: float = 2.0) -> Lessons:
    """Lessons of n photographs, three of each leaf, in a narrow cone; each label has two kinds that lie apart."""
    leaf = np.arange(n) // 3
    kind = leaf % 6
    centre = np.eye(dim)[kind] + cone * np.eye(dim)[-1] + 0.3 * rng.normal(size=(n, dim))[leaf]
    vectors = unit(centre + rng.normal(0, spread, (n, dim)))
    words = TextClassifier(unit(np.eye(dim)[:3] + 0.5), np.zeros((0, dim), dtype=np.float32), 20.0)
    return Lessons(vectors, kind % 3, tuple(f"leaf {i}" for i in leaf), Task(labels=LABELS), words)


def nll(head: CacheHead, lessons: Lessons) -> float:
    return held_out_nll(head.logits(lessons.vectors), lessons.truth)


@pytest.fixture
def train_and_fresh(rng: np.random.Generator) -> tuple[Lessons, Lessons]:
    both = leaves(540, 0.1, rng)
    return both.part(np.arange(180)), both.part(np.arange(180, 540))


def test_two_keys_vote_as_worked_by_hand() -> None:
    # Cosines 1 and 0 to the keys, 0.6 and 0.8 to the words, at scale 10:
    # 6 + 2 exp(-3 (1 - 1)) = 8, and 8 + 2 exp(-3 (1 - 0)) = 8.0996.
    words = TextClassifier(np.array([[0.6, 0.8], [0.8, 0.6]], dtype=np.float32), np.zeros((0, 2), np.float32), 10.0)
    eye = np.eye(2, dtype=np.float32)
    head = CacheHead(eye, eye, words, Weights(weight=2, beta=3), np.zeros((0, 2), np.float32))
    np.testing.assert_allclose(head.logits(eye[:1]), [[8, 8 + 2 * np.exp(-3)]], rtol=1e-6)


def test_another_anchor_with_the_same_alpha_gives_the_same_logits(rng: np.random.Generator) -> None:
    lessons = leaves(60, 0.2, rng)
    head = CacheSpec().fit(lessons)
    weights = Weights(weight=head.weights.alpha, beta=head.weights.beta)
    assert weights.alpha == pytest.approx(weights.weight)
    other = replace(head, weights=weights)
    np.testing.assert_allclose(other.logits(lessons.vectors), head.logits(lessons.vectors), rtol=1e-4, atol=1e-4)


def test_the_votes_of_each_label_sum_to_one_however_many_images_it_has(rng: np.random.Generator) -> None:
    lessons = leaves(90, 0.2, rng)
    few = lessons.part(np.flatnonzero((lessons.truth > 0) | (np.arange(90) < 20)))
    for most in (1000, 15):
        memory = remember(few, most)
        np.testing.assert_allclose(memory.votes.sum(axis=0), 1, rtol=1e-6)
        assert ((memory.votes > 0).sum(axis=1) == 1).all()
        np.testing.assert_array_equal(memory.votes[memory.sources].argmax(axis=1), few.truth)
    assert len(memory.images) <= 15


def test_the_cache_is_better_than_its_words_and_training_its_keys_is_better_still(
    train_and_fresh: tuple[Lessons, Lessons],
) -> None:
    train, fresh = train_and_fresh
    words = held_out_nll(train.classifier.logits(fresh.vectors), fresh.truth)
    plain, tuned = CacheSpec().fit(train), TunedCacheSpec(passes=15).fit(train)
    assert nll(plain, fresh) < words - 0.1
    assert nll(tuned, fresh) < nll(plain, fresh)


def test_averaged_keys_judge_almost_as_well(train_and_fresh: tuple[Lessons, Lessons]) -> None:
    train, fresh = train_and_fresh
    # 60 keys for 180 photographs of 60 leaves: about one a leaf.
    assert nll(CacheSpec(most_keys=60).fit(train), fresh) < 1.15 * nll(CacheSpec().fit(train), fresh)


def test_own_leaves_do_not_make_the_cache_look_sharp(rng: np.random.Generator) -> None:
    # Labels are noise: only another photograph of the same leaf tells its label, and such must not count.
    lessons = leaves(90, 0.01, rng)
    noise = replace(lessons, truth=rng.permutation(30)[np.arange(90) // 3] % 3)
    deceived = replace(noise, groups=tuple(map(str, range(90))))
    honest, sharp = search_weights(noise, 1000), search_weights(deceived, 1000)
    assert honest.beta <= 20 < sharp.beta


def test_captions_that_tell_the_label_are_used_and_an_image_may_have_none(rng: np.random.Generator) -> None:
    lessons = leaves(90, 0.5, rng)
    # A caption tells which kind of leaf it is more clearly than the noisy photograph does.
    captions = unit(np.eye(12)[np.arange(90) // 3 % 6] + 0.1 * rng.normal(size=(90, 12)))
    captions[::4] = np.nan
    with_them = replace(lessons, captions=captions)
    head = CacheSpec().fit(with_them)
    assert np.isfinite(head.logits(lessons.vectors)).all()
    plain = search_weights(lessons, 1000)
    assert plain.gamma == plain.delta == 0
    assert head.weights.gamma > 0 or head.weights.delta > 0
    # The search starts without captions, and takes only what is better on held-out leaves.
    none = CacheSpec().fit(replace(lessons, captions=np.full_like(captions, np.nan)))
    np.testing.assert_array_equal(none.logits(lessons.vectors), CacheSpec().fit(lessons).logits(lessons.vectors))


def test_an_image_without_a_caption_stands_in_for_it_moved_by_the_mean_gap(rng: np.random.Generator) -> None:
    lessons = leaves(30, 0.2, rng)
    captions = unit(rng.normal(size=(30, 12)))
    captions[3] = np.nan
    memory = remember(replace(lessons, captions=captions), 1000)
    assert memory.captions is not None
    there = np.arange(30) != 3
    gap = captions[there].mean(axis=0) - lessons.vectors[there].mean(axis=0)
    np.testing.assert_allclose(memory.captions[3], lessons.vectors[3] + gap, atol=1e-6)


def test_the_divergence_of_a_row_ignores_the_rest_of_its_batch_and_is_that_of_scipy(rng: np.random.Generator) -> None:
    from scipy.special import rel_entr, softmax

    lessons = leaves(30, 0.3, rng)
    p = softmax(lessons.vectors @ lessons.classifier.vectors.T / 0.5, axis=1)
    found = divergence(lessons.classifier, lessons.vectors[:5], np.log(p))
    oracle = rel_entr(p[:5, None], p[None]).sum(axis=2)
    oracle -= oracle.min(axis=1, keepdims=True)
    np.testing.assert_allclose(found, oracle / oracle.max(axis=1, keepdims=True), atol=2e-2)
    np.testing.assert_allclose(divergence(lessons.classifier, lessons.vectors[2:3], np.log(p)), found[2:3], atol=1e-6)


@pytest.mark.parametrize("spec", [CacheSpec(), TunedCacheSpec()])
def test_one_image_of_each_label_allows_no_search(spec: CacheSpec | TunedCacheSpec, rng: np.random.Generator) -> None:
    lessons = leaves(18, 0.2, rng)
    head = spec.fit(lessons.part([0, 3, 6]))
    assert head.weights == Weights(weight=1.17, beta=5.5)
    assert (head.logits(lessons.vectors[[0, 3, 6]]).argmax(axis=1) == [0, 1, 2]).all()
    with pytest.raises(ConfigError, match="has 0"):
        spec.fit(lessons.part([0, 3]))


def test_the_search_finds_the_lowest_point_of_a_bowl_without_trying_every_point() -> None:
    grid = tuple(float(i) for i in range(40))
    tried = []

    def bowl(p: object) -> float:
        assert isinstance(p, dict)
        tried.append(dict(p))
        return float((p["x"] - 7) ** 2 + (p["y"] - 31) ** 2 + 0.1 * p["x"] * p["y"])

    found = coordinate_search(bowl, {"x": grid, "y": grid}, {"x": 20.0, "y": 20.0})
    every = min((bowl({"x": x, "y": y}), x, y) for x in grid for y in grid)
    assert (found["x"], found["y"]) == every[1:]
    assert len(tried) - 1600 < 320


def test_many_images_are_searched_on_a_part_of_one_fold(rng: np.random.Generator) -> None:
    lessons = leaves(2400, 0.2, rng)
    head = CacheSpec(most_keys=200).fit(lessons)
    assert len(head.keys) <= 200
    assert (head.logits(lessons.vectors).argmax(axis=1) == lessons.truth).mean() > 0.9


def test_arrays_that_fit_no_head_are_refused(rng: np.random.Generator) -> None:
    tensors = CacheSpec().fit(leaves(30, 0.2, rng)).tensors
    for name in ("keys", "votes", "words", "weights"):
        with pytest.raises(ValueError, match=name):
            CacheSpec().load({**tensors, name: tensors[name][:-1]})
    with pytest.raises(KeyError):
        CacheSpec().load({})
