"""A judge among the columns: it decides where it was measured to be better, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from secondlook.agents.calibration import Calibrated, Calibrator
from secondlook.agents.case import Case, Statement
from secondlook.agents.errors import ConfigError
from secondlook.agents.fakes import ScriptedAgent
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Prediction, Scale, stated
from secondlook.eval.embedded import Embedded
from secondlook.eval.held_out import ask_blocking, calibrate_all
from secondlook.eval.look_fit import LookFit, fit_look, opinions_of
from secondlook.orchestrator.judge_fusion import judge_in, look_in
from secondlook.orchestrator.policies import PolicyName, fit_fusion
from secondlook.orchestrator.rules import Single
from secondlook.orchestrator.shown_record import ShownRecord, records_by_fold
from secondlook.orchestrator.statements import hear, statements

Truth = NDArray[np.intp]
LABELS = ("scab", "rust", "healthy")
N = 200
TRUTH = (np.arange(N) % 3).astype(np.intp)
FOLDS = (np.arange(N) // 3 % 5).astype(np.intp)
CASES = [Case(id=str(i), photo=Photo.of(b"")) for i in range(N)]


def agent(name: str, right: float, seed: int, *, failing: float = 0.0) -> ScriptedAgent:
    """One that says .95 to everything, right as often as given, at times without an answer."""
    rng = np.random.default_rng(seed)
    tops = np.where(rng.random(N) < right, TRUTH, (TRUTH + rng.integers(1, 3, N)) % 3)
    lost = rng.random(N) < failing

    def answer(case: Case) -> list[float] | str:
        i = int(case.id)
        return "the service did not answer" if lost[i] else (0.95 * np.eye(3)[tops[i]]).tolist()

    return ScriptedAgent(name, answer, "stated")


def fitted(policy: PolicyName, *agents: ScriptedAgent) -> LookFit:
    """What fit makes of a panel: everybody asked, calibrated and fused, all of it cross-fitted."""
    answers = calibrate_all(ask_blocking(agents, CASES), TRUTH, FOLDS, 3)
    split = Embedded(tuple(CASES), np.zeros((N, 1), np.float32), TRUTH, tuple(case.id for case in CASES))
    return fit_look(answers, split, np.ones(N), FOLDS, policy)


# -- do no harm


def test_a_judge_worse_than_the_best_member_does_not_decide_however_sure_it_is() -> None:
    found = fitted("judge", agent("good", 0.9, 0), agent("poor", 0.5, 1), agent("judge", 0.6, 2)).fitted
    assert (found.fusion.kind, found.fusion.fused_by) == ("best_agent", "best agent: good")
    assert found.fusion.nll == found.fusion.agent_nll["good"] < found.fusion.agent_nll["judge"]


def test_a_judge_better_than_every_member_decides_when_it_is_asked_for() -> None:
    found = fitted("judge", agent("good", 0.8, 0), agent("poor", 0.5, 1), agent("judge", 0.97, 2)).fitted
    assert (found.fusion.kind, found.fusion.fused_by) == ("judge", "judge: judge")
    assert found.fusion.nll < min(found.fusion.agent_nll["good"], found.fusion.agent_nll["poor"])


def test_a_judge_that_repeats_the_best_member_is_not_better_than_it() -> None:
    found = fitted("judge", agent("good", 0.9, 0), agent("judge", 0.9, 0)).fitted
    assert found.fusion.agent_nll["judge"] == found.fusion.agent_nll["good"]
    assert found.fusion.fused_by == "best agent: good"


def test_auto_is_on_the_fitted_cases_never_worse_for_a_poor_judge() -> None:
    members = agent("good", 0.85, 0), agent("poor", 0.6, 1)
    with_judge = fitted("auto", *members, agent("judge", 0.4, 2)).fitted.fusion.nll
    assert with_judge <= fitted("best_agent", *members).fitted.fusion.nll + 1e-9


def test_a_judge_that_is_the_best_of_the_panel_keeps_the_name_that_was_asked_for() -> None:
    found = fitted("judge", agent("poor", 0.5, 1), agent("judge", 0.97, 2)).fitted
    best = fitted("best_agent", agent("poor", 0.5, 1), agent("judge", 0.97, 2)).fitted
    assert (found.fusion.fused_by, best.fusion.fused_by) == ("judge: judge", "best agent: judge")
    assert found.fusion.nll == best.fusion.nll


def test_a_judge_of_whom_nothing_was_held_out_does_not_decide_over_a_better_member() -> None:
    answers = calibrate_all(ask_blocking([agent("good", 0.9, 0), agent("judge", 0.5, 1)], CASES), TRUTH, None, 3)
    split = Embedded(tuple(CASES), np.zeros((N, 1), np.float32), TRUTH, tuple(case.id for case in CASES))
    assert fit_look(answers, split, np.ones(N), None, "judge").fitted.fusion.fused_by == "best agent: good"


# -- what the policy believes


def test_where_the_judge_failed_the_best_of_the_others_decides_and_the_trail_says_so() -> None:
    panel = agent("poor", 0.5, 1), agent("good", 0.8, 0), agent("judge", 0.97, 2, failing=0.2)
    answers = {a.agent: a for a in calibrate_all(ask_blocking(panel, CASES), TRUTH, FOLDS, 3)}
    found = fitted("judge", *panel).fitted
    assert isinstance(found.fusion, Single)
    assert found.fusion.order == ("judge", "good", "poor")
    failed = np.isnan(answers["judge"].probs).any(axis=1)
    assert 20 < failed.sum() < 60
    np.testing.assert_array_equal(found.beliefs[failed], answers["good"].probs[failed])
    np.testing.assert_array_equal(found.beliefs[~failed], answers["judge"].probs[~failed])
    assert found.fusion.fused_from(("poor", "good")) == "good, as those before it failed"
    assert found.fusion.fused_from(("poor", "good", "judge")) == "judge: judge"


def test_the_judge_of_the_newest_look_decides() -> None:
    assert judge_in(("head", "judge", "head@2", "judge@2")) == "judge@2"
    assert judge_in(("judge@2", "judge", "head")) == "judge@2"
    assert judge_in(("judge-b", "judge-a", "head@2")) == "judge-a"
    assert judge_in(("head", "a judge", "Judge")) is None
    assert [look_in(name) for name in ("judge", "judge@2", "who@home", "@3")] == [1, 2, 1, 3]


def test_without_a_judge_the_policy_names_the_columns_and_a_remedy() -> None:
    answers = calibrate_all(ask_blocking([agent("good", 0.9, 0)], CASES), TRUTH, FOLDS, 3)
    with pytest.raises(ConfigError, match="There is no judge among good") as caught:
        fit_fusion("judge", opinions_of(answers), TRUTH, FOLDS)
    assert "begins with judge" in caught.value.remedy


# -- outcomes in words


def test_an_agent_is_quoted_by_its_own_words_and_a_failure_by_its_error() -> None:
    eye = stated("eye", 2, 1, 0.95, 3).model_copy(update={"reason": "Orange spots."})
    said = statements([eye, Failure(agent="ear", look=2, error="no answer in 60 s")], LABELS)
    assert said == (
        Statement(agent="eye", look=2, label="rust", confidence=0.95, reason="Orange spots."),
        Statement(agent="ear", look=2, reason="no answer in 60 s"),
    )


def test_each_scale_is_read_as_a_distribution() -> None:
    # softmax(0, ln 8, 0) = (.1, .8, .1); shares (2/3, 1/3, 0) plus .01 each over 1.03: .6569
    logit = Prediction(agent="a", scale="logit", scores=(0.0, math.log(8), 0.0))
    vote = Prediction(agent="b", scale="vote", scores=(2 / 3, 1 / 3, 0.0))
    said = statements([logit, vote], LABELS)
    assert [(s.label, s.confidence) for s in said] == [
        ("rust", pytest.approx(0.8)),
        ("scab", pytest.approx((2 / 3 + 0.01) / 1.03)),
    ]


@given(st.sampled_from(["logit", "probability", "vote", "sampled", "stated"]), st.data())
def test_what_an_agent_said_reads_the_same_after_calibration(scale: Scale, data: st.DataObject) -> None:
    top, sure = data.draw(st.integers(0, 2)), data.draw(st.floats(0.01, 1))
    scores = tuple(sure if k == top else (0.0 if scale == "stated" else (1 - sure) / 2) for k in range(3))
    raw = ScriptedAgent("eye", [scores], scale)
    flat = Calibrated(ScriptedAgent("eye", [scores], scale), {1: Calibrator(kind="temperature", temperature=50.0)})
    before, after = (ask_blocking([a], CASES[:1])["eye"] for a in (raw, flat))
    assert statements(before, LABELS) == statements(after, LABELS)


def test_a_case_hears_in_the_order_of_asking() -> None:
    first, second = stated("eye", 1, 0, 0.5, 3), stated("eye", 2, 1, 0.9, 3)
    once = hear(CASES[0], [first], LABELS)
    twice = hear(once, [second], LABELS)
    assert [(s.look, s.label) for s in twice.heard] == [(1, "scab"), (2, "rust")]
    assert CASES[0].heard == ()
    assert hear(once, [], LABELS) == once


def test_an_outcome_of_another_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eye: expected \[K=3\] scores, got \(2,\)"):
        statements([stated("eye", 1, 0, 0.5, 2)], LABELS)


# -- no case is judged by a record in which it was counted


def test_a_judge_is_shown_records_of_the_other_folds_only() -> None:
    counted: list[NDArray[np.bool_]] = []

    def measure(mask: NDArray[np.bool_]) -> list[ShownRecord]:
        counted.append(mask)
        return [ShownRecord(agent="eye", n=len(counted))]

    shown = records_by_fold(CASES, FOLDS, measure)
    for i, case in enumerate(CASES):
        (record,) = shown(case)
        mask = counted[record.n - 1]
        assert not mask[i]
        np.testing.assert_array_equal(mask, FOLDS[i] != FOLDS)
    (other,) = shown(Case(id="new", photo=Photo.of(b"")))
    assert counted[other.n - 1].all()
    assert len(counted) == 6  # once a fold, and once for all


def test_without_folds_the_records_are_of_all_cases() -> None:
    shown = records_by_fold(CASES, None, lambda mask: [ShownRecord(agent="eye", n=int(mask.sum()))])
    assert shown(CASES[0])[0].n == N


def test_records_of_cases_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2"):
        records_by_fold([CASES[0], CASES[0]], None, lambda mask: [])
    with pytest.raises(ValueError, match=r"200 of 200 and \(3,\)"):
        records_by_fold(CASES, FOLDS[:3], lambda mask: [])


def test_a_record_is_the_same_after_json_undefined_numbers_included() -> None:
    record = ShownRecord(agent="eye", n=0)
    again = ShownRecord.model_validate_json(record.model_dump_json())
    assert again.model_dump_json() == record.model_dump_json()
    assert math.isnan(again.ccc)
