"""What every policy of fusion must hold, whatever it does with the opinions; and the fallbacks for bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter
from strategies import Panel, panels

from secondlook.agents.errors import ConfigError
from secondlook.eval.baselines import baselines
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.fusion import cross_fit, nll_of, prior_of
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import (
    POLICIES,
    AnyFusion,
    PolicyName,
    available,
    choose,
    do_no_harm,
    fit_all,
    fit_fusion,
)

Floats = NDArray[np.float64]
Truth = NDArray[np.intp]
ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyFusion)
FITTED = [name for name in POLICIES if name != "auto"]


def opinions_of(n: int = 100, m: int = 3, k: int = 3, seed: int = 0, failing: float = 0.0) -> tuple[Opinions, Truth]:
    """Agents of falling skill, a judge, a neighbour vote last; what they say is sharper than what it is worth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n).astype(np.intp)
    logits = rng.normal(size=(m, n, k)) + np.linspace(2.5, 1.0, m)[:, None, None] * np.eye(k)[truth]
    probs, said = softmax(logits), softmax(2 * logits)
    lost = rng.random((m, n)) < failing
    probs[lost], said[lost] = np.nan, np.nan
    names = (*("agent-0", "judge", "agent-2")[: m - 1], "neighbour-vote@2")
    return Opinions(names, probs, said), truth


def softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def folds_of(n: int, count: int = 5) -> Truth:
    return np.arange(n, dtype=np.intp) % count


def assert_beliefs(beliefs: Floats, opinions: Opinions) -> None:
    """Distributions, and nan in just the rows where nobody answered."""
    silent = ~opinions.answered.any(axis=0)
    assert beliefs.shape == opinions.probs.shape[1:]
    assert (np.isnan(beliefs).any(axis=1) == silent).all()
    assert (beliefs[~silent] >= 0).all()
    np.testing.assert_allclose(beliefs[~silent].sum(axis=1), 1, atol=1e-9)


def test_the_names_are_those_of_the_configuration_and_each_is_fitted() -> None:
    assert set(POLICIES) == set(PolicyName.__args__)  # type: ignore[attr-defined]
    assert next(iter(POLICIES)) == "best_agent"
    opinions, truth = opinions_of()
    assert list(fit_all(opinions, truth, folds_of(100))) == FITTED


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=15, deadline=None)
@given(panels(max_agents=3, max_size=12), st.booleans(), st.integers(2, 4))
def test_beliefs_are_distributions_whatever_the_panel(name: str, panel: Panel, held_out: bool, count: int) -> None:
    m, n, k = panel.probs.shape
    opinions = Opinions.uncalibrated(("neighbour-vote", "judge", "c")[:m], panel.probs)
    assume(name in available(opinions.columns, k))
    truth = panel.truth.astype(np.intp)
    fusion, beliefs = fit_fusion(name, opinions, truth, folds_of(n, count) if held_out and n >= count else None)
    assert_beliefs(beliefs, opinions)
    assert_beliefs(fusion.fuse(opinions), opinions)
    assert set(fusion.agent_nll) == set(opinions.columns)
    assert fusion.n == n
    assert k == beliefs.shape[1]


@pytest.mark.parametrize("name", POLICIES)
def test_a_fitted_policy_is_the_same_after_json(name: str) -> None:
    opinions, truth = opinions_of(failing=0.1)
    fusion, _ = fit_fusion(name, opinions, truth, folds_of(100))
    again = ADAPTER.validate_json(ADAPTER.dump_json(fusion))
    assert again.model_dump_json() == fusion.model_dump_json()  # not ==: what is undefined is nan
    np.testing.assert_array_equal(again.fuse(opinions), fusion.fuse(opinions))


@pytest.mark.parametrize("name", [name for name in FITTED if name not in ("confusion", "joint_confusion")])
def test_no_case_is_believed_by_what_was_fitted_on_it(name: str) -> None:
    # Enough cases that one lie does not change what is chosen on all of them: an agent, a penalty.
    opinions, truth = opinions_of(300)
    lied = truth.copy()
    lied[0] = (truth[0] + 1) % 3  # a case of the first fold, which is every fifth
    fusion, before = fit_fusion(name, opinions, truth, folds_of(300))
    other, after = fit_fusion(name, opinions, lied, folds_of(300))
    assert (fusion.kind, fusion.best_agent) == (other.kind, other.best_agent)
    np.testing.assert_allclose(after[::5], before[::5], atol=1e-12)


@pytest.mark.parametrize("name", ["confusion", "joint_confusion"])
def test_tables_tell_a_case_of_itself_at_most_by_a_temperature(name: str) -> None:
    # The temperature is fitted on the other folds' held-out beliefs, which in turn were fitted on this fold's labels.
    opinions, truth = opinions_of()
    lied = truth.copy()
    lied[0] = (truth[0] + 1) % 3
    before, after = (fit_fusion(name, opinions, y, folds_of(100))[1] for y in (truth, lied))
    assert (after[::5].argmax(axis=1) == before[::5].argmax(axis=1)).all()
    odds = [np.log(p[::5].max(axis=1) / p[::5].min(axis=1)) for p in (before, after)]
    np.testing.assert_allclose(odds[1] / odds[0], np.mean(odds[1] / odds[0]), rtol=1e-6)


def test_cross_fitting_shows_no_fold_to_its_own_fit() -> None:
    opinions, truth = opinions_of(20)
    truth = np.arange(20) % 3
    shown: list[tuple[int, int]] = []

    def others(known: Opinions, y: Truth, asked: Opinions) -> Floats:
        shown.append((len(known), len(asked)))
        rows = {tuple(row) for row in known.probs[0].tolist()}
        assert not rows & {tuple(row) for row in asked.probs[0].tolist()}
        assert len(y) == len(known)
        return asked.probs[0]

    np.testing.assert_array_equal(cross_fit(others, opinions, truth, folds_of(20, 4)), opinions.probs[0])
    assert shown == [(15, 5)] * 4


@pytest.mark.parametrize("name", FITTED)
def test_the_order_of_the_agents_changes_nothing(name: str) -> None:
    opinions, truth = opinions_of(failing=0.1)
    turned = opinions.of(("neighbour-vote@2", "judge", "agent-0"))
    one, two = (fit_fusion(name, o, truth, folds_of(100)) for o in (opinions, turned))
    np.testing.assert_allclose(two.beliefs, one.beliefs, atol=2e-3)
    np.testing.assert_allclose(two.fusion.fuse(turned), one.fusion.fuse(opinions), atol=2e-3)


@pytest.mark.parametrize("name", ["majority", "mean", "confidence_weighted", "best_agent"])
def test_a_rule_decides_as_the_baseline_of_its_name(name: str) -> None:
    opinions, truth = opinions_of(60, m=4, failing=0.2)
    best = opinions.columns.index(fit_fusion("best_agent", opinions, truth, None).fusion.best_agent)
    plain = baselines(opinions.probs, truth, best)[name]
    said = np.nan_to_num(fit_fusion(name, opinions, truth, folds_of(60)).fusion.fuse(opinions)).argmax(axis=1)
    np.testing.assert_array_equal(said[plain >= 0], plain[plain >= 0])


# --- do no harm, and the automatic choice ---


def test_the_best_agent_decides_where_a_policy_is_not_better() -> None:
    opinions, truth = opinions_of(150)
    noise = np.full((1, 150, 3), 1 / 3)
    noise[0, :, 0] += 1e-3
    noise /= noise.sum(axis=2, keepdims=True)
    poor = Opinions.uncalibrated(("good", "b", "c", "d"), np.concatenate([opinions.probs[:1], *[noise] * 3]))
    fitted = fit_fusion("majority", poor, truth, folds_of(150))
    assert fitted.fusion.nll > min(fitted.fusion.agent_nll.values())
    safe = do_no_harm(fitted, poor, truth, folds_of(150))
    assert (safe.fusion.kind, safe.fusion.fused_by) == ("best_agent", "best agent: good")
    np.testing.assert_array_equal(safe.beliefs, poor.probs[0])


def test_a_better_policy_is_left_as_it_is() -> None:
    opinions, truth = opinions_of(300)
    fitted = fit_fusion("stacked", opinions, truth, folds_of(300))
    assert do_no_harm(fitted, opinions, truth, folds_of(300)) is fitted


def test_auto_takes_the_lowest_held_out_nll_and_says_which() -> None:
    opinions, truth = opinions_of(200)
    every = fit_all(opinions, truth, folds_of(200))
    auto = fit_fusion("auto", opinions, truth, folds_of(200)).fusion
    assert auto.nll == min(found.fusion.nll for found in every.values())
    assert auto.fused_by == choose(every).fusion.fused_by


def test_of_equal_policies_auto_takes_the_simplest() -> None:
    # One agent: the pool can be no better than it, so it falls back to the agent, and so does the vote of one.
    opinions, truth = opinions_of(50)
    alone = opinions.of(("neighbour-vote@2",))
    every = fit_all(alone, truth, folds_of(50))
    assert choose({name: every[name] for name in ("best_agent", "neighbour_vote")}).fusion.kind == "best_agent"
    assert choose(fit_all(opinions, truth, None)).fusion.kind == "best_agent"


@pytest.mark.parametrize("name", ["pool", "auto"])
def test_what_decides_is_on_the_fitted_cases_never_worse_than_the_best_agent(name: str) -> None:
    for seed in range(4):
        opinions, truth = opinions_of(60, seed=seed, failing=0.1)
        fusion, beliefs = fit_fusion(name, opinions, truth, folds_of(60))
        assert nll_of(beliefs, truth, prior_of(truth, 3)) <= min(fusion.agent_nll.values()) + 1e-9


# --- bad input, each an error or a stated fallback ---


@pytest.mark.parametrize("name", POLICIES)
def test_without_folds_nothing_is_held_out_and_the_nll_is_undefined(name: str) -> None:
    opinions, truth = opinions_of(4)
    fusion, beliefs = fit_fusion(name, opinions, truth, None)
    assert np.isnan(fusion.nll)
    np.testing.assert_allclose(beliefs, fusion.fuse(opinions), atol=1e-9)
    assert do_no_harm(fit_fusion(name, opinions, truth, None), opinions, truth, None).fusion.kind == "best_agent"


@pytest.mark.parametrize("name", POLICIES)
def test_one_case_is_enough_for_a_fit(name: str) -> None:
    opinions, truth = opinions_of(1)
    assert_beliefs(fit_fusion(name, opinions, truth, None).beliefs, opinions)


@pytest.mark.parametrize("name", POLICIES)
def test_where_all_cases_have_one_label_it_is_believed_and_no_other_is_impossible(name: str) -> None:
    opinions, _ = opinions_of(40)
    truth = np.zeros(40, dtype=np.intp)
    fusion, _ = fit_fusion(name, opinions, truth, folds_of(40))
    right = opinions.cases(opinions.probs.argmax(axis=2).max(axis=0) == 0)  # all agents say the label
    beliefs = fusion.fuse(right)
    assert (beliefs.argmax(axis=1) == 0).all()
    assert (beliefs > 0).all()


@pytest.mark.parametrize("name", POLICIES)
def test_a_label_never_seen_is_not_impossible(name: str) -> None:
    opinions, truth = opinions_of(60)
    seen = truth < 2
    opinions, truth = opinions.cases(seen), truth[seen]
    fusion, beliefs = fit_fusion(name, opinions, truth, folds_of(len(truth)))
    assert (beliefs > 0).all()
    assert (fusion.fuse(opinions) > 0).all()


@pytest.mark.parametrize("name", POLICIES)
def test_a_fold_may_lack_a_label(name: str) -> None:
    opinions, truth = opinions_of(60)
    assert_beliefs(fit_fusion(name, opinions, truth, truth).beliefs, opinions)  # each fold has one label only


@pytest.mark.parametrize("name", POLICIES)
def test_constant_agents_leave_the_label_frequencies_or_what_they_say(name: str) -> None:
    said = np.tile([0.5, 0.3, 0.2], (2, 50, 1))
    truth = (np.arange(50) % 5 // 2).astype(np.intp)
    opinions = Opinions.uncalibrated(("judge", "neighbour-vote"), said)
    beliefs = fit_fusion(name, opinions, truth, folds_of(50)).fusion.fuse(opinions)
    assert_beliefs(beliefs, opinions)
    np.testing.assert_allclose(beliefs, beliefs[:1].repeat(50, axis=0))


@pytest.mark.parametrize("name", POLICIES)
def test_an_agent_that_always_fails_is_charged_the_prior_and_left_out(name: str) -> None:
    opinions, truth = opinions_of(60)
    probs, said = opinions.probs.copy(), opinions.said.copy()
    probs[1], said[1] = np.nan, np.nan
    broken = Opinions(opinions.columns, probs, said)
    fusion, beliefs = fit_fusion(name, broken, truth, folds_of(60))
    assert_beliefs(beliefs, broken)
    prior = prior_of(truth, 3)
    assert fusion.agent_nll["judge"] == pytest.approx(-np.log(prior[truth]).mean())


@pytest.mark.parametrize("name", POLICIES)
def test_where_all_failed_nothing_is_believed(name: str) -> None:
    opinions, truth = opinions_of(30)
    probs = np.full_like(opinions.probs, np.nan)
    fusion, beliefs = fit_fusion(name, Opinions.uncalibrated(opinions.columns, probs), truth, folds_of(30))
    assert np.isnan(beliefs).all()
    assert_beliefs(fusion.fuse(opinions), opinions)


def test_what_cannot_be_fitted_is_named_with_a_remedy() -> None:
    opinions, truth = opinions_of(20)
    with pytest.raises(ConfigError, match="no policy 'pol'") as caught:
        fit_fusion("pol", opinions, truth, None)
    assert "neighbour_vote" in caught.value.remedy
    heads = opinions.of(("agent-0", "judge"))
    with pytest.raises(ConfigError, match="no neighbour vote among agent-0, judge"):
        fit_fusion("neighbour_vote", heads, truth, None)
    assert "neighbour_vote" not in available(heads.columns, 3)
    assert "neighbour_vote" not in fit_all(heads, truth, None)
    many = Opinions.uncalibrated(("a",), np.full((1, 2, 80), 1 / 80))
    with pytest.raises(ConfigError, match="80 labels are too many for the policy 'stacked'"):
        fit_fusion("stacked", many, np.array([0, 1]), None)
    assert {"confusion", "stacked"} & set(available(("a",), 80)) == {"confusion"}


def test_a_policy_of_the_configuration_has_one_of_the_names() -> None:
    assert Config().fusion == "pool"
    with pytest.raises(ValueError, match="'pool', 'confusion'"):
        Config(fusion="vote")  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_together_are_refused() -> None:
    opinions, truth = opinions_of(20)
    for y, folds in ((truth[:5], None), (truth, folds_of(19))):
        with pytest.raises(ValueError, match=r"expected \[N=20 >= 1\]"):
            fit_fusion("pool", opinions, y, folds)
    for y in (truth + 1, truth - 1, truth * 1.0):
        with pytest.raises(ValueError, match="expected whole numbers 0 to 2, got"):
            fit_fusion("pool", opinions, y, None)
    with pytest.raises(ValueError, match="of K=1 >= 2"):
        fit_fusion("pool", Opinions.uncalibrated(("a",), np.ones((1, 20, 1))), truth * 0, None)
    fusion = fit_fusion("mean", opinions, truth, None).fusion
    with pytest.raises(ValueError, match="expected the columns"):
        fusion.fuse(opinions.of(("judge", "agent-0", "neighbour-vote@2")))


@pytest.mark.parametrize("row", [(0.5, 0.6, 0.3), (-0.2, 0.9, 0.3), (np.inf, 0.0, 0.0), (2.0, 2.0, 2.0)])
def test_what_is_no_distribution_is_refused_by_agent_and_case(row: tuple[float, ...]) -> None:
    opinions, truth = opinions_of(20)
    opinions.probs[1, 7] = row
    with pytest.raises(ValueError, match=f"got .* from {opinions.columns[1]} of case 7"):
        fit_fusion("pool", opinions, truth, None)


@pytest.mark.parametrize("name", FITTED)
def test_numbers_of_half_width_and_views_of_memory_fuse_alike(name: str) -> None:
    opinions, truth = opinions_of(60)
    folds = folds_of(60)
    whole = fit_fusion(name, opinions, truth, folds).beliefs
    view = Opinions.uncalibrated(opinions.columns, np.repeat(opinions.probs, 2, axis=1)[:, ::2])
    same = Opinions.uncalibrated(opinions.columns, opinions.probs)
    np.testing.assert_array_equal(
        fit_fusion(name, view, truth, folds).beliefs, fit_fusion(name, same, truth, folds).beliefs
    )
    half = Opinions(opinions.columns, opinions.probs.astype(np.float32), opinions.said.astype(np.float32))  # type: ignore[arg-type]
    np.testing.assert_allclose(fit_fusion(name, half, truth, folds).beliefs, whole, atol=0.01)
