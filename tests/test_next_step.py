"""The walk against arithmetic done by hand, worlds where the right thing to ask is known, and the laws it must obey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import permutations

from secondlook.agents.cost import Budget, Cost, Limits, Prices
from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.gain import LEAST_CASES, Option, band_limits, equal_pool, expected_loss, know, measure
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.next_step import NextStep, Walk, fit_next_step
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.step import Step, human, plans

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
CALL = Cost(vlm_calls=1)
VOTE = Step(name="vote", columns=("vote",))
EXPERT = Step(name="expert", columns=("expert",), cost=CALL)
COIN = Step(name="coin", columns=("coin",), cost=CALL)
AGAIN = Step(name="again", columns=("expert@2",), needs=("vote", "expert"), cost=CALL)
K = 3


def said(labels: Ints, sure: Floats | float) -> Floats:
    """Distributions of shape (N, K) with `sure` at the labels and the rest spread evenly."""
    sure = np.broadcast_to(np.asarray(sure, dtype=np.float64), labels.shape)
    probs = np.repeat((1 - sure)[:, None] / (K - 1), K, axis=1)
    probs[np.arange(len(labels)), labels] = sure
    return probs


def world(n: int, seed: int = 0, skill: float = 0.9) -> tuple[Opinions, Ints]:
    """A free vote that says .99 and is right, or says .5 and is; an expert; a coin. All calibrated by construction."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % K

    def agent(sure: Floats) -> Floats:
        wrong = (truth + rng.integers(1, K, n)) % K
        return said(np.where(rng.random(n) < sure, truth, wrong), sure)

    easy = rng.random(n) < 0.7
    vote = agent(np.where(easy, 0.99, 0.5))
    coin = np.full((n, K), 1 / K)
    return Opinions.uncalibrated(("vote", "expert", "coin"), np.stack([vote, agent(np.full(n, skill)), coin])), truth


def folds_of(n: int) -> Ints:
    return np.arange(n) // K % 5


def fitted(
    n: int = 240, steps: tuple[Step, ...] = (VOTE, EXPERT, COIN), worth: float = 20.0, seed: int = 0
) -> NextStep:
    opinions, truth = world(n, seed)
    return fit_next_step(opinions, truth, folds_of(n), steps, worth=worth)


def same(one: Walk, other: Walk) -> bool:
    return (
        np.array_equal(one.beliefs, other.beliefs, equal_nan=True)
        and np.array_equal(one.trust, other.trust)
        and np.array_equal(one.asked, other.asked)
        and one.steps == other.steps
    )


def test_a_gain_is_the_measured_one_shrunk_towards_the_expected_one() -> None:
    # Two labels, four cases of label 0. Before: (.4, .6) for all, so label 1 and loss 1 each.
    # After: (.8, .2) for three, so label 0 and loss 0; (.3, .7) for the last, still wrong.
    # Measured: the loss falls by 1, 1, 1, 0. Expected under the belief afterwards: label 1 would lose .8, label 0
    # loses .2, a fall of .6 for three; none where the label stays. Sum 3, mean expectation .45:
    # (3 + 32 * .45) / (4 + 32) = 17.4 / 36.
    truth = np.zeros(4, dtype=np.intp)
    before = know(None, np.tile([0.4, 0.6], (4, 1)), Loss(), truth)
    after = know(None, np.array([[0.8, 0.2]] * 3 + [[0.3, 0.7]]), Loss(), truth)
    everyone = np.ones(4, dtype=np.bool_)
    assert measure(before, after, everyone, Loss()) == pytest.approx(17.4 / 36)
    # A person who is right in 9 of 10: the loss falls from 1 to .1, measured; from 1 - .6 to .1, expected.
    assert measure(before, human(accuracy=0.9), everyone, Loss()) == pytest.approx((4 * 0.9 + 32 * 0.3) / 36)
    # Nothing learnt, nothing gained.
    assert measure(before, before, everyone, Loss()) == 0


def test_an_expected_loss_is_that_of_the_label_under_the_belief() -> None:
    beliefs = np.array([[0.8, 0.2], [0.8, 0.2], [np.nan, np.nan]])
    costs = Loss(costs=((0.0, 1.0), (4.0, 0.0)))  # shares of the largest cost: 1/4 and 1
    labels = np.array([0, 1, -1])
    np.testing.assert_allclose(expected_loss(beliefs, labels, Loss()), [0.2, 0.8, 1])
    np.testing.assert_allclose(expected_loss(beliefs, labels, costs), [0.2 * 1, 0.8 * 0.25, 1])


def test_an_option_pays_when_its_gain_times_worth_reaches_its_cost() -> None:
    option = Option(steps=("a",), gain=0.1, cost=2)
    assert option.pays(worth=20, risk=1)
    assert not option.pays(worth=19, risk=1)
    assert not option.pays(worth=20, risk=0.09), "more than the risk cannot be gained"
    assert Option(steps=("a",), gain=0.1, cost=0).pays(worth=0, risk=0), "what is free always pays"
    assert not Option(steps=("a",), gain=0, cost=0).pays(worth=9, risk=1), "but for what brings nothing"


@given(st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0]) | st.floats(0, 1), min_size=1, max_size=200))
def test_bands_hold_enough_cases_and_every_trust_has_one(trust: list[float]) -> None:
    limits = band_limits(np.array(trust))
    counts = np.bincount(np.searchsorted(limits, trust, side="right") - 1, minlength=len(limits))
    assert limits[0] == 0
    assert limits == sorted(set(limits))
    assert counts.sum() == len(trust)
    assert len(limits) == 1 or counts.min() >= LEAST_CASES


def test_an_equal_pool_of_independent_agents_is_bayes_rule() -> None:
    opinions, truth = world(600)
    found = equal_pool(opinions, truth, folds_of(600))
    prior = np.array([1 / 3, 1 / 3, 1 / 3])
    product = opinions.probs.prod(axis=0) / prior**2
    np.testing.assert_allclose(found.fusion.fuse(opinions), product / product.sum(axis=1, keepdims=True), atol=1e-9)
    twice = Opinions.uncalibrated(("one", "copy"), opinions.probs[[0, 0]])
    np.testing.assert_allclose(equal_pool(twice, truth, folds_of(600)).fusion.fuse(twice), opinions.probs[0], atol=1e-9)


def test_the_expert_is_asked_where_the_vote_is_not_trusted_and_the_coin_nowhere() -> None:
    policy = fitted()
    opinions, truth = world(1500, seed=1)
    walk = policy.walk(opinions)
    vote, expert, coin = walk.asked
    unsure = opinions.probs[0].max(axis=1) < 0.9
    assert vote.all(), "it costs nothing"
    np.testing.assert_array_equal(expert, unsure)
    assert not coin.any()
    right = (walk.beliefs.argmax(axis=1) == truth).mean()
    # About 7 of 10 are easy and right in 99 of 100; of the others 9 of 10 (where vote and expert differ, the expert's).
    assert right == pytest.approx(0.7 * 0.99 + 0.3 * 0.9, abs=0.03)
    assert walk.trust.mean() == pytest.approx(right, abs=0.03)
    assert walk.spent == Cost(vlm_calls=float(unsure.sum()))


@pytest.mark.parametrize("seed", range(8))
def test_what_looks_like_gain_by_chance_is_hardly_ever_asked(seed: int) -> None:
    # An agent that guesses, on few cases, calibrated to be known for it: whatever it seems to bring is noise.
    rng = np.random.default_rng(seed)
    opinions, truth = world(90, seed)
    noise = said(rng.integers(0, K, 90), 0.34)
    noisy = Opinions.uncalibrated(("vote", "coin"), np.stack([opinions.probs[0], noise]))
    policy = fit_next_step(noisy, truth, folds_of(90), [VOTE, COIN], worth=20)
    assert policy.walk(noisy).asked[1].mean() < 0.2


def test_two_steps_that_help_only_together_are_found() -> None:
    opinions, truth = world(240)
    blind = np.stack([opinions.probs[0], np.full((240, K), 1 / K), said(truth, 0.98)])
    shown = Opinions.uncalibrated(("vote", "expert", "expert@2"), blind)
    policy = fit_next_step(shown, truth, folds_of(240), [VOTE, EXPERT, AGAIN], worth=20)
    walk = policy.walk(shown)
    unsure = opinions.probs[0].max(axis=1) < 0.9
    np.testing.assert_array_equal(walk.asked[2], unsure)
    assert {steps for steps in walk.steps} == {("vote",), ("vote", "expert", "again")}


def test_no_step_is_taken_before_what_it_needs() -> None:
    names = [[step.name for step in plan] for plan in plans([AGAIN, EXPERT, VOTE, human()], ())]
    assert names == [["expert", "vote", "again"], ["expert"], ["vote"], ["human"], ["expert", "vote"]]


@pytest.mark.parametrize("filler", [np.nan, 1e9, -1.0])
def test_only_opinions_that_were_asked_for_are_read(filler: float) -> None:
    policy = fitted()
    opinions, _ = world(200, seed=2)
    walk = policy.walk(opinions)
    hidden = np.where(walk.asked[:, :, None], opinions.probs, filler)
    assert same(policy.walk(Opinions.uncalibrated(opinions.columns, hidden)), walk)


@settings(max_examples=20)
@given(permutations(40), st.integers(1, 39))
def test_without_a_budget_no_case_depends_on_another(order: Ints, cut: int) -> None:
    policy = POLICY
    opinions, _ = world(40, seed=3)
    whole, shuffled = policy.walk(opinions), policy.walk(opinions.cases(order))
    np.testing.assert_array_equal(shuffled.beliefs, whole.beliefs[order])
    np.testing.assert_array_equal(shuffled.asked, whole.asked[:, order])
    parts = [policy.walk(opinions.cases(slice(None, cut))), policy.walk(opinions.cases(slice(cut, None)))]
    np.testing.assert_array_equal(np.concatenate([part.trust for part in parts]), whole.trust)


@settings(max_examples=20)
@given(st.integers(0, 2) | st.none(), st.integers(0, 30) | st.none())
def test_no_budget_is_exceeded(per_case: int | None, per_run: int | None) -> None:
    opinions, _ = world(40, seed=4)
    budget = Budget(per_case=Limits(calls=per_case), per_run=Limits(calls=per_run))
    walk, free = POLICY.walk(opinions, budget), POLICY.walk(opinions)
    calls = walk.asked[1:].sum(axis=0)
    assert walk.spent.calls == calls.sum() <= (np.inf if per_run is None else per_run)
    assert calls.max() <= (np.inf if per_case is None else per_case)
    assert walk.asked[0].all(), "what is free is still asked"
    wanted = free.asked[1:].sum()
    assert calls.sum() == (0 if per_case == 0 else min(wanted, wanted if per_run is None else per_run))


def test_a_budget_that_ends_is_spent_where_it_brings_most() -> None:
    # Two kinds of unsure cases, .5 and .34 at the top: the expert gains more where the vote knows less.
    rng = np.random.default_rng(0)
    n = 600
    truth = np.arange(n) % K
    sure = np.where(rng.random(n) < 0.5, 0.34, 0.7)
    vote = said(np.where(rng.random(n) < sure, truth, (truth + 1) % K), sure)
    expert = said(np.where(rng.random(n) < 0.95, truth, (truth + 1) % K), 0.95)
    opinions = Opinions.uncalibrated(("vote", "expert"), np.stack([vote, expert]))
    policy = fit_next_step(opinions, truth, folds_of(n), [VOTE, EXPERT], worth=20)
    assert policy.walk(opinions).asked[1].all()
    some = policy.walk(opinions, Budget(per_run=Limits(calls=100))).asked[1]
    assert some.sum() == 100
    assert (sure[some] == 0.34).all()


def test_a_failure_is_paid_for_and_brings_nothing() -> None:
    policy = fitted()
    opinions, _ = world(200, seed=5)
    failed = opinions.probs.copy()
    failed[1] = np.nan
    walk = policy.walk(Opinions.uncalibrated(opinions.columns, failed))
    assert walk.spent.calls == walk.asked[1].sum() > 0
    only_vote = policy.walk(opinions, Budget(per_case=Limits(calls=0)))
    np.testing.assert_allclose(walk.beliefs, only_vote.beliefs, atol=1e-9)


def test_where_everybody_fails_nothing_is_believed_or_trusted() -> None:
    walk = fitted().walk(Opinions.uncalibrated(("vote", "expert", "coin"), np.full((3, 4, K), np.nan)))
    assert np.isnan(walk.beliefs).all()
    np.testing.assert_array_equal(walk.trust, 0)
    assert walk.asked[:2].all(), "whoever is likely to know was asked"


def test_an_agent_that_always_fails_is_never_asked() -> None:
    opinions, truth = world(240)
    failed = opinions.probs.copy()
    failed[1] = np.nan
    gone = Opinions.uncalibrated(opinions.columns, failed)
    policy = fit_next_step(gone, truth, folds_of(240), [VOTE, EXPERT], worth=1000)
    assert not policy.walk(gone).asked[1].any()


def test_a_person_is_asked_where_a_label_is_worth_it_and_ends_the_walk() -> None:
    opinions, truth = world(240)
    person = human(Cost(humans=1), accuracy=0.97)
    modest = fit_next_step(opinions, truth, folds_of(240), [VOTE, person])
    assert not modest.walk(opinions).by_person.any(), "a right label is worth no more than a person costs"
    policy = fit_next_step(opinions, truth, folds_of(240), [VOTE, person], worth=400)
    walk = policy.walk(opinions)
    unsure = opinions.probs[0].max(axis=1) < 0.9
    np.testing.assert_array_equal(walk.by_person, unsure)
    np.testing.assert_array_equal(walk.trust[unsure], 0.97)
    assert walk.spent == Cost(humans=float(unsure.sum()))
    limited = policy.walk(opinions, Budget(per_run=Limits(humans=3)))
    assert limited.by_person.sum() == 3


def test_what_a_label_is_worth_decides_how_much_is_asked() -> None:
    asked = [fitted(worth=worth).mean_cost for worth in (0.0, 1.0, 20.0, 1e6)]
    assert asked[0] == 0, "only what is free"
    assert asked == sorted(asked)
    assert asked[-1] > asked[1]


@pytest.mark.parametrize("most", [0.0, 0.1, 0.25, 5.0])
def test_the_mean_cost_of_a_case_is_kept(most: float) -> None:
    opinions, truth = world(240)
    policy = fit_next_step(opinions, truth, folds_of(240), [VOTE, EXPERT, COIN], worth=100, at_most=most)
    assert policy.mean_cost <= most
    assert (policy.worth == 100) == (fitted(worth=100).mean_cost <= most)


def test_prices_say_what_is_cheap() -> None:
    opinions, truth = world(240)
    slow = Step(name="expert", columns=("expert",), cost=Cost(seconds=60))
    free = fit_next_step(opinions, truth, folds_of(240), [VOTE, slow], worth=20)
    dear = fit_next_step(opinions, truth, folds_of(240), [VOTE, slow], worth=20, prices=Prices(seconds=1))
    assert free.walk(opinions).asked[1].any()
    assert not dear.walk(opinions).asked[1].any()


def test_no_question_is_asked_about_errors_that_cost_little() -> None:
    # The vote leaves open 0 or 1 in one half of the cases, 0 or 2 in the other; a 0 for a 1 costs little.
    rng = np.random.default_rng(0)
    n = 400
    other = np.where(np.arange(n) % 2 == 0, 1, 2)
    truth = np.where(rng.random(n) < 0.5, 0, other)
    vote = np.full((n, K), 0.01)
    vote[:, 0] = vote[np.arange(n), other] = 0.495
    expert = said(np.where(rng.random(n) < 0.96, truth, (truth + 1) % K), 0.96)
    opinions = Opinions.uncalibrated(("vote", "expert"), np.stack([vote, expert]))
    mild = Loss(costs=((0, 0.01, 1), (0.01, 0, 1), (1, 1, 0)))
    folds = np.arange(n) // 4 % 5
    flat = fit_next_step(opinions, truth, folds, [VOTE, EXPERT], worth=10).walk(opinions)
    graded = fit_next_step(opinions, truth, folds, [VOTE, EXPERT], worth=10, loss=mild).walk(opinions)
    assert flat.asked[1].all()
    np.testing.assert_array_equal(graded.asked[1], other == 2)


def test_the_fitted_value_survives_json() -> None:
    again = NextStep.model_validate_json(POLICY.model_dump_json())
    opinions, _ = world(100, seed=6)
    assert again == POLICY
    assert same(again.walk(opinions), POLICY.walk(opinions))


def test_every_state_that_a_walk_can_reach_is_there() -> None:
    rng = np.random.default_rng(0)
    opinions, truth = world(240)
    second = said(np.where(rng.random(240) < 0.9, truth, 0), 0.9)[None]
    columns = Opinions.uncalibrated((*opinions.columns, "expert@2"), np.concatenate([opinions.probs, second]))
    policy = fit_next_step(columns, truth, folds_of(240), [VOTE, EXPERT, COIN, AGAIN], worth=200)
    wild = rng.dirichlet(np.full(K, 0.3), (4, 500))
    wild[rng.random((4, 500)) < 0.2] = np.nan
    for calls in (None, 0, 1, 2):
        walk = policy.walk(
            Opinions.uncalibrated(columns.columns, wild),
            Budget(per_case=Limits(calls=calls), per_run=Limits(calls=300)),
        )
        assert not (walk.asked[3] & ~(walk.asked[0] & walk.asked[1])).any()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_cases_and_no_folds_are_enough_to_go_on(n: int) -> None:
    opinions, truth = world(n)
    policy = fit_next_step(opinions, truth, None, [VOTE, EXPERT])
    assert policy.walk(opinions).beliefs.shape == (n, K)
    assert policy.walk(opinions.cases(slice(0, 0))).beliefs.shape == (0, K)


def test_one_label_only_needs_no_questions() -> None:
    opinions, _ = world(60)
    policy = fit_next_step(opinions, np.zeros(60, dtype=np.intp), folds_of(60), [EXPERT], worth=20)
    assert policy.mean_loss == policy.mean_cost == 0


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([VOTE, VOTE], "twice"),
        ([VOTE, Step(name="other", columns=("vote",))], "twice"),
        ([VOTE, AGAIN], "needs"),
        ([Step(name="who", columns=("nobody",))], "nobody"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps: list[Step], words: str) -> None:
    opinions, truth = world(30)
    with pytest.raises(ConfigError, match=words):
        fit_next_step(opinions, truth, folds_of(30), steps)


def test_a_step_asks_models_or_a_person() -> None:
    for wrong in ({}, {"columns": ("vote",), "accuracy": 1.0}):
        with pytest.raises(ConfigError, match="accuracy"):
            Step(name="neither", **wrong)  # type: ignore[arg-type]


def test_recorded_answers_need_few_calls(data_folder: Path) -> None:
    from secondlook.eval.policy import policies_for
    from secondlook.eval.recorded_answers import read_answers
    from secondlook.eval.replay import replay

    file = data_folder / "orchestrator-agent-trust" / "case3_trust_rag.csv"
    if not file.is_file():
        pytest.skip(f"no {file.name}")
    answers = read_answers(file)
    found = replay(answers, policies_for(answers.columns, ["cheap_first"]), repeats=1).decided["cheap_first"]
    right = np.mean([one.beliefs.argmax(axis=1) == answers.truth for one in found])
    vlm = [name for name in answers.columns if answers.spent[name].kind == "vlm"]
    calls = np.mean([one.asked[[answers.columns.index(name) for name in vlm]].sum(axis=0) for one in found])
    assert right >= 0.97
    assert calls <= 0.6


POLICY = fitted()


@pytest.mark.parametrize("folds", [np.zeros(1, dtype=np.intp), None])
def test_one_case_is_enough_to_walk(folds: Ints | None) -> None:
    opinions, truth = world(1)
    walk = fit_next_step(opinions, truth, folds, [VOTE, EXPERT]).walk(opinions)
    assert np.isfinite(walk.beliefs).all()


def test_what_cannot_be_fitted_on_is_refused() -> None:
    opinions, truth = world(12)
    for y, folds in ((truth[:5], None), (truth, folds_of(11)), (truth + 1, None), (truth * 0.5, None)):
        with pytest.raises(ValueError, match=r"expected \[N=12 >= 1\] each|expected whole numbers 0 to 2"):
            fit_next_step(opinions, y, folds, [VOTE, EXPERT])  # type: ignore[arg-type]
    for at_most in (-1.0, np.nan):
        with pytest.raises(ConfigError, match="cannot be kept"):
            fit_next_step(opinions, truth, None, [VOTE, EXPERT], at_most=at_most)
