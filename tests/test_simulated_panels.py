"""Simulated panels: the generator draws what it says, and what is promised holds on a few of them."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secondlook.agents.prediction import Failure, Prediction
from secondlook.eval.reliability import ece

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from drawn_panel import AGENTS, LABELS, SIZES, AgentLaw, DrawnPanel, PanelLaw, draw_law, outcomes
from simulated_panels import Row, laws, measure, right_of, tables

AGENT = AgentLaw(
    kind="probability", accuracy=0.7, sharpness=1.0, confidence="graded", bias=0.0, copies=None, failing=0.0
)
PANEL = PanelLaw(
    n=100,
    prior=np.full(4, 0.25),
    agents=(AGENT, AGENT),
    shared=0.0,
    hardness=0.0,
    group_size=1,
    within=0.0,
    strange=0.0,
)
MANY = 20_000


def draw(law: PanelLaw, n: int = MANY, seed: int = 0, least: int = 0):
    rng = np.random.default_rng(seed)
    return DrawnPanel(law, rng).draw(n, rng, least)


def panel_of(*agents: AgentLaw, **changes: object) -> PanelLaw:
    return replace(PANEL, agents=agents, **changes)


@pytest.fixture(scope="module")
def few() -> list[Row]:
    return [measure(0, number, n_new=2000, beside=False) for number in (0, 1, 4, 5, 6)]


@pytest.mark.parametrize("kind", ["logit", "probability", "stated", "vote"])
@pytest.mark.parametrize("accuracy", [0.3, 0.7, 0.98])
def test_agents_are_right_as_often_as_was_chosen(kind: str, accuracy: float) -> None:
    agents = [replace(AGENT, kind=kind, accuracy=accuracy, sharpness=s, bias=b) for s, b in ((1.0, 0.5), (4.0, 0.0))]
    drawn = draw(panel_of(*agents, shared=0.5, hardness=1.0))
    for scores in drawn.scores:
        # The signal was found on 4,000 cases: sqrt(.25 / 4000) = .008.
        assert right_of(scores, drawn.truth).mean() == pytest.approx(accuracy, abs=0.025)


def test_an_agent_below_chance_can_be_drawn() -> None:
    drawn = draw(panel_of(replace(AGENT, accuracy=0.3), prior=np.array([0.5, 0.5])))
    assert right_of(drawn.scores[0], drawn.truth).mean() == pytest.approx(0.3, abs=0.025)


def test_errors_go_together_where_they_share_difficulty_or_noise_and_only_there() -> None:
    def together(**changes: float) -> float:
        drawn = draw(replace(PANEL, **changes))
        return float(np.corrcoef(*[right_of(scores, drawn.truth) for scores in drawn.scores])[0, 1])

    assert abs(together()) < 0.03  # 1 / sqrt(20,000) = .007
    assert together(shared=0.8) > 0.4
    assert together(hardness=1.5) > 0.2


def test_a_copy_says_the_same_labels_in_its_own_way() -> None:
    copy = replace(AGENT, kind="stated", confidence="constant", copies=0)
    drawn = draw(panel_of(AGENT, copy))
    assert (drawn.scores[0].argmax(axis=1) == drawn.scores[1].argmax(axis=1)).all()
    assert not np.allclose(drawn.scores[0], drawn.scores[1])


def test_degenerate_confidences_say_one_value_or_three() -> None:
    stated = replace(AGENT, kind="stated")
    kinds = ("constant", "three values", "graded")
    drawn = draw(panel_of(*[replace(stated, confidence=kind) for kind in kinds]))
    constant, three, graded = (scores.max(axis=1) for scores in drawn.scores)
    assert set(constant) == {0.95}
    values, counts = np.unique(three, return_counts=True)
    assert values.tolist() == [0.85, 0.9, 0.95]
    assert (counts / MANY > 0.25).all()
    assert len(np.unique(graded)) > 20
    for scores in drawn.scores:
        assert ((scores > 0).sum(axis=1) == 1).all()


def test_votes_are_shares_of_ten_neighbours() -> None:
    votes = draw(panel_of(replace(AGENT, kind="vote"))).scores[0]
    assert np.allclose(votes * 10, np.round(votes * 10))
    assert np.allclose(votes.sum(axis=1), 1)


@pytest.mark.parametrize(("sharpness", "low", "high"), [(1.0, -0.02, 0.02), (4.0, 0.1, 1.0), (0.3, -1.0, -0.1)])
def test_sharpness_is_overconfidence(sharpness: float, low: float, high: float) -> None:
    drawn = draw(panel_of(replace(AGENT, sharpness=sharpness)))
    right, sure = right_of(drawn.scores[0], drawn.truth), drawn.scores[0].max(axis=1)
    assert low < sure.mean() - right.mean() < high
    if sharpness == 1.0:
        assert ece(sure, right) < 0.02


def test_failures_come_as_often_as_was_chosen_and_among_harder_cases() -> None:
    law = panel_of(replace(AGENT, failing=0.1), AGENT, hardness=1.5)
    drawn = draw(law)
    failed = np.isnan(drawn.scores[0][:, 0])
    assert failed.mean() == pytest.approx(0.1, abs=0.01)
    other = right_of(drawn.scores[1], drawn.truth)
    assert other[failed].mean() < other[~failed].mean() - 0.1
    said = outcomes(law, draw(law, 50))["probability-0"]
    assert {type(outcome) for outcome in said} == {Failure, Prediction}


def test_cases_of_a_group_have_one_truth_and_like_errors() -> None:
    drawn = draw(replace(PANEL, group_size=4, within=0.9))
    groups, truth = np.array(drawn.groups), drawn.truth
    same = groups[1:] == groups[:-1]
    assert len(set(groups)) == pytest.approx(MANY / 4, rel=0.03)
    assert (truth[1:][same] == truth[:-1][same]).all()
    right = right_of(drawn.scores[0], truth).astype(float)
    assert np.corrcoef(right[1:][same], right[:-1][same])[0, 1] > 0.4
    assert abs(np.corrcoef(right[1:][~same], right[:-1][~same])[0, 1]) < 0.05


def test_typicality_is_uniform_and_falls_with_difficulty() -> None:
    drawn = draw(panel_of(AGENT, hardness=1.5, strange=0.6))
    assert np.quantile(drawn.typicality, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.02)
    right = right_of(drawn.scores[0], drawn.truth)
    assert right[drawn.typicality < 0.1].mean() < right[drawn.typicality > 0.9].mean() - 0.1


def test_laws_of_panels_cover_what_they_should() -> None:
    drawn = [draw_law(number, np.random.default_rng([1, number])) for number in range(400)]
    assert [law.n for law in drawn[:8]] == list(SIZES) * 2
    assert np.mean([law.group_size > 1 for law in drawn]) == 0.5
    assert {len(law.agents) for law in drawn} == set(range(AGENTS[0], AGENTS[1] + 1))
    labels = {len(law.prior) for law in drawn}
    assert (min(labels), max(labels)) == LABELS
    agents = [agent for law in drawn for agent in law.agents]
    accuracies = [agent.accuracy for agent in agents]
    assert 0.3 <= min(accuracies) < 0.32
    assert 0.96 < max(accuracies) <= 0.98
    assert {agent.kind for agent in agents} == {"logit", "probability", "stated", "vote"}
    assert {agent.confidence for agent in agents} == {"graded", "three values", "constant"}
    assert any(agent.copies is not None for agent in agents)
    assert np.mean([agent.sharpness > 1.5 for agent in agents]) > 0.3
    for law in drawn:
        assert law.prior.sum() == pytest.approx(1)
        assert all(agent.copies is None or law.agents[agent.copies].copies is None for agent in law.agents)


def test_calibration_cases_have_five_of_every_label() -> None:
    for number in (0, 2, 4):
        rng = np.random.default_rng([2, number])
        law = draw_law(number, rng)
        cases = DrawnPanel(law, rng).draw(law.n, rng, 5)
        assert len(cases.truth) == law.n
        assert np.bincount(cases.truth, minlength=len(law.prior)).min() >= 5


def test_more_labels_than_cases_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="enough for 5 cases of each of 4 labels, got 10"):
        draw(PANEL, 10, least=5)


def test_a_panel_comes_out_the_same_again() -> None:
    first, again = (measure(3, 0, n_new=500, beside=False) for _ in range(2))
    assert replace(first, seconds=0) == replace(again, seconds=0)


def test_the_promises_hold_on_a_few_panels(few: list[Row]) -> None:
    for row in few:
        assert row.accuracy["pool"] > row.best - 0.08
        assert row.coverage > 0.8  # .9 less three standard errors of 50 calibration cases, .042 each, and 2,000 new
        assert math.isnan(row.error) == (row.accepted == 0)
    found = {law.name: law for law in laws(few, "pool")}
    assert found["accuracy over the best agent's, mean, all"].met
    for name, law in found.items():
        assert law.met or "coverage" not in name
    assert np.nanmedian([e for row in few for e in row.ece_agents]) < np.nanmedian([e for r in few for e in r.ece_said])


def test_the_tables_name_every_law_and_the_panels_behind(few: list[Row]) -> None:
    behind = replace(few[0], accuracy={"pool": few[0].best - 0.02})
    said = tables([behind, *few[1:]], "pool")
    assert all(law.name in said for law in laws(few, "pool"))
    assert f"0: -0.020 of {few[0].best:.3f}" in said


def test_more_panels_over_the_target_than_chance_allows_are_a_miss(few: list[Row]) -> None:
    def judged(over: int) -> bool:
        kept = replace(few[0], accepted=0.5, error=0.01)
        rows = [replace(kept, error=0.06)] * over + [kept] * (20 - over)
        return next(law.met for law in laws(rows, "pool") if "single cases" in law.name and "error" in law.name)

    # Of 20 panels that each exceed with probability .1, more than 5 do with probability .011, more than 4 with .043.
    assert judged(5)
    assert not judged(6)
