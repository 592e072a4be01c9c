"""The pool against arithmetic done by hand, a numerical gradient, and the laws that fusion must obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import check_grad
from strategies import Panel, panels

from secondlook.orchestrator.fusion import nll_of, prior_of
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import fit_fusion
from secondlook.orchestrator.pool import Pool, fit_pool, fit_weights, fuse, penalised_nll, starting_weights

Floats = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def folds_of(n: int, count: int = 5) -> NDArray[np.intp]:
    return np.arange(n, dtype=np.intp) % count


def agent(truth: NDArray[np.intp], k: int, skill: float, rng: np.random.Generator) -> Floats:
    """Distributions of shape (N, K) whose log-odds of the truth are raised by `skill` over unit noise."""
    return softmax(rng.normal(size=(len(truth), k)) + skill * np.eye(k)[truth])


def pool_of(weights: tuple[float, ...], k: int = 2) -> Pool:
    return Pool(agents=tuple(f"a{m}" for m in range(len(weights))), prior=(1 / k,) * k, weights=weights)


def test_two_agents_are_pooled_as_by_hand() -> None:
    # prior (1/4, 3/4), first (1/2, 1/2), second (3/4, 1/4), weights (1, 1/2).
    # Ratio of the labels: prior 1/3; evidence of the first (1/2)/(1/4) : (1/2)/(3/4) = 2 : 2/3 = 3;
    # of the second (3/4)/(1/4) : (1/4)/(3/4) = 3 : 1/3 = 9, to the power 1/2: 3.
    # 1/3 * 3 * 3 = 3, so the belief is (3/4, 1/4).
    probs = np.array([[[0.5, 0.5]], [[0.75, 0.25]]])
    belief = fuse(probs, np.array([1.0, 0.5]), np.array([0.25, 0.75]))
    np.testing.assert_allclose(belief, [[0.75, 0.25]], rtol=1e-12)


def test_a_missing_agent_drops_out_with_its_weight() -> None:
    # As above without the second: 1/3 * 3 = 1, so (1/2, 1/2). Without the first: 1/3 * 3 = 1 again.
    prior, weights = np.array([0.25, 0.75]), np.array([1.0, 0.5])
    probs = np.array([[[0.5, 0.5], [np.nan, np.nan]], [[np.nan, np.nan], [0.75, 0.25]]])
    np.testing.assert_allclose(fuse(probs, weights, prior), [[0.5, 0.5], [0.5, 0.5]], rtol=1e-12)


def test_where_all_are_missing_the_belief_is_nan_and_other_rows_are_untouched() -> None:
    probs = np.array([[[np.nan, np.nan], [0.9, 0.1]], [[np.nan, np.nan], [0.9, 0.1]]])
    belief = pool_of((0.5, 0.5)).fuse(Opinions.uncalibrated(("a0", "a1"), probs))
    assert np.isnan(belief[0]).all()
    np.testing.assert_allclose(belief[1], [0.9, 0.1])


@given(panels(), st.data())
def test_beliefs_are_distributions_and_the_order_of_agents_is_irrelevant(panel: Panel, data: st.DataObject) -> None:
    m, n, k = panel.probs.shape
    weights = np.array(data.draw(st.lists(st.floats(0, 3), min_size=m, max_size=m)))
    prior = prior_of(panel.truth.astype(np.intp), k)
    belief = fuse(panel.probs, weights, prior)
    order = np.array(data.draw(st.permutations(range(m))))
    np.testing.assert_allclose(fuse(panel.probs[order], weights[order], prior), belief, atol=1e-9)
    answered = ~np.isnan(panel.probs).any(axis=2).all(axis=0)
    assert (np.isnan(belief).any(axis=1) == ~answered).all()
    np.testing.assert_allclose(belief[answered].sum(axis=1), 1)
    assert belief.shape == (n, k)


@given(panels(), st.integers(0, 2**32 - 1))
def test_the_gradient_is_the_numerical_one(panel: Panel, seed: int) -> None:
    m, _, k = panel.probs.shape
    truth = panel.truth.astype(np.intp)
    log_prior = np.log(prior_of(truth, k))
    evidence = np.where(np.isnan(panel.probs), 0.0, np.log(np.maximum(panel.probs, 1e-9)) - log_prior)
    w, start = np.random.default_rng(seed).uniform(0, 2, (2, m))
    off = check_grad(
        lambda w: penalised_nll(w, evidence, truth, log_prior, start, 4.0)[0],
        lambda w: penalised_nll(w, evidence, truth, log_prior, start, 4.0)[1],
        w,
    )
    assert off <= 1e-4 * (1 + np.abs(penalised_nll(w, evidence, truth, log_prior, start, 4.0)[1]).max())


@settings(max_examples=40)
@given(panels())
def test_weights_are_never_negative_nor_worse_than_where_they_start(panel: Panel) -> None:
    k = panel.probs.shape[2]
    truth = panel.truth.astype(np.intp)
    prior = prior_of(truth, k)
    weights = fit_weights(panel.probs, truth, prior)
    assert (weights >= 0).all()
    evidence = np.where(np.isnan(panel.probs), 0.0, np.log(np.maximum(panel.probs, 1e-9)) - np.log(prior))
    start = starting_weights(panel.probs, truth, prior)
    loss = [penalised_nll(w, evidence, truth, np.log(prior), start, 4.0)[0] for w in (weights, start)]
    assert loss[0] <= loss[1] + 1e-9


def test_weights_start_equal_for_equals_and_small_for_the_weak() -> None:
    # Four cases, two labels, uniform prior. NLL of "a": -ln .8 = .223, of "b": -ln .5 = .693; sqrt(4) = 2, so the odds
    # are exp(-2 (.223 - .693)) = (.8 / .5)^2 = 2.56, and the weights 2.56 / 3.56 = .719 and .281.
    truth, prior = np.zeros(4, dtype=np.intp), np.array([0.5, 0.5])
    a, b = np.tile([0.8, 0.2], (4, 1)), np.tile([0.5, 0.5], (4, 1))
    np.testing.assert_allclose(starting_weights(np.stack([a, b]), truth, prior), [2.56 / 3.56, 1 / 3.56])
    np.testing.assert_allclose(starting_weights(np.stack([a, a, a]), truth, prior), 1 / 3)
    strong = fit_weights(np.stack([a, b]), truth, prior, 1e9)
    np.testing.assert_allclose(strong, [2.56 / 3.56, 1 / 3.56], atol=1e-4)


def test_without_cases_the_weights_are_equal() -> None:
    weights = fit_weights(np.empty((4, 0, 3)), np.empty(0, dtype=np.intp), np.full(3, 1 / 3))
    np.testing.assert_allclose(weights, 0.25)


def test_a_copied_agent_shares_its_weight_and_changes_no_belief(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 4, 800).astype(np.intp)
    one, other = agent(truth, 4, 2.0, rng), agent(truth, 4, 1.5, rng)
    prior = prior_of(truth, 4)
    two, three = np.stack([one, other]), np.stack([one, one, other])
    before, after = fit_weights(two, truth, prior), fit_weights(three, truth, prior)
    assert after[0] == pytest.approx(after[1], abs=1e-3)
    assert after[0] + after[1] == pytest.approx(before[0], rel=0.05)
    assert after[2] == pytest.approx(before[1], rel=0.05)
    change = np.abs(fuse(three, after, prior) - fuse(two, before, prior))
    assert change.max() < 0.05
    assert change.mean() < 0.01


def test_an_agent_that_knows_nothing_gets_little_weight(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 4, 800).astype(np.intp)
    good, noise = agent(truth, 4, 2.0, rng), agent(truth, 4, 0.0, rng)
    weights = fit_weights(np.stack([good, noise]), truth, prior_of(truth, 4))
    assert weights[1] < 0.1
    assert weights[0] > 0.8


def test_independent_agents_are_pooled_and_the_pool_is_better(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 3, 300).astype(np.intp)
    probs = np.stack([agent(truth, 3, 1.5, rng) for _ in range(3)])
    fusion, beliefs = fit_fusion("pool", Opinions.uncalibrated(("a", "b", "c"), probs), truth, folds_of(300))
    assert isinstance(fusion, Pool)
    assert fusion.fused_by == "log-linear pool"
    assert fusion.nll < min(fusion.agent_nll.values())
    np.testing.assert_allclose(nll_of(beliefs, truth, np.array(fusion.prior)), fusion.nll)


def test_where_the_pool_is_no_better_the_best_agent_decides(rng: np.random.Generator) -> None:
    # The best agent is exactly right about its odds, the other is sure of nonsense: nothing is left to gain.
    best = softmax(2.5 * rng.normal(size=(40, 3)))
    truth = np.array([rng.choice(3, p=row) for row in best], dtype=np.intp)
    probs = np.stack([softmax(4 * rng.normal(size=(40, 3))), best])
    fusion, beliefs = fit_fusion("pool", Opinions.uncalibrated(("noise", "best"), probs), truth, folds_of(40))
    assert (fusion.kind, fusion.best_agent, fusion.fused_by) == ("best_agent", "best", "best agent: best")
    np.testing.assert_allclose(beliefs, best, atol=1e-9)


def test_without_folds_the_best_agent_decides(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 3, 60).astype(np.intp)
    probs = np.stack([agent(truth, 3, skill, rng) for skill in (1.0, 3.0)])
    fusion, _ = fit_fusion("pool", Opinions.uncalibrated(("weak", "strong"), probs), truth, None)
    assert (fusion.kind, fusion.best_agent) == ("best_agent", "strong")
    assert np.isnan(fusion.nll)


def test_where_everybody_with_weight_failed_whoever_answered_stands_in_equally() -> None:
    # Uniform prior, M = 3: two stand in with weight 1/3 each, odds (9 * 9) ** (1/3) : 1.
    pool = pool_of((1.0, 0.0, 0.0))
    probs = np.array([[[np.nan, np.nan]], [[0.9, 0.1]], [[0.9, 0.1]]])
    odds = 81 ** (1 / 3)
    opinions = Opinions.uncalibrated(pool.agents, probs)
    np.testing.assert_allclose(pool.fuse(opinions), [[odds / (1 + odds), 1 / (1 + odds)]])
    assert pool.fused_from({"a1", "a2"}) == "equal weights, as all with weight failed"
    assert pool.fused_from({"a0", "a2"}) == pool.fused_from(()) == pool.fused_by


@pytest.mark.parametrize("k", [2, 3, 7, 20])
@settings(max_examples=6)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_held_out_the_belief_is_never_worse_than_the_best_agent(k: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, 40).astype(np.intp)
    probs = np.stack([agent(truth, k, rng.uniform(-1, 4), rng) for _ in range(m)])
    names = tuple(f"a{i}" for i in range(m))
    fusion, beliefs = fit_fusion("pool", Opinions.uncalibrated(names, probs), truth, folds_of(40))
    best = min(fusion.agent_nll[name] for name in names)
    assert nll_of(beliefs, truth, prior_of(truth, k)) <= best + 1e-9
    assert fusion.n == 40


def test_no_row_is_judged_by_weights_or_a_prior_fitted_on_it(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 3, 100).astype(np.intp)
    probs = np.stack([agent(truth, 3, 1.5, rng) for _ in range(3)])
    pool, beliefs = fit_pool(Opinions.uncalibrated(("a", "b", "c"), probs), truth, folds_of(100))
    lied = truth.copy()
    lied[0] = (truth[0] + 1) % 3  # a case of the first fold, which is every fifth case
    other, after = fit_pool(Opinions.uncalibrated(("a", "b", "c"), probs), lied, folds_of(100))
    assert pool != other
    np.testing.assert_allclose(after[::5], beliefs[::5], atol=1e-12)


def test_failing_is_charged_the_prior_and_so_never_looks_better_than_answering() -> None:
    # Three right answers at 0.8 and one failure, prior (1/2, 1/2): -(3 ln 0.8 + ln 0.5) / 4.
    probs = np.array([[0.8, 0.2]] * 3 + [[np.nan, np.nan]])
    truth = np.zeros(4, dtype=np.intp)
    expected = -(3 * np.log(0.8) + np.log(0.5)) / 4
    assert nll_of(probs, truth, np.array([0.5, 0.5])) == pytest.approx(expected)


def test_an_impossible_label_keeps_every_number_finite() -> None:
    probs = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    truth = np.array([1, 0], dtype=np.intp)
    pool, beliefs = fit_pool(Opinions.uncalibrated(("a", "b"), probs), truth, folds_of(2, 2))
    assert np.isfinite(beliefs).all()
    assert np.isfinite(pool.fuse(Opinions.uncalibrated(("a", "b"), probs))).all()


def test_a_pool_is_the_same_after_json(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 3, 60).astype(np.intp)
    probs = np.stack([agent(truth, 3, 1.5, rng) for _ in range(2)])
    opinions = Opinions.uncalibrated(("a", "a@2"), probs)
    pool, _ = fit_fusion("pool", opinions, truth, folds_of(60))
    assert isinstance(pool, Pool)
    again = Pool.model_validate_json(pool.model_dump_json())
    assert again == pool
    np.testing.assert_array_equal(again.fuse(opinions), pool.fuse(opinions))
