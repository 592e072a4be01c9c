"""Heads that need no labels: what words say by themselves, and what is learned from it on images nobody labelled."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier, text_classifier
from secondlook.agents.description_head import DescriptionSpec, described, encode_all, undescribed, which
from secondlook.agents.encoder import OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.lessons import Lessons
from secondlook.agents.nola_head import NolaSpec, _head, pseudo_labels

Floats = NDArray[np.float64]
TEMPLATES = ("a photo of {}.", "a picture of {}.")
TASK = Task(
    labels=("apple-scab", "rust", "healthy"),
    phrases={"apple-scab": ("olive blotches", "a fungal disease"), "rust": ("often has orange spots",)},
)


@cache
def encoder() -> OpenClipEncoder:
    return OpenClipEncoder(device="cpu")


def wordless(vectors: Floats, truth: NDArray[np.intp], words: Floats, scale: float = 20.0) -> Lessons:
    """Lessons without an encoder, whose words are vectors."""
    task = Task(labels=tuple(f"label {k}" for k in range(len(words))))
    classifier = TextClassifier(words.astype(np.float32), np.zeros((0, words.shape[1]), np.float32), scale)
    groups = tuple(map(str, range(len(truth))))
    return Lessons(vectors.astype(np.float32), truth, groups, task, classifier)


def of_task(task: Task = TASK) -> Lessons:
    """Lessons without a single image."""
    classifier = text_classifier(encoder(), task, TEMPLATES)
    nothing = np.zeros((0, encoder().dim), np.float32)
    return Lessons(nothing, np.zeros(0, np.intp), (), task, classifier, TEMPLATES, encoder())


def unit(vectors: Floats) -> Floats:
    found: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found


@pytest.mark.parametrize(
    ("descriptor", "clause"),
    [
        ("a dark spot", "which is a dark spot"),
        ("An old leaf.", "which is An old leaf"),
        ("used for cider", "which is used for cider"),
        ("has spots", "which has spots"),
        ("often curls", "which often curls"),
        ("typically yellow", "which typically yellow"),
        ("may fall early", "which may fall early"),
        ("can be brown", "which can be brown"),
        ("velvety spots", "which has velvety spots"),
        ("apple-green veins", "which has apple-green veins"),  # "a" and "an" are words, not beginnings of words
        ("hasty growth", "which has hasty growth"),
    ],
)
def test_a_descriptor_becomes_a_clause(descriptor: str, clause: str) -> None:
    assert which(descriptor) == clause


def test_labels_without_descriptions_stand_for_themselves_and_are_named() -> None:
    assert undescribed(TASK) == ("healthy",)
    assert described(TASK, "healthy") == ("healthy",)
    assert described(TASK, "rust") == ("rust, which often has orange spots",)


def test_no_image_is_needed_and_vectors_are_means_of_the_sentences() -> None:
    clauses = ("has olive blotches", "is a fungal disease")
    starts = ("a photo of", "a picture of")
    sentences = [f"{start} apple scab, which {clause}." for clause in clauses for start in starts]
    expected = encoder().encode_texts(sentences).astype(float).mean(axis=0)
    vectors = DescriptionSpec().fit(of_task()).vectors
    assert vectors.shape == (3, 128)
    np.testing.assert_allclose(vectors[0], unit(expected), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-12)


def test_the_mean_of_scores_is_the_mean_over_the_sentences() -> None:
    images = unit(np.random.default_rng(0).normal(size=(5, 128))).astype(np.float32)
    lessons = of_task()
    found = DescriptionSpec(average="scores").fit(lessons).logits(images)
    for k, label in enumerate(TASK.labels):
        texts = [t.replace("{}", p) for p in described(TASK, label) for t in TEMPLATES]
        each = lessons.classifier.logit_scale * images @ encoder().encode_texts(texts).T
        np.testing.assert_allclose(found[:, k], each.mean(axis=1), atol=1e-5)


def test_without_descriptions_it_is_the_ensemble_of_templates() -> None:
    lessons = of_task(Task(labels=("scab", "rust")))
    np.testing.assert_allclose(DescriptionSpec().fit(lessons).vectors, lessons.classifier.vectors, atol=1e-6)


def test_arrays_of_another_shape_are_refused() -> None:
    good = DescriptionSpec().fit(of_task()).tensors
    for bad in ({"vectors": good["vectors"][0]}, {"scale": np.ones(2)}):
        with pytest.raises(ValueError, match=r"expected \[K, D\] and one number"):
            DescriptionSpec().load(good | bad)


def test_many_texts_are_encoded_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"leaf {i}" for i in range(7)]
    whole = encode_all(encoder(), texts)
    monkeypatch.setattr("secondlook.agents.description_head.CHUNK", 3)
    np.testing.assert_allclose(encode_all(encoder(), texts), whole, atol=1e-6)


def clusters(n_each: int = 60, seed: int = 0) -> tuple[Floats, NDArray[np.intp], Floats]:
    """Three clusters of unit vectors, their labels, and words that are some way off their centres."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(3, 16)))
    truth = np.repeat(np.arange(3), n_each)
    vectors = unit(centres[truth] + 0.15 * rng.normal(size=(len(truth), 16)))
    return vectors, truth, unit(centres + 0.35 * rng.normal(size=(3, 16)))


def test_nola_never_looks_at_labels() -> None:
    vectors, truth, words = clusters()
    found = NolaSpec().fit(wordless(vectors, truth, words)).tensors
    rng = np.random.default_rng(1)
    others = [rng.permutation(truth), np.zeros_like(truth), 2 - truth]
    for other in others:
        again = NolaSpec().fit(wordless(vectors, other, words)).tensors
        for name, array in found.items():
            np.testing.assert_array_equal(again[name], array)


def test_nola_learns_from_the_unlabelled_where_there_are_any() -> None:
    vectors, truth, words = clusters()
    pool, _, _ = clusters(seed=5)
    own = wordless(vectors, truth, words)
    found = NolaSpec().fit(replace(own, unlabelled=pool.astype(np.float32)))
    few = replace(own.part([0]), unlabelled=pool.astype(np.float32))
    np.testing.assert_array_equal(NolaSpec().fit(few).vectors, found.vectors)
    none = replace(own.part(np.arange(0)), unlabelled=pool.astype(np.float32))
    np.testing.assert_array_equal(NolaSpec().fit(none).vectors, found.vectors)
    np.testing.assert_array_equal(NolaSpec().fit(wordless(pool, truth, words)).vectors, found.vectors)


def test_nola_without_any_image_says_so() -> None:
    nothing = wordless(*clusters()).part(np.arange(0))
    with pytest.raises(ConfigError, match="needs images"):
        NolaSpec().fit(nothing)


def test_nola_is_better_than_the_words_it_starts_from_on_real_embeddings(data_folder: Path) -> None:
    with np.load(data_folder / "orchestrator-agent-trust" / "clip_vitb32_train512.npz", allow_pickle=False) as file:
        vectors, truth = file["embedding"].astype(float), np.unique(file["label"], return_inverse=True)[1]
    means, rng = np.stack([vectors[truth == k].mean(axis=0) for k in range(4)]), np.random.default_rng(0)
    before: list[float] = []
    after: list[float] = []
    for _ in range(6):
        # Words lie elsewhere than images, and point only roughly to where their labels differ.
        off: Floats = 0.7 * rng.normal(size=means.shape) / np.sqrt(means.shape[1])
        elsewhere: Floats = unit(rng.normal(size=(1, means.shape[1])))
        words = unit(0.3 * unit(0.3 * unit(means - means.mean(axis=0)) + off) + elsewhere)
        lessons = wordless(vectors, truth, words, scale=100.0)
        for head, found in ((lessons.classifier, before), (NolaSpec().fit(lessons), after)):
            found.append((head.logits(lessons.vectors).argmax(axis=1) == truth).mean())
    assert np.mean(after) > np.mean(before) + 0.1, (before, after)


def test_a_label_that_is_nobodys_first_choice_takes_who_has_it_second() -> None:
    # Label 2 is nobody's first. Of those not taken, rows 1 and 2 have it second; row 1 gives it more.
    # Rows 0 and 3 are taken by labels 0 and 1, the surest of each.
    logits = np.array([[9.0, 0, 1], [4, 0, 3], [4, 0, 2], [0, 5, 1]])
    rows, labels = pseudo_labels(logits, most=1)
    assert dict(zip(rows.tolist(), labels.tolist(), strict=True)) == {0: 0, 3: 1, 1: 2}
    # With room for all, nobody is left for it.
    rows, labels = pseudo_labels(logits, most=4)
    assert labels.tolist() == [0, 0, 0, 1]


@given(arrays(float, st.tuples(st.integers(1, 40), st.integers(2, 5)), elements=st.floats(-30, 30)), st.integers(1, 10))
def test_pseudo_labels_are_few_and_the_surest(logits: Floats, most: int) -> None:
    rows, labels = pseudo_labels(logits, most)
    assert len(set(rows.tolist())) == len(rows) == len(labels)
    assert np.bincount(labels, minlength=logits.shape[1]).max() <= most
    first = np.argsort(-logits, axis=1, kind="stable")[:, 0]
    probs = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    for label in range(logits.shape[1]):
        own = np.flatnonzero(first == label)
        if len(own):
            chosen = rows[labels == label]
            assert len(chosen) == min(most, len(own))
            assert set(chosen.tolist()) <= set(own.tolist())
            left = np.setdiff1d(own, chosen)
            assert not len(left) or probs[left, label].max() <= probs[chosen, label].min() + 1e-12


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_head_is_logistic_regression_on_smoothed_labels(smoothing: float) -> None:
    from sklearn.linear_model import LogisticRegression

    vectors, truth, _ = clusters(n_each=15)
    found = _head(vectors, truth, np.zeros((3, 16)), smoothing, 10.0)
    # Each image once under each label, weighted: an image of label y counts 1 - e + e / K there, and e / K elsewhere.
    weights = np.full((len(truth), 3), smoothing / 3)
    weights[np.arange(len(truth)), truth] += 1 - smoothing
    model = LogisticRegression(C=10.0, fit_intercept=False, tol=1e-9, max_iter=5000)
    model.fit(np.repeat(vectors, 3, axis=0), np.tile(np.arange(3), len(truth)), sample_weight=weights.ravel() + 1e-12)
    np.testing.assert_allclose(found - found.mean(axis=0), model.coef_ - model.coef_.mean(axis=0), atol=2e-3)


def test_a_strong_penalty_leaves_the_words_as_they_are() -> None:
    vectors, truth, words = clusters()
    head = NolaSpec(strength=1e-9).fit(wordless(vectors, truth, words))
    np.testing.assert_allclose(head.vectors, words.astype(np.float32), atol=1e-6)
    assert head.scale == 20.0
