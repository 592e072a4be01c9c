"""Prediction sets: limits by hand and by oracle, coverage simulated for all cases and for each label."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin
from strategies import Labelled, labelled

from secondlook.orchestrator.prediction_set import Method, PredictionSets, fit_prediction_sets, strangeness

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
METHODS: tuple[Method, ...] = ("lac", "aps")
METHOD = pytest.mark.parametrize("method", METHODS)


def softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def draw(n: int, rng: np.random.Generator, weights: tuple[float, ...] = (0.4, 0.3, 0.15, 0.1, 0.05)) -> Labelled:
    """Draw cases of five labels, some rare, and beliefs that are three times too sure of them."""
    odds = rng.normal(size=(n, 5)) * 1.5 + np.log(weights)
    truth = (odds + rng.gumbel(size=odds.shape)).argmax(axis=1)  # drawn from softmax(odds)
    return Labelled(softmax(3 * odds), truth)


def test_both_kinds_of_strangeness_are_as_by_hand() -> None:
    belief = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(strangeness("lac", belief), [[0.8, 0.5, 0.7], [0.6, 0.6, 0.8], [0, 0, 0]])
    # In the order .5, .3, .2 the sums are .5, .8, 1; of the two .4 the first label comes first.
    np.testing.assert_allclose(strangeness("aps", belief), [[1.0, 0.5, 0.8], [0.4, 0.8, 1.0], [0, 0, 0]])
    # A quarter of the label's own probability taken off: 1 - .05, .5 - .125, .8 - .075.
    np.testing.assert_allclose(strangeness("aps", belief[:1], np.array([0.25])), [[0.95, 0.375, 0.725]])


def test_the_limit_is_the_finite_sample_quantile() -> None:
    # Nine cases whose truth has 1 - p of .1 to .9; ceil(10 * .8) = 8, so the eighth smallest.
    p = np.arange(9, 0, -1) / 10
    belief, truth = np.stack([p, 1 - p], axis=1), np.zeros(9, dtype=np.intp)
    assert fit_prediction_sets("lac", belief, truth, 0.8).limits == pytest.approx((0.8,))
    assert fit_prediction_sets("lac", belief, truth, 0.9).limits == pytest.approx((0.9,))
    # ceil(10 * .95) = 10 is more than nine.
    none = fit_prediction_sets("lac", belief, truth, 0.95)
    assert none.limits == (None,)
    assert none.of(belief).all()
    assert none.describe().endswith("by 9 held-out cases, too few: all")


def test_a_limit_per_label_is_that_of_its_own_cases() -> None:
    # Label 0: 1 - p of .1 .2 .3, ceil(4 * .5) = 2: .2. Label 1: one case, ceil(2 * .5) = 1: .6. Label 2: none.
    belief = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0], [0.5, 0.4, 0.1]])
    sets = fit_prediction_sets("lac", belief, np.array([0, 0, 0, 1]), 0.5, per_label=True)
    assert sets.limits[:2] == pytest.approx((0.2, 0.6))
    assert (sets.limits[2], sets.counts, sets.per_label) == (None, (3, 1, 0), True)
    assert sets.of(np.array([[0.85, 0.1, 0.05], [0.5, 0.45, 0.05]])).tolist() == [
        [True, False, True],  # a label that was never seen is never excluded
        [True, True, True],  # the top label is inside, though .5 is above its limit
    ]
    assert "too few of 1 labels" in sets.describe()


@METHOD
@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_the_sets_cover_as_promised_even_of_a_belief_that_is_too_sure(method: Method, level: float) -> None:
    rng, n, fits = np.random.default_rng(1), 100, 300
    covered, sizes, rough = [], [], []
    for _ in range(fits):
        held, new = draw(n, rng), draw(200, rng)
        sets = fit_prediction_sets(method, held.probs, held.truth, level)
        inside = sets.of(new.probs)
        covered.append(inside[np.arange(200), new.truth].mean())
        sizes.append(inside.sum(axis=1).mean())
        random = fit_prediction_sets(method, held.probs, held.truth, level, rng=rng)
        rough.append(random.of(new.probs, rng)[np.arange(200), new.truth].mean())
    error = 3 * np.std(covered) / math.sqrt(fits)
    assert np.mean(covered) >= level - error
    if method == "lac":
        assert np.mean(covered) <= level + 1 / (n + 1) + error
    assert np.mean(rough) >= level - error
    assert 1 < np.mean(sizes) < 5


@METHOD
def test_one_new_case_after_each_fit_is_covered_within_the_noise_of_coins(method: Method) -> None:
    # One new case a fit, so that the trials are independent; too rarely once in a thousand times.
    rng, level, fits = np.random.default_rng(2), 0.9, 1000
    hits = 0
    for _ in range(fits):
        drawn = draw(41, rng)
        sets = fit_prediction_sets(method, drawn.probs[:40], drawn.truth[:40], level)
        hits += int(sets.of(drawn.probs[40:])[0, drawn.truth[40]])
    assert hits >= binom.ppf(0.001, fits, level)


@METHOD
def test_with_a_limit_per_label_every_label_is_covered_and_without_a_rare_one_is_not(method: Method) -> None:
    rng, level = np.random.default_rng(3), 0.9
    new = draw(20_000, rng)
    by_label, by_all = np.zeros((100, 5)), np.zeros((100, 5))
    for i in range(100):
        held = draw(300, rng)
        for found, per_label in ((by_label, True), (by_all, False)):
            sets = fit_prediction_sets(method, held.probs, held.truth, level, per_label=per_label)
            hit = sets.of(new.probs)[np.arange(len(new.truth)), new.truth]
            found[i] = [hit[new.truth == k].mean() for k in range(5)]
    noise = 3 * by_label.std(axis=0) / 10 + 3 * np.sqrt(0.09 / np.bincount(new.truth))
    assert (by_label.mean(axis=0) >= level - noise).all()
    assert by_all.mean(axis=0)[4] < level - 0.05, "the rarest label pays for the others"


def test_cases_of_one_group_are_worth_one_case() -> None:
    # 15 groups of ten like cases: ceil(151 * .9) = 136, which lies in the 14th group, and the 14th of 15 covers 14/16.
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(4000):
        p = rng.random(16)
        belief = np.repeat(np.stack([p[:15], 1 - p[:15]], axis=1), 10, axis=0)
        limit = fit_prediction_sets("lac", belief, np.zeros(150, dtype=np.intp), 0.9).limits[0]
        assert limit is not None
        covered.append(1 - p[15] <= limit)
    assert np.mean(covered) == pytest.approx(14 / 16, abs=3 * math.sqrt(0.11 / 4000))


@given(labelled(), st.sampled_from(METHODS), st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.booleans())
def test_sets_are_nested_in_the_level_hold_the_top_label_and_survive_json(
    data: Labelled, method: Method, a: float, b: float, per_label: bool
) -> None:
    truth = data.truth.astype(np.intp)
    low, high = (fit_prediction_sets(method, data.probs, truth, level, per_label=per_label) for level in sorted((a, b)))
    inside = low.of(data.probs)
    assert inside[np.arange(len(truth)), data.probs.argmax(axis=1)].all()
    assert (inside <= high.of(data.probs)).all()
    assert PredictionSets.model_validate_json(low.model_dump_json()) == low


@given(labelled(), st.sampled_from(METHODS), st.floats(0.05, 0.95), st.booleans())
def test_on_the_held_out_cases_themselves_the_sets_hold_at_least_the_level(
    data: Labelled, method: Method, level: float, per_label: bool
) -> None:
    # The label at the limit belongs to the set, whatever 1 - p and sums are rounded to.
    truth = data.truth.astype(np.intp)
    inside = fit_prediction_sets(method, data.probs, truth, level, per_label=per_label).of(data.probs)
    hit = inside[np.arange(len(truth)), truth]
    for label in np.unique(truth) if per_label else [slice(None)]:
        assert hit[truth == label if per_label else label].mean() >= level


@METHOD
def test_where_nothing_is_known_the_set_holds_every_label(method: Method) -> None:
    belief = np.array([[np.nan, np.nan, np.nan], [0.9, 0.06, 0.04]])
    assert PredictionSets(method=method, limits=(0.3,)).of(belief).tolist() == [[True] * 3, [True, False, False]]
    # Such a case is always covered, and counts as one that was.
    held = fit_prediction_sets("lac", belief, np.array([0, 0]), 0.5)
    assert held.limits == pytest.approx((0.1,))
    failed = fit_prediction_sets(method, np.full((30, 3), np.nan), np.zeros(30, dtype=np.intp), 0.9)
    assert failed.of(belief).tolist() == [[True] * 3, [True, False, False]], "all agents failed: the top label is left"
    assert fit_prediction_sets(method, np.empty((0, 3)), np.empty(0, dtype=np.intp), 0.9).of(belief).all()


def test_what_is_no_distribution_of_the_labels_is_refused() -> None:
    belief, truth = np.full((4, 2), 0.5), np.zeros(4, dtype=np.intp)
    for wrong in ((belief[0], truth), (belief, truth[:3])):
        with pytest.raises(ValueError, match=r"expected \[N, K\] and \[N\]"):
            fit_prediction_sets("lac", *wrong, 0.9)
    with pytest.raises(ValueError, match="expected whole numbers 0 to 1, got int64 0 to 2"):
        fit_prediction_sets("lac", belief, np.array([0, 1, 2, 0]), 0.9)
    for level in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="level"):
            fit_prediction_sets("lac", belief, truth, level)
    with pytest.raises(ValueError, match=r"expected \[N, 3\], got \(4, 2\)"):
        PredictionSets(limits=(0.1, 0.2, 0.3)).of(belief)
    random = fit_prediction_sets("aps", belief, truth, 0.5, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="rng"):
        random.of(belief)


class Fixed(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier for MAPIE whose inputs are its probabilities."""

    classes_ = np.arange(5)

    def fit(self, x: Floats, y: Ints) -> Fixed:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, x: Floats) -> Floats:
        return x

    def predict(self, x: Floats) -> Ints:
        return np.asarray(x.argmax(axis=1))


@METHOD
@pytest.mark.parametrize("level", [0.7, 0.9])
def test_limits_and_sets_are_those_of_mapie(method: Method, level: float) -> None:
    from mapie.classification import SplitConformalClassifier

    rng, seed = np.random.default_rng(5), 0
    held, new = draw(153, rng), draw(80, rng)
    oracle = SplitConformalClassifier(
        Fixed(), confidence_level=level, conformity_score=method, prefit=True, random_state=seed
    )
    oracle.conformalize(held.probs, held.truth)
    if method == "lac":
        found = fit_prediction_sets("lac", held.probs, held.truth, level)
        theirs = oracle.predict_set(new.probs)[1][:, :, 0]
        ours = strangeness("lac", new.probs) <= found.limits[0]
    else:
        # MAPIE calibrates adaptive sets in the randomised form only, and draws anew from the seed each time.
        u = np.random.RandomState(seed).uniform(size=len(held.truth))
        at_truth = strangeness("aps", held.probs, u)[np.arange(153), held.truth]
        limit = np.sort(at_truth)[math.ceil(154 * level) - 1]
        theirs = oracle.predict_set(new.probs, conformity_score_params={"include_last_label": "randomized"})[1][:, :, 0]
        v = np.random.RandomState(seed).uniform(size=len(new.truth))
        ours = strangeness("aps", new.probs, v) <= limit
    np.testing.assert_array_equal(ours, theirs)
