"""The gate: p-values by hand and by oracle, the promise simulated, decisions and their reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from secondlook.orchestrator.gate import (
    GRID,
    Gate,
    LookData,
    accept_in_order,
    choose_threshold,
    group_losses,
    risk_p_value,
    units_needed,
)
from secondlook.orchestrator.judgement import Hold, explain, judge
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.pool import Pool
from secondlook.orchestrator.trust_model import Trust

Floats = NDArray[np.float64]
SETS = 400
"""Calibration sets drawn to try the promise."""


class Drawn(NamedTuple):
    """Held-out cases of a made-up world: trust of the first look, correctness, groups."""

    trust: Floats
    wrong: NDArray[np.bool_]
    groups: list[str]


def draw(n_groups: int, most: int, rng: np.random.Generator, flatter: float = 1.0, easy: float = 4.0) -> Drawn:
    """Draw groups of 1 to `most` cases that share a difficulty and, in half of the groups, one fate.

    The chance of an error is (1 - trust) / `flatter`: where that is below 1, trust flatters itself.
    """
    unit = np.repeat(np.arange(n_groups), rng.integers(1, most + 1, n_groups))
    hard = rng.beta(0.5, easy, n_groups)[unit]
    trust = np.clip(1 - hard * rng.uniform(0.5, 1.5, len(unit)), 0, 1)
    together = (rng.random(n_groups) < 0.5)[unit]
    fate = np.where(together, rng.random(n_groups)[unit], rng.random(len(unit)))
    wrong = fate < np.minimum((1 - trust) / flatter, 1)
    return Drawn(trust, wrong, [f"{i:05d}" for i in unit])


def threshold_for(drawn: Drawn, **options: float) -> Gate:
    looks = [LookData(drawn.trust, drawn.wrong)]
    return choose_threshold(Gate(**options), looks, np.ones(len(drawn.trust)), drawn.groups)


def test_candidate_thresholds_run_from_strict_to_loose() -> None:
    assert len(GRID) > 70
    assert all(a > b for a, b in pairwise(GRID))
    assert 0.5 == GRID[-1] < GRID[0] < 1


@given(st.integers(1, 300), st.data(), st.sampled_from([0.01, 0.05, 0.1, 0.3]))
def test_where_a_unit_is_one_case_the_p_value_is_the_binomial_tests(n: int, data: st.DataObject, target: float) -> None:
    wrong = data.draw(st.integers(0, n))
    losses = np.array([1.0] * wrong + [0.0] * (n - wrong))
    oracle = binomtest(wrong, n, target, alternative="less").pvalue
    assert risk_p_value(losses, target, exact=True) == pytest.approx(oracle, rel=1e-9, abs=1e-300)


def test_hoeffding_bentkus_is_as_by_hand() -> None:
    # n = 100 groups, 4 with half of their cases wrong: mean .02, target .05.
    # Hoeffding: h = .02 ln(.02/.05) + .98 ln(.98/.95) = -.0183258 + .0304688 = .0121430; exp(-1.2143) = .29692.
    # Bentkus: e P(Bin(100, .05) <= 2) = 2.71828 * (.005921 + .031161 + .081182) = 2.71828 * .118263 = .32147.
    losses = np.array([0.5] * 4 + [0.0] * 96)
    assert risk_p_value(losses, 0.05, exact=False) == pytest.approx(0.29692, abs=2e-5)
    # One loss of .5 less: Bentkus rounds 1.5 wrong up to 2 again, Hoeffding does not:
    # h = .015 ln .3 + .985 ln(.985/.95) = -.0180596 + .0356371 = .0175775; exp(-1.75775) = .17243.
    assert risk_p_value(np.array([0.5] * 3 + [0.0] * 97), 0.05, exact=False) == pytest.approx(0.17243, abs=2e-5)


def test_without_an_error_both_tests_give_the_same() -> None:
    # (1 - .05)^60 = .0461
    for exact in (True, False):
        assert risk_p_value(np.zeros(60), 0.05, exact=exact) == pytest.approx(0.95**60)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.01, 0.5), st.floats(0, 0.4))
def test_a_larger_target_or_smaller_losses_never_raise_p(losses: list[float], low: float, more: float) -> None:
    loss = np.array(losses)
    p = risk_p_value(loss, low, exact=False)
    assert 0 <= p <= 1
    assert risk_p_value(loss, low + more, exact=False) <= p + 1e-12
    assert risk_p_value(loss / 2, low, exact=False) <= p + 1e-12
    single = np.round(loss)
    assert risk_p_value(single, low + more, exact=True) <= risk_p_value(single, low, exact=True) + 1e-12


@pytest.mark.parametrize(("target", "delta", "needed"), [(0.05, 0.1, 45), (0.02, 0.1, 114), (0.5, 0.25, 2)])
def test_groups_needed_are_the_fewest_whose_faultlessness_proves_it(target: float, delta: float, needed: int) -> None:
    assert units_needed(target, delta) == needed
    for exact in (True, False):
        assert risk_p_value(np.zeros(needed), target, exact=exact) <= delta + 1e-12
        assert risk_p_value(np.zeros(needed - 1), target, exact=exact) > delta


def test_a_groups_loss_is_the_share_of_its_accepted_cases_that_are_wrong() -> None:
    # Group 0: 2 of 3 accepted, 1 wrong; group 1: none accepted; group 2: 1 accepted, right.
    unit = np.array([0, 0, 0, 1, 2])
    accepted = np.array([True, True, False, False, True])
    wrong = np.array([True, False, False, False, False])
    np.testing.assert_array_equal(group_losses(unit, accepted, wrong), [0.5, 0.0])


def true_risks(world: Sequence[LookData], groups: Sequence[str]) -> dict[float, float]:
    """Mean loss of the groups with an accepted case, by threshold, over a set so large that it is the world."""
    unit = np.unique(groups, return_inverse=True)[1]
    typical = np.ones(len(unit))
    gates = {t: Gate(threshold=t) for t in GRID}
    return {t: float(group_losses(unit, *accept_in_order(gate, world, typical)).mean()) for t, gate in gates.items()}


@pytest.mark.parametrize(
    ("n_groups", "most", "flatter", "target"),
    [(150, 6, 1.0, 0.05), (150, 6, 0.4, 0.1), (80, 1, 0.4, 0.1)],
    ids=["correlated groups", "correlated groups, trust that flatters", "single cases, trust that flatters"],
)
def test_the_promise_is_broken_no_more_often_than_delta(
    n_groups: int, most: int, flatter: float, target: float
) -> None:
    rng = np.random.default_rng(7)
    world = draw(40_000, most, rng, flatter)
    risk = true_risks([LookData(world.trust, world.wrong)], world.groups)
    delta, broken, promised = 0.1, 0, 0
    for _ in range(SETS):
        gate = threshold_for(draw(n_groups, most, rng, flatter), target_risk=target, delta=delta)
        if gate.threshold is not None:
            promised += 1
            broken += risk[gate.threshold] > target
    # 400 draws of a coin of .1 exceed the limit once in a hundred times.
    assert broken <= binom.ppf(0.99, SETS, delta)
    assert promised > SETS / 4, "a gate that promises nothing keeps every promise"


def test_the_promise_holds_over_two_looks() -> None:
    rng = np.random.default_rng(8)

    def second(first: Drawn) -> Drawn:
        # The second look is right about half of what the first got wrong, and surer of everything.
        return first._replace(
            trust=np.clip(first.trust + 0.3 * (1 - first.trust), 0, 1),
            wrong=first.wrong & (rng.random(len(first.wrong)) < 0.5),
        )

    world = draw(40_000, 4, rng)
    risk = true_risks([LookData(d.trust, d.wrong) for d in (world, second(world))], world.groups)
    broken = 0
    for _ in range(SETS // 2):
        drawn = draw(120, 4, rng)
        both = [LookData(d.trust, d.wrong) for d in (drawn, second(drawn))]
        gate = choose_threshold(Gate(), both, np.ones(len(drawn.trust)), drawn.groups)
        broken += gate.threshold is not None and risk[gate.threshold] > gate.target_risk
    assert broken <= binom.ppf(0.99, SETS // 2, 0.1)


def test_with_too_few_groups_nothing_is_promised_and_the_number_needed_is_named() -> None:
    drawn = Drawn(np.full(44, 0.999), np.zeros(44, dtype=np.bool_), [f"{i}" for i in range(44)])
    gate = threshold_for(drawn)
    assert (gate.threshold, gate.needed, gate.coverage) == (None, 45, 0.0)
    assert math.isnan(gate.accepted_error)
    assert not gate.accepts(np.ones(3), np.ones(3)).any()
    # Many cases of few groups are no more evidence.
    many = Drawn(np.full(440, 0.999), np.zeros(440, dtype=np.bool_), [f"{i % 44}" for i in range(440)])
    assert threshold_for(many).threshold is None


def test_one_group_more_and_the_promise_is_made() -> None:
    drawn = Drawn(np.full(45, 0.99), np.zeros(45, dtype=np.bool_), [f"{i}" for i in range(45)])
    gate = threshold_for(drawn)
    assert gate.threshold == GRID[-1], "without an error every threshold down to the loosest passes"
    assert (gate.coverage, gate.accepted_error, gate.n_units) == (1.0, 0.0, 45)
    assert gate.p_value == pytest.approx(0.95**45)


def test_with_hopeless_accuracy_nothing_is_promised() -> None:
    rng = np.random.default_rng(0)
    drawn = Drawn(rng.random(500), rng.random(500) < 0.4, [f"{i}" for i in range(500)])
    assert threshold_for(drawn).threshold is None


def test_a_larger_target_accepts_more_on_average() -> None:
    # On average, not always: a larger target begins with fewer groups, of which one wrong may then end the walk.
    coverage = {target: [] for target in (0.02, 0.05, 0.1, 0.2)}
    for seed in range(40):
        drawn = draw(200, 3, np.random.default_rng(seed))
        for target, found in coverage.items():
            found.append(threshold_for(drawn, target_risk=target).coverage)
    means = [np.mean(found) for found in coverage.values()]
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.1


def test_the_numbers_of_the_gate_are_those_of_its_threshold() -> None:
    drawn = draw(200, 4, np.random.default_rng(3))
    gate = threshold_for(drawn)
    assert gate.threshold is not None
    accepted = gate.accepts(drawn.trust, np.ones(len(drawn.trust)))
    losses = group_losses(np.unique(drawn.groups, return_inverse=True)[1], accepted, accepted & drawn.wrong)
    assert gate.coverage == pytest.approx(accepted.mean())
    assert (gate.accepted_error, gate.n_units) == (pytest.approx(losses.mean()), len(losses))
    assert gate.p_value <= gate.delta
    assert Gate.model_validate_json(gate.model_dump_json()) == gate
    none = Gate.model_validate_json(Gate().model_dump_json())
    assert none.threshold is None
    assert math.isnan(none.accepted_error)


def test_a_case_is_accepted_at_the_first_look_that_trusts_it() -> None:
    # By case: both looks trust (right first, wrong second); only the second; neither; a stranger.
    first = LookData(np.array([0.9, 0.5, 0.5, 0.9]), np.array([False, True, True, True]))
    second = LookData(np.array([0.9, 0.9, 0.5, 0.9]), np.array([True, True, False, True]))
    gate = Gate(threshold=0.8, target_risk=0.15)
    accepted, wrong = accept_in_order(gate, [first, second], np.array([1.0, 1.0, 1.0, 0.0]))
    assert accepted.tolist() == [True, True, False, False]
    assert wrong.tolist() == [False, True, False, False]


def test_what_is_riskier_than_the_target_is_looked_at_again_before_it_is_accepted() -> None:
    gate = Gate(threshold=0.6, target_risk=0.05)
    assert (gate.least_trust(last=False), gate.least_trust(last=True)) == (0.95, 0.6)
    assert gate.model_copy(update={"threshold": 0.99}).least_trust(last=False) == 0.99
    assert Gate().least_trust(last=False) is None
    assert gate.model_copy(update={"early_trust": 0.8}).least_trust(last=False) == 0.8
    assert gate.model_copy(update={"early_trust": 0.5}).least_trust(last=False) == 0.6, "never below the last look's"
    # .9 is not enough at the first look of two; at the second, right or wrong, it is.
    looks = [
        LookData(np.array([0.9, 0.96]), np.array([True, False])),
        LookData(np.array([0.9, 0.1]), np.array([False, True])),
    ]
    accepted, wrong = accept_in_order(gate, looks, np.ones(2))
    assert (accepted.tolist(), wrong.tolist()) == ([True, True], [False, False])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 0.5))
def test_strangers_are_never_accepted_however_much_they_are_trusted(typicality: list[float], limit: float) -> None:
    gate = Gate(threshold=0.0, stranger_limit=limit)
    typical = np.array(typicality)
    accepted = gate.accepts(np.ones(len(typical)), typical)
    assert (accepted == (typical >= limit)).all()
    assert not (accepted & gate.strangers(typical)).any()


def test_the_least_trust_of_every_look_is_written_down() -> None:
    drawn = draw(200, 1, np.random.default_rng(3), easy=8.0)
    looks = [LookData(drawn.trust, drawn.wrong)] * 2
    for early in (None, 0.98):
        gate = choose_threshold(Gate(early_trust=early), looks, np.ones(len(drawn.trust)), drawn.groups)
        assert gate.threshold is not None
        assert gate.thresholds == (gate.least_trust(last=False), gate.least_trust(last=True))
        assert gate.thresholds[0] == max(early or 0.95, gate.threshold)
        assert Gate.model_validate_json(gate.model_dump_json()) == gate
    assert threshold_for(Drawn(drawn.trust[:9], drawn.wrong[:9], drawn.groups[:9])).thresholds == ()


def test_an_earlier_look_that_accepts_more_readily_is_part_of_what_is_tested() -> None:
    # The first look is wrong wherever its trust is .9; the second knows better, if it is asked.
    n = 200
    first = LookData(np.full(n, 0.9), np.ones(n, dtype=np.bool_))
    second = LookData(np.full(n, 0.99), np.zeros(n, dtype=np.bool_))
    names = [f"{i}" for i in range(n)]
    careful = choose_threshold(Gate(), [first, second], np.ones(n), names)
    assert (careful.coverage, careful.accepted_error, careful.thresholds) == (1.0, 0.0, (0.95, 0.5))
    hasty = choose_threshold(Gate(early_trust=0.6), [first, second], np.ones(n), names)
    assert hasty.threshold is not None
    assert hasty.threshold > 0.9, "the test stops before the first look's errors are accepted"
    assert hasty.accepted_error == 0.0


# -- edges


def test_one_unit_alone_proves_nothing_however_many_cases_it_has() -> None:
    one = Drawn(np.full(1000, 0.9999), np.zeros(1000, dtype=np.bool_), ["leaf"] * 1000)
    assert threshold_for(one).threshold is None
    assert threshold_for(Drawn(np.ones(1), np.zeros(1, dtype=np.bool_), ["leaf"])).threshold is None


def test_without_a_case_nothing_is_promised() -> None:
    gate = threshold_for(Drawn(np.empty(0), np.empty(0, dtype=np.bool_), []))
    assert (gate.threshold, gate.n_units, gate.needed) == (None, 0, 45)


def test_where_all_agents_failed_nothing_is_accepted() -> None:
    # Trust is then 0, which no threshold reaches.
    failed = Drawn(np.zeros(300), np.ones(300, dtype=np.bool_), [f"{i}" for i in range(300)])
    assert threshold_for(failed).threshold is None
    said = np.full((1, 3, 2), np.nan)
    opinions = Opinions.uncalibrated(("a",), said)
    found = judge(POOL, Trust(), Gate(threshold=0.5), opinions, np.ones(3), may_look_again=True)
    assert found.decisions == ("review",) * 3
    assert found.labels.tolist() == [-1] * 3


@pytest.mark.parametrize(("wrong", "accepted"), [(0, 1.0), (1, 1.0), (14, 0.0)])
def test_of_a_constant_trust_all_is_accepted_or_nothing(wrong: int, accepted: float) -> None:
    # 100 cases: P(Bin(100, .05) <= 0) = .0059 and <= 1 .0371, both below .1; 14 wrong is above the target itself.
    drawn = Drawn(np.full(100, 0.97), np.arange(100) < wrong, [f"{i}" for i in range(100)])
    gate = threshold_for(drawn)
    assert gate.coverage == accepted
    assert gate.accepts(drawn.trust, np.ones(100)).mean() == accepted


def test_strangers_do_not_count_towards_the_promise() -> None:
    drawn = Drawn(np.full(60, 0.99), np.zeros(60, dtype=np.bool_), [f"{i}" for i in range(60)])
    typicality = np.where(np.arange(60) < 16, 0.01, 1.0)
    looks = [LookData(drawn.trust, drawn.wrong)]
    assert choose_threshold(Gate(), looks, typicality, drawn.groups).threshold is None  # 44 are left


POOL = Pool(agents=("a",), prior=(0.5, 0.5), weights=(1.0,))
SURE = np.array([[[0.99, 0.01]]])


def reason_of(probs: Floats, typicality: float, gate: Gate, *, more: bool = True) -> tuple[str, str]:
    found = judge(
        POOL, Trust(), gate, Opinions.uncalibrated(("a",), probs), np.array([typicality]), may_look_again=more
    )
    return found.decisions[0], found.reasons[0]


def test_every_reason_leads_to_its_decision() -> None:
    gate, unsure, failed = Gate(threshold=0.9), np.array([[[0.6, 0.4]]]), np.full((1, 1, 2), np.nan)
    assert reason_of(SURE, 1.0, gate) == ("accept", "trusted")
    assert reason_of(unsure, 1.0, gate) == ("look_again", "low_trust")
    assert reason_of(unsure, 1.0, gate, more=False) == ("review", "low_trust")
    assert reason_of(SURE, 1.0, Gate()) == ("look_again", "no_threshold")
    assert reason_of(SURE, 1.0, Gate(), more=False) == ("review", "no_threshold")
    assert reason_of(SURE, 0.01, gate) == ("look_again", "stranger"), "a human is shown evidence of strangers too"
    assert reason_of(SURE, 0.01, gate, more=False) == ("review", "stranger")
    assert reason_of(failed, 1.0, gate) == ("review", "no_outcome")


@pytest.mark.parametrize("reason", ["unproven", "drift"])
def test_a_hold_sends_to_review_what_would_be_accepted_and_nothing_else(reason: Literal["unproven", "drift"]) -> None:
    hold = Hold(reason, "the index of neighbour-vote has changed since it was measured.")
    gate, unsure = Gate(threshold=0.9), np.array([[[0.99, 0.01], [0.6, 0.4], [np.nan, np.nan], [0.99, 0.01]]])
    opinions = Opinions.uncalibrated(("a",), unsure)
    for more, after in ((True, "look_again"), (False, "review")):
        found = judge(POOL, Trust(), gate, opinions, np.array([1, 1, 1, 0.01]), may_look_again=more, hold=hold)
        assert found.reasons == (reason, "low_trust", "no_outcome", "stranger")
        assert found.decisions == ("review", after, "review", after)
    assert explain(reason, "review", gate, 0.9, 0.97, 1.0, hold.why) == (
        "Trust 0.970 would be accepted, but the index of neighbour-vote has changed since it was measured."
    )


def test_an_image_without_an_embedding_is_never_accepted_whoever_answered() -> None:
    assert reason_of(SURE, math.nan, Gate(threshold=0.9, stranger_limit=0.0)) == ("review", "no_outcome")


def test_the_reason_is_a_sentence_whose_numbers_can_be_told_apart() -> None:
    gate = Gate(threshold=0.99990, target_risk=0.025)
    assert explain("low_trust", "review", gate, 0.99990, 0.99985, 1.0, "") == (
        "Trust 0.99985 is below the 0.99990 that is needed."
    )
    assert explain("trusted", "accept", gate, 0.95, 0.97, 1.0, "") == (
        "Trust 0.970 reaches the 0.950 that holds errors under 2.5%."
    )
    assert explain("budget", "review", gate, 0.9999, 0.5, 1.0, refused="looks 3 of 2 a run") == (
        "Trust 0.50000 is below the 0.99990 that is needed; another look is beyond the budget (looks 3 of 2 a run)."
    )
    assert explain("budget", "review", gate, 0.9999, math.nan, 1.0, refused="usd 2 of 1 a case") == (
        "To look at it at all is beyond the budget (usd 2 of 1 a case)."
    )
    assert "looked at again" in explain("no_threshold", "look_again", gate, None, 0.5, 1.0, "")
    assert explain("stranger", "review", gate, 0.9, 0.5, 0.004, "") == (
        "Unlike what the model was fitted on: only 0.4% of its own held-out images are as unusual (limit 5.0%)."
    )
    assert explain("no_outcome", "review", gate, 0.9, 0.0, math.nan, "") == (
        "No agent could answer: the image has no embedding."
    )


# -- bad input


def test_shapes_that_do_not_fit_together_are_refused() -> None:
    look, ones, names = LookData(np.full(4, 0.9), np.zeros(4, dtype=np.bool_)), np.ones(4), list("abcd")
    wrong: list[tuple[list[LookData], Floats, list[str]]] = [
        ([], ones, names),
        ([look], ones[:3], names),
        ([look], ones, names[:3]),
        ([LookData(look.trust, look.loss[:3])], ones, names),
        ([look, LookData(np.ones((4, 2)), look.loss)], ones, names),
    ]
    for looks, typicality, groups in wrong:
        with pytest.raises(ValueError, match=r"looks, typicality, groups: expected .* \[N=[34]\] each, got"):
            choose_threshold(Gate(), looks, typicality, groups)


@pytest.mark.parametrize("loss", [math.nan, -0.5, 2.0])
def test_no_promise_rests_on_a_loss_that_is_none(loss: float) -> None:
    trust, losses = np.full(100, 0.9), np.zeros(100)
    losses[7] = loss
    with pytest.raises(ValueError, match="loss: expected 0 to 1 where there is trust"):
        choose_threshold(Gate(), [LookData(trust, losses)], np.ones(100), list(map(str, range(100))))
    # A case that nobody answered has neither.
    trust[7] = math.nan
    found = choose_threshold(Gate(), [LookData(trust, losses)], np.ones(100), list(map(str, range(100))))
    assert found.n_units == 99


def test_without_a_single_error_the_promise_rests_on_the_number_of_groups_alone() -> None:
    # .95^45 = .0994 and .95^44 = .1047, at delta = .1.
    for n, promised in ((45, True), (44, False)):
        looks = [LookData(np.full(n, 0.9), np.zeros(n, dtype=np.bool_))]
        found = choose_threshold(Gate(), looks, np.ones(n), list(map(str, range(n))))
        assert (found.threshold is not None) == promised
