"""Nearest mean, nearest neighbours and Hopfield recall do what their formulas say, and find exactly what is nearest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from secondlook.agents.case import Task
from secondlook.agents.choice import HELD_OUT, best, cross_validated
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.hopfield_head import BETAS, HopfieldSpec, recalled
from secondlook.agents.knn_head import SMOOTHING, KnnHead, KnnSpec, nearest
from secondlook.agents.lessons import Lessons
from secondlook.agents.ncm_head import NcmHead, NcmSpec, unit_means

Singles = NDArray[np.float32]
SPECS = (NcmSpec(), KnnSpec(), HopfieldSpec())


def unit(rows: NDArray[np.floating]) -> Singles:  # type: ignore[type-arg]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clouds(n: int = 90, k: int = 3, dim: int = 10, spread: float = 0.3, seed: int = 0, per_leaf: int = 2) -> Lessons:
    """Clouds around axes, some photographs of each leaf that are almost the same."""
    rng = np.random.default_rng(seed)
    leaf = np.arange(n) // per_leaf
    truth = leaf % k
    centres = np.eye(k, dim)[truth] + 0.5 + rng.normal(0, spread, (n, dim))[leaf * per_leaf]
    vectors = unit(centres + rng.normal(0, 0.01, (n, dim)))
    none = np.zeros((k, dim), dtype=np.float32)
    return Lessons(
        vectors, truth, tuple(f"leaf {i}" for i in leaf), Task(labels=tuple("abcdef"[:k])),
        TextClassifier(none, none[:0], 50.0),
    )  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("shots", [1, 2, 4, 16])
def test_few_shots_are_learned_from(spec: NcmSpec | KnnSpec | HopfieldSpec, shots: int) -> None:
    taught, fresh = clouds(n=180, spread=0.1), clouds(spread=0.1, seed=1)
    few = taught.part([i for y in range(3) for i in np.flatnonzero(taught.truth == y)[::2][:shots]])
    logits = spec.fit(few).logits(fresh.vectors)
    assert np.isfinite(logits).all()
    assert (logits.argmax(axis=1) == fresh.truth).mean() > 0.85


def test_the_nearest_mean_is_the_nearest_neighbour_among_means() -> None:
    taught, fresh = clouds(), clouds(seed=1)
    oracle = KNeighborsClassifier(1, metric="cosine").fit(unit_means(taught), np.arange(3))
    np.testing.assert_array_equal(
        NcmSpec().fit(taught).logits(fresh.vectors).argmax(axis=1), oracle.predict(fresh.vectors.astype(np.float64))
    )


def test_the_temperature_of_held_out_images_is_in_the_scale() -> None:
    sure, unsure = (NcmSpec().fit(clouds(spread=spread)).scale for spread in (0.1, 1.0))
    assert sure > unsure
    # One leaf a label: nothing can be held out, and the checkpoint's own scale stands.
    assert NcmSpec().fit(clouds().part([0, 2, 4])).scale == 50.0


@given(
    n=st.integers(1, 12), m=st.integers(1, 300), k=st.integers(1, 25), dim=st.integers(2, 6), seed=st.integers(0, 50)
)
def test_the_nearest_are_exactly_the_nearest(n: int, m: int, k: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, memory = unit(rng.normal(size=(n, dim))), unit(rng.normal(size=(m, dim)))
    memory[: m // 3] = memory[-1]  # ties
    found, cosines = nearest(queries, memory, k)
    all_of_them = -np.sort(-(queries @ memory.T), axis=1)
    np.testing.assert_array_equal(cosines, all_of_them[:, : min(k, m)])
    np.testing.assert_allclose((queries[:, None] * memory[found]).sum(axis=2), cosines, atol=1e-6)
    assert all(len(set(row)) == min(k, m) for row in found.tolist())


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_vote_is_scikit_learns(k: int) -> None:
    taught, fresh = clouds(), clouds(seed=1)
    # scikit-learn's cosine distance is 1 - cosine.
    oracle = KNeighborsClassifier(k, weights=lambda d: 1 - d, metric="cosine").fit(taught.vectors, taught.truth)
    head = KnnHead(taught.vectors, taught.truth, 3, k)
    shares = np.exp(head.logits(fresh.vectors)) - SMOOTHING
    np.testing.assert_allclose(shares, oracle.predict_proba(fresh.vectors), atol=1e-5)


def test_votes_by_hand() -> None:
    # Cosines of (1, 0) to the memory: 1, .8, .6, 0, -1. Three vote: 1 + .6 for label 0, .8 for label 1, of 2.4.
    memory = np.float32([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0]])
    head = KnnHead(memory, np.array([0, 1, 0, 1, 1]), 2, 3)
    np.testing.assert_allclose(np.exp(head.logits(memory[:1])) - SMOOTHING, [[2 / 3, 1 / 3]], rtol=1e-6)
    # An opposed neighbour has no vote, and where nobody has one all labels are alike.
    nobody = KnnHead(memory[4:], np.array([1]), 2, 3).logits(memory[:1])
    np.testing.assert_allclose(nobody, np.log(SMOOTHING))


def test_neighbours_of_the_same_leaf_prove_nothing() -> None:
    # Labels drawn by lot for each leaf: only another photograph of it knows, and none is on the other side of a fold.
    taught = clouds(n=200, spread=1.0, per_leaf=2)
    lot = np.random.default_rng(0).integers(0, 3, 100)[np.arange(200) // 2]
    leaves = Lessons(taught.vectors, lot, taught.groups, taught.task, taught.classifier)
    singles = Lessons(taught.vectors, lot, tuple(map(str, range(200))), taught.task, taught.classifier)
    assert KnnSpec().fit(leaves).temperature > 3 * KnnSpec().fit(singles).temperature
    assert KnnSpec().fit(leaves).k > KnnSpec().fit(singles).k


def test_what_is_kept_is_even_over_labels() -> None:
    taught = clouds(n=300)
    uneven = taught.part(np.flatnonzero((taught.truth < 2) | (np.arange(300) < 30)))
    assert uneven.counts.tolist() == [100, 100, 10]
    kept = KnnSpec(most=60).fit(uneven)
    assert np.bincount(kept.truth).tolist() == [25, 25, 10]
    assert len(HopfieldSpec(most=60).fit(uneven).memory) == 60
    shuffled = uneven.part(np.random.default_rng(1).permutation(210)).thinned(60)
    assert {row.tobytes() for row in shuffled.vectors} == {row.tobytes() for row in uneven.thinned(60).vectors}


def test_recall_by_hand() -> None:
    # beta = log 4 / .2 on cosines .8 and .6: shares 4 to 1, recalled (4, 1) / sqrt(17).
    found = recalled(np.float32([[0.8, 0.6]]), np.eye(2, dtype=np.float32), np.log(4) / 0.2)
    np.testing.assert_allclose(found, [[4 / 17**0.5, 1 / 17**0.5]], rtol=1e-5)


def test_recall_goes_from_the_mean_to_the_nearest_neighbour() -> None:
    memory, fresh = clouds().vectors, clouds(seed=1).vectors
    near, _ = nearest(fresh, memory, 1)
    np.testing.assert_allclose(recalled(fresh, memory, 1e5), memory[near[:, 0]], atol=1e-3)
    np.testing.assert_allclose(recalled(fresh, memory, 0), np.tile(unit(memory.mean(0)[None]), (90, 1)), atol=1e-5)


@given(beta=st.sampled_from(BETAS), seed=st.integers(0, 20))
def test_what_is_recalled_is_a_unit_vector_nearer_to_the_memory(beta: float, seed: int) -> None:
    memory, fresh = clouds(seed=seed).vectors, clouds(seed=seed + 1).vectors
    found = recalled(fresh, memory, beta)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(recalled(np.tile(fresh, (13, 1)), memory, beta)[-90:].shape, found.shape)


def test_the_best_is_that_of_lowest_loss_and_the_first_of_equals() -> None:
    truth = np.array([0, 1, 0, 1])
    right, wrong = np.eye(2)[truth] * 3, np.eye(2)[1 - truth] * 3
    choice = best([("wrong", wrong), ("right", right), ("again", right)], truth)
    assert choice.setting == "right"
    assert best([("half", right / 2), ("whole", right)], truth).nll < np.log(2)
    # A temperature cannot turn answers round.
    assert best([("wrong", wrong)], truth).nll > np.log(2)


def test_settings_are_compared_on_images_of_other_groups_and_not_on_too_many() -> None:
    taught = clouds(n=3 * HELD_OUT, dim=3)
    judged = []

    def judge(inside: Lessons, vectors: Singles) -> dict[str, NDArray[np.float64]]:
        names = dict(zip((row.tobytes() for row in taught.vectors), taught.groups, strict=True))
        assert not {names[row.tobytes()] for row in vectors} & set(inside.groups)
        judged.append(len(vectors))
        return {"means": NcmHead(unit_means(inside), 1.0).logits(vectors)}

    choice = cross_validated(taught, judge)
    assert choice is not None
    assert sum(judged) == HELD_OUT
    assert cross_validated(taught.part([0, 2, 4]), judge) is None


def test_folds_do_not_depend_on_the_order_of_the_images() -> None:
    taught = clouds()
    order = np.random.default_rng(3).permutation(len(taught))
    here, there = taught.folds(), taught.part(order).folds()
    assert here is not None
    assert there is not None
    np.testing.assert_array_equal(here[order], there)
