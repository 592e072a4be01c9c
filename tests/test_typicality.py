"""Own images are as typical as they should be, strangers are not, and every score is what its library says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.typicality import SCORES, StrangerScores, Typicality, fit_stranger_scores

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


def words(negatives: int = 2, scale: float = 10.0) -> TextClassifier:
    against = -np.ones((negatives, DIM)) + 0.1 * np.eye(max(negatives, 1), DIM)[:negatives]
    return TextClassifier(np.eye(LABELS, DIM, dtype=np.float32), unit(against), scale)


@pytest.fixture
def fitted(rng: np.random.Generator) -> StrangerScores:
    return fit_stranger_scores(*leaves(120, rng), words())


def test_mahalanobis_is_scikit_learns(rng: np.random.Generator) -> None:
    from sklearn.covariance import EmpiricalCovariance, LedoitWolf

    train, truth = leaves(120, rng)
    x = train.astype(np.float64)
    means = np.stack([x[truth == k].mean(axis=0) for k in range(LABELS)])
    oracle = EmpiricalCovariance(assume_centered=True)
    oracle.fit(x)  # for its shapes; what counts is the covariance put in its place
    oracle._set_covariance(LedoitWolf(assume_centered=True).fit(x - means[truth]).covariance_)
    new = np.concatenate([leaves(9, rng)[0], strangers(9, rng)])
    expected = np.min([oracle.mahalanobis(new - mean) for mean in means], axis=0)
    found = fit_stranger_scores(train, truth, words()).of(new)[:, SCORES.index("mahalanobis")]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_whitener_is_a_root_of_the_inverse_covariance_with_fewer_cases_than_dimensions(
    rng: np.random.Generator,
) -> None:
    scores = fit_stranger_scores(*leaves(9, rng), words())
    assert np.isfinite(scores.whitener).all()
    assert np.isfinite(scores.of(strangers(4, rng))).all()
    precision = scores.whitener @ scores.whitener.T
    np.testing.assert_allclose(precision, precision.T)
    assert (np.linalg.eigvalsh(precision) > 0).all()


def test_negatives_are_log_odds_of_the_softmax_over_all_prompts(
    fitted: StrangerScores, rng: np.random.Generator
) -> None:
    from scipy.special import softmax

    new = np.concatenate([leaves(5, rng)[0], strangers(5, rng)])
    texts = np.concatenate([fitted.classifier.vectors, fitted.classifier.negatives])
    p = softmax(10.0 * (new @ texts.T).astype(np.float64), axis=1)
    expected = np.log(p[:, LABELS:].sum(axis=1) / p[:, :LABELS].sum(axis=1))
    np.testing.assert_allclose(fitted.of(new)[:, SCORES.index("negatives")], expected, atol=1e-6)


def test_without_negatives_their_score_says_nothing(rng: np.random.Generator) -> None:
    scores = fit_stranger_scores(*leaves(60, rng), words(negatives=0))
    assert (scores.of(strangers(5, rng))[:, SCORES.index("negatives")] == 0).all()
    own = Typicality.fit(scores.of(leaves(60, rng)[0]))
    # A score that is the same for all has the share 1 for all, which multiplies nothing.
    assert (own.of(scores.of(strangers(5, rng))) < 0.05).all()


def test_strangers_are_untypical_by_every_score(fitted: StrangerScores, rng: np.random.Generator) -> None:
    own, other = fitted.of(leaves(200, rng)[0]), fitted.of(strangers(50, rng))
    assert (other.min(axis=0) > np.quantile(own, 0.95, axis=0)).all()
    typicality = Typicality.fit(own)
    assert typicality.of(other).max() <= 0.02
    fresh = typicality.of(fitted.of(leaves(200, rng)[0]))
    assert 0.01 < (fresh <= 0.05).mean() < 0.12


@pytest.mark.parametrize("n_scores", [1, 2])
@pytest.mark.parametrize("n_reference", [40, 300])
def test_typicality_is_uniform_on_own_held_out_cases(n_reference: int, n_scores: int) -> None:
    from scipy.stats import kstest

    rng = np.random.default_rng(7)
    # One new case for each reference: cases that share a reference are not independent of each other.
    shape = rng.normal(size=(n_scores, n_scores))
    found = np.array(
        [
            Typicality.fit(rng.normal(size=(n_reference, n_scores)) @ shape).of(rng.normal(size=(1, n_scores)) @ shape)[
                0
            ]
            for _ in range(1500)
        ]
    )
    # Typicality has R + 1 values; a draw between two of them makes it continuous.
    smooth = found - rng.random(1500) / (n_reference + 1)
    # One score: exactly uniform, and 1.36 / sqrt(1,500) = .035 is the test's limit at 5 %. Two: a little low.
    slack = 2 * (n_scores - 1) / n_reference
    assert kstest(smooth, "uniform").statistic < 0.035 + slack
    # The binomial error of 1,500 cases at .05 is .0056.
    assert -0.017 < (found <= 0.05).mean() - 0.05 < 0.017 + slack


@given(
    reference=hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(2)), elements=st.floats(-5, 5)),
    new=hnp.arrays(np.float64, (6, 2), elements=st.floats(-9, 9)),
)
def test_typicality_is_a_share_above_nought_and_falls_with_every_score(reference: Floats, new: Floats) -> None:
    typicality = Typicality.fit(reference)
    found = typicality.of(new)
    n = len(reference)
    assert (found >= 1 / (n + 1)).all()
    assert (found <= 1).all()
    assert (typicality.of(new + np.array([1.0, 0.0])) <= found).all()
    np.testing.assert_allclose(found * (n + 1), np.rint(found * (n + 1)))


def test_typicality_by_hand() -> None:
    # One score, reference 1 2 3 4: at least as high are 4 3 2 1 of them; as (1 + n) / 5 that is 1 .8 .6 .4.
    typicality = Typicality.fit(np.array([[3.0], [1.0], [4.0], [2.0]]))
    np.testing.assert_allclose(typicality.combined, np.log([0.4, 0.6, 0.8, 1.0]))
    # 9: none is as high, share 1 / 5, no reference share is as small: (1 + 0) / 5.
    # 2.5: two are, 3 / 5, as small are .4 and .6: 3 / 5. 0: all are, 5 / 5: (1 + 4) / 5.
    np.testing.assert_allclose(typicality.of(np.array([[9.0], [2.5], [0.0]])), [0.2, 0.6, 1.0])


def test_typicality_of_two_scores_by_hand() -> None:
    # Ranked alike, reference (1, 1) (2, 2) (3, 3): shares 1, 3/4, 2/4 each, products 1, 9/16, 1/4.
    typicality = Typicality.fit(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    np.testing.assert_allclose(np.exp(typicality.combined), [1 / 4, 9 / 16, 1.0])
    # (9, 0): shares 1/4 and 1, product 1/4: as small is one, (1 + 1) / 4. (9, 9): 1/16, none: 1/4.
    np.testing.assert_allclose(typicality.of(np.array([[9.0, 0.0], [9.0, 9.0]])), [0.5, 0.25])
