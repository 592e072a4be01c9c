"""Calibration errors and prediction sets against netcal, MAPIE and torchmetrics, which have them too."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from strategies import Judged, Labelled

from secondlook.eval.reliability import class_wise_ece, ece, mce
from secondlook.eval.set_metrics import coverage_by_label, coverage_by_size, set_coverage, set_size


@pytest.fixture(scope="module")
def judged() -> Judged:
    """450 cases, so that 15 bins of equal mass hold 30 each, however their edges are found."""
    rng = np.random.default_rng(7)
    confidence = rng.random(450)
    return Judged(confidence, rng.random(450) < confidence**2)


@pytest.fixture(scope="module")
def answers() -> Labelled:
    rng = np.random.default_rng(8)
    truth = rng.integers(4, size=500)
    weights = np.exp(rng.normal(size=(500, 4)) + np.eye(4)[truth])
    return Labelled(weights / weights.sum(axis=1, keepdims=True), truth)


def test_ece_by_width_and_mass_and_mce_equal_netcal(judged: Judged) -> None:
    metrics = pytest.importorskip("netcal.metrics")
    right = judged.correct.astype(int)
    assert ece(*judged) == pytest.approx(metrics.ECE(15).measure(judged.confidence, right))
    assert mce(*judged) == pytest.approx(metrics.MCE(15).measure(judged.confidence, right))
    by_mass = metrics.ECE(15, equal_intervals=False).measure(judged.confidence, right)
    assert ece(*judged, scheme="mass") == pytest.approx(by_mass)
    # bins of equal mass hold equal numbers, so the adaptive calibration error, a plain mean over bins, is the same
    by_mass = metrics.ACE(15, equal_intervals=False).measure(judged.confidence, right)
    assert ece(*judged, scheme="mass") == pytest.approx(by_mass)


def test_class_wise_ece_is_the_mean_of_torchmetrics_over_the_labels(answers: Labelled) -> None:
    from torchmetrics.classification import BinaryCalibrationError

    theirs = [
        float(BinaryCalibrationError(n_bins=15)(torch.tensor(answers.probs[:, k]), torch.tensor(answers.truth == k)))
        for k in range(4)
    ]
    assert class_wise_ece(*answers) == pytest.approx(np.mean(theirs), abs=1e-6)


def test_set_coverage_and_size_equal_mapie(answers: Labelled) -> None:
    theirs = pytest.importorskip("mapie.metrics.classification")
    sets = answers.probs > 0.15
    assert set_coverage(sets, answers.truth) == pytest.approx(
        float(theirs.classification_coverage_score(answers.truth, sets)[0])
    )
    assert set_size(sets) == pytest.approx(float(theirs.classification_mean_width_score(sets)))
    with warnings.catch_warnings():
        # MAPIE takes means of the sizes that no set has.
        warnings.simplefilter("ignore")
        by_size = theirs.classification_ssc(answers.truth, sets[..., None])[0]
        least = theirs.classification_ssc_score(answers.truth, sets[..., None])[0]
    strata = coverage_by_size(sets, answers.truth)
    np.testing.assert_allclose(strata.coverage, by_size[strata.value])
    assert strata.least == pytest.approx(least)
    for k, coverage in enumerate(coverage_by_label(sets, answers.truth).coverage):
        mine = answers.truth == k
        expected = theirs.classification_coverage_score(answers.truth[mine], sets[mine])[0]
        assert coverage == pytest.approx(float(expected))
