"""Answers in words: how they are written down, calibrated by a table, and named where they say hardly anything."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError
from strategies import UNIT

from secondlook.agents.calibration import (
    Calibrated,
    Calibrator,
    fit_calibrator,
    log_distribution,
    log_distributions,
)
from secondlook.agents.case import Case
from secondlook.agents.fakes import ScriptedAgent
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Outcome, Prediction, Scale, stated
from secondlook.eval.held_out import calibrate_all
from secondlook.eval.record import confidence_notes, degenerate, track_records
from secondlook.eval.reliability import ece
from secondlook.orchestrator.track_record import TrackRecord

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
LABELS = ("healthy", "rust", "scab", "black-rot")
SCALES: tuple[Scale, ...] = ("logit", "probability", "vote", "stated", "sampled")


def every(n: int, folds: int = 5) -> Ints:
    return np.arange(n, dtype=np.intp) % folds


def words(n: int, rng: np.random.Generator, k: int = 4) -> tuple[Ints, Floats, Ints]:
    """Labels right in .8 of the cases at .95, .5 at .9 and .85, mostly mistaken for the next one; and the truth."""
    truth, sure = rng.integers(0, k, n), rng.choice([0.85, 0.9, 0.95], n)
    right = rng.random(n) < np.where(sure > 0.92, 0.8, 0.5)
    off = np.where(rng.random(n) < 0.7, 1, rng.integers(1, k, n))
    return np.where(right, truth, (truth + off) % k), sure, truth


def said(labels: Ints, sure: Floats | None, k: int = 4) -> list[Outcome]:
    confidences = [None] * len(labels) if sure is None else sure.tolist()
    return [stated("words", 1, int(j), c, k) for j, c in zip(labels, confidences, strict=True)]


def log_said(labels: Ints, sure: Floats | None, k: int = 4) -> Floats:
    return log_distributions([p for p in said(labels, sure, k) if isinstance(p, Prediction)])[0]


# How words are written down.


@given(confidence=st.none() | UNIT, k=st.integers(2, 20), data=st.data())
def test_the_label_said_is_the_top_label_whatever_the_confidence(confidence: float | None, k: int, data: Any) -> None:
    label = data.draw(st.integers(0, k - 1))
    prediction = stated("words", 2, label, confidence, k)
    assert (prediction.top, prediction.look, prediction.scale) == (label, 2, "stated")
    assert sum(score > 0 for score in prediction.scores) == 1
    for calibrator in (Calibrator(), Calibrator(kind="temperature", temperature=5.0)):
        probs = calibrator.apply(log_said(np.array([label]), None if confidence is None else np.array([confidence]), k))
        assert probs[0].argmax() == label
        assert (np.delete(probs[0], label) < probs[0, label]).all()


@pytest.mark.parametrize("confidence", [-0.1, 1.1, 95.0, math.nan])
def test_a_confidence_that_is_no_share_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        stated("words", 1, 0, confidence, 4)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_none_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 3"):
        stated("words", 1, label, 0.5, 4)


def test_the_others_share_what_the_label_leaves() -> None:
    q = np.exp(log_distribution(np.array([[0.0, 0.85, 0.0, 0.0]]), "stated"))
    np.testing.assert_allclose(q, [[0.05, 0.85, 0.05, 0.05]])


@given(confidences=hnp.arrays(np.float64, st.integers(2, 20), elements=UNIT), k=st.integers(2, 20))
def test_who_is_surer_stays_surer_below_chance_too(confidences: Floats, k: int) -> None:
    q = np.exp(log_said(np.zeros(len(confidences), dtype=np.intp), confidences, k))
    np.testing.assert_allclose(q.sum(axis=1), 1)
    ordered = q[np.argsort(confidences, kind="stable"), 0]
    assert (np.diff(ordered) >= -1e-15).all()
    assert (ordered > 1 / k).all() or k * 1e-9 < 1e-7
    apart = np.diff(np.sort(confidences)) > 2e-3
    assert (np.diff(ordered)[apart] > 0).all()


def test_one_agents_answers_may_be_of_several_kinds() -> None:
    mixed = [
        stated("words", 1, 1, 0.7, 3),
        Prediction(agent="words", scale="probability", scores=(0.5, 0.3, 0.2)),
        stated("words", 1, 2, 0.4, 3),
    ]
    log_q, scale = log_distributions(mixed)
    assert scale == "stated"
    np.testing.assert_allclose(np.exp(log_q), [[0.15, 0.7, 0.15], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]], atol=1e-9)


# How they are calibrated.


def test_words_that_are_no_probabilities_become_some(rng: np.random.Generator) -> None:
    labels, sure, truth = words(4000, rng)
    log_q = log_said(labels, sure)
    calibrator, probs = fit_calibrator(log_q[:1000], truth[:1000], every(1000), "stated")
    assert calibrator.kind == "table"
    assert calibrator.table is not None
    assert calibrator.table.n_bins == 3
    before, after = np.exp(log_q[1000:]), calibrator.apply(log_q[1000:])
    right = labels[1000:] == truth[1000:]
    assert ece(before.max(axis=1), right) > 0.25
    assert ece(after.max(axis=1), after.argmax(axis=1) == truth[1000:]) < 0.04
    # Not the words decide what a grade is worth: .85 and .9 are worth the same.
    grades = calibrator.apply(log_said(np.zeros(3, dtype=np.intp), np.array([0.85, 0.9, 0.95])))[:, 0]
    np.testing.assert_allclose(grades, [0.5, 0.5, 0.8], atol=0.08)
    np.testing.assert_allclose(-np.log(probs[np.arange(1000), truth[:1000]]).mean(), calibrator.nll)


@pytest.mark.parametrize("constant", [None, 0.0, 0.3, 0.95, 1.0])
def test_a_constant_confidence_is_worth_its_label_and_no_more(constant: float | None, rng: np.random.Generator) -> None:
    labels, _, truth = words(300, rng)
    log_q = log_said(labels, None if constant is None else np.full(300, constant))
    calibrator, _ = fit_calibrator(log_q, truth, every(300), "stated")
    probs = calibrator.apply(log_q)
    for j in range(4):
        assert len(np.unique(probs[labels == j], axis=0)) == 1, "one answer for each label"
    assert abs(probs.max(axis=1).mean() - np.mean(labels == truth)) < 0.05, "as sure as it is right, whatever it says"


def test_only_words_votes_and_samples_get_a_table_and_words_no_vector(rng: np.random.Generator) -> None:
    from secondlook.agents.calibration import _candidates

    tried = {scale: {name.split()[0] for name in _candidates(scale, 4)} for scale in SCALES}
    assert tried == {
        "logit": {"none", "temperature", "vector"},
        "probability": {"none", "temperature", "vector"},
        "vote": {"none", "temperature", "vector", "table"},
        "sampled": {"none", "temperature", "vector", "table"},
        "stated": {"none", "temperature", "table"},
    }
    assert "table" not in {name.split()[0] for name in _candidates("stated", 1001)}


def test_words_that_are_true_are_left_alone(rng: np.random.Generator) -> None:
    truth, sure = rng.integers(0, 4, 2000), rng.uniform(0.4, 1, 2000)
    labels = np.where(rng.random(2000) < sure, truth, (truth + rng.integers(1, 4, 2000)) % 4)
    assert fit_calibrator(log_said(labels, sure), truth, every(2000), "stated")[0].kind in ("none", "temperature")


@pytest.mark.parametrize("folds", [None, np.zeros(8, dtype=np.intp)], ids=["no folds", "a single fold"])
def test_without_two_folds_words_get_a_table_and_numbers_a_temperature(folds: Ints | None) -> None:
    truth = np.arange(8) % 4
    log_q = log_said(truth, np.full(8, 0.9))
    for scale in SCALES:
        calibrator, probs = fit_calibrator(log_q, truth, folds, scale)
        assert calibrator.kind == ("table" if scale == "stated" else "temperature")
        assert (calibrator.n, math.isnan(calibrator.nll)) == (8, True)
        assert (probs.argmax(axis=1) == truth).all()


@pytest.mark.parametrize("scale", SCALES)
def test_a_set_without_a_single_error_promises_nothing_certain(scale: Scale) -> None:
    truth = np.arange(80) % 4
    scores = 3 * np.eye(4)[truth] if scale == "logit" else 0.9 * np.eye(4)[truth] + 0.1 * (scale != "stated") / 4
    calibrator, probs = fit_calibrator(log_distribution(scores, scale), truth, every(80), scale)
    assert (probs.argmax(axis=1) == truth).all()
    assert 0.8 < probs.max() < 1 - 1e-6
    assert np.isfinite(calibrator.nll)


@pytest.mark.parametrize("scale", SCALES)
def test_one_class_only_is_calibrated_to_something_finite(scale: Scale, rng: np.random.Generator) -> None:
    labels, sure, _ = words(60, rng)
    calibrator, probs = fit_calibrator(log_said(labels, sure), np.ones(60, dtype=np.intp), every(60), scale)
    assert np.isfinite(probs).all()
    assert calibrator.apply(log_said(labels, sure)).mean(axis=0).argmax() == 1


@settings(max_examples=40)
@given(
    labels=hnp.arrays(np.int64, 24, elements=st.integers(0, 3)),
    truth=hnp.arrays(np.int64, 24, elements=st.integers(0, 3)),
    sure=hnp.arrays(np.float64, 24, elements=UNIT),
    scale=st.sampled_from(SCALES),
    folds=st.sampled_from([None, every(24, 3)]),
)
def test_whatever_is_fitted_comes_back_from_json_the_same(
    labels: Ints, truth: Ints, sure: Floats, scale: Scale, folds: Ints | None
) -> None:
    log_q = log_said(labels, sure)
    calibrator, probs = fit_calibrator(log_q, truth, folds, scale)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    text = calibrator.model_dump_json()
    again = Calibrator.model_validate_json(text)
    assert again.model_dump_json() == text
    np.testing.assert_array_equal(again.apply(log_q), calibrator.apply(log_q))


def test_a_table_without_its_counts_is_refused() -> None:
    with pytest.raises(ValidationError, match="the kind is table"):
        Calibrator.model_validate_json('{"kind": "table"}')


def test_the_wrapper_applies_the_table_and_keeps_what_was_said(rng: np.random.Generator) -> None:
    labels, sure, truth = words(200, rng)
    calibrator, _ = fit_calibrator(log_said(labels, sure), truth, every(200), "stated")
    agent = Calibrated(ScriptedAgent("words", (0.0, 0.9, 0.0, 0.0), scale="stated"), {1: calibrator})
    (outcome,) = asyncio.run(agent.predict([Case(id="a", photo=Photo.of(bytes(8)))]))
    assert isinstance(outcome, Prediction)
    assert outcome.said is not None
    np.testing.assert_allclose(outcome.said, [0.1 / 3, 0.9, 0.1 / 3, 0.1 / 3])
    expected = calibrator.apply(log_said(np.array([1]), np.array([0.9])))[0]
    np.testing.assert_allclose(outcome.scores, expected)


# How they are recorded.


def record_of(outcomes: list[Outcome], truth: Ints) -> TrackRecord:
    n = len(truth)
    answers = calibrate_all({"words": outcomes}, truth, every(n), 4)
    return track_records(answers, truth, [f"g{i}" for i in range(n)], LABELS, np.random.default_rng(0))[0]


def test_an_agent_that_says_three_values_is_named(rng: np.random.Generator) -> None:
    labels, sure, truth = words(300, rng)
    record = record_of(said(labels, sure), truth)
    assert (record.confidences, record.degenerate) == (3, "says 3 values: .85, .9, .95")
    assert record.calibrator == "answer table, 3 confidence bins"
    assert confidence_notes([record]) == [
        "words says 3 values: .85, .9, .95 (calibrated by: answer table, 3 confidence bins)."
    ]


def test_an_agent_that_says_one_value_is_named_and_so_is_one_that_says_none(rng: np.random.Generator) -> None:
    labels, _, truth = words(60, rng)
    record = record_of(said(labels, np.full(60, 0.1)), truth)
    assert (record.confidences, record.degenerate) == (1, "says .1 to everything"), (
        "as said, not as lifted above chance"
    )
    assert "tells nothing beyond its label" in confidence_notes([record])[0]
    assert record_of(said(labels, None), truth).degenerate == "says 1 to everything"


def test_an_agent_of_many_confidences_is_not_named(rng: np.random.Generator) -> None:
    labels, _, truth = words(100, rng)
    record = record_of(said(labels, rng.uniform(0.3, 1, 100)), truth)
    assert (record.confidences, record.degenerate) == (100, "")
    assert confidence_notes([record]) == []


def test_numbers_are_named_only_where_they_are_constant(rng: np.random.Generator) -> None:
    labels, sure, truth = words(100, rng)

    def shares(c: Floats) -> list[Outcome]:
        rows = np.eye(4)[labels] * (c - (1 - c) / 3)[:, None] + ((1 - c) / 3)[:, None]
        return [Prediction(agent="words", scale="probability", scores=tuple(row)) for row in rows]

    assert record_of(shares(sure), truth).degenerate == ""
    assert record_of(shares(np.full(100, 0.9)), truth).degenerate == "says .9 to everything"


def test_the_edges_of_degenerate() -> None:
    assert degenerate(np.zeros(0)) == ""
    assert degenerate(np.array([0.9])) == "", "one answer cannot vary"
    assert degenerate(np.array([0.0, 0.0])) == "says 0 to everything"
    assert degenerate(np.tile(np.arange(7) / 10, 9)) == "", "seven values are enough"
    assert degenerate(np.tile([0.9, 0.9 + 1e-9], 10)) == "says .9 to everything", "counted to six decimals"


def test_failures_are_not_counted_as_confidences(rng: np.random.Generator) -> None:
    labels, sure, truth = words(100, rng)
    outcomes = said(labels, sure)
    outcomes[7] = Failure(agent="words", error="no answer")
    record = record_of(outcomes, truth)
    assert (record.confidences, record.n_failed) == (3, 1)
    silent = record_of([Failure(agent="words", error="no answer")] * 100, truth)
    assert (silent.confidences, silent.degenerate, silent.n_failed) == (0, "", 100)


def test_a_record_of_a_former_version_is_still_read(rng: np.random.Generator) -> None:
    labels, sure, truth = words(60, rng)
    record = record_of(said(labels, sure), truth)
    assert TrackRecord.model_validate_json(record.model_dump_json()).degenerate == record.degenerate
    before = record.model_dump(exclude={"confidences", "degenerate"})
    assert TrackRecord.model_validate(before).confidences == 0
