"""Every stranger score is what its paper or library says, and is kept as it was fitted."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax

from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.cooked import fit_probe, fit_temperatures
from secondlook.agents.grounds import Grounds, fit_grounds
from secondlook.agents.strangeness import KINDS, NEAREST, SCORES, ScoreName, energy, entropy, max_softmax
from secondlook.agents.stranger_scores import DEFAULT, StrangerScores, fit_stranger_scores, load_stranger_scores
from secondlook.agents.typicality import Typicality
from secondlook.eval.ood import auroc

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.intp]
DIM, LABELS = 12, 3


def unit(rows: NDArray[np.floating]) -> Singles:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def leaves(n: int, rng: np.random.Generator) -> tuple[Singles, Ints]:
    truth = np.arange(n) % LABELS
    return unit(3 * np.eye(LABELS, DIM)[truth] + rng.normal(0, 0.4, (n, DIM))), truth


def strangers(n: int, rng: np.random.Generator) -> Singles:
    return unit(-np.ones(DIM) + rng.normal(0, 0.4, (n, DIM)))


def words(negatives: int = 2, scale: float = 10.0, labels: int = LABELS) -> TextClassifier:
    against = -np.ones((negatives, DIM)) + 0.1 * np.eye(max(negatives, 1), DIM)[:negatives]
    return TextClassifier(np.eye(labels, DIM, dtype=np.float32), unit(against), scale)


@pytest.fixture
def every(rng: np.random.Generator) -> StrangerScores:
    return fit_stranger_scores(*leaves(120, rng), words(), names=SCORES)


def column(scores: StrangerScores, name: ScoreName, embeddings: Singles) -> Floats:
    found: Floats = scores.of(embeddings)[:, scores.names.index(name)]
    return found


def in_the_plane(**parts: Any) -> Grounds:
    """Two labels at (1, 0) and (0, 1), no covariance but the identity."""
    means, whitener = np.eye(2), np.eye(2)
    return Grounds({"gaussian.means": means, "gaussian.whitener": whitener, **parts}, words(0))


POINTS = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 1.0], [-1.0, 0.0]], dtype=np.float32)


def test_mahalanobis_by_hand() -> None:
    # Squared distances to the nearer of (1, 0) and (0, 1); from (-1, 0) they are 4 and 2.
    np.testing.assert_allclose(KINDS["mahalanobis"].of(in_the_plane(), POINTS), [0, 0, 0.5, 1, 2])


def test_whitened_cosine_by_hand() -> None:
    # The middle is (.5, .5), the means lie at (.5, -.5) and (-.5, .5) from it. (1, 1) lies at (.5, .5), at right angles
    # to both; (-1, 0) at (-1.5, -.5): cosine with (-.5, .5) .5 / (sqrt 2.5 sqrt .5) = .4472. The middle has none.
    found = KINDS["whitened_cosine"].of(in_the_plane(), POINTS)
    np.testing.assert_allclose(found, [0, 0, 1, 1, 1 - 1 / np.sqrt(5)], atol=1e-12)


def test_relative_mahalanobis_by_hand() -> None:
    # The background lies at the origin with deviations of 2, so that squared distances to it are x^2 / 4.
    background = {"background.means": np.zeros((1, 2)), "background.whitener": np.eye(2) / 2}
    found = KINDS["relative_mahalanobis"].of(in_the_plane(**background), POINTS)
    np.testing.assert_allclose(found, [0 - 0.25, 0 - 0.25, 0.5 - 0.125, 1 - 0.5, 2 - 0.25])


def test_gaussian_entropy_by_hand() -> None:
    # Squared distances from (1, 0) are 0 and 2, log-densities 0 and -1: p = e / (1 + e) = .7311, entropy .5822.
    found = KINDS["gaussian_entropy"].of(in_the_plane(), POINTS)
    np.testing.assert_allclose(found[:4], [0.58220, 0.58220, np.log(2), np.log(2)], atol=1e-5)


def test_the_scores_of_logits_by_hand() -> None:
    logits = np.log([[1.0, 3.0], [2.0, 2.0], [0.5, 0.5]])
    np.testing.assert_allclose(energy(logits), -np.log([4, 4, 1]), atol=1e-15)
    p = softmax(logits, axis=1)
    np.testing.assert_allclose(max_softmax(p), [0.25, 0.5, 0.5])
    # -.25 ln .25 - .75 ln .75 = .5623
    np.testing.assert_allclose(entropy(p), [0.56234, np.log(2), np.log(2)], atol=1e-5)


@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(-30, 30)), st.floats(-20, 20))
def test_a_shift_of_all_logits_changes_energy_alone(logits: Floats, shift: float) -> None:
    np.testing.assert_allclose(energy(logits + shift), energy(logits) - shift, atol=1e-9)
    before, after = softmax(logits, axis=1), softmax(logits + shift, axis=1)
    np.testing.assert_allclose(entropy(after), entropy(before), atol=1e-9)
    assert ((entropy(before) >= 0) & (entropy(before) <= np.log(3) + 1e-12)).all()
    assert ((max_softmax(before) >= 0) & (max_softmax(before) <= 2 / 3 + 1e-12)).all()


def test_mahalanobis_is_scikit_learns(every: StrangerScores, rng: np.random.Generator) -> None:
    from sklearn.covariance import EmpiricalCovariance, LedoitWolf

    train, truth = leaves(120, rng)
    x = train.astype(np.float64)
    means = np.stack([x[truth == k].mean(axis=0) for k in range(LABELS)])
    oracle = EmpiricalCovariance(assume_centered=True)
    oracle.fit(x)  # for its shapes; what counts is the covariance put in its place
    oracle._set_covariance(LedoitWolf(assume_centered=True).fit(x - means[truth]).covariance_)
    new = np.concatenate([leaves(9, rng)[0], strangers(9, rng)])
    expected = np.min([oracle.mahalanobis(new - mean) for mean in means], axis=0)
    scores = fit_stranger_scores(train, truth, words(), names=("relative_mahalanobis", "mahalanobis"))
    np.testing.assert_allclose(column(scores, "mahalanobis", new), expected, rtol=1e-6)
    oracle._set_covariance(LedoitWolf(assume_centered=True).fit(x - x.mean(axis=0)).covariance_)
    expected -= oracle.mahalanobis(new - x.mean(axis=0))
    np.testing.assert_allclose(column(scores, "relative_mahalanobis", new), expected, rtol=1e-5, atol=1e-5)


def test_the_gaussians_posterior_is_that_of_discriminant_analysis(rng: np.random.Generator) -> None:
    from sklearn.covariance import LedoitWolf
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    train, truth = leaves(90, rng)
    x = train.astype(np.float64)
    means = np.stack([x[truth == k].mean(axis=0) for k in range(LABELS)])
    within = LedoitWolf(assume_centered=True)
    within.fit(x - means[truth])

    class Same:
        """Gives discriminant analysis the covariance that the score has, whichever label is asked for."""

        covariance_ = within.covariance_

        def fit(self, _: Floats) -> None: ...

    oracle = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Same()).fit(x, truth)
    new = np.concatenate([leaves(9, rng)[0], strangers(9, rng)])
    logits = fit_grounds(("gaussian",), train, truth, list(map(str, range(90))), words()).gaussian.logits(new)
    np.testing.assert_allclose(softmax(logits, axis=1), oracle.predict_proba(new.astype(np.float64)), atol=1e-6)


def test_the_nearest_cosine_is_scikit_learns(every: StrangerScores, rng: np.random.Generator) -> None:
    from sklearn.neighbors import NearestNeighbors

    new = np.concatenate([leaves(9, rng)[0], strangers(9, rng)])
    oracle = NearestNeighbors(n_neighbors=NEAREST, metric="cosine").fit(every.grounds.images)
    expected = oracle.kneighbors(new)[0][:, -1]
    np.testing.assert_allclose(column(every, "knn_cosine", new), expected, atol=1e-6)


def test_with_fewer_images_than_neighbours_the_farthest_counts(rng: np.random.Generator) -> None:
    train, truth = leaves(3, rng)
    new = strangers(4, rng)
    found = column(fit_stranger_scores(train, truth, words(), names=("knn_cosine",)), "knn_cosine", new)
    np.testing.assert_allclose(found, 1 - (new @ train.T).min(axis=1), rtol=1e-6)


def test_the_probe_is_nearly_scikit_learns_for_two_labels_and_more(rng: np.random.Generator) -> None:
    from sklearn.linear_model import LogisticRegression

    new = strangers(6, rng).astype(np.float64)
    for n_labels in (2, 3):
        train, truth = leaves(90, rng)
        truth = truth % n_labels
        oracle = LogisticRegression(C=100, max_iter=5000, tol=1e-8).fit(train.astype(np.float64), truth)
        found = softmax(fit_probe(train, truth).logits(new.astype(np.float32)), axis=1)
        np.testing.assert_allclose(found, oracle.predict_proba(new), atol=0.05)


def test_negatives_are_log_odds_of_the_softmax_over_all_prompts(
    every: StrangerScores, rng: np.random.Generator
) -> None:
    new = np.concatenate([leaves(5, rng)[0], strangers(5, rng)])
    texts = np.concatenate([every.grounds.classifier.vectors, every.grounds.classifier.negatives])
    p = softmax(10.0 * (new @ texts.T).astype(np.float64), axis=1)
    expected = np.log(p[:, LABELS:].sum(axis=1) / p[:, :LABELS].sum(axis=1))
    np.testing.assert_allclose(column(every, "negatives", new), expected, atol=1e-6)


def test_without_negatives_their_score_says_nothing(rng: np.random.Generator) -> None:
    scores = fit_stranger_scores(*leaves(60, rng), words(negatives=0))
    assert (column(scores, "negatives", strangers(5, rng)) == 0).all()
    own = Typicality.fit(scores.of(leaves(60, rng)[0]))
    # A score that is the same for all has the share 1 for all, which multiplies nothing.
    assert (own.of(scores.of(strangers(5, rng))) < 0.05).all()


def test_cooked_is_the_entropy_of_a_mean_of_three_each_with_its_temperature(
    every: StrangerScores, rng: np.random.Generator
) -> None:
    new = np.concatenate([leaves(5, rng)[0], strangers(5, rng)])
    grounds = every.grounds
    members = [each.logits(new) for each in (grounds.gaussian, grounds.probe, grounds.classifier)]
    for name, temperatures in (("cooked", grounds.arrays["temperatures.each"]), ("cooked_untempered", np.ones(3))):
        p = np.mean([np.exp(log_softmax(z / t, axis=1)) for z, t in zip(members, temperatures, strict=True)], axis=0)
        np.testing.assert_allclose(column(every, name, new), -(p * np.log(p)).sum(axis=1), atol=1e-9)  # type: ignore[arg-type]
    assert (grounds.arrays["temperatures.each"][1:] != 1).all()


def test_temperatures_are_fitted_on_answers_to_images_not_learned_from(rng: np.random.Generator) -> None:
    # Every image twice under one group, with labels drawn by lot: a fold that held one of a pair would know the other,
    # and find the answers sure; of images never seen they are worth nothing, and only great temperatures are right.
    vectors = np.repeat(strangers(60, rng), 2, axis=0)
    truth = np.repeat(rng.permutation(60) % LABELS, 2)
    groups = [str(i // 2) for i in range(120)]
    honest = fit_temperatures(vectors, truth, groups, words())
    leaking = fit_temperatures(vectors, truth, list(map(str, range(120))), words())
    assert (honest[:2] > 2 * leaking[:2]).all()
    # One group a label leaves nothing to hold out.
    assert fit_temperatures(vectors, truth, list(map(str, truth)), words())[:2].tolist() == [1, 1]


def test_the_whitener_is_a_root_of_the_inverse_covariance_with_fewer_cases_than_dimensions(
    rng: np.random.Generator,
) -> None:
    scores = fit_stranger_scores(*leaves(9, rng), words(), names=SCORES)
    whitener = scores.grounds.gaussian.whitener
    assert np.isfinite(whitener).all()
    assert np.isfinite(scores.of(strangers(4, rng))).all()
    precision = whitener @ whitener.T
    np.testing.assert_allclose(precision, precision.T)
    assert (np.linalg.eigvalsh(precision) > 0).all()


def test_strangers_are_found_by_every_score_alone(every: StrangerScores, rng: np.random.Generator) -> None:
    own, other = every.of(leaves(200, rng)[0]), every.of(strangers(50, rng))
    found = {name: auroc(own[:, j], other[:, j]) for j, name in enumerate(every.names)}
    assert {name: area for name, area in found.items() if area < 0.9} == {}
    typicality = Typicality.fit(own[:, :2])
    assert typicality.of(other[:, :2]).max() <= 0.02
    fresh = typicality.of(every.of(leaves(200, rng)[0])[:, :2])
    assert 0.01 < (fresh <= 0.05).mean() < 0.12


@pytest.mark.parametrize("labels", [1, 2])
def test_one_label_or_two_are_no_reason_to_fail(labels: int, rng: np.random.Generator) -> None:
    train, truth = leaves(60, rng)
    scores = fit_stranger_scores(train, truth % labels, words(labels=labels), names=SCORES)
    found = scores.of(np.concatenate([leaves(6, rng)[0], strangers(6, rng)]))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_kept_as_it_was_fitted_and_depends_on_no_other_image(
    name: ScoreName, rng: np.random.Generator
) -> None:
    train, truth = leaves(60, rng)
    new = np.concatenate([leaves(4, rng)[0], strangers(4, rng)])
    fitted = fit_stranger_scores(train, truth, words(), names=(name,), seed=3)
    kept = load_stranger_scores((name,), dict(fitted.tensors), words())
    np.testing.assert_array_equal(kept.of(new), fitted.of(new))
    alone = np.concatenate([fitted.of(row[None]) for row in new])
    np.testing.assert_allclose(alone, fitted.of(new), rtol=1e-5, atol=1e-6)
    again = fit_stranger_scores(train, truth, words(), names=(name,), seed=3)
    np.testing.assert_array_equal(again.of(new), fitted.of(new))
    for array in fitted.tensors:
        less = {key: value for key, value in fitted.tensors.items() if key != array}
        with pytest.raises(KeyError, match=array):
            load_stranger_scores((name,), less, words())


def test_only_what_is_needed_is_kept(rng: np.random.Generator) -> None:
    assert set(fit_stranger_scores(*leaves(30, rng), words(), names=DEFAULT).tensors) == {
        "gaussian.means",
        "gaussian.whitener",
    }


def test_bad_input_is_named(every: StrangerScores, rng: np.random.Generator) -> None:
    train, truth = leaves(30, rng)
    with pytest.raises(ValueError, match=r"embeddings: expected \[N, 12\], got \(2, 5\)"):
        every.of(np.ones((2, 5), dtype=np.float32))
    bad = strangers(3, rng)
    bad[1, 4] = np.nan
    with pytest.raises(ValueError, match="embeddings: row 1 is not finite"):
        every.of(bad)
    with pytest.raises(ValueError, match=r"truth: expected each of 0..2, found \[0, 1\]"):
        fit_stranger_scores(train, np.minimum(truth, 1), words())
    with pytest.raises(ValueError, match=r"expected \[N, D\], \[N\] and N"):
        fit_stranger_scores(train, truth[:-1], words())


@pytest.mark.slow
def test_ten_thousand_images_of_fifty_labels_take_seconds() -> None:
    rng = np.random.default_rng(0)
    n, dim, k = 10_000, 512, 50
    truth = np.arange(n) % k
    rows = unit(rng.normal(size=(k, dim))[truth] + rng.normal(size=(n, dim)))
    texts = TextClassifier(unit(rng.normal(size=(k, dim))), unit(rng.normal(size=(2, dim))), 100.0)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_stranger_scores(rows, truth, texts, names=SCORES).of(rows)
    assert time.perf_counter() - start < 60  # about 15 s on one free core
    assert np.isfinite(found).all()


def test_energy_is_scipys_logsumexp(every: StrangerScores, rng: np.random.Generator) -> None:
    new = strangers(7, rng)
    expected = -logsumexp(every.grounds.probe.logits(new), axis=1)
    np.testing.assert_allclose(column(every, "energy", new), expected)
