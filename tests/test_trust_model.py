"""Trust: monotone, honest where nothing is known, calibrated where much is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.optimize import check_grad
from strategies import Panel, panels

from secondlook.orchestrator.trust_model import FEATURES, LIMIT, Trust, features, fit_trust, penalised_nll

Floats = NDArray[np.float64]
COEFFICIENT = st.floats(0, 5)
FEATURE = st.floats(-14, 14)
NOTHING = np.empty((0, 5))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def simulated(n: int, rng: np.random.Generator, sharpen: float = 1.0) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """Features, correctness and true chances of cases whose belief says `sharpen` times the log-odds that hold."""
    odds = rng.gamma(2.0, 1.0, n)
    chance = 1 / (1 + np.exp(-odds))
    said = np.clip(1 / (1 + np.exp(-sharpen * odds)), LIMIT, 1 - LIMIT)
    belief = np.stack([said, 1 - said], axis=1)
    x = features(belief, belief[None], rng.uniform(0.05, 1, n))
    return x, rng.random(n) < chance, chance


def ece(confidence: Floats, right: NDArray[np.bool_], bins: int = 10) -> float:
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[place == b].sum() - confidence[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(right))


def test_features_are_as_by_hand() -> None:
    # Belief (.6, .3, .1): ln(.6/.4), ln(.6/.3); agents give the top label .5 and .8: mean of the logarithms;
    # typicality .25: ln .25.
    belief = np.array([[0.6, 0.3, 0.1]])
    probs = np.array([[[0.5, 0.3, 0.2]], [[0.8, 0.1, 0.1]]])
    expected = [np.log(1.5), np.log(2), (np.log(0.5) + np.log(0.8)) / 2, np.log(0.25), 0]
    np.testing.assert_allclose(features(belief, probs, np.array([0.25])), [expected])
    assert len(FEATURES) == 5


def test_consistency_is_of_the_label_asked_about() -> None:
    # Two agents, several views each. The first says label 0, its views by .9: odds 9. The second says label 1, its
    # views by .75, which leaves .25 at most for label 0: odds 1/3. (ln 9 - ln 3) / 2 = ln 3 / 2; of label 1 the
    # reverse.
    belief = np.array([[0.6, 0.4]])
    probs = np.array([[[0.8, 0.2]], [[0.3, 0.7]]])
    seen = np.array([[0.9], [0.75]])
    first = features(belief, probs, np.ones(1), consistency=seen)[0, 4]
    other = features(belief, probs, np.ones(1), np.array([1]), seen)[0, 4]
    np.testing.assert_allclose([first, other], [np.log(3) / 2, -np.log(3) / 2])
    certain = features(belief, probs[:1], np.ones(1), consistency=np.ones((1, 1)))[0, 4]
    assert certain == pytest.approx(np.log(999))


def test_an_agent_of_one_view_and_one_that_failed_say_nothing_of_consistency() -> None:
    belief = np.array([[0.6, 0.4], [0.6, 0.4]])
    probs = np.array([[[0.8, 0.2]] * 2, [[0.7, 0.3]] * 2, [[np.nan] * 2] * 2])
    seen = np.array([[0.9, np.nan], [np.nan, np.nan], [np.nan, np.nan]])
    found = features(belief, probs, np.ones(2), consistency=seen)
    # The first case has one agent that looked at several views, the second none: nothing is added to its log-odds.
    np.testing.assert_allclose(found[:, 4], [np.log(9), 0])
    np.testing.assert_array_equal(found[:, :4], features(belief, probs, np.ones(2))[:, :4])


def test_views_that_contradict_each_other_lower_trust_where_they_did_so_before(rng: np.random.Generator) -> None:
    # Beliefs are alike everywhere; those whose views agreed were right in 95 of 100, the others in 60.
    n, agreed = 400, rng.random(400) < 0.5
    belief, seen = np.tile([0.8, 0.2], (n, 1)), np.where(agreed, 0.95, 0.55)[None]
    right = rng.random(n) < np.where(agreed, 0.95, 0.6)
    x = features(belief, belief[None], np.ones(n), consistency=seen)
    model, _ = fit_trust(x, right, None)
    assert model.coefficients[4] > 0.5
    assert model.of(x[agreed])[0] == pytest.approx(0.95, abs=0.06)
    assert model.of(x[~agreed])[0] == pytest.approx(0.6, abs=0.06)


def test_a_model_of_four_features_is_read_as_one_that_does_without_the_fifth() -> None:
    old = Trust.model_validate_json('{"coefficients": [0.8, 0.2, 0.3, 0.1]}')
    assert old.coefficients == (0.8, 0.2, 0.3, 0.1, 0.0)
    with pytest.raises(ValidationError, match="coefficients"):
        Trust.model_validate_json('{"coefficients": [0.8, 0.2, 0.3]}')


def test_an_agent_that_failed_is_no_dissent() -> None:
    belief = np.array([[0.6, 0.4]])
    alone = features(belief, np.array([[[0.7, 0.3]]]), np.ones(1))
    beside = features(belief, np.array([[[0.7, 0.3]], [[np.nan, np.nan]]]), np.ones(1))
    np.testing.assert_array_equal(beside, alone)


@given(panels())
def test_features_are_finite_where_somebody_answered_and_nan_elsewhere(panel: Panel) -> None:
    answered = ~np.isnan(panel.probs).any(axis=2).all(axis=0)
    belief = np.full(panel.probs.shape[1:], np.nan)
    for i in np.flatnonzero(answered):
        rows = panel.probs[:, i]
        belief[i] = rows[~np.isnan(rows).any(axis=1)][0]
    x = features(belief, panel.probs, np.full(len(belief), 0.5))
    assert np.isfinite(x[answered]).all()
    assert np.isnan(x[~answered]).all()
    assert (Trust().of(x)[~answered] == 0).all()


@given(
    st.tuples(COEFFICIENT, COEFFICIENT, COEFFICIENT, COEFFICIENT, COEFFICIENT),
    st.floats(-5, 5),
    st.tuples(FEATURE, FEATURE, FEATURE, FEATURE, FEATURE),
    st.integers(0, 4),
    st.floats(0, 10),
)
def test_trust_never_falls_when_a_feature_rises(
    coefficients: tuple[float, float, float, float, float],
    intercept: float,
    row: tuple[float, ...],
    which: int,
    rise: float,
) -> None:
    model = Trust(intercept=intercept, coefficients=coefficients)
    higher = np.array(row)
    higher[which] += rise
    low, high = model.of(np.array([row, higher]))
    assert 0 <= low <= high <= 1


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2))
def test_every_fit_is_monotone_even_where_the_data_are_not(seed: int, sharpen: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 5))
    right = rng.random(30) < 1 / (1 + np.exp(-sharpen * x.sum(axis=1)))
    model, _ = fit_trust(x, right, None)
    assert min(model.coefficients) >= 0


def test_without_data_trust_is_the_beliefs_own_top_probability() -> None:
    model, held_out = fit_trust(NOTHING, np.empty(0, dtype=np.bool_), None)
    assert (model.intercept, model.coefficients, model.n) == (0.0, (1.0, 0.0, 0.0, 0.0, 0.0), 0)
    assert held_out.shape == (0,)
    belief = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(model.of(features(belief, belief[None], np.array([0.3, 1.0]))), [0.7, 0.8])


@pytest.mark.parametrize("n", [3, 300])
def test_without_errors_trust_stays_short_of_certainty(n: int) -> None:
    belief = np.tile([0.8, 0.2], (n, 1))
    x = features(belief, belief[None], np.ones(n))
    model, _ = fit_trust(x, np.ones(n, dtype=np.bool_), None)
    assert (model.n, model.n_wrong) == (n, 0)
    trust = model.of(x)[0]
    assert 0.8 < trust < (0.9 if n == 3 else 0.9999)


@pytest.mark.parametrize("sharpen", [0.5, 1.0, 3.0])
def test_trust_is_calibrated_whatever_the_belief_claims(sharpen: float, rng: np.random.Generator) -> None:
    x, right, _ = simulated(1000, rng, sharpen)
    model, _ = fit_trust(x, right, None)
    fresh, outcome, chance = simulated(5000, rng, sharpen)
    trust = model.of(fresh)
    assert ece(trust, outcome) < 0.03
    assert np.abs(trust - chance).mean() < 0.04


def test_rows_of_nan_get_no_trust_and_do_not_enter_the_fit(rng: np.random.Generator) -> None:
    x, right, _ = simulated(50, rng)
    holes = x.copy()
    holes[::10] = np.nan
    model, held_out = fit_trust(holes, right, np.arange(50) % 5)
    kept = np.arange(50) % 10 != 0
    assert model == fit_trust(x[kept], right[kept], None)[0]
    assert (held_out[~kept] == 0).all()
    assert (held_out[kept] > 0).all()


def test_no_case_is_trusted_by_a_model_fitted_on_it(rng: np.random.Generator) -> None:
    x, right, _ = simulated(60, rng)
    folds = (np.arange(60) % 3).astype(np.intp)
    _, held_out = fit_trust(x, right, folds)
    lied = np.where(folds == 1, ~right, right)
    _, after = fit_trust(x, lied, folds)
    np.testing.assert_array_equal(after[folds == 1], held_out[folds == 1])
    assert not np.allclose(after[folds != 1], held_out[folds != 1])


@given(st.integers(0, 2**32 - 1))
def test_the_gradient_is_the_numerical_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, c = rng.normal(size=(20, 5)), (rng.random(20) < 0.6).astype(np.float64), rng.normal(size=6)
    off = check_grad(lambda c: penalised_nll(c, x, y)[0], lambda c: penalised_nll(c, x, y)[1], c)
    assert off <= 1e-4 * (1 + np.abs(penalised_nll(c, x, y)[1]).max())


def test_trust_is_the_same_after_json(rng: np.random.Generator) -> None:
    x, right, _ = simulated(80, rng)
    model, _ = fit_trust(x, right, None)
    again = Trust.model_validate_json(model.model_dump_json())
    assert again == model
    np.testing.assert_array_equal(again.of(x), model.of(x))
