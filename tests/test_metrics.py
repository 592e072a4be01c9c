"""Calibration, selection, strangers, accuracy and baselines against hand arithmetic, other libraries and laws."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    roc_auc_score,
    roc_curve,
)
from strategies import Judged, Labelled, Panel, judged, labelled, panels, permutations

from secondlook.eval import accuracy, baselines, ood, proper_scores, reliability, selective
from secondlook.eval.arrays import Floats, Ints
from secondlook.eval.bins import Scheme
from secondlook.eval.error_correlation import error_correlation
from secondlook.eval.set_metrics import coverage_by_label, coverage_by_size, set_coverage, set_size

YES, NO = True, False


@pytest.fixture(scope="module")
def answers() -> Labelled:
    """600 distributions over 5 labels, wrong about a third of the time, off the edges of the bins."""
    rng = np.random.default_rng(7)
    truth = rng.integers(5, size=600)
    logits = rng.normal(size=(600, 5)) + 1.5 * np.eye(5)[truth]
    probs = np.exp(2 * logits)
    return Labelled(probs / probs.sum(axis=1, keepdims=True), truth)


@pytest.fixture(scope="module")
def scored(answers: Labelled) -> Judged:
    return Judged(answers.probs.max(axis=1), answers.probs.argmax(axis=1) == answers.truth)


# --- reliability ---


def test_a_bin_holds_its_upper_edge_and_the_first_holds_zero() -> None:
    # Fifths: 0, .1 and .2 | .3 and .4 | | .8 | 1
    table = reliability.reliability_bins([0, 0.1, 0.2, 0.3, 0.4, 0.8, 1], [NO, NO, YES, NO, YES, YES, YES], bins=5)
    assert table.n.tolist() == [3, 2, 0, 1, 1]
    np.testing.assert_allclose(table.confidence, [0.1, 0.35, np.nan, 0.8, 1])
    np.testing.assert_allclose(table.accuracy, [1 / 3, 1 / 2, np.nan, 1, 1])


def test_every_decimal_edge_falls_into_the_bin_that_it_closes() -> None:
    edges = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert reliability.reliability_bins(edges, [YES] * 10, bins=10).n.tolist() == [1] * 10


def test_ece_and_mce_by_hand() -> None:
    # Halves: {.2 wrong, .4 right} conf .3 acc .5, gap .2 of 2/4; {.8 right, 1 wrong} conf .9 acc .5, gap .4 of 2/4
    conf, right = [0.2, 0.4, 0.8, 1.0], [NO, YES, YES, NO]
    assert reliability.ece(conf, right, bins=2) == pytest.approx(0.5 * 0.2 + 0.5 * 0.4)
    assert reliability.mce(conf, right, bins=2) == pytest.approx(0.4)
    # mean confidence .6, accuracy .5
    assert reliability.direction(conf, right) == pytest.approx(0.1)


def test_equal_mass_bins_hold_equal_numbers_and_never_part_a_tie() -> None:
    spread = reliability.reliability_bins(np.linspace(0.9, 0.99, 10), [YES] * 10, bins=5, scheme="mass")
    assert spread.n.tolist() == [2, 2, 2, 2, 2]
    tied = reliability.reliability_bins([0.9] * 8 + [0.95, 1.0], [YES] * 10, bins=5, scheme="mass")
    assert tied.n.tolist() == [8, 2]
    assert reliability.reliability_bins([0.9] * 4, [YES] * 4, scheme="mass").n.tolist() == [4]


@pytest.mark.parametrize(("norm", "ours"), [("l1", reliability.ece), ("max", reliability.mce)])
def test_calibration_errors_equal_torchmetrics(
    norm: Literal["l1", "max"], ours: Callable[..., float], answers: Labelled, scored: Judged
) -> None:
    # Here and not above: it takes as long to import as all other tests to run.
    from torchmetrics.classification import MulticlassCalibrationError

    theirs = MulticlassCalibrationError(num_classes=5, n_bins=15, norm=norm)
    expected = float(theirs(torch.tensor(answers.probs), torch.tensor(answers.truth)))
    assert ours(*scored) == pytest.approx(expected, abs=1e-6)


def test_class_wise_ece_by_hand() -> None:
    # One bin: label 0 has mean probability .7 and share 1/2, label 1 has .3 and 1/2: both gaps are .2
    assert reliability.class_wise_ece([[0.8, 0.2], [0.6, 0.4]], [0, 1], bins=1) == pytest.approx(0.2)


def test_nll_and_brier_equal_scikit_learn(answers: Labelled) -> None:
    assert proper_scores.nll(*answers) == pytest.approx(log_loss(answers.truth, answers.probs))
    expected = brier_score_loss(answers.truth, answers.probs, labels=range(5), scale_by_half=False)
    assert proper_scores.brier(*answers) == pytest.approx(expected)


def test_brier_and_nll_by_hand() -> None:
    # (1 - .7)^2 + .2^2 + .1^2 = .14; -ln .7 = .3567
    assert proper_scores.brier([[0.7, 0.2, 0.1]], [0]) == pytest.approx(0.14)
    assert proper_scores.nll([[0.7, 0.2, 0.1]], [0]) == pytest.approx(0.3567, abs=1e-4)


def test_a_zero_given_to_the_truth_costs_the_stated_floor() -> None:
    assert proper_scores.nll([[1.0, 0.0]], [1]) == pytest.approx(12 * np.log(10))


def test_ocr_counts_what_is_wrong_at_tau_or_above_among_all_cases() -> None:
    # wrong at .8 and at .95, of five cases
    assert reliability.ocr([0.8, 0.95, 0.79, 0.9, 0.1], [NO, NO, NO, YES, YES]) == pytest.approx(2 / 5)
    assert reliability.ocr([0.8, 0.95, 0.79, 0.9, 0.1], [NO, NO, NO, YES, YES], tau=0.9) == pytest.approx(1 / 5)


def test_ccc_equals_scipy_and_auroc_of_confidence_scikit_learn(scored: Judged) -> None:
    assert reliability.ccc(*scored) == pytest.approx(pearsonr(scored.confidence, scored.correct).statistic)
    assert reliability.auroc_of_confidence(*scored) == pytest.approx(roc_auc_score(scored.correct, scored.confidence))


def test_what_is_undefined_is_nan() -> None:
    constant = np.full(1000, 0.95)
    assert np.isnan(reliability.ccc(constant, np.arange(1000) % 2))
    assert np.isnan(reliability.ccc([0.1, 0.9], [YES, YES]))
    assert np.isnan(reliability.auroc_of_confidence([0.1, 0.9], [NO, NO]))
    for metric in (reliability.ece, reliability.mce, reliability.ocr, reliability.ccc, reliability.direction):
        assert np.isnan(metric([], []))
    assert np.isnan(reliability.ece([], [], scheme="mass"))
    for proper in (proper_scores.nll, proper_scores.brier, reliability.class_wise_ece):
        assert np.isnan(proper(np.empty((0, 3)), []))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reliability.ece([0.5, 1.5], [YES, NO]), "confidence: 1 of 2 are not in [0, 1]"),
        (lambda: reliability.ece([0.5, np.nan], [YES, NO]), "confidence: 1 of 2 are not finite numbers"),
        (lambda: reliability.ece([0.5, 0.5], [YES]), "correct: expected [N=2], got (1,)"),
        (lambda: reliability.ece([0.5], [2]), "correct: expected booleans"),
        (lambda: reliability.ece([0.5], [YES], bins=0), "bins: expected at least 1"),
        (lambda: proper_scores.nll([0.5, 0.5], [0]), "probs: expected [N, K >= 2], got (2,)"),
        (lambda: proper_scores.nll([[0.5, 0.4]], [0]), "probs: 1 of 1 rows do not sum to 1"),
        (lambda: proper_scores.nll([[0.5, 0.5]], [2]), "truth: expected whole numbers from 0 to 1"),
        (lambda: selective.risk_at_coverage([1], [YES], 0), "coverage: expected above 0"),
        (lambda: ood.fpr_at_recall([1], [2], recall=0), "recall: expected above 0"),
        (lambda: baselines.baselines([[[0.5, np.nan]]], [0], 0), "nan in some"),
        (lambda: baselines.baselines([[[0.5, 0.5]]], [0], 1), "best: expected 0 to 0"),
        (lambda: accuracy.accuracy([0, 1], [0]), "labels, truth: expected [N] both"),
    ],
)
def test_what_is_not_a_metric_s_input_is_refused_in_words(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert message in str(caught.value)


@given(judged(), st.integers(1, 20), st.sampled_from(["width", "mass"]), st.data())
def test_ece_is_a_share_below_mce_above_the_overall_gap_and_blind_to_order(
    cases: Judged, bins: int, scheme: Scheme, data: st.DataObject
) -> None:
    value = reliability.ece(*cases, bins, scheme)
    order = data.draw(permutations(len(cases.correct)))
    assert 0 <= value <= 1
    assert value <= reliability.mce(*cases, bins, scheme) + 1e-12
    # |sum of gaps| <= sum of |gaps|
    assert value >= abs(reliability.direction(*cases)) - 1e-12
    assert reliability.ece(cases.confidence[order], cases.correct[order], bins, scheme) == pytest.approx(value)
    assert reliability.reliability_bins(*cases, bins, scheme).n.sum() == len(order)


@given(judged(), st.sampled_from(["width", "mass"]))
def test_knowing_what_is_right_gives_no_calibration_error(cases: Judged, scheme: Scheme) -> None:
    assert reliability.ece(cases.correct.astype(float), cases.correct, scheme=scheme) == 0


@given(judged())
def test_ccc_is_a_correlation_that_turns_round_when_right_and_wrong_are_swapped(cases: Judged) -> None:
    value = reliability.ccc(*cases)
    undefined = len(set(cases.confidence)) < 2 or len(set(cases.correct)) < 2
    assert np.isnan(value) if undefined else -1 <= value <= 1
    assert reliability.ccc(cases.confidence, ~cases.correct) == pytest.approx(-value, nan_ok=True)


@given(labelled())
def test_brier_and_class_wise_ece_keep_their_ranges_and_the_truth_scores_zero(cases: Labelled) -> None:
    assert -1e-12 <= proper_scores.brier(*cases) <= 2
    assert 0 <= reliability.class_wise_ece(*cases) <= 1
    perfect = np.eye(cases.probs.shape[1])[cases.truth]
    assert proper_scores.brier(perfect, cases.truth) == proper_scores.nll(perfect, cases.truth) == 0


def test_the_parts_of_a_brier_score_by_hand() -> None:
    # Label 0 is given .8 twice (true once) and .3 twice (never true); overall 1/4.
    # reliability 1/2 (.8 - .5)^2 + 1/2 (.3 - 0)^2 = .09, resolution 1/2 (.5 - .25)^2 + 1/2 (0 - .25)^2 = .0625,
    # uncertainty .25 x .75 = .1875; label 1 mirrors label 0, so everything is doubled.
    probs = [[0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.3, 0.7]]
    parts = proper_scores.brier_parts(probs, [0, 1, 1, 1])
    assert parts == pytest.approx((0.18, 0.125, 0.375, 0.0))
    assert parts.score == pytest.approx(proper_scores.brier(probs, [0, 1, 1, 1]))
    # One bin: said .8 and .6 of label 0, true and false. reliability (.7 - .5)^2 = .04, resolution 0, uncertainty .25;
    # within: variance .01 less twice the covariance .1 x .5 = .05. Doubled, .4 = .2^2 + .6^2 times two cases' mean.
    parts = proper_scores.brier_parts([[0.8, 0.2], [0.6, 0.4]], [0, 1], bins=1)
    assert parts == pytest.approx((0.08, 0.0, 0.5, 2 * (0.01 - 2 * 0.05)))
    assert parts.score == pytest.approx(0.4)


@given(labelled(), st.one_of(st.none(), st.integers(1, 20)), st.sampled_from(["width", "mass"]))
def test_the_parts_of_a_brier_score_sum_to_it(cases: Labelled, bins: int | None, scheme: Scheme) -> None:
    parts = proper_scores.brier_parts(*cases, bins, scheme)
    assert parts.score == pytest.approx(proper_scores.brier(*cases), abs=1e-12)
    assert min(parts.reliability, parts.resolution, parts.uncertainty) >= 0
    assert parts.resolution <= parts.uncertainty + 1e-12
    if bins is None:
        assert parts.within == 0


def test_equal_forecasts_have_the_parts_of_their_shares() -> None:
    # Always saying the labels' shares: nothing but uncertainty, 1 - (1/2)^2 - (1/4)^2 - (1/4)^2 = .625
    parts = proper_scores.brier_parts([[0.5, 0.25, 0.25]] * 4, [0, 0, 1, 2])
    assert parts == pytest.approx((0.0, 0.0, 0.625, 0.0))
    assert np.isnan(proper_scores.brier_parts(np.empty((0, 3)), [])).all()


RECORDS = (
    Path(os.environ.get("SECONDLOOK_DATA", Path(__file__).parents[2] / "shared" / "data")) / "orchestrator-agent-trust"
)


@pytest.mark.skipif(not RECORDS.is_dir(), reason="the recorded answers are not on this machine")
@pytest.mark.parametrize(
    ("file", "agent", "right", "ece", "wrong_at_80"),
    [
        # ECE as an independent computation with ten bins gave it, to three digits; counts are of 160 images.
        ("case1_zero_shot.csv", "Qwen", 72, 0.493, 88),
        ("case1_zero_shot.csv", "GPT", 91, 0.322, 68),
        ("case1_zero_shot.csv", "Orchestrator", 77, 0.436, 83),
        ("case3_trust_rag.csv", "RAG", 154, 0.067, 0),
        ("case3_trust_rag.csv", "Qwen_1", 79, 0.453, 81),
        ("case3_trust_rag.csv", "GPT_1", 94, 0.310, 66),
        ("case3_trust_rag.csv", "Qwen", 117, 0.190, 41),
        ("case3_trust_rag.csv", "GPT", 140, 0.071, 17),
        ("case3_trust_rag.csv", "Orchestrator", 137, 0.060, 22),
    ],
)
def test_recorded_answers_have_the_calibration_error_found_elsewhere(
    file: str, agent: str, right: int, ece: float, wrong_at_80: int
) -> None:
    with (RECORDS / file).open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    confidence = [float(row[f"{agent}_confidence"]) for row in rows]
    correct = [row[agent].strip() == row["Category"].strip() for row in rows]
    assert sum(correct) == right
    assert reliability.ece(confidence, correct, bins=10) == pytest.approx(ece, abs=6e-4)
    assert reliability.ocr(confidence, correct) == pytest.approx(wrong_at_80 / 160)


# --- selective ---


def test_risk_and_coverage_by_hand() -> None:
    # .9: 2 accepted, 1 wrong; .5: 3, 1; .2: 5, 3
    trust, right = [0.2, 0.9, 0.5, 0.9, 0.2], [NO, YES, YES, NO, NO]
    curve = selective.risk_coverage(trust, right)
    np.testing.assert_allclose(curve.coverage, [0.4, 0.6, 1])
    np.testing.assert_allclose(curve.risk, [1 / 2, 1 / 3, 3 / 5])
    assert curve.threshold.tolist() == [0.9, 0.5, 0.2]
    # .4 x 1/2 + .2 x 1/3 + .4 x 3/5
    assert selective.aurc(trust, right) == pytest.approx(0.2 + 0.2 / 3 + 0.24)
    # best order: risks 0 0 1/3 2/4 3/5, mean .2866667
    assert selective.best_aurc(right) == pytest.approx((1 / 3 + 1 / 2 + 3 / 5) / 5)
    assert selective.excess_aurc(trust, right) == pytest.approx(0.22)
    assert selective.risk_at_coverage(trust, right, 0.4) == pytest.approx(1 / 2)
    assert selective.risk_at_coverage(trust, right, 0.41) == pytest.approx(1 / 3)
    assert selective.coverage_at_risk(trust, right, 1 / 3) == pytest.approx(0.6)
    assert selective.coverage_at_risk(trust, right, 0.3) == 0
    assert selective.coverage_at_risk(trust, right, 0.6) == 1


def test_no_case_has_no_risk() -> None:
    assert all(len(part) == 0 for part in selective.risk_coverage([], []))
    undefined = [selective.aurc([], []), selective.excess_aurc([], []), selective.best_aurc([])]
    undefined += [selective.risk_at_coverage([], [], 0.5), selective.coverage_at_risk([], [], 0.5)]
    assert np.isnan(undefined).all()


@given(judged(), st.data())
def test_aurc_lies_between_the_best_and_the_worst_order(cases: Judged, data: st.DataObject) -> None:
    value = selective.aurc(*cases)
    order = data.draw(permutations(len(cases.correct)))
    rank = np.arange(1, len(order) + 1)
    worst = np.mean(np.minimum(rank, np.count_nonzero(~cases.correct)) / rank)
    assert selective.best_aurc(cases.correct) - 1e-12 <= value <= worst + 1e-12
    assert selective.aurc(cases.confidence[order], cases.correct[order]) == pytest.approx(value)
    assert selective.excess_aurc(cases.correct, cases.correct) == pytest.approx(
        selective.aurc(cases.correct, cases.correct) - selective.best_aurc(cases.correct)
    )


@given(judged())
def test_the_curve_ends_at_full_coverage_and_the_overall_risk(cases: Judged) -> None:
    curve = selective.risk_coverage(*cases)
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == pytest.approx(1 - cases.correct.mean())
    assert (np.diff(curve.coverage) > 0).all()
    assert (np.diff(curve.threshold) < 0).all()
    constant = np.full(len(cases.correct), 0.3)
    assert selective.aurc(constant, cases.correct) == pytest.approx(1 - cases.correct.mean())


@given(judged())
def test_aurc_is_the_mean_over_cases_of_the_risk_at_their_own_trust(cases: Judged) -> None:
    trust, right = cases
    risks = [np.mean(~right[trust >= own]) for own in trust]
    assert selective.aurc(trust, right) == pytest.approx(np.mean(risks))


@given(judged(), st.floats(0, 1))
def test_what_coverage_at_risk_accepts_keeps_the_risk(cases: Judged, risk: float) -> None:
    coverage = selective.coverage_at_risk(*cases, risk)
    assert coverage == 0 or selective.risk_at_coverage(*cases, coverage) <= risk + 1e-9


# --- strangers ---


def test_strangers_by_hand() -> None:
    # pairs won: 3 over .1 .2 .3 (3), .2 over .1 (1) and tied with .2 (1/2): 4.5 of 6
    inside, outside = [0.1, 0.2, 0.3], [3.0, 0.2]
    assert ood.auroc(inside, outside) == pytest.approx(4.5 / 6)
    # to let in two of three own images the threshold is .2, and .2 itself is let in
    assert ood.fpr_at_recall(inside, outside, recall=2 / 3) == pytest.approx(1 / 2)
    # found: 3 (precision 1, recall 1/2), then .3 (own), then both .2 (precision 2/4, recall 1)
    assert ood.aupr(inside, outside) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4)


def test_fpr95_equals_scikit_learn_with_ties() -> None:
    # Their curve finds the own images: the first threshold whose recall reaches 95 %.
    rng = np.random.default_rng(4)
    inside, outside = rng.normal(size=200).round(1), rng.normal(2, size=90).round(1)
    fpr, tpr, _ = roc_curve(np.repeat([1, 0], [200, 90]), -np.concatenate([inside, outside]), drop_intermediate=False)
    assert ood.fpr_at_recall(inside, outside) == pytest.approx(fpr[np.flatnonzero(tpr >= 0.95)[0]])


def test_fpr95_lets_in_19_of_20() -> None:
    assert ood.fpr_at_recall(np.arange(20), [17.5, 18, 18.5, 30]) == pytest.approx(2 / 4)


def test_stranger_metrics_equal_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(size=300).round(1), rng.normal(1, size=80).round(1)
    truth, score = np.repeat([0, 1], [300, 80]), np.concatenate([inside, outside])
    assert ood.auroc(inside, outside) == pytest.approx(roc_auc_score(truth, score))
    assert ood.aupr(inside, outside) == pytest.approx(average_precision_score(truth, score))
    assert ood.aupr(-outside, -inside) == pytest.approx(average_precision_score(1 - truth, -score))


def test_without_strangers_nothing_can_be_said_of_them() -> None:
    assert np.isnan([f([1.0], []) for f in (ood.auroc, ood.fpr_at_recall, ood.aupr)]).all()
    assert np.isnan([f([], [1.0]) for f in (ood.auroc, ood.fpr_at_recall, ood.aupr)]).all()


@given(judged(), judged())
def test_swapping_the_sides_mirrors_auroc(a: Judged, b: Judged) -> None:
    forth, back = ood.auroc(a.confidence, b.confidence), ood.auroc(b.confidence, a.confidence)
    assert forth + back == pytest.approx(1)
    assert 0 <= ood.fpr_at_recall(a.confidence, b.confidence) <= 1


# --- accuracy ---


def test_a_missing_answer_is_wrong_everywhere() -> None:
    labels, truth = [0, 0, -1, 1], [0, 1, 1, 1]
    assert accuracy.accuracy(labels, truth) == 0.5
    assert accuracy.confusion(labels, truth, 2).tolist() == [[1, 0, 0], [1, 1, 1]]
    # label 0 found 1 of 1, label 1 found 1 of 3
    assert accuracy.balanced_accuracy(labels, truth, 2) == pytest.approx((1 + 1 / 3) / 2)
    # F1: 2 x 1 / (2 given + 1 true), 2 x 1 / (1 + 3)
    assert accuracy.macro_f1(labels, truth, 2) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_label_metrics_equal_scikit_learn(answers: Labelled) -> None:
    said, truth = answers.probs.argmax(axis=1), answers.truth
    assert accuracy.balanced_accuracy(said, truth, 5) == pytest.approx(balanced_accuracy_score(truth, said))
    assert accuracy.macro_f1(said, truth, 5) == pytest.approx(f1_score(truth, said, average="macro"))
    assert accuracy.matthews(said, truth, 5) == pytest.approx(matthews_corrcoef(truth, said))
    with_gaps = np.where(truth % 7 == 0, -1, said)
    assert accuracy.matthews(with_gaps, truth, 5) == pytest.approx(matthews_corrcoef(truth, with_gaps))


def test_kappa_by_hand() -> None:
    # 0 1 2 2 called 0 1 2 1: one miss by one place, cost 1. By chance: true (1, 2, 1), given (1, 1, 2), costs
    # 1 x (1 + 2 x 4) + 2 x (1 + 2) + 1 x (4 + 1) = 20, over 4 = 5. Kappa 1 - 1/5.
    assert accuracy.kappa([0, 1, 2, 2], [0, 1, 2, 1], 3) == pytest.approx(0.8)
    # No answer to a 0 of three costs 2 places, to a 2 of three too.
    assert accuracy.kappa([0, 2, -1], [0, 2, 0], 3) == pytest.approx(accuracy.kappa([0, 2, 2], [0, 2, 0], 3))
    assert accuracy.kappa([0, 2, -1], [0, 2, 2], 3) == pytest.approx(accuracy.kappa([0, 2, 0], [0, 2, 2], 3))
    assert np.isnan([accuracy.kappa([1, 1], [1, 1], 3), accuracy.kappa([], [], 3)]).all()
    with pytest.raises(ValueError, match="power: expected 0 or more"):
        accuracy.kappa([0], [0], 2, power=-1)


@pytest.mark.parametrize(("power", "weights"), [(0, None), (1, "linear"), (2, "quadratic")])
def test_kappa_equals_scikit_learn(power: int, weights: str | None, answers: Labelled) -> None:
    said, truth = answers.probs.argmax(axis=1), answers.truth
    assert accuracy.kappa(said, truth, 5, power) == pytest.approx(cohen_kappa_score(truth, said, weights=weights))


def test_labels_without_cases_are_left_out_and_no_case_is_nan() -> None:
    np.testing.assert_allclose(accuracy.recalls([0, 1], [0, 0], 3), [0.5, np.nan, np.nan])
    assert np.isnan(accuracy.matthews([0, 0], [0, 1], 2))
    assert np.isnan(accuracy.accuracy([], []))
    assert np.isnan([f([], [], 3) for f in (accuracy.balanced_accuracy, accuracy.macro_f1, accuracy.matthews)]).all()


# --- prediction sets ---


def test_sets_by_hand() -> None:
    # Sets {0, 1}, {1}, {}, {0, 1, 2} of the truths 0, 0, 2, 2: the first and the last hold theirs.
    members = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert set_coverage(members, [0, 0, 2, 2]) == 0.5
    assert set_size(members) == 6 / 4
    by_label = coverage_by_label(members, [0, 0, 2, 2])
    assert by_label.n.tolist() == [2, 0, 2]
    np.testing.assert_array_equal(by_label.coverage, [0.5, np.nan, 0.5])
    by_size = coverage_by_size(members, [0, 0, 2, 2])
    assert [by_size.value.tolist(), by_size.coverage.tolist()] == [[0, 1, 2, 3], [0, 0, 1, 1]]
    assert (by_label.least, by_size.least) == (0.5, 0)


def test_no_set_has_no_coverage() -> None:
    none = np.empty((0, 3), dtype=bool)
    assert np.isnan([set_coverage(none, []), set_size(none), coverage_by_label(none, []).least]).all()
    assert np.isnan(coverage_by_size(none, []).least)
    assert coverage_by_size(none, []).value.tolist() == []


# --- errors made together ---


def test_errors_made_together_by_hand() -> None:
    # Errors 1 1 0 0 0, 1 0 0 0 1 and 1 1 1 1 1. First two: 1 of 5 together, phi (5 x 1 - 2 x 2) / (2 x 3) = 1/6.
    # They agree on cases 0 (both say 1, wrong), 2 and 3: 3 of 5, a third of it wrong.
    truth = [0, 0, 0, 1, 1]
    found = error_correlation([[1, 2, 0, 1, 1], [1, 0, 0, 1, 2], [2, 2, 2, 2, 2]], truth)
    assert found.phi[0, 1] == pytest.approx(1 / 6)
    assert (found.both_wrong[0, 1], found.agree[0, 1]) == pytest.approx((1 / 5, 3 / 5))
    assert (found.wrong_of_agreed[0, 1], found.agree_wrong[0, 1]) == pytest.approx((1 / 3, 1 / 5))
    # who always errs has no correlation; the third agrees with the first on the wrong 2 of case 1 alone
    assert np.isnan(found.phi[2]).all()
    assert (found.agree[0, 2], found.wrong_of_agreed[0, 2]) == pytest.approx((1 / 5, 1))
    np.testing.assert_allclose(np.diag(found.phi), [1, 1, np.nan])
    for part in found:
        np.testing.assert_array_equal(part, part.T)


def test_a_failure_is_no_error_and_leaves_the_case_out_of_its_pairs() -> None:
    found = error_correlation([[0, 1, -1, 1], [0, 1, 1, -1], [-1, -1, -1, -1]], [0, 0, 0, 0])
    assert found.n.tolist() == [[3, 2, 0], [2, 3, 0], [0, 0, 0]]
    assert (found.phi[0, 1], found.both_wrong[0, 1], found.agree[0, 1]) == pytest.approx((1, 1 / 2, 1))
    assert np.isnan([part[0, 2] for part in (*found[1:], found.agree_wrong)]).all()
    with pytest.raises(ValueError, match=r"labels: expected \[M >= 1, N\], got \(2,\)"):
        error_correlation([0, 1], [0, 1])


def test_phi_equals_pearson_s_correlation_of_the_errors(answers: Labelled) -> None:
    rng = np.random.default_rng(2)
    said = np.stack([answers.probs.argmax(axis=1), rng.integers(5, size=600), answers.probs[::-1].argmax(axis=1)])
    np.testing.assert_allclose(error_correlation(said, answers.truth).phi, np.corrcoef(said != answers.truth))


@pytest.mark.skipif(not RECORDS.is_dir(), reason="the recorded answers are not on this machine")
def test_the_agreement_of_the_recorded_agents_is_wrong_as_often_as_counted_elsewhere() -> None:
    # The first looks of the third file: agreed on 65 % of the 160 images, and wrong on 36 % of those.
    with (RECORDS / "case3_trust_rag.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    said = {column: [row[column].strip() for row in rows] for column in ("Qwen_1", "GPT_1", "Category")}
    names = sorted({label for column in said.values() for label in column})
    codes = {column: [names.index(label) for label in labels] for column, labels in said.items()}
    found = error_correlation([codes["Qwen_1"], codes["GPT_1"]], codes["Category"])
    assert (found.n[0, 1], found.agree[0, 1]) == (160, pytest.approx(0.65))
    assert found.wrong_of_agreed[0, 1] == pytest.approx(0.36, abs=0.005)


# --- baselines ---

FAILED = [np.nan] * 3


def by_hand() -> tuple[Floats, Ints]:
    """Three agents, four cases; the truths are 0, 1, 2, 2."""
    first = [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], FAILED, FAILED]
    second = [[0.2, 0.8, 0.0], [0.3, 0.4, 0.3], [0.1, 0.5, 0.4], FAILED]
    third = [[0.3, 0.4, 0.3], [0.6, 0.2, 0.2], [0.2, 0.2, 0.6], FAILED]
    return np.array([first, second, third]), np.array([0, 1, 2, 2])


def test_baselines_by_hand() -> None:
    # Case 0: votes 0 1 1, sums 1.4 1.3 .3, confidences .9 for 0 and 1.2 for 1.
    # Case 1: votes 0 1 0, sums 1.5 1.0 .5, confidences 1.2 for 0 and .4 for 1. Only the second agent is right.
    # Case 2: votes 1 2 tie; sums .3 .7 1.0 break it; confidences .5 for 1, .6 for 2.
    # Case 3: nobody answered.
    probs, truth = by_hand()
    said = baselines.baselines(probs, truth, best=0)
    assert {name: labels.tolist() for name, labels in said.items()} == {
        "best_agent": [0, 0, -1, -1],
        "best_in_hindsight": [0, 0, -1, -1],
        "majority": [1, 0, 2, -1],
        "mean": [0, 0, 2, -1],
        "confidence_weighted": [1, 0, 2, -1],
        "oracle": [0, 1, 2, -1],
    }
    np.testing.assert_allclose(baselines.accuracies(probs, truth), [1 / 4, 1 / 4, 1 / 4])


@settings(max_examples=50)
@given(panels(), st.data())
def test_no_choice_among_agents_beats_the_oracle_and_their_order_is_irrelevant(
    panel: Panel, data: st.DataObject
) -> None:
    said = baselines.baselines(*panel, best=0)
    right = {name: np.count_nonzero(labels == panel.truth) for name, labels in said.items()}
    # "mean" is not bound by the oracle: it may settle on a label that no agent puts first.
    assert right["best_agent"] <= right["best_in_hindsight"] <= right["oracle"]
    assert right["majority"] <= right["oracle"]
    assert right["confidence_weighted"] <= right["oracle"]
    silent = np.isnan(panel.probs).all(axis=(0, 2))
    for name in ("majority", "mean", "confidence_weighted", "oracle"):
        assert ((said[name] == -1) == silent).all()
    order = data.draw(permutations(len(panel.probs)))
    again = baselines.baselines(panel.probs[order], panel.truth, best=0)
    np.testing.assert_array_equal(again["oracle"] == panel.truth, said["oracle"] == panel.truth)


@settings(max_examples=25)
@given(panels(max_agents=1))
def test_a_panel_of_one_is_its_only_member(panel: Panel) -> None:
    said = baselines.baselines(*panel, best=0)
    for name in ("best_in_hindsight", "majority", "mean", "confidence_weighted"):
        np.testing.assert_array_equal(said[name], said["best_agent"])


# --- speed ---


def test_every_metric_of_100_000_cases_takes_about_a_second() -> None:
    rng = np.random.default_rng(0)
    probs, truth = rng.dirichlet(np.ones(7), size=100_000), rng.integers(7, size=100_000)
    conf, right = probs.max(axis=1), probs.argmax(axis=1) == truth
    calls: dict[str, Callable[[], object]] = {
        "ece": lambda: reliability.ece(conf, right),
        "ece by mass": lambda: reliability.ece(conf, right, scheme="mass"),
        "class-wise": lambda: reliability.class_wise_ece(probs, truth),
        "nll": lambda: proper_scores.nll(probs, truth),
        "brier": lambda: proper_scores.brier(probs, truth),
        "auroc": lambda: reliability.auroc_of_confidence(conf, right),
        "aurc": lambda: selective.excess_aurc(conf, right),
        "matthews": lambda: accuracy.matthews(probs.argmax(axis=1), truth, 7),
        "baselines": lambda: baselines.baselines(probs[None], truth, 0),
    }
    for name, call in calls.items():
        start = time.process_time()
        call()
        # A wide margin: a loop over cases in Python, not a busy machine, is what must fail here.
        assert time.process_time() - start < 2, name
