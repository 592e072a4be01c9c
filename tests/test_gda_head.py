"""Gaussians on frozen features are the published formula, grow exactly, and leave to the words what has no images."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from clip_features import few_shots, five_folds, read

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.errors import ConfigError
from secondlook.agents.gda_head import ALPHAS, Gaussians, GdaHead, GdaSpec, Moments, evidence, usual_alpha
from secondlook.agents.knn_head import KnnSpec
from secondlook.agents.lessons import Lessons
from secondlook.agents.linear_head import LinearSpec
from secondlook.agents.ncm_head import NcmSpec
from secondlook.agents.temperature import fit_temperature

Floats = NDArray[np.float64]


def unit(rows: Floats) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def lessons(n: int = 60, k: int = 3, dim: int = 12, spread: float = 0.3, words: float = 1.0, seed: int = 0) -> Lessons:
    """Clouds around axes, two photographs a leaf; words near the axes, or none at all."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(n) // 2) % k
    vectors = unit(np.eye(k, dim)[truth] + 1 + rng.normal(0, spread, (n, dim)))
    classifier = TextClassifier(
        np.float32(words) * unit(np.eye(k, dim) + rng.normal(0, 0.05, (k, dim))), np.zeros((0, dim), np.float32), 20.0
    )
    return Lessons(
        vectors, truth, tuple(f"leaf {i // 2}" for i in range(n)), Task(labels=tuple("abcdef"[:k])), classifier
    )


def published(given: Lessons, alpha: float, x: Floats) -> Floats:
    """The formula as it is printed: Sigma^-1 = D pinv((N - 1) cov + tr(cov) I), words + alpha (x W + b)."""
    vectors, n, d = given.vectors.astype(np.float64), len(given), given.vectors.shape[1]
    means = np.stack([vectors[given.truth == label].mean(axis=0) for label in range(given.n_labels)])
    covariance = np.cov((vectors - means[given.truth]).T)
    precision = d * np.linalg.pinv((n - 1) * covariance + np.trace(covariance) * np.eye(d))
    weights = precision @ means.T
    bias = np.log(1 / given.n_labels) - 0.5 * np.einsum("kd,dk->k", means, weights)
    return given.classifier.logit_scale * x @ given.classifier.vectors.T + alpha * (x @ weights + bias)


def centred(logits: Floats) -> Floats:
    return logits - logits.mean(axis=1, keepdims=True)


def test_the_logits_are_the_published_formula_over_one_temperature() -> None:
    taught, fresh = lessons(), lessons(seed=1).vectors
    head = GdaSpec(alpha=0.7).fit(taught)
    expected = centred(published(taught, 0.7, fresh.astype(np.float64)))
    np.testing.assert_allclose(centred(head.logits(fresh)) * head.temperature, expected, rtol=1e-6, atol=1e-6)


def test_three_images_by_hand() -> None:
    # Label 0 at (1, 0) and (0, 1), label 1 at (0, -1). Means (.5, .5), (0, -1); deviations (.5, -.5), (-.5, .5), 0.
    # Scatter [[.5, -.5], [-.5, .5]], its trace over N - 1 = 2 is .5: A + r I = [[1, -.5], [-.5, 1]].
    # Sigma^-1 = 2 [[1, .5], [.5, 1]] / .75 = [[8, 4], [4, 8]] / 3. For x = (1, 0):
    # label 0: x S m = 6/3 = 2, m S m / 2 = (.5 * 6 + .5 * 6) / 3 / 2 = 1: 1.  label 1: -4/3 - 8/3/2 = -8/3.
    moments = Moments.of(np.float32([[1, 0], [0, 1], [0, -1]]), np.array([0, 0, 1]), 2)
    logits = GdaHead(moments, np.zeros((2, 2)), 1.0, 1.0).logits(np.float32([[1, 0]]))
    assert logits[0, 0] - logits[0, 1] == pytest.approx(1 + 8 / 3)


@given(first=st.integers(3, 30), more=st.integers(1, 30), seed=st.integers(0, 20))
def test_an_update_is_a_fit_on_everything(first: int, more: int, seed: int) -> None:
    taught, fresh = lessons(first + more, seed=seed), lessons(seed=99).vectors
    order = np.random.default_rng(seed).permutation(len(taught))
    old, new = taught.part(order[:first]), taught.part(order[first:])
    grown = GdaSpec(alpha=0.5).fit(old).update(new.vectors, new.truth)
    whole = replace(GdaSpec(alpha=0.5).fit(taught), temperature=grown.temperature)
    np.testing.assert_allclose(grown.logits(fresh), whole.logits(fresh), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(grown.moments.counts, taught.counts)


def test_a_label_added_later_is_a_fit_with_it_from_the_start() -> None:
    taught = lessons(k=4)
    words = taught.classifier.logit_scale * taught.classifier.vectors.astype(np.float64)
    three = replace(
        taught.part(taught.truth < 3),
        task=Task(labels=taught.task.labels[:3]),
        classifier=replace(taught.classifier, vectors=taught.classifier.vectors[:3]),
    )
    last = taught.part(taught.truth == 3)
    named = GdaSpec(alpha=0.5).fit(three).add_label(words[3])
    assert named.logits(last.vectors).shape == (len(last), 4)
    grown = named.update(last.vectors, last.truth)
    whole = replace(GdaSpec(alpha=0.5).fit(taught), temperature=grown.temperature)
    np.testing.assert_allclose(grown.logits(taught.vectors), whole.logits(taught.vectors), rtol=1e-9, atol=1e-9)


def test_an_update_refuses_what_does_not_belong() -> None:
    taught = lessons()
    head = GdaSpec().fit(taught)
    with pytest.raises(ValueError, match=r"embeddings: expected \[N, 12\], got \(60, 11\)"):
        head.update(taught.vectors[:, 1:], taught.truth)
    with pytest.raises(ValueError, match="truth: expected 60 whole numbers 0 to 2"):
        head.update(taught.vectors, taught.truth + 1)
    with pytest.raises(ValueError, match="truth: expected 60 whole numbers 0 to 2"):
        head.update(taught.vectors, taught.truth[1:])
    with pytest.raises(ValueError, match=r"words: expected \[N, 12\]"):
        head.add_label(np.zeros(3))
    assert head.update(taught.vectors[:0], taught.truth[:0]).moments.counts.tolist() == [20, 20, 20]


def test_one_image_each_is_the_nearest_of_them() -> None:
    taught = lessons(words=0.0)
    one = taught.part([0, 2, 4])
    fresh = lessons(seed=1).vectors
    logits = GdaSpec().fit(one).logits(fresh)
    # No scatter within labels: a round Gaussian around each image.
    distances = ((fresh[:, None] - one.vectors[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(logits.argmax(axis=1), distances.argmin(axis=1))
    assert np.ptp(logits, axis=1).max() > 1e-3
    assert np.abs(logits).max() < 100


def test_copies_of_one_image_count_as_one_image() -> None:
    one = lessons().part([0, 2, 4])
    copies = one.part(np.repeat(np.arange(3), 4))
    few, many = (Gaussians.fit(Moments.of(each.vectors, each.truth, 3)) for each in (one, copies))
    # Their scatter about the common mean over N - 1: S / 2 of the three, 4 S / 11 of the twelve.
    np.testing.assert_allclose(many.weights, few.weights * (1 / 2) / (4 / 11), rtol=1e-4)


def test_one_label_with_images_leaves_every_verdict_to_the_words() -> None:
    taught, fresh = lessons(), lessons(seed=1).vectors
    head = GdaSpec().fit(taught.part(taught.truth == 1))
    np.testing.assert_allclose(
        centred(head.logits(fresh)) * head.temperature, centred(taught.classifier.logits(fresh)), atol=1e-5
    )


def test_without_any_image_the_words_answer() -> None:
    taught = lessons()
    head = GdaSpec().fit(taught.part(taught.truth < 0))
    np.testing.assert_allclose(head.logits(taught.vectors), taught.classifier.logits(taught.vectors), atol=1e-5)


def test_a_label_without_images_has_the_mixture_of_the_others() -> None:
    # Densities log 3 and log 1 at alpha = 1: the even mixture is log 2; at alpha = 2 it is log((9 + 1) / 2).
    densities = np.array([[np.log(3), 0.0, np.nan]])
    np.testing.assert_allclose(np.exp(evidence(densities, 1.0)), [[3, 1, 2]])
    np.testing.assert_allclose(np.exp(evidence(densities, 2.0)), [[9, 1, 5]])
    # So however sure the images are, a label without any is behind by log 2 at most.
    assert np.ptp(evidence(np.array([[5000.0, -5000.0, np.nan]]), 1.0)[0, [0, 2]]) == pytest.approx(np.log(2))


def test_words_find_the_label_that_has_no_images() -> None:
    taught, fresh = lessons(n=120, spread=0.1), lessons(spread=0.1, seed=1)
    head = GdaSpec().fit(taught.part(taught.truth != 2))
    assert (head.logits(fresh.vectors).argmax(axis=1) == fresh.truth).mean() > 0.95


@pytest.mark.parametrize("spec", [GdaSpec(prior="none"), GdaSpec()], ids=["unwanted", "unknown"])
def test_without_words_every_label_needs_images(spec: GdaSpec) -> None:
    taught = lessons(words=1.0 if spec.prior == "none" else 0.0)
    with pytest.raises(ConfigError, match="'c' has 0"):
        spec.fit(taught.part(taught.truth != 2))
    assert not spec.fit(taught).words.any()


def test_images_count_for_what_they_are_worth() -> None:
    useless_words = replace(
        lessons(n=120), classifier=replace(lessons().classifier, vectors=np.eye(3, 12, 8, np.float32))
    )
    useless_images = replace(
        lessons(n=120, spread=0.05), truth=np.random.default_rng(0).permutation(lessons(120).truth)
    )
    assert GdaSpec().fit(useless_words).alpha >= 1
    assert GdaSpec().fit(useless_images).alpha <= 0.01


def test_alpha_is_the_best_of_fits_to_the_other_folds() -> None:
    taught = lessons(n=90, spread=0.5, words=0.3)
    folds = taught.folds()
    assert folds is not None
    losses: dict[float, float] = {}
    for alpha in ALPHAS:
        logits = np.empty((90, 3))
        for fold in range(5):
            rows = taught.vectors[folds == fold].astype(np.float64)
            logits[folds == fold] = published(taught.part(folds != fold), alpha, rows)
        scaled = centred(logits) / fit_temperature(centred(logits), taught.truth)
        totals = np.log(np.exp(scaled).sum(axis=1))
        losses[alpha] = float((totals - scaled[np.arange(90), taught.truth]).mean())
    assert GdaSpec().fit(taught).alpha == min(ALPHAS, key=lambda alpha: losses[alpha])


def test_without_folds_alpha_follows_the_number_of_images() -> None:
    assert usual_alpha(np.array([2, 2, 2])) == 0.03
    assert usual_alpha(np.array([1, 0, 1])) == 0.001
    # Half way from 2 to 4 images on a logarithmic scale, from .03 to .3 on another: .03 * sqrt(10).
    assert usual_alpha(np.array([2**1.5])) == pytest.approx(0.03 * 10**0.5)  # type: ignore[arg-type]
    one_leaf = replace(lessons(n=12), groups=tuple("abc"[y] for y in lessons(n=12).truth))
    assert GdaSpec().fit(one_leaf).alpha == 0.3


@pytest.fixture(scope="module")
def plants(data_folder: Path) -> Lessons:
    """512 CLIP ViT-B/32 features of plant leaves, four labels of 128."""
    return read(data_folder / "orchestrator-agent-trust" / "clip_vitb32_train512.npz")


def test_gaussians_and_nearest_means_are_as_right_on_real_features_as_measured_elsewhere(plants: Lessons) -> None:
    gda = five_folds(GdaSpec(), plants)
    assert gda.accuracy >= 0.99
    assert gda.ece <= 0.02
    assert 0.93 <= five_folds(NcmSpec(), plants).accuracy <= 0.945


@pytest.mark.slow
def test_few_shots_linear_and_neighbours_are_as_measured_elsewhere(plants: Lessons) -> None:
    for shots, least in ((4, 0.83), (8, 0.90), (16, 0.95)):
        assert few_shots(GdaSpec(), plants, shots).mean() >= least
    assert five_folds(LinearSpec(), plants).accuracy >= 0.985
    # Leave-one-out has .9473 for ten neighbours; five folds have fewer images to choose from.
    assert 0.92 <= five_folds(KnnSpec(), plants).accuracy <= 0.96
